"""The form that every attack of this folder has, and its outcome.

An attack is one file that a security reviewer can read from top to bottom. It has
`PROMISE`, the sentence that it tries to make false, and `attack(folder, fast)`, which
does what an attacker would do, with the real commands on this machine and on loopback,
in an empty folder of its own. The fast form takes some seconds, and runs in every
`make test`; the full one runs in `make attack`.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
NO_ATTACKS = {
    "attack",
    "conftest",
    "consent_scene",
    "hostile_node",
    "liars",
    "one_site",
    "rogue",
    "run",
    "sealed_run",
    "test_attacks",
}


@dataclass(frozen=True)
class Outcome:
    """What came of an attack, and what shows that its success would have been seen."""

    refused: bool  # the promise holds
    observed: str  # what the attacked command did, in one line
    control: str  # what the same steps gave where they are allowed, in one line
    figures: Mapping[str, float | int | str] = field(default_factory=dict)  # measured on the way

    def row(self) -> dict[str, Any]:
        """Return it as a row of attacks.json."""
        return {
            "refused": self.refused,
            "observed": self.observed,
            "control": self.control,
            **self.figures,
        }


def names() -> list[str]:
    """Return the names of all attacks, in order."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_ATTACKS)


def load(name: str) -> ModuleType:
    """Import an attack by its name; it may import what lies beside it."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module(name)


def boli(
    *arguments: str | Path, home: Path, seconds: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command, without a terminal, with a BOLI_HOME of its own; return what it did."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("boli")), *map(str, arguments)],
        env={**os.environ, "BOLI_HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
