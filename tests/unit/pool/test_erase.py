from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pool_records import files_with, prepared, record, send

import boli.pool.delta as delta_module
import boli.pool.egress as egress
import boli.pool.erase as erasing
import boli.pool.mark as marking
import boli.pool.sweep as sweeping
from boli.corpus.record import Record, content_hash
from boli.corpus.signatures import fingerprints
from boli.errors import PoolError
from boli.pool import texts
from boli.pool.address import Address
from boli.pool.delta import ConflictError
from boli.pool.egress import ERASED, TEXT_ERASED
from boli.pool.egress_log import EgressLog, read_log
from boli.pool.erase import erase
from boli.pool.figures import figures
from boli.pool.ledger import read, retrying
from boli.pool.mark import begin, set_properties
from boli.pool.process import this_process
from boli.pool.share import share
from boli.pool.table import ERASING, Pool, create_pool, open_pool
from boli.pool.take import take
from boli.pool.texts import erased_marks, marks_of

SITE = "patliputra"


@pytest.fixture
def full(pool: Pool, log: EgressLog, tmp_path: Path) -> Pool:
    """Return a pool of two sites over several versions, with files of killed writers beside it."""
    for start in (0, 4):
        mine = [record(n, SITE) for n in range(start, start + 4)]
        share(prepared(tmp_path / SITE, mine), pool, SITE, log)
        send(pool, "gaya", [record(n, "gaya") for n in range(start, start + 4)], log)
    send(pool, SITE, [record(1, SITE, text="गुप्त दूसरा पाठ")], log)
    assert pool.address.folder is not None
    whole = next((pool.address.folder / "records").glob("part-*.parquet")).read_bytes()
    for name in ("part-killed.parquet", "part-killed.parquet#1", "deep/part-killed.parquet"):
        path = pool.address.folder / "records" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole)
    return pool


def root(pool: Pool) -> Path:
    assert pool.address.folder is not None
    return pool.address.folder


def test_no_byte_of_an_erased_record_is_left(full: Pool, log: EgressLog) -> None:
    texts = [record(1, SITE).text, "गुप्त दूसरा पाठ"]
    words = [*texts, texts[0][2:14], record(1, SITE).id, record(1, SITE).content_hash]
    assert all(files_with(root(full), [word]) for word in words)  # the scan finds what is there
    done = erase(full, log, record=record(1, SITE).id, site=SITE)
    assert done.rows == 1
    # The same id and the same source at another site stay; so does the log of what left.
    gone = [*texts, record(1, SITE).content_hash]
    assert [files_with(root(full), [word]) for word in gone] == [[], [], []]
    assert files_with(log.folder, texts) == []
    rows = open_pool(full.address.url).records.to_pyarrow_table()
    assert rows.num_rows == 15
    assert files_with(root(full), [record(2, SITE).text])


def test_no_byte_of_an_erased_site_is_left(full: Pool, log: EgressLog) -> None:
    own = [record(n, SITE) for n in range(8)]
    words = [SITE, *(one.text for one in own), *(one.content_hash for one in own)]
    assert files_with(root(full), [SITE])
    assert erase(full, log, site=SITE).rows == 8
    assert files_with(root(full), words) == []
    assert open_pool(full.address.url).records.to_pyarrow_table().num_rows == 8


def test_an_id_without_a_site_goes_everywhere(full: Pool, log: EgressLog) -> None:
    assert erase(full, log, record=record(3).id).rows == 2
    assert files_with(root(full), [record(3).id, record(3, "gaya").text]) == []


def test_what_was_erased_cannot_come_back(full: Pool, log: EgressLog) -> None:
    erase(full, log, record=record(1).id, site="gaya")
    sent = send(full, "gaya", [record(1, "gaya"), record(2, "gaya")], log)
    assert sent.stayed == {record(1).id: ERASED}
    assert send(full, "gaya", [record(1, "gaya", text="other")], log).stayed
    erase(full, log, site="gaya")
    with pytest.raises(PoolError, match="was erased"):
        send(full, "gaya", [record(9, "gaya")], log)


def test_a_record_can_be_kept_out_before_it_comes(full: Pool, log: EgressLog) -> None:
    assert erase(full, log, record=record(99).id, site="gaya").rows == 0
    assert send(full, "gaya", [record(99)], log).stayed == {record(99).id: ERASED}


def test_older_versions_are_gone(full: Pool, log: EgressLog) -> None:
    erase(full, log, record=record(1).id, site="gaya")
    with pytest.raises(PoolError, match="has no version 1"):
        full.at_version(1)


def test_nothing_to_erase_is_told_and_leaves_no_mark(full: Pool, log: EgressLog) -> None:
    for name in ("0" * 32, "'; DROP TABLE x; --", "../../etc", ""):
        with pytest.raises(PoolError):
            erase(full, log, record=name)
    assert open_pool(full.address.url).erasing is None
    assert full.at_version(1)


def test_takers_and_runs_that_saw_it_are_listed(full: Pool, log: EgressLog, tmp_path: Path) -> None:
    before = take(full, tmp_path / "a", "before", version=1, region="IN-BR").pin
    other = take(full, tmp_path / "b", "other", language="mag", region="IN-BR").pin
    take(full, tmp_path / "d", "too far away", region="IN-UP")
    first = take(full, tmp_path / "c", "first", region="IN-BR").pin
    for name, pins in (("with", [asdict(first)]), ("without", [asdict(other)]), ("none", [])):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"pools": pins}))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("[")
    done = erase(full, log, record=record(7).id, site=SITE, runs=tmp_path / "runs")
    assert [taker["taker"] for taker in done.takers] == ["first"]
    assert done.maybe == []
    assert done.runs == {"with": first.version}
    again = erase(full, log, record=record(6).id, site=SITE)
    assert {taker["taken"] for taker in again.maybe} >= {before.taken, other.taken, first.taken}


def test_other_records_with_the_same_text_are_told(full: Pool, log: EgressLog) -> None:
    send(full, "siwan", [record(0, SITE)], log)
    assert erase(full, log, record=record(0).id, site=SITE).others == {"siwan": [record(0).id]}
    assert files_with(root(full), [record(0, SITE).text])


def elsewhere(number: int, site: str = SITE, **values: Any) -> Record:
    """Return a record as it is after its folder has moved."""
    text = record(number, site).text
    return record(number, site, **{"text": text, "source": f"moved/{number}.txt#3", **values})


def test_an_erased_text_does_not_come_back_from_another_place_or_site(
    full: Pool, log: EgressLog, tmp_path: Path
) -> None:
    erase(full, log, record=record(3).id, site=SITE)
    spaced = elsewhere(3, text=record(3, SITE).text.replace(" ", "  — ") + "!!")
    for site, one in ((SITE, elsewhere(3)), (SITE, spaced), ("siwan", elsewhere(3))):
        folder = prepared(tmp_path / "again", [one])
        for dry_run in (True, False):
            told = share(folder, full, site, log, dry_run=dry_run)
            assert (told.added, told.stayed) == (0, {TEXT_ERASED: 1})
    assert files_with(root(full), [record(3, SITE).text]) == []
    assert send(full, SITE, [record(9, SITE)], log).added


def test_control_the_same_text_of_another_pool_may_go(
    full: Pool, log: EgressLog, tmp_path: Path
) -> None:
    erase(full, log, record=record(3).id, site=SITE)
    other = create_pool(str(tmp_path / "other"), "bhojpuri", "IN-BR")
    assert send(other, SITE, [elsewhere(3)], log).added
    assert not set(marks_of(full, ["x"]).flat) & set(marks_of(other, ["x"]).flat)


def test_texts_of_an_erased_site_do_not_come_back_through_another(
    full: Pool, log: EgressLog
) -> None:
    erase(full, log, site=SITE)
    sent = send(full, "siwan", [elsewhere(n) for n in range(9)], log)
    # Of record 1 the text that was there last is the one that was erased.
    assert sent.added == [elsewhere(n).id for n in (1, 8)]
    assert set(sent.stayed.values()) == {TEXT_ERASED}
    assert figures(full).erased == 8


def test_the_same_text_of_the_site_goes_under_every_id(full: Pool, log: EgressLog) -> None:
    spaced = elsewhere(3, text=record(3, SITE).text + " …")
    full.write(SITE, [spaced])
    done = erase(full, log, record=record(3).id, site=SITE)
    assert (done.rows, done.alike, done.others) == (2, 1, {})
    assert files_with(root(full), [record(3, SITE).text, spaced.id]) == []
    anew = replace(spaced, text="नया", content_hash=content_hash("नया"))
    assert send(full, SITE, [anew], log).stayed == {spaced.id: ERASED}


def test_another_site_that_has_the_text_is_told_when_it_shares(
    full: Pool, log: EgressLog, tmp_path: Path
) -> None:
    full.write("siwan", [elsewhere(3)])
    erase(full, log, record=record(3).id, site=SITE)
    told = share(prepared(tmp_path / "siwan", [elsewhere(3)]), full, "siwan", log)
    assert (told.stayed, told.withdrawn) == ({TEXT_ERASED: 1}, 1)


def test_several_records_are_erased_at_once(full: Pool, log: EgressLog) -> None:
    ids = [record(n).id for n in (1, 2, 5)]
    assert erase(full, log, record=[*ids, ids[0]], site=SITE).rows == 3
    with pytest.raises(PoolError, match="holds no record '0000"):
        erase(full, log, record=[record(3).id, "0" * 32])
    assert open_pool(full.address.url).records.to_pyarrow_table().num_rows == 13


def test_a_ledger_of_many_texts_is_small_and_read_once(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MARKS_IN_LINE", 5)
    full.write("siwan", [record(n, "siwan") for n in range(100, 120)])
    erase(full, log, site="siwan")
    assert len(read(full, "text")) == 8
    assert erased_marks(full).size == 40
    assert sum(len(line.facts["hashes"]) for line in read(full, "text")) < 40 * 12
    known = erased_marks(full)
    send(full, "gaya", [record(60, "gaya")], log)  # adds to the ledger, and nothing to these
    assert erased_marks(full) is known
    erase(open_pool(full.address.url), log, record=record(2).id, site="gaya")
    assert erased_marks(full).size == 42


def test_the_ledger_holds_no_hash_that_others_know(full: Pool, log: EgressLog) -> None:
    erase(full, log, record=record(3).id, site=SITE)
    bare = [record(3, SITE).content_hash, fingerprints([record(3, SITE).text])[0][0].hex()]
    assert files_with(root(full) / "ledger", bare) == []


@pytest.mark.parametrize("whole_site", [True, False])
def test_a_kill_between_ledger_and_rows_lets_no_text_back(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, whole_site: bool
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    what = {"site": SITE} if whole_site else {"site": SITE, "record": record(3).id}
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "_delete", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(full, log, **what)
    assert files_with(root(full), [record(3, SITE).text])  # the row is there, and known to go
    fresh = open_pool(full.address.url)
    erase(fresh, log, record=record(50).id, site="gaya", take_over=True)  # another one finishes it
    assert files_with(root(full), [record(3, SITE).text]) == []
    assert send(fresh, "siwan", [elsewhere(3)], log).stayed == {elsewhere(3).id: TEXT_ERASED}


def test_a_writer_from_before_an_erase_has_to_look_again(full: Pool, log: EgressLog) -> None:
    late = open_pool(full.address.url)
    erase(full, log, record=record(1).id, site=SITE)
    with pytest.raises(ConflictError):
        late.write("siwan", [record(1)])
    late.refresh()
    late.write("siwan", [record(1)])
    assert open_pool(full.address.url).records.to_pyarrow_table().num_rows == 16


def test_a_writer_that_looked_during_an_erase_has_to_look_again(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Pool] = []
    whole = erasing._purge

    def look_first(pool: Pool, token: str) -> int:
        late.append(open_pool(pool.address.url))
        return whole(pool, token)

    monkeypatch.setattr(erasing, "_purge", look_first)
    erase(full, log, record=record(1).id, site=SITE)
    with pytest.raises(ConflictError):
        late[0].write("siwan", [record(1)])


@pytest.mark.parametrize("step", ["_find_takers", "add", "_delete", "_purge", "write_card", "end"])
@pytest.mark.parametrize("same", [True, False])
def test_a_killed_erase_is_finished_by_the_next(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, step: str, same: bool
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasing, step, killed)
        with pytest.raises(KeyboardInterrupt):
            erase(full, log, record=record(1).id, site=SITE)
    with pytest.raises(PoolError, match="has been under way"):
        erase(full, log, record=record(1).id, site=SITE)
    again = record(1 if same else 2).id
    erase(full, log, record=again, site=SITE, take_over=True)
    if same or step not in ("_find_takers", "add"):  # before that nothing was promised
        assert files_with(root(full), [record(1, SITE).text, "गुप्त दूसरा पाठ"]) == []
    assert open_pool(full.address.url).erasing is None
    assert send(full, "siwan", [record(50)], log).added


def test_a_dead_process_is_followed_without_being_asked(full: Pool, log: EgressLog) -> None:
    mark = {"token": "t", "host": "elsewhere", "process": 1}
    old = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    full.records.alter.set_table_properties(
        {ERASING: json.dumps({**mark, "since": old})}, raise_if_not_exists=False
    )
    assert erase(full, log, record=record(1).id, site=SITE).rows == 1


def overtake(monkeypatch: pytest.MonkeyPatch, log: EgressLog, module: Any, step: str) -> None:
    """Let another erase take over, and come to its end, right before a step."""
    whole = getattr(module, step)

    def overtaken(pool: Pool, *rest: Any) -> Any:
        monkeypatch.setattr(module, step, whole)
        erase(open_pool(pool.address.url), log, record=record(2).id, site=SITE, take_over=True)
        return whole(pool, *rest)

    monkeypatch.setattr(module, step, overtaken)


def test_an_erase_that_was_taken_over_takes_nothing_away(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(monkeypatch, log, erasing, "_delete")
    with pytest.raises(PoolError, match="took this erase over"):
        erase(full, log, record=record(1).id, site=SITE)
    rows = open_pool(full.address.url).records.to_pyarrow_table()
    assert rows.num_rows == 14


def test_erase_is_logged(full: Pool, log: EgressLog) -> None:
    erase(full, log, site="gaya")
    last = list(read_log(log.folder))[-1]
    assert (last["event"], last["rows"]) == ("erased", 8)
    assert "gaya" not in json.dumps(last)


def test_a_name_mistyped_costs_no_version(full: Pool, log: EgressLog) -> None:
    folder, newest = Path(full.address.table("records")), open_pool(full.address.url).version
    before = {path for path in folder.rglob("*.parquet*") if "killed" not in path.name}
    done = erase(full, log, site="nosuch")
    assert (done.rows, done.files) == (0, 0)
    assert set(folder.rglob("*.parquet*")) == before
    assert erase(full, log, record="abc", site="gaya").files == 0
    for version in range(1, newest + 1):
        full.at_version(version).to_pyarrow_table()  # can be read still
    with pytest.raises(PoolError, match="no folder"):
        erase(full, log, site="gaya", runs=Path("nosuch"))


def erase_meanwhile(monkeypatch: pytest.MonkeyPatch, log: EgressLog, **what: str) -> list[int]:
    """Let a whole erase come between a writer's look at the pool and the file with its rows."""
    library, left = delta_module.delta(), list[int]()
    whole = library.write_deltalake

    def late(table: Any, data: Any, **options: Any) -> None:
        if "key" in data.column_names and "text" in data.column_names and not left:
            left.append(0)
            other = open_pool(str(Path(table.table_uri.removeprefix("file://")).parent))
            erase(other, log, **what)
        whole(table, data, **options)

    monkeypatch.setattr(library, "write_deltalake", late)
    return left


@pytest.mark.parametrize(
    "what", [{"record": record(70).id, "site": "gaya"}, {"site": "gaya"}, {"record": "text"}]
)
def test_a_commit_that_an_erase_refused_leaves_no_text(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, what: dict[str, str]
) -> None:
    if what == {"record": "text"}:  # of the same text at another site
        send(full, "siwan", [record(7, text=record(70, "gaya").text)], log)
        what = {"record": record(7).id, "site": "siwan"}
    came = erase_meanwhile(monkeypatch, log, **what)
    if what == {"site": "gaya"}:
        with pytest.raises(PoolError, match="was erased"):
            send(full, "gaya", [record(70, "gaya")], log)
    else:
        assert not send(full, "gaya", [record(70, "gaya")], log).added
    assert came
    assert files_with(root(full), [record(70, "gaya").text]) == []
    assert open_pool(full.address.url).erasing is None
    assert [line["event"] for line in read_log(log.folder)].count("swept") == 1


def test_what_a_killed_writer_left_goes_when_its_site_shares_again(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = prepared(tmp_path / "late", [record(70, "gaya"), record(71, "gaya")])
    with monkeypatch.context() as patch:
        assert erase_meanwhile(patch, log, record=record(70).id, site="gaya") == []
        patch.setattr(egress, "sweep", killed)
        with pytest.raises(KeyboardInterrupt):
            share(folder, full, "gaya", log)
    assert files_with(root(full), [record(70, "gaya").text])  # control
    assert not share(folder, open_pool(full.address.url), "gaya", log, dry_run=True).there
    assert files_with(root(full), [record(70, "gaya").text])  # a dry run writes nothing
    assert share(folder, open_pool(full.address.url), "gaya", log).added == 1
    assert files_with(root(full), [record(70, "gaya").text]) == []
    newest = open_pool(full.address.url).version
    share(folder, open_pool(full.address.url), "gaya", log)
    assert open_pool(full.address.url).version == newest  # swept once


def test_a_sweep_that_an_erase_takes_over_leaves_the_rest_to_it(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(monkeypatch, log, sweeping, "_take_strays")
    sweeping.sweep(full)
    assert open_pool(full.address.url).erasing is None
    assert files_with(root(full), [record(2, SITE).text]) == []


def test_a_sweep_elsewhere_is_done_anew_after_a_while(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(full, sweeps=True)
    # Whatever their clock says: that of a machine without a battery may be a year ahead.
    mark = {**(full.erasing or {}), "where": "elsewhere", "since": "2099-01-01T00:00:00+00:00"}
    set_properties(full, {ERASING: json.dumps(mark)})
    monkeypatch.setattr(egress, "retrying", lambda pool: iter(range(3)))
    late = open_pool(full.address.url)
    with pytest.raises(AssertionError):  # it is at work, as far as anybody knows
        send(late, "siwan", [record(50)], log)
    monkeypatch.setattr(sweeping, "SWEEP_SECONDS", 0.0)
    assert send(late, "siwan", [record(50)], log).added
    assert open_pool(full.address.url).erasing is None
    assert not list(Path(full.address.table("records")).rglob("*killed*"))


def ended() -> dict[str, Any]:
    """Return the name of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return {**this_process(), "process": process.pid}


def test_a_killed_sweep_on_this_machine_is_done_anew_at_once(full: Pool, log: EgressLog) -> None:
    begin(full, sweeps=True)
    set_properties(full, {ERASING: json.dumps({**(full.erasing or {}), **ended()})})
    assert send(open_pool(full.address.url), "siwan", [record(50)], log).added


@pytest.mark.parametrize("where", ["another machine of the same name", None])
def test_a_process_elsewhere_is_not_dead_because_its_number_is_free(
    full: Pool, log: EgressLog, where: str | None
) -> None:
    begin(full)
    mark = {**(full.erasing or {}), **ended(), "where": where}
    set_properties(full, {ERASING: json.dumps(mark)})
    with pytest.raises(PoolError, match="has been under way"):
        erase(full, log, record=record(1).id, site=SITE)
    set_properties(full, {ERASING: json.dumps({**mark, **ended()})})  # control
    assert erase(full, log, record=record(1).id, site=SITE).rows == 1


def test_a_commit_that_an_erase_began_the_log_anew_under_does_not_count(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = delta_module.delta()
    whole, came = library.write_deltalake, list[Path]()
    log_folder = Path(full.address.table("records")) / "_delta_log"

    def on_its_way(table: Any, data: Any, **options: Any) -> None:
        """Let the commit arrive when an erase has given its number free again."""
        whole(table, data, **options)
        if "text" in data.column_names and not came:
            came.append(log_folder / f"{table.version():020d}.json")
            commit = came[0].read_bytes()
            came[0].unlink()
            erase(open_pool(full.address.url), log, record=record(1).id, site=SITE)
            came[0].write_bytes(commit)

    monkeypatch.setattr(library, "write_deltalake", on_its_way)
    assert send(full, "gaya", [record(70, "gaya"), record(71, "gaya")], log).added
    assert came
    rows = open_pool(full.address.url).records.to_pyarrow_table()
    assert {record(70).id, record(71).id} <= set(rows["id"].to_pylist())
    assert not came[0].exists()  # it could hide a stray file


def test_a_mistyped_erase_does_the_work_of_the_sweep_that_it_took_over(
    full: Pool, log: EgressLog
) -> None:
    begin(full, sweeps=True)
    with pytest.raises(PoolError, match="holds no record"):
        erase(full, log, record="nosuch")
    assert not list(Path(full.address.table("records")).rglob("*killed*"))


def test_an_erase_that_was_overtaken_before_it_deletes_writes_nothing_more(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(monkeypatch, log, erasing, "_remember")
    with pytest.raises(PoolError, match="took this erase over"):
        erase(full, log, record=record(1).id, site=SITE)
    assert open_pool(full.address.url).records.to_pyarrow_table().num_rows == 15
    erase(open_pool(full.address.url), log, record=record(1).id, site=SITE)  # as it says
    assert files_with(root(full), [record(1, SITE).text, "गुप्त दूसरा पाठ"]) == []


def test_a_sweep_for_one_process_says_nothing_of_another(full: Pool, log: EgressLog) -> None:
    mark = log.append(
        "intent", pool=full.description.id, erasures=0, records=[], **{**ended(), "process": 1}
    )
    over = log.append("intent", pool=full.description.id, erasures=0, records=[], **ended())
    erase(full, log, record=record(1).id, site=SITE)
    egress.sweep_up(full, log)
    assert mark.seq < over.seq
    assert list(read_log(log.folder))[-1]["of"] == [
        line["seq"]
        for line in read_log(log.folder)
        if line["event"] == "intent" and line["seq"] != mark.seq and line["seq"] not in done(log)
    ]


def done(log: EgressLog) -> set[int]:
    return {line["of"] for line in read_log(log.folder) if line["event"] == "done"}


def test_what_a_killed_writer_left_is_swept_also_where_an_erase_is_not_over(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"pool": full.description.id, "erasures": full.erasures}
    log.append("intent", **there, records=[], **ended())
    begun: list[bool] = []
    monkeypatch.setattr(egress, "_sweep", lambda *_: begun.append(True))
    egress.sweep_up(full, log)
    assert not begun  # control: nobody erased since
    begin(open_pool(full.address.url))
    egress.sweep_up(full, log)
    assert begun


def test_a_sweep_whose_log_an_erase_takes_away_ends_quietly(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = type(full.address).read

    def overtaken(address: Address, name: str) -> bytes:
        monkeypatch.setattr(type(full.address), "read", whole)
        erase(open_pool(full.address.url), log, record=record(2).id, site=SITE)
        return whole(address, name)

    monkeypatch.setattr(sweeping, "READ_AT_ONCE", 1)
    monkeypatch.setattr(type(full.address), "read", overtaken)
    sweeping.sweep(full)
    assert open_pool(full.address.url).erasing is None


def test_one_attempt_more_is_made_after_one_that_took_long(full: Pool) -> None:
    attempts = retrying(full, 0.05)
    next(attempts)
    time.sleep(0.2)
    next(attempts)
    with pytest.raises(PoolError, match="others have been writing"):
        next(attempts)


def broken(*_: Any) -> None:
    raise PoolError("cannot reach the pool", "check the line")


@pytest.mark.parametrize("what", [{"record": "nosuch"}, {"record": "nosuch", "site": "gaya"}])
def test_a_mistyped_erase_that_is_cut_off_costs_no_version_either(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, what: dict[str, str]
) -> None:
    newest = open_pool(full.address.url).version
    with monkeypatch.context() as patch:
        patch.setattr(type(full.address), "delete", broken)
        with pytest.raises(PoolError, match="cannot reach"):
            erase(full, log, **what)
    monkeypatch.setattr(egress, "retrying", lambda pool: iter(range(3)))  # waits for nobody
    assert send(open_pool(full.address.url), "siwan", [record(50)], log).added
    with pytest.raises(PoolError, match="holds no record"):
        erase(open_pool(full.address.url), log, record="nosuch")
    assert not list(Path(full.address.table("records")).rglob("*killed*"))
    for version in range(1, newest + 1):
        full.at_version(version).to_pyarrow_table()


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_a_killed_writer_is_known_to_be_one_where_nothing_tells_so(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    there = {"pool": full.description.id, "erasures": full.erasures, "where": place}
    log.append("intent", **there, process=1, records=[])
    log.append("swept", pool=full.description.id)  # as the first release that swept wrote it
    erase(full, log, record=record(1).id, site=SITE)
    egress.sweep_up(full, log)
    assert list(read_log(log.folder))[-1]["event"] == "swept"


def test_a_commit_that_came_through_before_an_erase_is_told_so(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the files that hold it are rewritten while it is looked for."""
    whole, came = Pool._check_there, list[bool]()

    def late(pool: Pool, *arguments: Any) -> None:
        scan = pool.scan

        def torn(*rest: Any) -> Any:
            monkeypatch.setattr(pool, "scan", scan)
            came.append(True)
            raise ConflictError("a file was taken away", "try again")

        erase(open_pool(pool.address.url), log, record=record(1).id, site=SITE)
        monkeypatch.setattr(pool, "scan", torn)
        whole(pool, *arguments)

    monkeypatch.setattr(Pool, "_check_there", late)
    assert send(full, "gaya", [record(70, "gaya")], log).added == [record(70).id]
    assert came
    assert list(read_log(log.folder))[-1]["event"] == "done"


def test_a_sweep_that_was_overtaken_is_not_done_twice(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = erase_meanwhile(monkeypatch, log, record=record(1).id, site=SITE)
    whole, marks = sweeping._take_strays, list[str]()

    def overtaken(pool: Pool, token: str) -> None:
        if not marks:
            marks.append(begin(open_pool(pool.address.url), sweeps=True)[0])
        whole(pool, token)

    def looked(pool: Pool) -> Iterator[int]:
        for attempt in range(5):
            if attempt == 2:  # the one that overtook it is done
                sweeping.finish_sweep(open_pool(pool.address.url), marks[0])
            yield attempt

    monkeypatch.setattr(sweeping, "_take_strays", overtaken)
    monkeypatch.setattr(egress, "retrying", looked)
    assert send(full, "gaya", [record(70, "gaya")], log).added
    assert came
    assert [line["event"] for line in read_log(log.folder)].count("swept") == 1


def test_a_sweep_that_failed_keeps_nobody_waiting(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(full.address), "delete", broken)
        with pytest.raises(PoolError, match="cannot reach"):
            sweeping.sweep(full)
    monkeypatch.setattr(egress, "retrying", lambda pool: iter(range(3)))
    assert send(open_pool(full.address.url), "siwan", [record(50)], log).added
    assert not list(Path(full.address.table("records")).rglob("*killed*"))


def test_an_end_whose_answer_is_lost_is_one_also_where_others_sweep(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = marking.set_properties

    def unheard(pool: Pool, properties: dict[str, str]) -> None:
        whole(pool, properties)
        if not properties[ERASING]:
            monkeypatch.setattr(marking, "set_properties", whole)
            begin(open_pool(pool.address.url), sweeps=True)
            raise ConflictError("another came first", "try again")

    monkeypatch.setattr(marking, "set_properties", unheard)
    assert erase(full, log, record=record(1).id, site=SITE).rows == 1


def test_a_checkpoint_that_came_late_is_no_begin_of_the_log(full: Pool, log: EgressLog) -> None:
    erase(full, log, record=record(1).id, site=SITE)
    folder = Path(full.address.table("records")) / "_delta_log"
    (whole,) = folder.glob("*.checkpoint.parquet")
    late = folder / f"{1:020d}.checkpoint.parquet"
    late.write_bytes(whole.read_bytes())
    sweeping.sweep(full)
    assert not late.exists()
    assert whole.exists()


def test_a_file_that_is_needed_and_missing_stops_whoever_would_delete(full: Pool) -> None:
    folder = Path(full.address.table("records"))
    (needed,) = list(full.records.file_uris())[:1]
    Path(needed).rename(folder / "elsewhere")
    before = sorted(folder.rglob("*"))
    with pytest.raises(PoolError, match="lacks files"):
        sweeping.sweep(full)
    assert [path for path in before if not path.exists()] == []


def test_a_mark_whose_answer_is_lost_is_ones_own(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = marking.set_properties

    def unheard(pool: Pool, properties: dict[str, str]) -> None:
        whole(pool, properties)
        raise ConflictError("another came first", "try again")

    monkeypatch.setattr(marking, "set_properties", unheard)
    assert erase(full, log, record=record(1).id, site=SITE).rows == 1
    assert open_pool(full.address.url).erasing is None


def test_a_mark_is_looked_at_as_soon_as_it_is_set(
    full: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that sweep would else take each other's place while they pause, and never come to it."""
    monkeypatch.setattr(marking, "retrying", lambda pool: iter(range(1)))
    token, _ = begin(full, sweeps=True)
    marking.check(full, token)


def test_an_erase_does_not_wait_for_a_sweep(full: Pool, log: EgressLog) -> None:
    begin(full, sweeps=True)
    assert erase(full, log, record=record(1).id, site=SITE).rows == 1


def test_a_sweep_waits_for_an_erase_that_was_killed(
    full: Pool, log: EgressLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(full)
    monkeypatch.setattr(marking, "retrying", lambda pool: iter(range(3)))
    with pytest.raises(AssertionError):
        sweeping.sweep(full)
    assert open_pool(full.address.url).erasing is not None
