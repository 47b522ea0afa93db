"""How the command line ends: as a call inside a process, and as a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from boli.cli.main import main

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
