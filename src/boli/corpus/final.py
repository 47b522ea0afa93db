"""The last steps over all parts: duplicates out, records and dropped ones in their place."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.cleaning import EXCERPT_CHARACTERS
from boli.corpus.consent import Terms, effective
from boli.corpus.dedup import KEPT, Duplicates, SignatureFile, near_duplicates
from boli.corpus.facts import Facts
from boli.corpus.parts import part_name, write_table
from boli.corpus.record import DROPPED, RECORDS, Dropped, read_rows, schema_of
from boli.corpus.worker import FORM, LABEL
from boli.durable import sync_folder

if TYPE_CHECKING:
    import pyarrow

EXAMPLES = "examples.json"
FOLDERS = (RECORDS, DROPPED, f"{RECORDS}.new", f"{DROPPED}.new")
ALLOWED = ("purposes", "expires", "licence", "residency", "region")
TermsOf = Callable[[str], Terms | str]  # of a record's source; a sentence: not known
EXACT, NEAR = "exact duplicate", "near duplicate"
SIGNATURES = "signatures"
NUM_EXAMPLES = 5  # of each reason


def find_duplicates(work: Path, parts: Sequence[Path], near: bool = True) -> Duplicates:
    """Find which records of all parts repeat an earlier one; not `near`: only to the letter."""
    work.mkdir(parents=True, exist_ok=True)
    with SignatureFile(work / SIGNATURES) as file:
        for part in parts:
            table = read_rows(part / RECORDS, [FORM, "signature"])
            signatures = table["signature"].to_pylist() if near else [b""] * table.num_rows
            file.append(list(zip(table[FORM].to_pylist(), signatures, strict=True)))
    if not file.num_rows:
        return Duplicates(np.empty(0, np.int32), np.empty(0, bool))
    return near_duplicates(work / SIGNATURES)


def write(
    work: Path,
    out: Path,
    parts: Sequence[Path],
    found: Duplicates,  # among the records of all parts
    facts: Facts,  # what is known only now is added to it
    terms_of: TermsOf,
) -> dict[str, list[dict[str, str]]]:
    """Write records/ and dropped/ of the folder, and return examples of each reason.

    Raises:
        StorageError, OSError: the disk is full or refuses.
    """
    import pyarrow as pa

    for name in FOLDERS:  # of one that was killed here
        shutil.rmtree(out / name, ignore_errors=True)
    ids = _ids(work, parts)
    examples: dict[str, list[dict[str, str]]] = {}
    row = 0
    written: list[Future[None]] = []
    # Arrow packs the tables of one part while the next part is looked at.
    with ThreadPoolExecutor(2) as writers:
        for number, part in enumerate(parts):
            table = read_rows(part / RECORDS)
            here = slice(row, row + table.num_rows)
            row += table.num_rows
            twice = _duplicates(table, Duplicates(found.kept_of[here], found.exact[here]), ids)
            facts.dropped.update(twice["reason"].to_pylist())
            dropped = pa.concat_tables([read_rows(part / DROPPED), twice])
            _collect(examples, dropped)
            kept = table.filter(pa.array(found.kept_of[here] == KEPT))
            _count(facts, kept)
            kept = stamped(kept.drop_columns([FORM, LABEL]), terms_of)
            name = f"{part_name(number)}.parquet"
            for future in written:
                future.result()
            written = [
                writers.submit(write_table, out / f"{folder}.new" / name, rows)
                for folder, rows in ((RECORDS, kept), (DROPPED, dropped))
            ]
    for future in written:
        future.result()
    for name in (RECORDS, DROPPED):
        (out / f"{name}.new").mkdir(parents=True, exist_ok=True)
        (out / f"{name}.new").rename(out / name)
    sync_folder(out)
    return examples


def _count(facts: Facts, kept: pyarrow.Table) -> None:
    """Add what is told of records that stay."""
    import pyarrow.compute as pc

    facts.kept += kept.num_rows
    facts.kept_characters += pc.sum(pc.utf8_length(kept["text"])).as_py() or 0
    facts.scripts.update(kept["script"].to_pylist())
    facts.languages.update(label for label in kept[LABEL].to_pylist() if label)
    for personal, times in Counter(kept["personal"].to_pylist()).items():
        for kind, number in json.loads(personal).items():
            facts.personal[kind] += times * number


def stamped(table: pyarrow.Table, terms_of: TermsOf) -> pyarrow.Table:
    """Return records with what their sources allow; nothing, where that is not known."""
    import pyarrow as pa

    numbers: dict[Terms, int] = {}  # of few manifests, for many records
    found = map(terms_of, table["source"].to_pylist())
    terms = (each if isinstance(each, Terms) else Terms() for each in found)
    rows = [numbers.setdefault(each, len(numbers)) for each in terms]
    places = pa.array(rows, pa.int32())
    given = [asdict(each) for each in numbers]
    for name in asdict(Terms()):
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        values = pa.array([columns[name] for columns in given], field.type)
        table = table.set_column(place, field, values.take(places))
    return table


def stamp_again(out: Path, terms_of: TermsOf) -> tuple[bool, int]:
    """Note in the records of a folder what their sources allow now.

    Returns whether that is news, and for how many records it is not the same or stricter.

    Raises:
        StorageError, OSError: the disk is full or refuses.
    """
    changed, loosened = False, 0
    for path in sorted((out / RECORDS).glob("*.parquet")):
        table = read_rows(path)
        new = stamped(table, terms_of)
        if not new.equals(table):
            pairs = Counter(zip(_terms(table), _terms(new), strict=True))
            loosened += sum(n for (had, has), n in pairs.items() if effective(had, has) != has)
            write_table(path, new)
            changed = True
    return changed, loosened


def _terms(table: pyarrow.Table) -> list[Terms]:
    columns = [table[each.name].to_pylist() for each in fields(Terms)]
    return [Terms(tuple(purposes), *rest) for purposes, *rest in zip(*columns, strict=True)]


def allowed(out: Path) -> list[dict[str, Any]]:
    """Return what is allowed with how many records: no name, no address, no words of people."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for path in sorted((out / RECORDS).glob("*.parquet")):
        table = read_rows(path, ALLOWED)
        rows = zip(*(table[name].to_pylist() for name in ALLOWED), strict=True)
        counts.update((tuple(purposes), str(until or ""), *rest) for purposes, until, *rest in rows)
    return [
        dict(zip((*ALLOWED, "records"), (list(purposes), *rest, number), strict=True))
        for (purposes, *rest), number in sorted(counts.items())
    ]


def _ids(work: Path, parts: Sequence[Path]) -> NDArray[np.bytes_]:  # (records of all parts,)
    """Return the ids of all records, in a file: they need not be in memory."""
    path = work / "ids"
    with path.open("wb") as file:
        for part in parts:
            table = read_rows(part / RECORDS, ["id"])
            file.write("".join(table["id"].to_pylist()).encode())
    return np.memmap(path, "S32", "r") if path.stat().st_size else np.empty(0, "S32")


def _duplicates(
    table: pyarrow.Table,
    found: Duplicates,  # of its rows
    ids: NDArray[np.bytes_],
) -> pyarrow.Table:
    """Return duplicates as dropped rows, each with the id of the record that is kept."""
    import pyarrow as pa

    goes = found.kept_of != KEPT
    going = table.filter(pa.array(goes))
    rows = zip(
        *(going[name].to_pylist() for name in ("id", "source", "text")),
        found.exact[goes].tolist(),
        ids[found.kept_of[goes]].tolist(),
        strict=True,
    )
    return pa.Table.from_pylist(
        [
            {
                "id": name,
                "source": source,
                "reason": EXACT if exact else NEAR,
                "detail": "",
                "excerpt": text[:EXCERPT_CHARACTERS],
                "duplicate_of": stays.decode(),
            }
            for name, source, text, exact, stays in rows
        ],
        schema=schema_of(Dropped),
    )


def _collect(examples: dict[str, list[dict[str, str]]], dropped: pyarrow.Table) -> None:
    """Take the first few rows of each reason."""
    import pyarrow as pa

    reasons = dropped["reason"].to_pylist()
    wanted = []
    found: Counter[str] = Counter({reason: len(rows) for reason, rows in examples.items()})
    for row, reason in enumerate(reasons):
        if found[reason] < NUM_EXAMPLES:
            found[reason] += 1
            wanted.append(row)
    for example in dropped.take(pa.array(wanted, pa.int64())).to_pylist():
        examples.setdefault(example.pop("reason"), []).append(example)


def told(out: Path, name: str) -> dict[str, Any] | None:
    """Return the row of a record or of a dropped one, with its table's name; None: neither.

    It is named by its id, by eight digits or more that its id begins with, or by its source.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet

    wanted = pc.field("source") == name
    if re.fullmatch("[0-9a-f]{8,32}", name):
        wanted = pc.starts_with(pc.field("id"), name)

    for table in (RECORDS, DROPPED):
        for path in sorted((out / table).glob("*.parquet")):
            rows = pyarrow.parquet.read_table(path, filters=wanted).to_pylist()
            if rows:
                return {"table": table, **rows[0]}
    return None
