"""Documents in batches for the workers, and what came of them in parts on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boli.corpus.documents import Document, Reading, Unreadable, read_file
from boli.corpus.facts import Facts
from boli.corpus.listing import SourceFile, size_of
from boli.corpus.record import DROPPED, RECORDS, Dropped, record_id, to_table
from boli.corpus.worker import FORM, Batch, Cleaned
from boli.durable import write_file

if TYPE_CHECKING:
    import pyarrow

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 18
# Columns in which hardly any value is there twice.
DIFFERENT = ("id", "source", "text", "excerpt", "content_hash", "signature", FORM)
PART_BYTES, PART_SECONDS = 64 << 20, 60.0


@dataclass(frozen=True)
class Place:
    """How far into the sources something reaches."""

    files: int = 0  # that are done
    items: int = 0  # of the next one
    bytes: int = 0  # of the files that are done


@dataclass(frozen=True)
class Taken:
    """A batch, what could not be read meanwhile, and the place behind both."""

    batch: Batch
    unreadable: tuple[Dropped, ...]
    end: Place


class Batches:
    """The sources from some place on, batch by batch; remembers what it gave out."""

    def __init__(
        self,
        files: Sequence[SourceFile],
        roots: Sequence[int],
        keys: Sequence[str],  # of the roots
        reading: Reading,
        start: Place,
    ) -> None:
        self.files = files
        self.roots = roots
        self.keys = keys
        self.reading = reading
        self.start = start
        self.given: list[Taken] = []  # and not taken back yet, in order

    def __iter__(self) -> Iterator[Batch]:
        documents: list[Document] = []
        roots: list[int] = []
        unreadable: list[Dropped] = []
        size, place = 0, self.start
        for item, root, place in self._items():
            if isinstance(item, Unreadable):
                unreadable.append(_row(item, self.keys[root]))
            else:
                documents.append(item)
                roots.append(root)
                # A recording is a batch of its own: it takes as long as many texts.
                size += BATCH_CHARACTERS if item.kind == "recording" else len(item.text)
            if len(documents) + len(unreadable) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
                yield self._give(documents, roots, unreadable, place)
                documents, roots, unreadable, size = [], [], [], 0
        end = Place(len(self.files), 0, place.bytes)
        yield self._give(documents, roots, unreadable, end)

    def _give(
        self,
        documents: list[Document],
        roots: list[int],
        unreadable: list[Dropped],
        place: Place,
    ) -> Batch:
        batch = Batch(tuple(documents), tuple(roots))
        self.given.append(Taken(batch, tuple(unreadable), place))
        return batch

    def _items(self) -> Iterator[tuple[Document | Unreadable, int, Place]]:
        num_bytes = self.start.bytes
        for number in range(self.start.files, len(self.files)):
            file, skip = self.files[number], 0
            if number == self.start.files:
                skip = self.start.items
            for count, item in enumerate(read_file(file, self.reading), 1):
                if count > skip:
                    yield item, self.roots[number], Place(number, count, num_bytes)
            num_bytes += size_of(file.path)


@dataclass
class Part:
    """What came of some batches, until it is on the disk."""

    facts: Facts = field(default_factory=Facts)
    records: list[pyarrow.Table] = field(default_factory=list)
    dropped: list[pyarrow.Table] = field(default_factory=list)
    end: Place | None = None  # None: nothing came
    begun: float = field(default_factory=time.monotonic)
    num_bytes: int = 0

    def full(self, documents: int) -> bool:
        """Tell whether it is time to bring it to the disk."""
        return (
            self.facts.documents >= documents
            or self.num_bytes >= PART_BYTES
            or (self.facts.documents > 0 and time.monotonic() - self.begun >= PART_SECONDS)
        )

    def add(self, cleaned: Cleaned, taken: Taken) -> None:
        """Add what came of a batch, and what could not be read."""
        self.facts.add(cleaned.facts)
        tables = [cleaned.dropped]
        if taken.unreadable:
            rows = taken.unreadable
            tables.append(to_table(rows, Dropped))
            self.facts.documents += len(rows)
            self.facts.dropped.update(row.reason for row in rows)
        self.records.append(cleaned.records)
        self.dropped += tables
        self.num_bytes += sum(t.get_total_buffer_size() for t in (cleaned.records, *tables))
        self.end = taken.end

    def write(self, folder: Path, number: int) -> None:
        """Bring the part to the disk.

        Raises:
            StorageError: the disk is full or refuses.
        """
        import pyarrow as pa

        for name, tables in ((RECORDS, self.records), (DROPPED, self.dropped)):
            path = folder / part_name(number) / name
            write_table(path, pa.concat_tables(tables), compression="lz4")  # for a short time


def _row(item: Unreadable, root: str) -> Dropped:
    return Dropped(record_id(item.source, root), item.source, item.reason, item.detail, "")


def part_name(number: int) -> str:
    """Return the name of a part."""
    return f"part-{number:05d}"


def write_table(path: Path, table: pyarrow.Table, compression: str = "zstd") -> None:
    """Write a Parquet file for its owner alone, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    few = [name for name in table.column_names if name not in DIFFERENT]
    pyarrow.parquet.write_table(table, sink, compression=compression, use_dictionary=few)
    write_file(path, sink.getvalue(), private=True)  # text of people
