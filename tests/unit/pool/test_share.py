from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_records import prepared, record, send

import boli.pool.share as sharing
from boli.corpus.listing import MARKER
from boli.corpus.record import Record
from boli.corpus.source_state import UNKNOWN
from boli.errors import CorpusError, PoolError
from boli.pool.egress import NOTED_BEFORE, Sent
from boli.pool.egress_log import GENESIS, HEAD, EgressLog, first_break, line_hash
from boli.pool.figures import figures
from boli.pool.share import NEAR, SAME, share
from boli.pool.table import Pool


def signed(number: int, seed: int, altered: int = 0, site: str = "arrah") -> Record:
    entries = np.random.default_rng(seed).integers(0, 2**16, 256, dtype=np.uint16)
    entries[:altered] += 1
    return record(number, site, signature=entries.astype("<u2").tobytes())


def reasons(path: Path | None) -> dict[str, str]:
    assert path is not None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["id"]: line["reason"].removesuffix(NOTED_BEFORE) for line in lines}


def test_folder_is_shared_and_what_stays_is_told(
    pool: Pool, log: EgressLog, tmp_path: Path
) -> None:
    records = [
        record(0),
        record(1, purposes=()),
        record(2, expires=date(2020, 1, 1)),
        record(3, licence="Proprietary"),
        record(4, residency="premises"),
        record(5, quality=4.5),
        record(6, quality=None),
        record(7, quality=float("nan")),
    ]
    folder = prepared(tmp_path / "arrah", records)
    shared = share(folder, pool, "arrah", log, max_quality_bits=4.0)
    assert (shared.added, shared.there, shared.total) == (1, 0, 8)
    assert reasons(shared.report) == {
        record(1).id: "no consent to training",
        record(2).id: "consent has expired",
        record(3).id: "the pool does not take Proprietary",
        record(4).id: "it may not leave the premises",
        record(5).id: "its quality is above 4 bits per byte",
        record(6).id: "its quality was not scored",
        record(7).id: "its quality is above 4 bits per byte",
    }
    assert shared.report is not None
    assert shared.report.stat().st_mode & 0o777 == 0o600
    again = share(folder, pool, "arrah", log, max_quality_bits=4.0)
    assert (again.added, again.there, again.stayed) == (0, 1, shared.stayed)


def test_dry_run_sends_and_writes_nothing(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "arrah", [record(0), record(1, purposes=()), record(2)])
    send(pool, "arrah", [record(2)], log)
    before = sorted(tmp_path.rglob("*"))
    shared = share(folder, pool, "arrah", log, dry_run=True)
    assert (shared.added, shared.there, shared.stayed.total()) == (1, 1, 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_near_duplicates_of_another_site_stay(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    there = [signed(n, seed=n, site="gaya") for n in range(10)]
    share(prepared(tmp_path / "gaya", there), pool, "gaya", log)
    mine = [signed(n, seed=n, altered=20 if n < 4 else 200) for n in range(10)]
    shared = share(prepared(tmp_path / "arrah", mine), pool, "arrah", log)
    assert shared.added == 6
    assert reasons(shared.report) == {record(n).id: NEAR for n in range(4)}
    rows = pool.records.to_pyarrow_table().to_pylist()
    assert not {row["id"] for row in rows if row["site"] == "arrah"} & reasons(shared.report).keys()
    assert figures(pool).near_across_sites == 0


def test_signatures_of_another_form_match_nothing(
    pool: Pool, log: EgressLog, tmp_path: Path
) -> None:
    odd = [record(n, "gaya", signature=b"abcd" * n) for n in range(5)]
    share(prepared(tmp_path / "gaya", odd), pool, "gaya", log)
    mine = [record(n, signature=b"abcd" * n) for n in range(5)]
    assert share(prepared(tmp_path / "arrah", mine), pool, "arrah", log).added == 5
    assert figures(pool).near_across_sites == 0


def test_two_sites_that_share_at_once_are_counted(pool: Pool, log: EgressLog) -> None:
    send(pool, "gaya", [signed(n, seed=n, site="gaya") for n in range(5)], log)
    send(pool, "arrah", [signed(n, seed=n, altered=5) for n in range(5)], log)
    send(pool, "siwan", [record(9, text=record(0, "gaya").text)], log)
    found = figures(pool)
    assert (found.near_across_sites, found.same_across_sites) == (5, 1)


def test_same_text_of_another_site_stays_where_it_is_too_short_to_sign(
    pool: Pool, log: EgressLog, tmp_path: Path
) -> None:
    send(pool, "gaya", [record(5, text="हाँ")], log)
    folder = prepared(tmp_path / "arrah", [record(1, text="हाँ"), record(2)])
    shared = share(folder, pool, "arrah", log)
    assert reasons(shared.report) == {record(1).id: SAME}


def test_own_records_are_no_duplicates(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "arrah", [signed(n, seed=1) for n in range(5)])
    assert share(folder, pool, "arrah", log).added == 5
    assert share(folder, pool, "arrah", log).there == 5


def test_changed_text_replaces_the_older(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    share(prepared(tmp_path / "arrah", [record(1), record(2)]), pool, "arrah", log)
    folder = prepared(tmp_path / "arrah", [record(1, text="नया"), record(2)])
    shared = share(folder, pool, "arrah", log)
    assert (shared.added, shared.there) == (1, 1)
    rows = pool.records.to_pyarrow_table().to_pylist()
    assert sorted(row["text"] for row in rows) == sorted(["नया", record(2).text])


def lines(numbers: Sequence[int], folder: str = "a") -> list[Record]:
    """Return a file with one text on each line."""
    return [
        record(n, source=f"{folder}#{place}", text=f"पाठ {n}") for place, n in enumerate(numbers)
    ]


def texts_of(pool: Pool) -> list[int]:
    rows = pool.records.to_pyarrow_table()["text"].to_pylist()
    return sorted(int(text.split()[1]) for text in rows)


def test_a_folder_that_moved_doubles_nothing(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    share(prepared(tmp_path / "arrah", lines(range(9))), pool, "arrah", log)
    send(pool, "gaya", [record(4, text="पाठ 4")], log)  # at the same moment
    moved = prepared(tmp_path / "arrah", lines(range(10), "b"))
    for dry_run in (True, False):
        shared = share(moved, pool, "arrah", log, dry_run=dry_run)
        assert (shared.added, shared.there, shared.total) == (1, 9, 10)
    assert texts_of(pool) == sorted([*range(10), 4])


def test_consent_that_was_taken_back_after_a_move_names_the_rows(
    pool: Pool, log: EgressLog, tmp_path: Path
) -> None:
    share(prepared(tmp_path / "arrah", lines(range(3))), pool, "arrah", log)
    moved = [replace(one, purposes=()) for one in lines(range(3), "b")]
    shared = share(prepared(tmp_path / "arrah", moved), pool, "arrah", log)
    assert (shared.stayed.total(), shared.withdrawn) == (3, 3)
    assert shared.report is not None
    told = [json.loads(line) for line in shared.report.read_text().splitlines()]
    assert [line["pool_ids"] for line in told] == [[one.id] for one in lines(range(3))]


@pytest.mark.parametrize(
    "after",
    [
        [9, *range(8)],  # a line more on top: each row is written over by the one before
        [-1, -2, *range(8)],
        [*range(1, 8)],  # a line less
        [1, 2, 3, 4, 9, 5, 6, 7],  # both: a later part writes over what an earlier one relied on
        [*range(1, 7), 9, 7, 0],
        [*range(7, -1, -1)],
        [3, 3, 3, 9, 9, 0],
        [1, 0, 3, 2, 9, 9, 9, 9, 4, 5],
    ],
)
@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_lines_that_move_within_a_file_lose_and_double_nothing(
    pool: Pool,
    log: EgressLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: list[int],
    together: int,
) -> None:
    monkeypatch.setattr(sharing, "ROWS_AT_ONCE", together)
    share(prepared(tmp_path / "arrah", lines(range(8))), pool, "arrah", log)
    folder = prepared(tmp_path / "arrah", lines(after))
    dry = share(folder, pool, "arrah", log, dry_run=True)
    shared = share(folder, pool, "arrah", log)
    assert (shared.added, shared.there) == (dry.added, dry.there)
    assert shared.total == len(after)
    assert shared.there >= 0
    found = texts_of(pool)
    assert set(found) >= set(after)
    assert share(folder, pool, "arrah", log).added == 0
    assert texts_of(pool) == found
    if together == 100:
        assert len(found) == len(set(found))


def test_consent_that_was_taken_back_is_told(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    share(prepared(tmp_path / "arrah", [record(1), record(2)]), pool, "arrah", log)
    folder = prepared(
        tmp_path / "arrah", [record(1, purposes=()), record(2), record(3, licence="")]
    )
    shared = share(folder, pool, "arrah", log)
    assert (shared.there, shared.stayed.total(), shared.withdrawn) == (1, 2, 1)
    assert shared.report is not None
    lines = [json.loads(line) for line in shared.report.read_text().splitlines()]
    assert [line["in_pool"] for line in lines] == [True, False]


def test_sources_are_looked_up_again_with_every_batch(
    pool: Pool, log: EgressLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "ROWS_AT_ONCE", 1)
    folder = prepared(tmp_path / "arrah", [record(number) for number in range(4)])
    real = sharing.send

    def takes_back(*given: Any) -> Sent:
        sent = real(*given)
        for path in (tmp_path / "arrah-sources").glob("*/source.toml"):
            path.write_text("")
        return sent

    monkeypatch.setattr(sharing, "send", takes_back)
    shared = share(folder, pool, "arrah", log)
    assert (shared.added, shared.stayed) == (1, {"no consent to training": 3})


def test_without_sources_nothing_goes(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "arrah", [record(1), record(2)])
    (folder / MARKER).rename(folder / "aside.json")  # as in a copy of a pool, or of records alone
    for dry_run in (True, False):
        shared = share(folder, pool, "arrah", log, dry_run=dry_run)
        assert (shared.added, shared.stayed) == (0, {UNKNOWN: 2})
    (folder / "aside.json").rename(folder / MARKER)
    (tmp_path / "arrah-sources").rename(tmp_path / "away")
    assert share(folder, pool, "arrah", log).added == 0
    (tmp_path / "away").rename(tmp_path / "arrah-sources")
    assert share(folder, pool, "arrah", log).added == 2


def test_card_follows_what_was_shared(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    share(prepared(tmp_path / "arrah", [record(1), record(2)]), pool, "arrah", log)
    assert pool.address.folder is not None
    assert "2 records of clean text" in (pool.address.folder / "README.md").read_text()


def test_what_is_no_prepared_folder_is_told(pool: Pool, log: EgressLog, tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        share(tmp_path, pool, "arrah", log)
    with pytest.raises(PoolError):
        share(tmp_path, pool, "../arrah", log)


def rewritten(log: EgressLog) -> None:
    """Take the first line's records out, and hash the log and its head anew."""
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    lines[0]["records"] = []
    previous = GENESIS
    for line in lines:
        line["prev"] = previous
        del line["hash"]
        previous = line["hash"] = line_hash(line)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    log.path.write_text(text)
    head = json.loads((log.folder / HEAD).read_text())
    (log.folder / HEAD).write_text(json.dumps({**head, "hash": previous, "end": len(text)}))


def test_nothing_is_shared_with_a_log_that_was_written_anew(
    pool: Pool, log: EgressLog, tmp_path: Path
) -> None:
    share(prepared(tmp_path / "arrah", [record(0)]), pool, "arrah", log)
    whole = {name: (log.folder / name).read_bytes() for name in (HEAD, log.path.name)}
    rewritten(log)
    assert first_break(log.folder) == ""  # the machine alone cannot tell
    more = prepared(tmp_path / "more", [record(1)])
    with pytest.raises(PoolError, match="line 1 is not the one that the pool has noted"):
        share(more, pool, "arrah", log)
    pool.refresh()
    assert figures(pool).rows == 1
    for name, data in whole.items():
        (log.folder / name).write_bytes(data)
    assert share(more, pool, "arrah", log).added == 1
