"""Promises to whoever builds on boli: public names, light imports, help, plans."""

from __future__ import annotations

import subprocess
import sys
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


def imported_by(*arguments: str) -> set[str]:
    """Return all modules that a Python process with these arguments imports until it ends."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    return names - {"imported package"}


@pytest.mark.parametrize(
    ("arguments", "bare", "most"),
    [
        (("-c", "import boli"), "import sys", 40),
        (("-m", "boli.cli.main", "--help"), "import typer", 60),
        (("-m", "boli.cli.main", "train", "--help"), "import typer", 60),
    ],
)
def test_start_imports_little(arguments: tuple[str, ...], bare: str, most: int) -> None:
    """What makes a start slow is what it imports: only typer, and a little of Python's own.

    Counted, since seconds would be those of whatever else the machine does.
    """
    more = imported_by(*arguments) - imported_by("-c", bare)
    packages = {name.split(".")[0] for name in more if not name.startswith("_")}
    strange = packages - sys.stdlib_module_names
    assert strange <= {"boli", "typer", "click", "shellingham", "typing_extensions"}
    assert len(more) < most, sorted(more)


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
