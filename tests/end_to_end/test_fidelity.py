"""boli fidelity as a user runs it, on made-up text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Lines = Callable[[str, int], list[str]]


def boli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "boli.cli.main", "fidelity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(made_up_lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of bho and hin, and lines that it has not seen."""
    folder = tmp_path_factory.mktemp("fidelity")
    for code in ("bho", "hin"):
        lines = made_up_lines(code, 400)
        for name, part in (("a", lines[:100]), ("b", lines[100:200]), ("new", lines[200:])):
            (folder / f"{code}.{name}").write_text("\n".join(part) + "\n", encoding="utf-8")
    files = [f"{code}={folder}/{code}.{name}" for code in ("bho", "hin") for name in "ab"]
    done = boli("train", *files, "--out", folder / "m")
    assert done.returncode == 0, done.stderr
    assert "bho  200 lines in 2 domains" in done.stdout
    return folder


def test_text_in_its_language_passes_and_other_text_does_not(folder: Path) -> None:
    done = boli("judge", folder / "m", folder / "bho.new", "--language", "bho", "--json")
    assert json.loads(done.stdout)["sentence_pass"] > 0.95
    done = boli("judge", folder / "m", folder / "hin.new", "--language", "bho")
    assert "drifts to       hin" in done.stdout
    done = boli("markers", folder / "m", "--language", "bho", "--against", "hin", "--most", "5")
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("train", "bho.new", "--out", "x"), 11, "does not say which language"),
        (("judge", "m", "bho.new", "--language", "awa"), 11, "awa was not learned"),
        (("judge", "bho.new", "bho.new", "--language", "bho"), 16, "boli fidelity train"),
    ],
)
def test_errors_have_a_hint_and_a_code(
    folder: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    command = [sys.executable, "-m", "boli.cli.main", "fidelity", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert problem in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
