"""Folders of text, tables, pages and recordings → documents, one after the other.

Whatever cannot be read becomes a line of its own that says why, and the rest goes on. Memory is
bounded by the longest document, whatever a file holds.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from boli.corpus.audio import EXTENSIONS as RECORDINGS
from boli.corpus.listing import SourceFile, open_plain, printable
from boli.corpus.memory import bounded
from boli.corpus.streams import DAMAGED, PACKED, Stream, opened, opened_zip

LONGEST_BYTES = 4 << 20  # of a document; more is no text that a person wrote
LONGEST_UNIT = 500_000  # characters of a part of a txt file; quality takes twice as many
LARGEST_PAGE_BYTES = 32 << 20
PARQUET_ROWS = 32
COLUMN_BUFFER_BYTES = 1 << 20  # of a packed column, read at once
MOST_PARQUET_BYTES = 512 << 20  # that some rows may take: what a file says of its sizes may lie
MOST_VALUES = 400_000  # of a line of JSON, by its commas and brackets, those in text included
LARGEST_COLUMN_BYTES = 1 << 30  # of a row group
# Columns of Parquet files of records, and of what was dropped.
PREPARED = ({"content_hash", "residency", "purposes"}, {"reason", "excerpt", "duplicate_of"})

Unit = Literal["auto", "line", "paragraph", "document"]
TEXT, TABLE, LINES = (".txt", ".text", ".md"), (".tsv",), (".jsonl", ".ndjson")
PAGES, PARQUET = (".html", ".htm", ".xhtml"), (".parquet",)

READ_REASONS = (
    "binary data",
    "broken encoding",
    "link",
    "no text",
    "recording",
    "records",
    "too long",
    "unknown kind of file",
    "unreadable",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are to be taken apart."""

    unit: Unit = "auto"  # of plain text
    column: str = ""  # of tables: a name, or a number from 1


@dataclass(frozen=True, slots=True)
class Document:
    """A text as it was found; or a page or recording, with the file's path for text."""

    source: str  # name of the file and place in it: news/1998.txt#14
    text: str
    kind: Literal["text", "html", "recording"] = "text"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A place that gave no text, and why."""

    source: str
    reason: str  # of READ_REASONS
    detail: str


Item = Document | Unreadable


def read_file(file: SourceFile, reading: Reading) -> Iterator[Item]:
    """Yield what a file holds. It never raises: what cannot be read is told in the list."""
    try:
        suffix = file.path.suffix.lower()
        if file.path.is_symlink():
            yield Unreadable(file.name, "link", "links are not followed")
        elif file.path.is_dir():
            yield Unreadable(file.name, "unreadable", "the folder may not be read")
        elif not file.path.is_file():
            yield Unreadable(file.name, "unknown kind of file", "it is not a plain file")
        elif suffix == ".zip":
            yield from _zip(file, reading)
        elif suffix in RECORDINGS:
            yield Document(f"{file.name}#0", str(file.path), "recording")
        elif suffix in PARQUET:
            yield from _parquet(file, reading)
        elif suffix in PAGES:
            yield _page(file)
        else:
            with opened(file.path) as stream:
                inner = PurePosixPath(file.name)
                inner = inner.with_suffix("") if suffix in PACKED else inner
                yield from _stream(file.name, inner.suffix.lower(), stream, reading)
    except DAMAGED as error:
        yield Unreadable(file.name, "unreadable", _told(error))


def _told(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(said.split())[:200]


def _zip(file: SourceFile, reading: Reading) -> Iterator[Item]:
    seen: Counter[str] = Counter()
    with opened_zip(file.path) as archive:
        for member, open_stream in archive:
            name = f"{file.name}/{printable(member)}"
            seen[name] += 1
            if seen[name] > 1:
                name = f"{name}~{seen[name]}"
            suffix = PurePosixPath(member).suffix.lower()
            if suffix in {*RECORDINGS, *PARQUET, *PAGES, ".zip", *PACKED}:
                yield Unreadable(name, "unknown kind of file", f"{suffix} inside a zip: unpack it")
                continue
            try:
                with open_stream() as stream:
                    yield from _stream(name, suffix, stream, reading)
            except DAMAGED as error:
                yield Unreadable(name, "unreadable", _told(error))


def _page(file: SourceFile) -> Item:
    size = file.path.lstat().st_size
    if size > LARGEST_PAGE_BYTES:
        return Unreadable(file.name, "too long", f"a page of {size} bytes")
    return Document(f"{file.name}#0", str(file.path), "html")


def _stream(name: str, suffix: str, stream: Stream, reading: Reading) -> Iterator[Item]:
    kinds = {kind: found for found in (TEXT, TABLE, LINES) for kind in found}
    kind = kinds.get(suffix)
    if kind is None and suffix:
        yield Unreadable(name, "unknown kind of file", f"files called *{suffix} are not read")
        return
    if stream.binary:
        yield Unreadable(name, "binary data", "it holds NUL bytes")
        return
    lines = _lines(name, io.BufferedReader(stream, 1 << 18))
    if kind is TABLE:
        yield from _table(name, lines, reading.column)
    elif kind is LINES:
        yield from _objects(name, lines, reading.column or "text")
    else:
        unit = reading.unit
        if unit == "auto":  # an empty line somewhere: paragraphs
            unit = "paragraph" if re.search(rb"\n[ \t\r]*\n", stream.head) else "line"
        yield from _grouped(name, lines, unit)


def _lines(name: str, file: io.BufferedReader) -> Iterator[tuple[int, str] | Unreadable]:
    """Yield each line with its number from 1, without its end; faults in their place."""
    number = 0
    while line := file.readline(LONGEST_BYTES):
        number += 1
        place, size = f"{name}#{number}", len(line)
        while not line.endswith(b"\n") and size >= LONGEST_BYTES:
            rest = file.readline(LONGEST_BYTES)
            if not rest:
                break
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        if size > LONGEST_BYTES:
            yield Unreadable(place, "too long", f"a line of {size} bytes")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            yield Unreadable(
                place, "broken encoding", f"not UTF-8: byte {byte:#04x} at {error.start}"
            )
            continue
        if "\0" in text:
            yield Unreadable(place, "binary data", "it holds NUL bytes")
            continue
        yield number, text.rstrip("\r\n")


def _grouped(
    name: str, lines: Iterable[tuple[int, str] | Unreadable], unit: Unit
) -> Iterator[Item]:
    """Put lines together to documents of a unit, cut at a line where they grow too long."""
    held: list[str] = []
    size, first = 0, 1

    def document() -> Iterator[Item]:
        if held:
            yield Document(f"{name}#{first}", "\n".join(held))
            held.clear()

    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        number, text = line
        empty = not text.strip()
        full = size + len(text) > LONGEST_UNIT
        if unit == "line" or (empty and unit == "paragraph") or full:
            yield from document()
        if not held:
            size, first = 0, number
            if empty:
                continue
        held.append(text)
        size += len(text) + 1
    yield from document()


def _table(name: str, lines: Iterable[tuple[int, str] | Unreadable], column: str) -> Iterator[Item]:
    """Yield the cells of a column; without a name the one called "text", else the first."""
    place = int(column) if column.isdecimal() else 0
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            if not place:
                yield Unreadable(name, "no text", "its first line cannot be read: which column?")
                return
            continue
        number, text = line
        cells = text.split("\t")
        if not place:  # the first line tells which column that is
            wanted = column or "text"
            if wanted in cells:
                place = cells.index(wanted) + 1
                continue
            if column:
                yield Unreadable(name, "no text", f"there is no column {column!r}")
                return
            place = 1
        if len(cells) < place:
            yield Unreadable(f"{name}#{number}", "no text", f"{len(cells)} columns, not {place}")
        elif cells[place - 1].strip():
            yield Document(f"{name}#{number}", cells[place - 1])


def _objects(name: str, lines: Iterable[tuple[int, str] | Unreadable], key: str) -> Iterator[Item]:
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        number, text = line
        if not text.strip():
            continue
        place = f"{name}#{number}"
        # Each takes up to 250 bytes once it is read, and as text two or three.
        num_values = sum(map(text.count, "[{,"))
        if num_values > MOST_VALUES:
            yield Unreadable(place, "too long", f"{num_values} values in one object")
            continue
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Unreadable(place, "unreadable", f"not JSON: {type(error).__name__}")
            continue
        value = value.get(key) if isinstance(value, dict) else None
        yield _document(place, value, key)


def _document(place: str, value: Any, key: str) -> Item:
    if not isinstance(value, str):
        return Unreadable(place, "no text", f"{key!r} is {type(value).__name__}, not text")
    if len(value) > LONGEST_BYTES:
        return Unreadable(place, "too long", f"{len(value)} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        return Unreadable(place, "broken encoding", "half of a surrogate pair")
    if "\0" in value:
        return Unreadable(place, "binary data", "it holds NUL characters")
    return Document(place, value)


def _parquet(file: SourceFile, reading: Reading) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    key = reading.column or "text"
    try:
        with open_plain(file.path) as plain, pyarrow.parquet.ParquetFile(plain) as table:
            why = _unfit(table, key)
        if why:
            yield Unreadable(file.name, *why)
            return
        # Equal values stay one: a small file can say a large one very often.
        with (
            open_plain(file.path) as plain,
            pyarrow.parquet.ParquetFile(
                plain, read_dictionary=[key], buffer_size=COLUMN_BUFFER_BYTES
            ) as table,
        ):
            number = 0
            batches = table.iter_batches(PARQUET_ROWS, columns=[key])
            while (batch := _next(batches)) is not None:
                values = batch.column(0)
                if isinstance(values, pyarrow.DictionaryArray):
                    places, values = values.indices.to_pylist(), values.dictionary
                else:
                    places = list(range(len(values)))
                for place in places:
                    number += 1
                    if place is not None and values[place].is_valid:
                        yield _cell(f"{file.name}#{number}", values[place], key)
    except (pyarrow.ArrowException, KeyError, MemoryError) as error:
        yield Unreadable(file.name, "unreadable", _told(error))


def _next(batches: Iterator[Any]) -> Any:
    """Return the next batch, or None; a page that unpacks to gigabytes is an Arrow error."""
    with bounded(MOST_PARQUET_BYTES):
        return next(batches, None)


def _unfit(table: Any, key: str) -> tuple[str, str] | None:
    """Return why a Parquet file is not read: a reason and its details."""
    import pyarrow

    schema = table.schema_arrow
    if any(columns <= set(schema.names) for columns in PREPARED):
        return "records", "it was prepared before; share it, or train on it"
    if key not in schema.names:
        return "no text", f"there is no column {key!r}"
    kind = schema.field(key).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        return "no text", f"{key!r} is {kind}, not text"
    column = next(k for k in range(table.metadata.num_columns) if _path(table, k) == key)
    for group in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(group).column(column).total_uncompressed_size
        if size > LARGEST_COLUMN_BYTES:
            return "too long", f"a row group of {size} bytes"
    return None


def _path(table: Any, column: int) -> str:
    return str(table.metadata.schema.column(column).path)


def _cell(place: str, value: Any, key: str) -> Item:
    data = value.as_buffer()
    if data is not None and data.size > LONGEST_BYTES:
        return Unreadable(place, "too long", f"{data.size} bytes")
    try:
        return _document(place, value.as_py(), key)
    except UnicodeDecodeError:
        return Unreadable(place, "broken encoding", "not UTF-8")
