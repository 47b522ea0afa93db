"""Write docs/reference/commands.md from the commands' own help."""

import os
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from boli.cli.main import app


def names() -> list[str]:
    """Return every command, and those of each group after it."""
    found = []
    for name, command in get_command(app).commands.items():
        found += [name, *(f"{name} {below}" for below in getattr(command, "commands", ()))]
    return found


def page() -> str:
    """Return the whole page."""
    parts = ["# Commands\n\nMade by `make docs` from the commands' own help.\n"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    for name in ["", *names()]:
        command = [sys.executable, "-m", "boli.cli.main", *name.split(), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        text = done.stdout.replace("python -m boli.cli.main", "boli").strip()
        parts.append(f"\n## boli {name}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--print" in sys.argv:
        sys.stdout.write(page())
    else:
        path = Path(__file__).parent / "reference" / "commands.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(page(), encoding="utf-8")
