"""What left this machine: append-only, hash-chained, on the disk before anything is sent.

BOLI_HOME/egress/log.jsonl has one JSON object a line: `seq`, `time`, `event`, the event's own
facts, `prev` (hash of the line before) and `hash`. head.json holds the last line's number, hash
and end, so that a log that was cut is found out. No text of a record ever enters.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from boli.durable import storage_error, sync_folder, write_file
from boli.errors import PoolError

GENESIS = "0" * 64
LOG, HEAD = "log.jsonl", "head.json"
LOOK_BYTES = 64 << 10  # of the end of a log at a time


def log_folder() -> Path:
    """Return where this machine's log is: in BOLI_HOME, or in ~/.boli."""
    return Path(os.environ.get("BOLI_HOME") or Path.home() / ".boli") / "egress"


@dataclass(frozen=True)
class Mark:
    """A place in a log: the line with this number has this hash."""

    log: str  # id of the log
    seq: int
    hash: str


@dataclass(frozen=True)
class _Head:
    log: str
    seq: int  # of the last line; -1: there is none
    hash: str
    end: int  # bytes


def line_hash(body: Mapping[str, Any]) -> str:
    """Return the hash of a line without its `hash`."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _line(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, ensure_ascii=True) + "\n").encode()


@dataclass(frozen=True)
class EgressLog:
    """The log of one machine; several processes may write it."""

    folder: Path

    @property
    def path(self) -> Path:
        """The log's own file."""
        return self.folder / LOG

    def append(self, event: str, **facts: Any) -> Mark:
        """Write a line, and return when it is on the disk.

        Raises:
            PoolError: the log was cut or altered at its end: nothing may leave unlogged.
            StorageError: the disk is full or refuses.
        """
        with self._locked():
            head = self._continued(self._head())
            body = {
                "seq": head.seq + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **facts,
                "prev": head.hash,
            }
            body["hash"] = line_hash(body)
            line = _line(body)
            self._write(line, head.end)
            after = _Head(head.log, head.seq + 1, str(body["hash"]), head.end + len(line))
            self._keep(after)
            return Mark(after.log, after.seq, after.hash)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / "lock").open("a")
        except OSError as error:
            raise storage_error(self.folder, error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go when the process ends
            yield

    def _head(self) -> _Head:
        """Return the head as it was written last; a log begins with one."""
        head = read_head(self.folder)
        if head is None:
            if self.path.exists():
                raise PoolError(
                    f"{self.folder / HEAD} is missing or not whole, and {self.path} is there",
                    "restore it from a copy; or move both away, and a new log is begun",
                )
            head = _Head(uuid4().hex, -1, GENESIS, 0)
            self._keep(head)
        return head

    def _keep(self, head: _Head) -> None:
        write_file(self.folder / HEAD, json.dumps(vars(head)).encode())

    def _continued(self, head: _Head) -> _Head:
        """Return the head after lines that a killed process wrote and did not note."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(min(head.end, size))
                rest = file.read()
        except FileNotFoundError:
            size, rest = 0, b""
        except OSError as error:
            raise storage_error(self.path, error) from error
        if size < head.end:
            raise PoolError(
                f"{self.path} was cut: it has {size} bytes, and had {head.end}",
                "restore it from a copy; nothing is shared without its log",
            )
        if head.seq >= 0 and not self._ends_as(head):
            raise PoolError(
                f"{self.path} was altered: line {head.seq + 1} is not the one that {HEAD} knows",
                "restore it from a copy; nothing is shared without its log",
            )
        for line in rest.splitlines(keepends=True):
            body = parse_line(line)
            if body is None or body["prev"] != head.hash:
                break  # torn: its process never came to send anything
            head = _Head(head.log, body["seq"], body["hash"], head.end + len(line))
        return head

    def _ends_as(self, head: _Head) -> bool:
        """Tell whether the line at a head's end is the one that it has noted."""
        tail, start = b"", head.end
        try:
            with self.path.open("rb") as file:
                while start > 0 and b"\n" not in tail[:-1]:
                    length = min(start, LOOK_BYTES)
                    start -= length
                    file.seek(start)
                    tail = file.read(length) + tail
        except OSError as error:
            raise storage_error(self.path, error) from error
        body = parse_line(tail[tail.rfind(b"\n", 0, -1) + 1 :])
        return body is not None and (body["seq"], body["hash"]) == (head.seq, head.hash)

    def _write(self, line: bytes, end: int) -> None:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, end)
                os.lseek(descriptor, end, os.SEEK_SET)
                if os.write(descriptor, line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if end == 0:
                sync_folder(self.folder)
        except OSError as error:
            raise storage_error(self.path, error) from error


def read_head(folder: Path) -> _Head | None:
    """Return what head.json says; None where it is missing or not whole."""
    try:
        return _Head(**json.loads((folder / HEAD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return a line of a log; None where it is not whole."""
    try:
        body = json.loads(line)
        found = body.pop("hash")
        whole = line_hash(body) == found and isinstance(body["seq"], int)
        # Byte for byte: another reader may take another one of two equal keys.
        return {**body, "hash": found} if whole and _line({**body, "hash": found}) == line else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log up to the first that is not whole.

    Raises:
        PoolError: there is none.
    """
    try:
        file = (folder / LOG).open("rb")
    except OSError as error:
        raise PoolError(
            f"there is no egress log in {folder}: {error.strerror}",
            "nothing was shared from here, or BOLI_HOME is another",
        ) from None
    with file:
        for line in file:
            body = parse_line(line)
            if body is None:
                return
            yield body


def first_break(
    folder: Path,
    marks: tuple[Mark, ...] = (),
    pool: str = "",
    upto: int | None = None,  # the last line when the marks were read; None: nobody else writes
) -> str:
    """Walk the chain; returns what is wrong where it breaks first, empty where all is well.

    `marks` are what the pool with id `pool` has noted of logs: those of other logs are passed
    over. A line that says what left for that pool has to be among them, or before one of them.

    Raises:
        PoolError: there is no log.
    """
    head = read_head(folder)
    if head is None:
        return f"{HEAD} is missing or not whole: nobody can tell where the log ended"
    noted = {mark.seq: mark.hash for mark in marks if mark.log == head.log}
    known = max(noted, default=-1)
    previous, expected = GENESIS, 0
    if not (folder / LOG).exists() and head.seq < 0:
        return "" if not noted else "the log is empty, and the pool knows of lines of it"
    path = folder / LOG
    try:
        file = path.open("rb")
    except OSError:
        return f"{LOG} is missing, and had {head.seq + 1} lines"
    with file:
        for number, line in enumerate(file, 1):
            body = parse_line(line)
            if body is None:
                torn = expected > head.seq and not line.endswith(b"\n") and not file.read(1)
                return "" if torn else f"line {number} was altered"
            if body["seq"] != expected or body["prev"] != previous:
                return f"line {number} does not follow the one before: one is missing, or moved"
            previous, expected = body["hash"], expected + 1
            if noted.pop(body["seq"], previous) != previous:
                return f"line {number} is not the one that the pool has noted: it was rewritten"
            left = body["event"] == "done" and body.get("pool") == pool
            is_new = upto is not None and body["seq"] > upto
            if pool and left and body["of"] > known and not is_new:
                return f"line {number} says that records left, and the pool has noted no such line"
            if body["seq"] == head.seq and previous != head.hash:
                return f"line {number} is not the one that {HEAD} has noted: it was rewritten"
    last = max([head.seq, *noted])
    if expected <= last:
        return f"the log was cut after line {expected}: there were {last + 1}"
    return ""
