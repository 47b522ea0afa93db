"""Promises to whoever builds on boli: public names, light imports, help, plans."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

import boli
from boli.cli.main import app
from boli.plan_file import load_plan

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    " ".join(words)
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    for words in [(name,), *((name, below) for below in getattr(command, "commands", ()))]
)


def test_public_names_are_exactly_these() -> None:
    assert set(boli.__all__) == {
        "BoliError",
        "Plan",
        "Run",
        "__version__",
        "check",
        "evaluate",
        "list_runs",
        "load_plan",
        "open_run",
        "train",
    }
    for name in boli.__all__:
        assert getattr(boli, name) is not None
    with pytest.raises(AttributeError):
        _ = boli.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", ["import boli", "import boli.cli.main"])
def test_import_brings_in_nothing_heavy(code: str) -> None:
    heavy = ("torch", "transformers", "peft", "numpy", "pyarrow", "matplotlib", "pydantic")
    check = f"import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_coordinator_and_messages_need_no_torch() -> None:
    code = (
        "import boli.rounds.loop, boli.rounds.schedule, boli.engine.local, boli.model.layout, sys;"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("arguments", [["-c", "import boli"], ["-m", "boli.cli.main", "--help"]])
def test_start_takes_under_0_3_seconds(arguments: list[str]) -> None:
    """The best of five, so that a busy machine does not decide."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_ends_with_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "boli.cli.main", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    last = " ".join(done.stdout.split("Example:")[-1].split())
    assert last.startswith(f"boli {command}")


def test_documented_help_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "docs" / "write_commands.py"), "--print"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (REPOSITORY / "docs/reference/commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "plans").glob("*.toml")), ids=lambda p: p.name
)
def test_every_plan_loads(path: Path) -> None:
    assert load_plan(path).site
