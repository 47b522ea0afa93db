"""Erase a record, or all of a site, from every file of a pool; and say who had seen it.

An erase marks the table (see mark.py), deletes, takes away every file that the newest version does
not need, and unmarks it. Everything here can be done again after a kill, by whoever erases next.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from boli.errors import PoolError
from boli.pool.card import write_card
from boli.pool.delta import ConflictError, told
from boli.pool.egress_log import EgressLog
from boli.pool.ledger import Line, add, erased_keys, read
from boli.pool.mark import begin, check, end, hand_to_sweep, set_properties
from boli.pool.pins import runs_with
from boli.pool.sweep import finish_sweep, is_old, not_needed
from boli.pool.table import ERASING, RECORDS, Pool
from boli.pool.take import ASKED, why_not_given
from boli.pool.targets import Found, find
from boli.pool.texts import erased_marks, lines_of

KEYS_AT_ONCE = 500


@dataclass
class Erased:
    """What an erase did, and who may hold copies."""

    rows: int = 0
    files: int = 0  # that were taken away
    alike: int = 0  # of these rows: had the text of a named record, under another id
    others: dict[str, list[str]] = field(default_factory=dict)  # site to ids with the text: stay
    takers: list[dict[str, Any]] = field(default_factory=list)  # had seen it
    maybe: list[dict[str, Any]] = field(default_factory=list)  # their version is gone already
    runs: dict[str, int] = field(default_factory=dict)  # to version


def erase(
    pool: Pool,
    log: EgressLog,
    record: str | Sequence[str] = "",
    site: str = "",
    runs: Path | None = None,
    take_over: bool = False,
) -> Erased:
    """Erase records (of one site, or of all that hold such an id), or a site with all its records.

    The text of an erased record goes from all rows of its site, under whatever id.

    Raises:
        PoolError: nothing such is there, someone else is erasing, or the pool cannot be reached.
        StorageError: the egress log cannot be written.
    """
    records = [record] if isinstance(record, str) else list(record)
    records = [one for one in dict.fromkeys(records) if one]
    if not records and not site:
        raise PoolError("nothing to erase was named", "give --record ID, --site NAME, or both")
    if runs is not None and not runs.is_dir():
        raise PoolError(f"there is no folder {runs}", "name the one that holds the runs")
    try:
        done, keys = _carry_out(pool, records, site, take_over)
    except ConflictError as error:
        raise PoolError(
            f"another program wrote to {pool.address.url} while an erase was under way: {error}",
            "give the command again: it goes on from there",
        ) from error
    log.append(
        "erased",
        pool=pool.description.id,
        url=pool.address.url,
        keys=sorted(keys),
        rows=done.rows,
    )
    if runs is not None:
        versions = {one["taken"]: int(one["version"]) for one in done.takers + done.maybe}
        done.runs = runs_with(runs, versions)
    return done


def _carry_out(
    pool: Pool, records: Sequence[str], site: str, take_over: bool
) -> tuple[Erased, set[str]]:
    """Return what was done, and the keys that the ledger remembers from now on."""
    token, unfinished = begin(pool, take_over)
    found = find(pool, records, site)
    if found.missing and not unfinished:
        hand_to_sweep(pool, token, 0)  # perhaps it took the place of one
        finish_sweep(pool, token)
        raise PoolError(
            f"the pool at {pool.address.url} holds no record {found.missing[0][:40]!r}",
            "name the site too, and the record will be kept out even so",
        )
    done = Erased(alike=found.alike, others=found.others)
    _find_takers(pool, found, done)
    _remember(pool, token, found)
    if not found.present and not unfinished:  # a name mistyped must not cost older versions
        hand_to_sweep(pool, token, 1)
        finish_sweep(pool, token)
    else:
        done.rows = _delete(pool, token)
        done.files = _purge(pool, token)
        write_card(pool)
        end(pool, token, 1)
    return done, found.keys


def _remember(pool: Pool, token: str, found: Found) -> None:
    """Write down what must not come back, in one commit and before any row goes.

    Were it otherwise, a kill could leave rows gone and their texts unknown to all who come after.
    """
    keys = sorted(found.keys - erased_keys(pool))
    lines = [Line("erased", key, {"about": found.about, "rows": found.rows[key]}) for key in keys]
    new = found.marks[~np.isin(found.marks, erased_marks(pool))]
    add(pool, [*lines, *lines_of(token, new)])


def _find_takers(pool: Pool, found: Found, done: Erased) -> None:
    """Look into every version that was taken whether a row that goes was in it."""
    by_version: dict[int, list[dict[str, Any]]] = {}
    for line in read(pool, "taken"):
        taker = {**line.facts, "time": line.time}
        by_version.setdefault(int(taker["version"]), []).append(taker)
    for version, takers in sorted(by_version.items()):
        try:
            rows = [
                row
                for batch in pool.scan(ASKED, found.where, pool.at_version(version))
                for row in batch.to_pylist()
            ]
        except PoolError:
            done.maybe += takers  # an earlier erase took the files of that version away
            continue
        done.takers += [taker for taker in takers if _was_given(pool, taker, rows)]


def _was_given(pool: Pool, taker: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    licences = frozenset(pool.description.licences)
    language, region = taker.get("language", ""), taker.get("region", "")
    # By a clock in any time zone: rather one too many is listed.
    day = date.fromisoformat(taker["time"][:10]) - timedelta(days=1)
    return any(
        language in ("", row["language"]) and not why_not_given(row, licences, region, day)
        for row in rows
    )


def _delete(pool: Pool, token: str) -> int:
    """Delete every row that the ledger says is erased: also what a killed erase left."""
    erased = erased_keys(pool)
    keys: list[str] = []
    sites: set[str] = set()
    pool.refresh()
    check(pool, token)  # commits go on from here: none comes through under another's mark
    rows = 0
    for batch in pool.scan(["key", "site_key"]):
        for row in batch.to_pylist():
            if row["site_key"] in erased:
                sites.add(row["site_key"])
            elif row["key"] in erased:
                keys.append(row["key"])
    # Names only ever come as hashes into a predicate: Delta writes it into its log.
    for column, values in (("site_key", sorted(sites)), ("key", sorted(keys))):
        for start in range(0, len(values), KEYS_AT_ONCE):
            some = values[start : start + KEYS_AT_ONCE]
            if not all(re.fullmatch("[0-9a-f]{32}", value) for value in some):
                raise PoolError("a key in the pool is no hash: it was altered", "look at its rows")
            listed = ", ".join(f"'{value}'" for value in some)
            with told(pool.address.url):
                deleted = pool.records.delete(f"{column} IN ({listed})")
            rows += int(deleted["num_deleted_rows"])
    return rows


def _purge(pool: Pool, token: str) -> int:
    """Take away every file that the newest version does not need; returns how many."""
    with told(pool.address.url):
        pool.records.optimize.compact()
    # A mark of its own for the log to begin at: the commits before it can go then.
    pool.refresh()
    check(pool, token)
    with contextlib.suppress(ConflictError):  # an answer that is lost; not_needed looks again
        set_properties(pool, {ERASING: json.dumps(pool.erasing)})
    pool.refresh()
    with told(pool.address.url):
        pool.records.create_checkpoint()
    first, files = pool.version, pool.address.files(RECORDS)
    rows = not_needed(pool, token, files)
    pool.address.delete([*rows, *(name for name in files if is_old(name, first))])
    return len(rows)


def affected(takers: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each copy: who took it, when, and which version."""
    return [
        f"{taker.get('taker') or 'unnamed'}  version {taker['version']}"
        f"  {taker['time']}{'  ' + taker['language'] if taker.get('language') else ''}"
        for taker in takers
    ]
