"""The one record type, and how records lie in Parquet files.

A folder that `boli prepare` wrote has records/*.parquet (kept) and dropped/*.parquet (each with
its reason).
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, fields
from datetime import date
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boli.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow

PIPELINE = "1"  # raised whenever the same source would give other records
RECORDS, DROPPED = "records", "dropped"


@dataclass(frozen=True, slots=True)
class Record:
    """A clean text, where it comes from, and what may be done with it."""

    id: str  # 32 hex digits, of the place in the source
    language: str  # ISO 639-3, "und" where unsure
    confidence: float  # of the language, 0 to 1
    script: str  # ISO 15924
    text: str
    source: str  # path below the source folder, and the place in it: news/1998.txt#14
    purposes: tuple[str, ...]  # consented to
    expires: date | None  # last day of the consent
    licence: str  # SPDX
    residency: str  # premises, state, country or any
    region: str  # ISO 3166, where the source is
    contact: str
    quality: float | None  # bits per byte under a small LM: fewer is better; None: not scored
    personal: str  # JSON, kind of personal data to how often it was replaced
    content_hash: str  # 64 hex digits, SHA-256 of the text
    signature: bytes  # of corpus.signatures, 512 bytes; empty where the text is too short for one
    pipeline: str = PIPELINE


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was not kept, or a file that could not be read, and why."""

    id: str
    source: str
    reason: str  # of a fixed list, for counting
    detail: str  # figures and the like; never a piece of the text
    excerpt: str  # the beginning of the text as it was; stays on the machine
    duplicate_of: str = ""  # id of the record that was kept


def record_id(source: str, root: str = "") -> str:
    """Return the id of the record at a place, such as "news/1998.txt#14".

    `root` tells archives apart that have files of the same names: see `root_key`.
    """
    return hashlib.sha256(f"{root}\0{source}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


def root_key(root: Path) -> str:
    """Return what stands for a source folder in ids: a hash of where it is."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def content_hash(text: str) -> str:
    """Return the SHA-256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def schema_of(kind: type[Record] | type[Dropped]) -> pyarrow.Schema:
    """Return the columns of a Parquet file of records, or of dropped ones."""
    import pyarrow as pa

    types = {
        "confidence": pa.float32(),
        "purposes": pa.list_(pa.string()),
        "expires": pa.date32(),
        "quality": pa.float32(),
        "signature": pa.binary(),
    }
    return pa.schema([(field.name, types.get(field.name, pa.string())) for field in fields(kind)])


def to_table(rows: Sequence[Record] | Sequence[Dropped], kind: type[Any]) -> pyarrow.Table:
    """Return rows as an Arrow table."""
    import pyarrow as pa

    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(kind)}
    return pa.table(columns, schema=schema_of(kind))


def read_rows(path: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Return the rows of one Parquet file; of the given columns alone, or of all.

    pyarrow's read_table would import its datasets first, which nothing here needs.

    Raises:
        OSError, ArrowException: it cannot be read.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read(columns)


def without_pandas() -> None:
    """Keep pyarrow from importing pandas, where that is installed, for its first array.

    It takes half a second, and nothing here hands it anything of pandas. For processes of our
    own: pyarrow does not look again.
    """
    import pyarrow as pa

    class Hidden(MetaPathFinder):
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "pandas":
                raise ImportError(name)

    if "pandas" in sys.modules:
        return
    hidden = Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(hidden)


def read_records(folder: Path, batch_rows: int = 1024) -> Iterator[list[Record]]:
    """Yield the records of a prepared folder, batch by batch, in order.

    Raises:
        CorpusError: this is no prepared folder, or a file of it is not whole.
    """
    import pyarrow.parquet

    paths = sorted((folder / RECORDS).glob("*.parquet"))
    if not paths:
        raise CorpusError(
            f"there are no records in {folder}", "give a folder that boli prepare has finished"
        )
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                # Named: a copy from a pool has further columns.
                for batch in file.iter_batches(batch_rows, columns=schema_of(Record).names):
                    yield [_record(row) for row in batch.to_pylist()]
        except (OSError, pyarrow.ArrowException, TypeError) as error:
            raise CorpusError(f"cannot read {path}: {error}", "prepare the folder again") from None


def _record(row: dict[str, Any]) -> Record:
    return Record(**{**row, "purposes": tuple(row["purposes"])})
