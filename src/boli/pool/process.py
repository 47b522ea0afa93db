"""Whether a process that left its name somewhere has ended; known only on its own machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return the name of this process: `process`, and `where` that number counts."""
    return {"process": os.getpid(), "where": where()}


def where() -> str:
    """Return what this start of the machine, and this container, have for themselves.

    A name is not enough: many machines have the same. Empty where it cannot be told.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def has_ended(name: Mapping[str, Any]) -> bool:
    """Tell whether a process ended; False where that cannot be known."""
    if not name.get("where") or name["where"] != where():
        return False
    try:
        os.kill(int(name["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
