"""Train language models for low-resource languages where the data and the machines already are.

The public names are what a notebook needs; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boli.errors import BoliError
    from boli.evaluation.scores import evaluate
    from boli.plan import Plan
    from boli.plan_file import load_plan
    from boli.run import Run, check, list_runs, open_run, train

__version__ = "0.1.0"

__all__ = [
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
]

_HOMES = {
    "BoliError": "boli.errors",
    "Plan": "boli.plan",
    "load_plan": "boli.plan_file",
    "Run": "boli.run",
    "check": "boli.run",
    "evaluate": "boli.evaluation.scores",
    "list_runs": "boli.run",
    "open_run": "boli.run",
    "train": "boli.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'boli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
