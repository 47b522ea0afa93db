"""Cleaning in processes of their own: batches of documents in, Arrow tables of records out.

Frames are a length of four bytes and as many bytes. In comes JSON: settings first, then batches.
Out come three for each batch: facts, records, dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from boli.corpus.cleaning import FAILED, Cleaner, Further, Settings
from boli.corpus.documents import Document
from boli.corpus.facts import Facts
from boli.corpus.listing import size_of
from boli.corpus.memory import bound
from boli.corpus.record import Dropped, Record, record_id, to_table, without_pandas
from boli.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow

_LENGTH = struct.Struct(">I")
FORM, LABEL = "form", "label"  # columns of Further, beside those of a record
READY = b"ready"
SECONDS_PER_BYTE = 0.005  # a recording of 2 kB a second may take ten times as long as it lasts
COMMAND = (sys.executable, "-m", "boli.corpus.worker")
MOST_MORE_BYTES = 1 << 30  # that a worker may take above what it has once it is ready
PATIENCE_SECONDS = 300.0  # for a batch of text


@dataclass(frozen=True)
class Batch:
    """Documents that are cleaned together, and which source each is of."""

    documents: tuple[Document, ...]
    roots: tuple[int, ...]

    @property
    def heard_seconds(self) -> float:
        """How much longer its recordings may take than text."""
        sizes = [size_of(Path(d.text)) for d in self.documents if d.kind == "recording"]
        return SECONDS_PER_BYTE * sum(sizes)

    def each(self) -> Iterator[Batch]:
        """Yield each document as a batch of its own."""
        for document, root in zip(self.documents, self.roots, strict=True):
            yield Batch((document,), (root,))


@dataclass(frozen=True)
class Cleaned:
    """What came of a batch."""

    facts: Facts
    records: pyarrow.Table  # with columns FORM and LABEL
    dropped: pyarrow.Table


Answer: TypeAlias = "queue.SimpleQueue[Cleaned | BaseException]"
Todo: TypeAlias = "queue.SimpleQueue[tuple[Batch, Answer] | None]"


class Workers:
    """Some processes that clean batches; results come in the order of the batches."""

    def __init__(
        self,
        settings: Settings,
        number: int,
        command: Sequence[str] = COMMAND,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.settings = settings
        self.number = number
        self.command = command
        self.patience_seconds = patience_seconds

    def clean(self, batches: Iterable[Batch]) -> Generator[Cleaned, None, None]:
        """Yield what came of each batch.

        At most four a worker are under way at a time, enough for the while in which a part is
        brought to the disk. A worker that dies over a document, or is silent for too long, is
        replaced; that document is dropped, and the others of its batch are cleaned. Closed
        early, the workers end at once.

        Raises:
            CorpusError: a worker cannot be started.
        """
        todo: Todo = queue.SimpleQueue()
        processes = [_Process(self) for _ in range(self.number)]
        threads = [
            threading.Thread(target=_serve, args=(process, todo), daemon=True)
            for process in processes
        ]
        for thread in threads:
            thread.start()
        under_way: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        try:
            for batch in batches:
                answer: Answer = queue.SimpleQueue()
                todo.put((batch, answer))
                under_way.put(answer)
                if under_way.qsize() > 4 * self.number:
                    yield _got(under_way.get())
            while under_way.qsize():
                yield _got(under_way.get())
        finally:
            for process in processes:
                process.end()
            for _ in threads:
                todo.put(None)
            for thread in threads:
                thread.join()


def _got(answer: Answer) -> Cleaned:
    result = answer.get()
    if isinstance(result, BaseException):
        raise result
    return result


def clean_here(cleaner: Cleaner, batch: Batch) -> Cleaned:
    """Clean a batch in this process."""
    records, further, dropped, facts = cleaner.clean(batch.documents, batch.roots)
    return Cleaned(facts, _table(records, further), to_table(dropped, Dropped))


def _table(records: Sequence[Record], further: Sequence[Further]) -> pyarrow.Table:
    import pyarrow as pa

    table = to_table(records, Record)
    table = table.append_column(FORM, pa.array([each.form for each in further], pa.binary()))
    return table.append_column(LABEL, pa.array([each.label for each in further], pa.string()))


def _serve(process: _Process, todo: Todo) -> None:
    while (work := todo.get()) is not None:
        batch, answer = work
        try:
            answer.put(process.clean(batch))
        except BaseException as error:
            answer.put(error)
    process.close()


class _Process:
    """One worker, started when there is something to do. `end` may be called from elsewhere."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.ended = False
        self._process: subprocess.Popen[bytes] | None = None

    def clean(self, batch: Batch) -> Cleaned:
        """Have a batch cleaned; where the worker dies over it, document by document.

        Raises:
            CorpusError: the worker cannot be started.
        """
        cleaned = self._ask(batch)
        if cleaned is None:
            parts = [self._ask(one) or _failed(one, self._id(one)) for one in batch.each()]
            cleaned = _joined(parts)
        return cleaned

    def _id(self, batch: Batch) -> str:
        return record_id(batch.documents[0].source, self.workers.settings.roots[batch.roots[0]])

    def _ask(self, batch: Batch) -> Cleaned | None:
        """Return what the worker made of a batch; None where it died over it."""
        if self.ended:
            raise CorpusError("the workers were told to end")
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self.workers.patience_seconds + batch.heard_seconds, process.kill)
        timer.start()
        try:
            rows = [(each.source, each.text, each.kind) for each in batch.documents]
            frame = json.dumps([rows, batch.roots], ensure_ascii=False)
            _write(process.stdin, frame.encode("utf-8", "surrogatepass"))
            return _read_cleaned(process.stdout)
        except (OSError, EOFError):
            self.close()
            return None
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the worker, and wait until it has read its models."""
        # A group of its own: Ctrl-C is for the pipeline, which lets the part under way end.
        process = subprocess.Popen(
            self.workers.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, json.dumps(asdict(self.workers.settings)).encode())
            ready = _read(process.stdout) == READY
        except (OSError, EOFError):
            ready = False
        if not ready:
            self.close()
            raise CorpusError(
                f"a worker ended while it started, with exit code {process.returncode}",
                "is there memory for all of them? --workers 1 needs the least",
            )
        return process

    def end(self) -> None:
        """Have the worker end at once, whatever it is at."""
        self.ended = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the worker, and forget it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None


def _failed(batch: Batch, name: str) -> Cleaned:
    document = batch.documents[0]
    excerpt = document.text[:300] if document.kind == "text" else ""
    row = Dropped(name, document.source, FAILED, "the worker ended over it", excerpt)
    facts = Facts(documents=1, characters=len(document.text))
    facts.dropped[FAILED] = 1
    return Cleaned(facts, _table([], []), to_table([row], Dropped))


def _joined(parts: Sequence[Cleaned]) -> Cleaned:
    import pyarrow as pa

    facts = Facts()
    for part in parts:
        facts.add(part.facts)
    return Cleaned(
        facts,
        pa.concat_tables([part.records for part in parts]),
        pa.concat_tables([part.dropped for part in parts]),
    )


def _write(pipe: IO[bytes], frame: bytes) -> None:
    pipe.write(_LENGTH.pack(len(frame)))
    pipe.write(frame)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """Return the next frame.

    Raises:
        EOFError: the other side has ended.
    """
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    length = _LENGTH.unpack(head)[0]
    frame = pipe.read(length)
    if len(frame) < length:
        raise EOFError
    return frame


def _read_cleaned(pipe: IO[bytes]) -> Cleaned:
    import pyarrow as pa

    facts = Facts.from_json(_read(pipe).decode())
    records, dropped = (pa.ipc.open_stream(_read(pipe)).read_all() for _ in range(2))
    return Cleaned(facts, records, dropped)


def _table_bytes(table: pyarrow.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def main() -> None:
    """Clean what comes in until nothing more does."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not break a frame
    without_pandas()
    given = json.loads(_read(source))
    cleaner = Cleaner(Settings(**{**given, "roots": tuple(given["roots"])}))
    cleaner.check()
    if not (cleaner.settings.scorer or cleaner.settings.recognizer):  # models take what they take
        bound(MOST_MORE_BYTES)
    _write(sink, READY)
    while True:
        try:
            rows, roots = json.loads(_read(source).decode("utf-8", "surrogatepass"))
        except EOFError:
            return
        batch = Batch(tuple(Document(*row) for row in rows), tuple(roots))
        cleaned = clean_here(cleaner, batch)
        _write(sink, cleaned.facts.to_json().encode())
        _write(sink, _table_bytes(cleaned.records))
        _write(sink, _table_bytes(cleaned.dropped))


if __name__ == "__main__":
    main()
