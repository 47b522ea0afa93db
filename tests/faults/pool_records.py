"""Made-up records and prepared folders, and a scan of every byte of a pool."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet

from boli.corpus.consent import MANIFEST, Terms
from boli.corpus.listing import SourceFile
from boli.corpus.record import RECORDS, Record, content_hash, record_id, to_table
from boli.corpus.survey import Survey
from boli.pool import egress
from boli.pool.egress import Sent
from boli.pool.egress_log import EgressLog
from boli.pool.table import Pool

OPEN = """licence = "{licence}"
consent = {{ purposes = ["training", "evaluation", "publication"] }}
residency = {{ limit = "any", region = "{region}" }}
contact = {{ address = "archive@example.org" }}
"""


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
    """Write a folder as boli prepare does, with sources beside it that allow all that they can."""
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(to_table(records, Record), folder / RECORDS / "00000.parquet")
    root = (folder.parent / f"{folder.name}-sources").resolve()
    files: dict[str, SourceFile] = {}
    governed: dict[str, str] = {}
    for one in records:
        name = one.source.rpartition("#")[0] or one.source
        place = root / hashlib.sha256(repr((one.licence, one.region)).encode()).hexdigest()[:16]
        if str(place) not in governed:
            place.mkdir(parents=True, exist_ok=True)
            said = OPEN.format(licence=one.licence, region=one.region)
            (place / MANIFEST).write_bytes(said.encode("utf-8", "replace"))
            governed[str(place)] = str(place)
        path = place / f"{len(files)}.txt"
        path.touch()
        files.setdefault(name, SourceFile(path, name, root))
    given = str(root), {str(root): governed}
    Survey("", {}, {}, given[:1], tuple(files.values()), (), given[1]).save(folder)
    return folder


def as_noted(records: Sequence[Record]) -> list[Terms]:
    """Return what sources allow now, where nothing changed since the records were prepared."""
    return [
        Terms(**{each.name: getattr(one, each.name) for each in fields(Terms)}) for one in records
    ]


def send(
    pool: Pool, site: str, records: Sequence[Record], log: EgressLog, today: date | None = None
) -> Sent:
    """Send records whose sources allow what was noted."""
    return egress.send(pool, site, records, log, as_noted, today)


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
