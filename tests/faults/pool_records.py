"""Made-up records and prepared folders, and a scan of every byte of a pool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from boli.corpus.record import RECORDS, Record, content_hash, record_id, to_table


def record(number: int, site: str = "arrah", **values: Any) -> Record:
    """Return a record that may go into any pool, or one with other values."""
    source = values.pop("source", f"news/{number}.txt#1")
    text = values.pop("text", f"वाक्य {number} {site} के, और कुछ भी नया नहीं।")
    found: dict[str, Any] = {
        "id": record_id(source),
        "language": "bho",
        "confidence": 0.875,
        "script": "Deva",
        "text": text,
        "source": source,
        "purposes": ("training",),
        "expires": None,
        "licence": "CC-BY-4.0",
        "residency": "state",
        "region": "IN-BR",
        "contact": "archive@example.org",
        "quality": 2.0,
        "personal": json.dumps({"phone": 1}),
        "content_hash": content_hash(text),
        "signature": b"",
    }
    return Record(**{**found, **values})


def prepared(folder: Path, records: Sequence[Record]) -> Path:
    """Write a folder as boli prepare does."""
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(to_table(records, Record), folder / RECORDS / "00000.parquet")
    return folder


def contents(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every file below a folder as it lies there, and Parquet ones unpacked too."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            yield path, raw
            if ".parquet" in path.name:
                yield path, unpacked(path)


def unpacked(path: Path) -> bytes:
    """Return all values of a Parquet file, its statistics and its metadata."""
    with pyarrow.parquet.ParquetFile(path) as file:
        told = [
            repr(file.metadata.row_group(group).to_dict()) for group in range(file.num_row_groups)
        ]
        rows = file.read().to_pylist()
        metadata = file.metadata.metadata
    return "\n".join([*told, repr(metadata), *(str(row) for row in rows)]).encode()


def files_with(root: Path, words: Iterable[str]) -> list[Path]:
    """Return the files below a folder that hold one of these words in any form."""
    forms = {
        form
        for word in words
        for form in (word.encode(), json.dumps(word)[1:-1].encode(), word.encode("utf-16-le"))
    }
    return sorted({path for path, data in contents(root) if any(form in data for form in forms)})
