"""Every exception that boli raises on purpose, with its exit code.

BoliError                  1
├── PlanError             10   the plan is wrong
├── CorpusError           11   text is missing, empty, or not what the plan says
├── ModelError            12   a base model or an adapter cannot be loaded or built
│   └── LayoutError       13   two sides do not train the same parameters
├── CodecError            14   a payload cannot be made or read
├── StorageError          15   a file cannot be written, or is held by another run
│   └── CorruptFileError  16   a file is there, but not whole
├── TransportError        17   orders or updates cannot travel
├── SiteError             18   a site cannot do its work
│   ├── WorkerLostError   20   a process of a node ended; the node can be started again
│   └── LimitError        22   more is asked of a site than its people allow
│       └── NotAcceptedError   its people did not accept a plan
├── RunError              19   a run cannot be started, resumed or reported
└── PoolError             21   a pool cannot be used, or a record may not go there
"""

from __future__ import annotations


class BoliError(Exception):
    """What happened, and what to change.

    `problem` says what happened with its value; `hint` says what to change.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\n  {self.hint}" if self.hint else self.problem


class PlanError(BoliError):
    """The plan is wrong: names the file, the key, the value and what to change."""

    exit_code = 10


class CorpusError(BoliError):
    """Text is missing, empty, or not what the plan says."""

    exit_code = 11


class ModelError(BoliError):
    """A base model or an adapter cannot be loaded or built."""

    exit_code = 12


class LayoutError(ModelError):
    """Two sides do not train the same parameters."""

    exit_code = 13


class CodecError(BoliError):
    """A payload cannot be made or read."""

    exit_code = 14


class StorageError(BoliError):
    """A file cannot be written, or is held by another run."""

    exit_code = 15


class CorruptFileError(StorageError):
    """A file is there, but not whole."""

    exit_code = 16


class TransportError(BoliError):
    """Orders or updates cannot travel."""

    exit_code = 17


class SiteError(BoliError):
    """A site cannot do its work."""

    exit_code = 18


class WorkerLostError(SiteError):
    """A further process of a node ended; started again, the node goes on from its state."""

    exit_code = 20


class LimitError(SiteError):
    """More is asked of a site than its people allow."""

    exit_code = 22


class NotAcceptedError(LimitError):
    """The people of a site did not accept a plan."""


class RunError(BoliError):
    """A run cannot be started, resumed or reported."""

    exit_code = 19


class PoolError(BoliError):
    """A pool cannot be reached, is not what it says, or may not be written as asked."""

    exit_code = 21
