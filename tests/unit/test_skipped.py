"""The list of skipped tests at the end of make test, and what continuous integration refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "skipped.py"


def listed(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=outside | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_reasons_of_both_halves_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "alone.json").write_text(json.dumps({"no real text": 3, "needs espeak-ng": 1}))
    (tmp_path / "together.json").write_text(json.dumps({"no real text": 2}))
    done = listed(tmp_path)
    assert done.returncode == 0
    assert done.stdout.split("\n")[1:4] == [
        "6 tests were skipped:",
        "     5  no real text",
        "     1  needs espeak-ng",
    ]


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("needs espeak-ng", 1),
        ("needs the command ip (package iproute2)", 1),
        ("needs the extra boli[speech]", 1),
        ("something new", 1),
        ("no real text beside the repository", 0),
        ("no device /dev/fuse", 0),
        ("not root", 0),
    ],
)
def test_ci_refuses_what_is_not_expected(tmp_path: Path, reason: str, status: int) -> None:
    (tmp_path / "alone.json").write_text(json.dumps({reason: 1}))
    done = listed(tmp_path, CI="true")
    assert done.returncode == status
    assert (f"because: {reason}" in done.stdout) == bool(status)
    assert listed(tmp_path).returncode == 0  # elsewhere a person reads the list


def test_pytest_writes_why_tests_were_skipped(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    folder = tests / "properties"  # below tests/, so that its conftest.py is read
    source = """
import pytest
@pytest.mark.skipif(True, reason="needs a moon: a full one")
@pytest.mark.parametrize("number", range(2))
def test_one(number): pass
def test_other(): pytest.skip("no real text")
"""
    (tmp_path / "test_made.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tests.parent), "-c", str(tests.parent / "pyproject.toml")]
    command += ["-p", "conftest", "--skipped", str(tmp_path / "new" / "skipped.json")]
    done = subprocess.run(
        [*command, str(tmp_path / "test_made.py")],
        env={**os.environ, "PYTHONPATH": str(tests)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "new" / "skipped.json").read_text())
    assert written == {"needs a moon": 2, "no real text": 1}
