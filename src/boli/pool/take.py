"""Take a copy of one version out of a pool, and note in the pool who took it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from boli.corpus.consent import REGION, consent_date, why_not
from boli.corpus.record import RECORDS, Record, schema_of
from boli.durable import storage_error, sync_folder, write_file
from boli.errors import PoolError
from boli.plan import LANGUAGE
from boli.pool.ledger import Line, add
from boli.pool.pins import PIN, Pin
from boli.pool.table import Pool

if TYPE_CHECKING:
    import pyarrow

MOST_TAKER = 80  # characters
ASKED = ("language", "purposes", "expires", "licence", "residency", "region")  # of a row


@dataclass
class Taken:
    """What a copy holds."""

    pin: Pin
    rows: Counter[str] = field(default_factory=Counter)  # language to rows
    stayed: Counter[str] = field(default_factory=Counter)  # reason to rows


def take(
    pool: Pool,
    out: Path,
    taker: str = "",
    version: int | None = None,
    language: str = "",
    region: str = "",
) -> Taken:
    """Write records/LANGUAGE.parquet and pool.json below `out`, which only you can read.

    `region` is where `out` is: records that may not leave a state or country are only given
    where it is theirs. Those whose consent has ended are given to nobody.

    Raises:
        PoolError: a value is not allowed, the folder is not free, or the version is gone.
        StorageError: the disk refuses.
    """
    _check(taker, language, region)
    table = pool.records if version is None else pool.at_version(version)
    _make_room(out)
    pin = Pin(
        pool=pool.description.id,
        url=pool.address.url,
        version=table.version(),
        taken=uuid4().hex,
        language=language,
        region=region,
    )
    # Noted before anything is read: an erase asks who may have seen a record.
    add(pool, [Line("taken", pin.taken, {**vars(pin), "taker": taker})])
    taken = Taken(pin)
    keys: list[str] = []
    writers: dict[str, Any] = {}
    where = {"language": [language]} if language else None
    columns = ["key", "site", *schema_of(Record).names]
    try:
        for batch in pool.scan(columns, where, table):
            _write(_given(batch, pool, region, taken), out, writers, keys, taken)
    except OSError as error:
        raise storage_error(out, error) from error
    finally:
        for writer in writers.values():
            writer.close()
    return _finish(out, taken, keys)


def _check(taker: str, language: str, region: str) -> None:
    if language and not re.fullmatch(LANGUAGE, language):
        raise PoolError(f"{language[:40]!r} is no language", "give an ISO 639-3 code, such as bho")
    if region and not re.fullmatch(REGION, region):
        raise PoolError(f"{region[:40]!r} is no region", "give ISO 3166: IN, or IN-BR")
    if len(taker) > MOST_TAKER or not taker.isprintable():
        raise PoolError(
            f"{taker[:40]!r} cannot be the name of who takes it",
            f"use at most {MOST_TAKER} printable characters",
        )


def _make_room(out: Path) -> None:
    """Leave `out` empty where it holds an earlier copy; refuse any other folder."""
    try:
        there = list(out.iterdir()) if out.exists() else []
        if there and not (out / PIN).is_file():
            raise PoolError(
                f"{out} is not empty, and holds no copy of a pool", "choose an empty folder"
            )
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        for path in (out / RECORDS).glob("*.parquet"):
            path.unlink()
    except OSError as error:
        raise storage_error(out, error) from error


def why_not_given(row: dict[str, Any], licences: frozenset[str], region: str, today: date) -> str:
    """Return why a row is not given to a copy in a region; empty where it is."""
    return why_not(
        purposes=tuple(row["purposes"] or ()),
        expires=row["expires"],
        licence=row["licence"] or "",
        residency=row["residency"] or "",
        region=row["region"] or "",
        pool_region=region,
        licences=licences,
        today=today,
    )


def _given(
    batch: pyarrow.RecordBatch, pool: Pool, region: str, taken: Taken
) -> list[dict[str, Any]]:
    given, licences, today = [], frozenset(pool.description.licences), consent_date()
    for row in batch.to_pylist():
        reason = why_not_given(row, licences, region, today)
        if reason:
            taken.stayed[reason] += 1
        else:
            given.append(row)
    return given


def _write(
    rows: list[dict[str, Any]],
    out: Path,
    writers: dict[str, Any],
    keys: list[str],
    taken: Taken,
) -> None:
    """Add rows to the files of their languages; a name that is no language names no file."""
    import pyarrow as pa
    import pyarrow.parquet

    schema = schema_of(Record).append(pa.field("site", pa.string()))
    by_language: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        named = bool(re.fullmatch(LANGUAGE, row["language"] or ""))
        by_language.setdefault(row["language"] if named else "other", []).append(row)
        keys.append(row.pop("key"))
    for name, own in by_language.items():
        if name not in writers:
            path = out / RECORDS / f"{name}.parquet"
            # Its text may not be for all who use this machine.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            writers[name] = pyarrow.parquet.ParquetWriter(path, schema)
        writers[name].write_table(pa.Table.from_pylist(own, schema))
        taken.rows[name] += len(own)


def _finish(out: Path, taken: Taken, keys: list[str]) -> Taken:
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    taken.pin = Pin(**{**vars(taken.pin), "rows": len(keys), "digest": digest})
    sync_folder(out / RECORDS)
    pin = json.dumps(vars(taken.pin), indent=2, sort_keys=True)
    write_file(out / PIN, pin.encode(), private=True)
    return taken
