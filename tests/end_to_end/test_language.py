"""boli language as a user runs it, on made-up text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Lines = Callable[[str, int], list[str]]


def boli(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boli.cli.main", "language", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(made_up_lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of bho, hin and mag, and lines that it has not seen."""
    folder = tmp_path_factory.mktemp("language")
    bho, mag, hin = (made_up_lines(name, 700) for name in ("bho", "mag", "hin"))
    (folder / "village.txt").write_text("\n".join(bho[:100]), encoding="utf-8")
    judged = [("BHO", bho), ("HIN", hin), ("MAG", mag)]
    for name, part in (("labeled.tsv", slice(100)), ("judged.tsv", slice(100, 160))):
        rows = [f"{line}\t{code}" for code, lines in judged for line in lines[part]]
        (folder / name).write_text("\n".join(rows[100 * (part.start is None) :]), encoding="utf-8")
    (folder / "new.txt").write_text("\n".join(mag[100:]), encoding="utf-8")
    done = boli("train", f"bho={folder}/village.txt", folder / "labeled.tsv", "--out", folder / "m")
    assert done.returncode == 0, done.stderr
    assert "bho  100 lines, Deva" in done.stdout
    return folder


@pytest.mark.parametrize("adapt", [(), ("--adapt",)])
def test_each_line_is_told_with_a_confidence(folder: Path, adapt: tuple[str, ...]) -> None:
    done = boli("identify", folder / "m", folder / "new.txt", *adapt)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 600
    assert sum(label == "mag" for label, _, _ in rows) >= 570
    assert all(0 <= float(confidence) <= 1 for _, confidence, _ in rows)
    assert [text for _, _, text in rows] == (folder / "new.txt").read_text("utf-8").splitlines()
    assert done.stderr.startswith("600 lines, together mag")


def test_text_that_comes_in_is_told_and_other_scripts_are_und(folder: Path) -> None:
    done = boli("identify", folder / "m", "-", "--adapt", given="plain English\n\n12 34\n")
    assert done.stdout == "und\t0.00\tplain English\nund\t0.00\t12 34\n"
    assert "too few lines" in done.stderr
    assert "1 script, 1 no letters" in done.stderr


def test_evaluation_prints_scores_confusion_and_calibration(folder: Path) -> None:
    done = boli("evaluate", folder / "m", folder / "judged.tsv")
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0].split()
    assert first[0] == "macro-F1"
    assert float(first[1]) > 0.95
    assert "calibration error" in done.stdout
    assert "true \\ told" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("train", "village.txt", "--out", "x"), 11, "does not say which language"),
        (("train", "bho=village.txt", "--out", "x"), 11, "cannot tell"),
        (("train", "bho=none.txt", "mag=new.txt", "--out", "x"), 11, "no text at"),
        (("train", "bad.tsv", "--out", "x"), 11, "line 2 of"),
        (("identify", "m", "empty.txt"), 11, "holds no text"),
        (("identify", "village.txt", "new.txt"), 16, "make it again with boli language train"),
        (("evaluate", "none", "judged.tsv"), 16, "none"),
    ],
)
def test_errors_have_a_hint_and_a_code(
    folder: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    (folder / "bad.tsv").write_text("घर\tbho\nघर mag\n", encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    command = [sys.executable, "-m", "boli.cli.main", "language", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert problem in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
