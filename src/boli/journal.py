"""Append-only, hash-chained events of one run: the only file format that others read.

One JSON object a line: `v` (schema version), `seq`, `time` (Unix seconds),
`event`, the event's own fields, `prev` (hash of the line before) and `hash`.
A run that was killed and resumed may tell the same fact twice: the later line
holds. No text of a record ever enters.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from boli.durable import storage_error
from boli.errors import CorruptFileError

SCHEMA = 1
GENESIS = "0" * 16


@dataclass(frozen=True)
class Event:
    """One fact; the class name in snake case is the event's name in the file."""

    registry: ClassVar[dict[str, type[Event]]] = {}
    name: ClassVar[str] = "event"

    def __init_subclass__(cls) -> None:
        cls.name = "".join("_" + c.lower() if c.isupper() else c for c in cls.__name__)[1:]
        Event.registry[cls.name] = cls


@dataclass(frozen=True)
class RunStarted(Event):
    run: str
    plan: str  # digest
    boli: str  # version of the program
    layout: str
    num_entries: int  # d
    sites: dict[str, str]  # name to language


@dataclass(frozen=True)
class RunResumed(Event):
    version: int
    corrupt: list[str]  # checkpoints that were passed over
    since: int  # what the lines from this `seq` on tell of updates and rounds came to nothing


@dataclass(frozen=True)
class SiteJoined(Event):
    site: str
    num_lines: dict[str, dict[str, int]]  # language to part to lines
    restarts: int


@dataclass(frozen=True)
class CopyRead(Event):
    """A site trains on text that was copied from a pool; told once for each copy."""

    site: str
    pool: str  # id
    version: int  # of the pool
    taken: str  # id of the copy, as the pool has noted it
    rows: int
    digest: str  # of the keys of its rows


@dataclass(frozen=True)
class SiteLeft(Event):
    site: str
    reason: str


@dataclass(frozen=True)
class OrderSent(Event):
    order: str
    site: str
    base_version: int
    local_steps: int
    attempt: int
    bytes_down: int  # of versions sent to the site since its last order


@dataclass(frozen=True)
class UpdateAccepted(Event):
    order: str
    site: str
    base_version: int
    staleness: int  # rounds
    local_steps: int
    tokens: int
    weight: float
    loss: float  # mean over the local steps, nats per token
    norm: float
    scaled: float  # factor that brought the norm below its bound, 1 if none
    train_seconds: float
    evaluate_seconds: float
    work_seconds: float  # from order to update, at the site
    idle_seconds: float  # from the update before to this order, at the site
    bytes_up: int
    residual_norm: float = 0.0  # of what the site could not send yet


@dataclass(frozen=True)
class UpdateRejected(Event):
    order: str
    site: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Evaluated(Event):
    """Bits per byte of one part of held-out text, at one version."""

    site: str  # empty: the coordinator
    language: str
    part: str  # tuning or test
    version: int
    bits: float
    bytes: int


@dataclass(frozen=True)
class RoundStepped(Event):
    version: int  # after the step
    num_updates: int
    tokens: int  # of the whole run so far
    step_norm: float
    seconds: float  # since this process started the loop


@dataclass(frozen=True)
class SiteBenched(Event):
    site: str
    reason: str


@dataclass(frozen=True)
class AttemptsRefused(Event):
    """What is not told one by one: strangers at the door, and a site that is refused too often."""

    kind: str  # how the server says it, or the event that is not told
    site: str  # whose key it was, or is; empty: nobody's
    count: int  # at least
    seconds: float  # in which they came
    detail: str  # of the last one


@dataclass(frozen=True)
class RunInterrupted(Event):
    version: int


@dataclass(frozen=True)
class RunFailed(Event):
    """The run ended with an error; it may be resumed."""

    problem: str


@dataclass(frozen=True)
class RunFinished(Event):
    version: int
    seconds: float
    adapter: str


@dataclass(frozen=True)
class Entry:
    """One line of the journal."""

    seq: int
    time: float
    event: Event


def _line_hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Journal:
    """The open journal of a run; one writer, who holds the run's lock."""

    path: Path
    observers: list[Callable[[Event], None]] = field(default_factory=list)
    _seq: int = 0
    _last: str = GENESIS
    _descriptor: int | None = None

    def open(self) -> None:
        """Continue after the last whole line; a torn one is cut off.

        Raises:
            CorruptFileError: a line in the middle was altered.
            StorageError: the file cannot be written.
        """
        kept = 0
        if self.path.exists():
            for kept, body in _whole_lines(self.path.read_bytes(), self.path):  # noqa: B007
                self._seq, self._last = body["seq"] + 1, body["hash"]
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            os.ftruncate(self._descriptor, kept)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise storage_error(self.path, error) from error

    @property
    def seq(self) -> int:
        """Number of the next line."""
        if self._descriptor is None:
            self.open()
        return self._seq

    def append(self, event: Event) -> None:
        """Write one event; durable only after `sync`.

        Raises:
            StorageError: the disk is full or refuses.
        """
        if self._descriptor is None:
            self.open()
        body = {
            "v": SCHEMA,
            "seq": self._seq,
            "time": round(time.time(), 3),
            "event": event.name,
            **asdict(event),
            "prev": self._last,
        }
        body["hash"] = _line_hash(body)
        line = (json.dumps(body, ensure_ascii=False) + "\n").encode()
        self._write(line)
        self._seq, self._last = self._seq + 1, str(body["hash"])
        for observer in self.observers:
            observer(event)

    def _write(self, line: bytes) -> None:
        assert self._descriptor is not None
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            raise storage_error(self.path, error) from error

    def sync(self) -> None:
        """Bring all events to the disk."""
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise storage_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _whole_lines(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (bytes up to and with the line, its object); stop before a torn last line."""
    previous, position = GENESIS, 0
    while (end := data.find(b"\n", position)) >= 0:
        try:
            body = json.loads(data[position:end])
            found = body.pop("hash")
            whole = body["prev"] == previous and _line_hash(body) == found
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            if data.find(b"\n", end + 1) < 0:
                return
            raise CorruptFileError(
                f"{path} was altered near byte {position}", "restore it from a copy"
            )
        body["hash"] = previous = found
        position = end + 1
        yield position, body


def read_journal(path: Path) -> list[Entry]:
    """Return the events of a run, in order; unknown kinds from newer versions are skipped.

    Raises:
        CorruptFileError: the chain of hashes is broken, or the file is not there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for _, body in _whole_lines(data, path):
        kind = Event.registry.get(body["event"])
        if kind is not None:
            values = {f.name: body[f.name] for f in fields(kind) if f.name in body}
            entries.append(Entry(body["seq"], body["time"], kind(**values)))
    return entries
