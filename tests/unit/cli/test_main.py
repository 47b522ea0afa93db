"""How the command line ends: as a call inside a process, and as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sealed_run import Writer, lines_of, write_lines

from boli.cli.main import main
from boli.signature import own_fingerprint

MISSING = ("pool", "stats", "no-such-pool")
BOTH_WAYS = """
import sys
import deltalake
from boli.cli.main import main, script

sys.argv = ["boli", "pool", "stats", "no-such-pool"]
try:
    main()
except SystemExit as ended:
    print("ended with", ended.code)
script()
print("never reached")
"""


def test_a_call_ends_with_an_exception_and_not_its_caller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["boli", *MISSING])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 21
    assert "there is no pool" in capsys.readouterr().err


def test_a_process_ends_with_the_exit_code_and_all_that_was_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOTH_WAYS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 21
    assert done.stdout == "ended with 21\n"
    assert done.stderr.count("there is no pool") == 2


def verify(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> object:
    """Return the exit code of `boli verify`."""
    monkeypatch.setattr(sys, "argv", ["boli", "verify", str(folder), *more])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_verify_says_what_is_whole_and_who_signed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path / "run-1")
    writer.stop(writer.step(writer.begin()))
    assert verify(writer.folder, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert f"3 lines; the last has hash {writer.journal.last}" in printed
    key = own_fingerprint()
    assert f"signed   3 lines, at version 1, by key {key} (this machine's)" in printed
    assert verify(writer.folder, monkeypatch, "--key", key) == 0
    assert verify(writer.folder, monkeypatch, "--key", "0" * 32) == 16
    capsys.readouterr()
    write_lines(writer.folder, lines_of(writer.folder)[:-1])
    assert verify(writer.folder, monkeypatch) == 16
    told = capsys.readouterr()
    assert "was cut: it has 2 whole lines" in told.err
    assert "whole    chain" not in told.out


def test_journal_that_was_never_signed_is_not_called_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "home"))
    folder = tmp_path / "first-1"
    folder.mkdir()
    golden = Path(__file__).parents[2] / "golden" / "journal-v1.jsonl"
    (folder / "journal.jsonl").write_bytes(golden.read_bytes())
    (folder / "plan.json").write_text("{}")
    assert verify(folder, monkeypatch) == 16
    assert "was never signed" in capsys.readouterr().err
    assert verify(folder, monkeypatch, "--adopt") == 19  # nothing has begun there
    (folder / "run.json").write_text('{"run": "first-1"}')
    assert verify(folder, monkeypatch, "--adopt") == 0
    assert verify(folder, monkeypatch) == 0
