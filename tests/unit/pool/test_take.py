from __future__ import annotations

import json
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet
import pytest
from pool_records import record, send

from boli.corpus.record import read_records
from boli.errors import PoolError
from boli.journal import CopyRead, Journal, SiteLeft
from boli.pool.egress_log import EgressLog
from boli.pool.ledger import read
from boli.pool.pins import note_pins, pins_of, runs_with
from boli.pool.table import Pool
from boli.pool.take import take


@pytest.fixture
def full(pool: Pool, log: EgressLog) -> Pool:
    send(pool, "arrah", [record(n, residency="any") for n in range(5)], log)
    send(pool, "gaya", [record(n, "gaya", language="mag") for n in range(3)], log)
    send(pool, "gaya", [record(9, "gaya", residency="country")], log)
    return pool


def test_a_copy_holds_what_may_go_there(full: Pool, tmp_path: Path) -> None:
    for region, rows in (("", 5), ("IN-UP", 6), ("IN-BR", 9), ("NP", 5)):
        taken = take(full, tmp_path / "out", region=region)
        assert taken.pin.rows == rows
        assert taken.stayed.total() == 9 - rows


def test_a_copy_can_be_read_as_records(full: Pool, tmp_path: Path) -> None:
    take(full, tmp_path / "out", language="mag", region="IN-BR")
    assert [path.name for path in (tmp_path / "out" / "records").iterdir()] == ["mag.parquet"]
    found = [one for batch in read_records(tmp_path / "out") for one in batch]
    assert found == [record(n, "gaya", language="mag") for n in range(3)]
    table = pyarrow.parquet.read_table(tmp_path / "out" / "records" / "mag.parquet")
    assert set(table["site"].to_pylist()) == {"gaya"}


def test_consent_that_ended_in_the_pool_is_honored(pool: Pool, tmp_path: Path) -> None:
    ended = record(1, residency="any", expires=date.today() - timedelta(days=1))
    pool.write("arrah", [ended, record(2, residency="any")])
    taken = take(pool, tmp_path / "out")
    assert taken.pin.rows == 1
    assert taken.stayed == {"consent has expired": 1}


def test_an_older_version_can_be_taken(full: Pool, tmp_path: Path) -> None:
    pin = take(full, tmp_path / "out", version=1, region="IN-BR").pin
    assert (pin.version, pin.rows) == (1, 5)


def test_equal_copies_have_equal_digests(full: Pool, tmp_path: Path) -> None:
    pins = [take(full, tmp_path / name, region="IN-BR").pin for name in "ab"]
    assert pins[0].digest == pins[1].digest
    assert pins[0].taken != pins[1].taken


def test_the_pool_notes_who_took_what(full: Pool, tmp_path: Path) -> None:
    pin = take(full, tmp_path / "out", "gaya-2026", language="mag", region="IN-BR").pin
    lines = read(full, "taken")
    assert [line.key for line in lines] == [pin.taken]
    assert lines[0].facts["taker"] == "gaya-2026"
    assert lines[0].facts["version"] == 3
    told = json.loads((tmp_path / "out" / "pool.json").read_text())
    assert (told["pool"], told["version"]) == (full.description.id, 3)


def test_a_new_copy_replaces_the_old_one(full: Pool, tmp_path: Path) -> None:
    take(full, tmp_path / "out", region="IN-BR")
    take(full, tmp_path / "out", language="bho")
    assert [path.name for path in (tmp_path / "out" / "records").iterdir()] == ["bho.parquet"]


def test_only_who_took_it_can_read_a_copy(full: Pool, tmp_path: Path) -> None:
    for _ in range(2):
        take(full, tmp_path / "out", region="IN-BR")
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(files) == 3
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_folder_of_something_else_is_left_alone(full: Pool, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(PoolError, match="not empty"):
        take(full, tmp_path)
    assert (tmp_path / "precious.txt").exists()
    assert read(full, "taken") == []


@pytest.mark.parametrize(
    "values",
    [
        {"language": "../x"},
        {"language": "bho\n"},
        {"region": "Bihar"},
        {"region": "IN\n"},
        {"taker": "a\nb"},
        {"taker": "a" * 81},
        {"version": 10**12},
    ],
)
def test_values_out_of_form_are_refused(
    full: Pool, tmp_path: Path, values: dict[str, object]
) -> None:
    with pytest.raises(PoolError):
        take(full, tmp_path / "out", **values)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("pool.json"))


def test_the_copy_of_a_text_is_found(full: Pool, tmp_path: Path) -> None:
    pin = take(full, tmp_path / "copy", region="IN-BR").pin
    texts = [
        tmp_path / "copy" / "records" / "bho.parquet",
        tmp_path / "copy" / "records" / "mag.parquet",
        tmp_path / "copy" / "own.txt",
        tmp_path / "other.txt",
    ]
    assert [found["taken"] for found in pins_of(texts)] == [pin.taken]
    assert [found["taken"] for found in pins_of([tmp_path / "copy"])] == [pin.taken]
    for other in ("{}", "[", "[]", '{"pool": "", "url": "", "version": 1, "taken": []}'):
        (tmp_path / "pool.json").write_text(other)
        assert pins_of([tmp_path / "other.txt"]) == []
    (tmp_path / "link.parquet").symlink_to(texts[0])
    (tmp_path / "pool.json").unlink()
    assert [found["taken"] for found in pins_of([tmp_path / "link.parquet"])] == [pin.taken]


def test_a_site_remembers_the_copies_of_all_its_starts(tmp_path: Path) -> None:
    path = tmp_path / "state" / "runs" / "first-1" / "run.json"
    note_pins(path, [])
    assert not path.exists()
    for name in ("a", "b", "a"):
        note_pins(path, [{"taken": name, "version": 1}])
    assert [pin["taken"] for pin in json.loads(path.read_text())["pools"]] == ["a", "b"]
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps({"base": "b", "pools": []}))  # where a run is made there as well
    note_pins(path, [{"taken": "b"}])
    assert json.loads(path.read_text()) == {"base": "b", "pools": [{"taken": "b"}]}
    assert runs_with(path.parents[1], {"b": 5, "c": 6}) == {"first-1": 5}


def test_a_run_is_found_by_what_its_sites_told_also_in_a_damaged_journal(tmp_path: Path) -> None:
    path = tmp_path / "first-1" / "journal.jsonl"
    path.parent.mkdir()
    (path.parent / "run.json").write_text("{}")
    with closing(Journal(path)) as journal:
        journal.append(SiteLeft("gaya", 'said "event": "copy_read", "taken": "x"'))
        for number, taken in enumerate("ab"):
            journal.append(CopyRead("gaya", "p", number, taken, 9, ""))
    lines = path.read_bytes().splitlines(keepends=True)
    hostile = [b'{"event": "copy_read", "taken": ["a"]}\n', b'"copy_read"\n', b"copy_read \xff\n"]
    path.write_bytes(b"".join([*hostile, *lines[:-1], lines[-1].replace(b"gaya", b"ga"), b'{"v']))
    versions = dict.fromkeys("abx", 7)
    assert runs_with(tmp_path, versions) == {"first-1": 7}
    assert runs_with(tmp_path, {"b": 3}) == {"first-1": 3}
    assert runs_with(tmp_path, {"x": 3}) == {}
