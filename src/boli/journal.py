"""Append-only, hash-chained events of one run: the only file format that others read.

One JSON object a line: `v` (schema version), `seq`, `time` (Unix seconds),
`event`, the event's own fields, `prev` (hash of the line before) and `hash`.
A run that was killed and resumed may tell the same fact twice: the later line
holds. No text of a record ever enters.

The chain alone does not show a cut end, or a journal that was written anew. So journal.head,
beside it, holds how many lines there were and the hash of the last, signed; each checkpoint
holds the same for the lines that it knows of. Lines after the head were written by a process that
was killed before it sealed them: they are read, and end at the first that is not whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from boli.durable import storage_error, write_file
from boli.errors import CorruptFileError
from boli.signature import SigningKey, note_sealed

SCHEMA = 2
GENESIS = "0" * 64
V1_DIGITS = 16  # of a hash, in lines of schema 1
RESTORE = "restore it from a copy; boli verify RUN says what is whole"


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
class PiecesTaken(Event):
    """A site sent counts of its pieces of words, for the tokenizer; the pieces are not told."""

    site: str
    num_pieces: int
    bytes: int  # as they traveled
    digest: str  # SHA-256 of them


@dataclass(frozen=True)
class PiecesMissed(Event):
    """The tokenizer was made without a site."""

    site: str
    reason: str


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
class UpdateWeighed(Event):
    """What an update counts for in a version, and what is seen of its site."""

    site: str
    sequence: int
    version: int  # that it is in
    weight: float  # before staleness
    norm: float
    bound: float  # of the norm; 0: none
    scaled: float  # factor that brought the norm below its bound, 1 if none
    direction: float | None  # median cosine of where the site is heading to the others; -1 to 1
    offence: str  # "direction", "norm", or nothing


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
class SixGramEvaluated(Event):
    """Bits per byte of a part of held-out text under a 6-gram of its site's training lines."""

    site: str
    language: str
    part: str  # tuning or test
    bits: float
    bytes: int


@dataclass(frozen=True)
class PpmdEvaluated(Event):
    """Bits per byte of a test part that PPMd takes after its site's training lines."""

    site: str
    language: str
    part: str  # test
    bits: float
    bytes: int


@dataclass(frozen=True)
class MixedEvaluated(Event):
    """Bits per byte of a part of held-out text under a version and n-grams of its site's text."""

    site: str
    language: str
    part: str  # test
    version: int
    bits: float
    bytes: int


@dataclass(frozen=True)
class DifferenceJudged(Event):
    """Interval of a ÷ b − 1 on a site's test part, that the site made over its documents."""

    site: str
    language: str
    version: int
    a: str  # "model", or "mixed": with n-grams
    b: str  # "base", "six_gram" or "ppmd"
    documents: int | None  # null: nothing says which lines belong together
    low: float | None  # null: of too few documents, and so is `high`
    high: float | None


@dataclass(frozen=True)
class RoundStepped(Event):
    version: int  # after the step
    num_updates: int
    tokens: int  # of the whole run so far
    step_norm: float
    seconds: float  # since this process started the loop


@dataclass(frozen=True)
class VersionJudged(Event):
    """A version that may be exported, as the sites' tuning text judges it."""

    version: int
    sites: dict[str, float]  # bits of the site's tuning text under it / under the base
    score: float | None  # more than half of the sites judge it at most this; null: too few judged
    kept: bool  # it is the best so far


@dataclass(frozen=True)
class VersionRestored(Event):
    """A version was made that is an earlier one again, bit for bit."""

    version: int  # the new number
    restored: int  # the earlier one
    ratio: (
        float  # more than half judge it, or one that was the best before, at most this × the last
    )


@dataclass(frozen=True)
class VersionExported(Event):
    """Which version became the adapter."""

    version: int
    made: int  # the round that made it; not `version` where an earlier one was restored
    last: int  # the last round
    score: float | None  # as in VersionJudged; 1 or more: no better than the base
    judges: int  # sites that judged it
    sites: int  # sites whose judgements count


@dataclass(frozen=True)
class SiteBenched(Event):
    site: str
    reason: str


@dataclass(frozen=True)
class SiteForgiven(Event):
    """A person lets a site take part again, whatever was seen of it."""

    site: str


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


@dataclass(frozen=True)
class Anchor:
    """What a file outside of a journal remembers of it."""

    by: str  # that file, for messages
    num_lines: int
    hash: str = ""  # that the next line names as the one before; empty: it was not noted


@dataclass(frozen=True)
class Head:
    """What journal.head says: how far the journal was sealed, and by whom."""

    run: str
    version: int  # of the adapter, when it was sealed
    saved: int  # lines that the newest checkpoint knows of; -1: there is no checkpoint
    before: int  # the same of the checkpoint before it, which a corrupt one falls back to
    num_lines: int
    hash: str
    key: str = ""  # public key; empty: not signed
    signature: str = ""

    def message(self) -> bytes:
        """Return the bytes that the signature covers."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("key", "signature")}
        return b"boli journal head 1\n" + json.dumps(facts, sort_keys=True).encode()

    def signed(self, key: SigningKey) -> Head:
        """Return the head with a signature of this key."""
        return replace(self, key=key.public, signature=key.sign(self.message()))


def head_path(journal: Path) -> Path:
    """Return where a journal's head is."""
    return journal.with_suffix(".head")


def read_head(journal: Path) -> Head | None:
    """Return the head of a journal; None where it was never sealed.

    Raises:
        CorruptFileError: the file is there, and is no head.
    """
    path = head_path(journal)
    try:
        head = Head(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFileError(f"{path} is not a journal's head: {error}", RESTORE) from None
    kinds = {f.name: type(getattr(head, f.name)).__name__ for f in fields(Head)}
    if kinds != {f.name: f.type for f in fields(Head)}:
        raise CorruptFileError(f"{path} is not a journal's head", RESTORE)
    return head


def _line_hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _line(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, ensure_ascii=False) + "\n").encode()


@dataclass
class Journal:
    """The open journal of a run; one writer, who holds the run's lock."""

    path: Path
    observers: list[Callable[[Event], None]] = field(default_factory=list)
    key: SigningKey | None = None  # None: heads are not signed
    _seq: int = 0
    _last: str = GENESIS
    _head: Head | None = None
    _descriptor: int | None = None

    def open(self) -> None:
        """Continue after the last whole line; what a crash left after it is cut off.

        Nothing that the head covers is ever cut off.

        Raises:
            CorruptFileError: a line was altered, or lines that the head covers are missing.
            StorageError: the file cannot be written.
        """
        kept, self._seq, self._last = 0, 0, GENESIS
        self._head = read_head(self.path)
        for line in whole_lines(self.path, anchors_of(self.path, self._head)):
            kept, self._seq, self._last = line.end, line.body["seq"] + 1, line.link
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

    @property
    def last(self) -> str:
        """Hash of the last line, which the next one names."""
        if self._descriptor is None:
            self.open()
        return self._last

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
        self._write(_line(body))
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

    def seal(self, run: str, version: int, saved: int) -> None:
        """Bring all lines to the disk, and then a signed head that covers them.

        `saved` is how many lines the newest checkpoint on the disk knows of; -1: there is none.

        Raises:
            StorageError: the disk is full or refuses; the head before stays.
        """
        num_lines, old = self.seq, self._head
        before = saved
        if old is not None:
            before = old.before if old.saved == saved else min(old.saved, saved)
        head = Head(run, version, saved, before, num_lines, self.last)
        self.sync()
        if self.key is not None:
            head = head.signed(self.key)
            if old is None:
                note_sealed(run)
        write_file(head_path(self.path), json.dumps(asdict(head)).encode())
        self._head = head

    def seal_rest(self) -> None:
        """Seal the lines since the last head, if there ever was one.

        Raises:
            StorageError: the disk is full or refuses; the head before stays.
        """
        num_lines, head = self.seq, self._head
        if head is not None and head.num_lines < num_lines:
            self.seal(head.run, head.version, head.saved)

    def close(self) -> None:
        """Close the file; `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Line:
    """One whole line of a journal's file."""

    end: int  # bytes up to and with it
    body: dict[str, Any]
    link: str  # what the line after it has to name as the one before


def anchors_of(journal: Path, head: Head | None) -> list[Anchor]:
    """Return what a head remembers, if there is one."""
    if head is None:
        return []
    return [Anchor(str(head_path(journal)), head.num_lines, head.hash)]


def whole_lines(path: Path, anchors: Sequence[Anchor] = ()) -> Iterator[Line]:
    """Yield the lines of a journal up to the first that is not whole, which a crash explains.

    No crash explains it below an anchor, or, where there is no anchor, before the last line.
    Read anchors before the journal: a process may be writing both.

    Raises:
        CorruptFileError: a line was altered, or one that an anchor knows of is missing.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror}") from error
    number, position, link, digest = 0, 0, GENESIS, hashlib.sha256()
    _check_anchors(path, anchors, 0, GENESIS)
    is_old = True  # as long as all lines are of schema 1
    old_link = GENESIS[:V1_DIGITS]
    while (end := data.find(b"\n", position) + 1) > 0:
        raw = data[position:end]
        body = _parsed(raw, number, old_link if is_old else "", link)
        if body is None:
            sealed = max((anchor.num_lines for anchor in anchors), default=0)
            if number < sealed or (not anchors and data.find(b"\n", end) >= 0):
                raise CorruptFileError(
                    f"{path} was altered near byte {position}, in line {number + 1}", RESTORE
                )
            break
        number, position = number + 1, end
        is_old = is_old and body["v"] == 1
        if is_old:
            # The short hashes of schema 1 end here: what follows names all bytes before it.
            digest.update(raw)
            old_link, link = body["hash"], digest.hexdigest()
        else:
            link = body["hash"]
        _check_anchors(path, anchors, number, link)
        yield Line(end, body, link)
    for anchor in anchors:
        if number < anchor.num_lines:
            raise CorruptFileError(
                f"{path} was cut: it has {number} whole lines, and {anchor.by} knows of "
                f"{anchor.num_lines}",
                RESTORE,
            )


def _check_anchors(path: Path, anchors: Sequence[Anchor], number: int, link: str) -> None:
    for anchor in anchors:
        if anchor.num_lines == number and anchor.hash not in ("", link):
            raise CorruptFileError(
                f"{path} was rewritten: line {number} is not the one that {anchor.by} knows",
                RESTORE,
            )


def _parsed(raw: bytes, number: int, old_link: str, link: str) -> dict[str, Any] | None:
    """Return a line's object; None where it is not whole, or does not follow the one before.

    An empty `old_link` says that lines of schema 1 are not allowed any more.
    """
    try:
        body = json.loads(raw)
        found = body.pop("hash")
        is_old = body["v"] == 1
        expected = old_link if is_old else link
        whole = bool(expected) and (body["seq"], body["prev"]) == (number, expected)
        whole = whole and _line_hash(body)[: V1_DIGITS if is_old else None] == found
        body["hash"] = found
        # Byte for byte: another reader may take another one of two equal keys.
        return body if whole and (is_old or _line(body) == raw) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_journal(path: Path) -> list[Entry]:
    """Return the events of a run, in order; unknown kinds from newer versions are skipped.

    Raises:
        CorruptFileError: the chain of hashes is broken, the file is not there, or lines are
            missing or altered that its head covers.
    """
    head = read_head(path)
    try:
        path.stat()
    except OSError as error:
        raise CorruptFileError(f"cannot read {path}: {error.strerror}") from error
    entries = map(entry_of, whole_lines(path, anchors_of(path, head)))
    return [entry for entry in entries if entry is not None]


def entry_of(line: Line) -> Entry | None:
    """Return a line as an entry; None where its kind is unknown.

    Raises:
        CorruptFileError: it lacks what its kind has; no program of ours wrote it.
    """
    body = line.body
    kind = Event.registry.get(body.get("event", ""))
    if kind is None:
        return None
    values = {f.name: body[f.name] for f in fields(kind) if f.name in body}
    try:
        return Entry(body["seq"], body["time"], kind(**values))
    except (TypeError, KeyError) as error:
        raise CorruptFileError(
            f"line {body['seq'] + 1} of the journal is no {kind.name}: {error}", RESTORE
        ) from None
