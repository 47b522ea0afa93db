"""Which rows an erase takes out: those that were named, and others of their sites with their text.

Rows are read twice: for the texts of what was named, and for what else holds one of these texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from boli.pool.table import Pool, row_key, site_key
from boli.pool.texts import Marks, are_among, marked


@dataclass
class Found:
    """What an erase is about. A site with all its records is one key, however many they are."""

    about: str  # record or site
    keys: set[str]  # of rows or the site, that must not come back
    where: dict[str, Collection[str]]  # the rows that go
    missing: list[str]  # ids that no site holds
    marks: Marks  # (n,) in order: hashes of the texts that must not come back
    rows: Counter[str] = field(default_factory=Counter)  # key to number of rows
    present: int = 0  # rows of what was named
    alike: int = 0  # rows that go because of their text
    others: dict[str, list[str]] = field(default_factory=dict)  # site to ids: stay with such a text


def find(pool: Pool, records: Sequence[str], site: str) -> Found:
    """Return what goes: records of a site or of all sites, or a site with all its records.

    Raises:
        PoolError: the pool cannot be reached.
    """
    found = _of_records(pool, records, site) if records else _of_site(pool, site)
    if found.marks.size:
        _look_for_texts(pool, found)
    return found


def _of_site(pool: Pool, site: str) -> Found:
    key = site_key(site)
    where: dict[str, Collection[str]] = {"site_key": [key]}
    parts, number = [np.zeros(0, np.uint64)], 0
    for part, marks in marked(pool, pool.scan(["text"], where)):
        parts.append(np.unique(marks))
        number += part.num_rows
    merged = np.unique(np.concatenate(parts))
    return Found("site", {key}, where, [], merged, Counter({key: number}), number)


def _of_records(pool: Pool, records: Sequence[str], site: str) -> Found:
    named = {row_key(site, record) for record in records} if site else set[str]()
    where = {"key": named} if site else {"id": set(records)}
    missing = set() if site else set(records)
    parts, number = [np.zeros(0, np.uint64)], 0
    for part, marks in marked(pool, pool.scan(["key", "id", "text"], where)):
        number += part.num_rows
        named.update(part["key"].to_pylist())
        missing -= set(part["id"].to_pylist())
        parts.append(marks.ravel())
    merged = np.unique(np.concatenate(parts))
    rows = Counter(dict.fromkeys(named, 1))
    # One set for both: what is added to the keys because of its text is looked for at takers too.
    return Found("record", named, {"key": named}, sorted(missing), merged, rows, number)


def _look_for_texts(pool: Pool, found: Found) -> None:
    """Add the rows of the same sites with one of the texts, and note those of other sites."""
    named = frozenset(found.keys)
    sites = {
        site
        for batch in pool.scan(["site_key"], found.where)
        for site in batch["site_key"].to_pylist()
    }
    for part, marks in marked(pool, pool.scan(["key", "site", "site_key", "id", "text"])):
        for row in part.filter(are_among(marks, found.marks)).to_pylist():
            if row["key"] in named or (found.about == "site" and row["site_key"] in sites):
                continue
            if row["site_key"] in sites:
                found.keys.add(row["key"])
                found.rows[row["key"]] = 1
                found.alike += 1
            else:
                found.others.setdefault(row["site"], []).append(row["id"])
