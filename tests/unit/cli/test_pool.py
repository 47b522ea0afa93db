"""boli share and boli pool, as a user gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pool_records import prepared, record
from typer.testing import CliRunner, Result

from boli.cli.main import app
from boli.errors import BoliError
from boli.journal import CopyRead, Journal
from boli.plan import Plan
from boli.pool.table import open_pool
from boli.preparation import ignore, prepare

Boli = Callable[..., Result]


@pytest.fixture
def boli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boli:
    """Return a function that gives a command; an error of ours is raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "home"))
    prepared(tmp_path / "text", [record(0), record(1), record(2, purposes=())])

    def give(*words: str) -> Result:
        done = CliRunner().invoke(app, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done

    return give


def test_the_whole_way(boli: Boli, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert "in IN-BR" in boli("pool", "create", "pool", "--region", "IN-BR").output
    dry = boli("share", "text", "--pool", "pool", "--site", "arrah", "--dry-run").output
    assert dry.split("\n")[0].split() == ["would", "share", "2"]
    told = boli("share", "text", "--pool", "pool", "--site", "arrah").output
    assert told.split("\n")[0].split() == ["shared", "2"]
    assert "no consent to training" in told
    assert boli("share", "text", "--pool", "pool", "--site", "arrah").output.split()[1] == "0"
    assert "version 1: 2 records" in boli("pool", "stats", "pool").output
    assert "--region" in boli("pool", "get", "pool", "--out", "copy").output
    got = boli("pool", "get", "pool", "--out", "copy", "--region", "IN-BR", "--for", "me").output
    assert "version 1, 2 records" in got
    told = boli("pool", "log", "pool", "--verify").output
    assert "arrah  2 records for training" in told
    assert "the pool has noted it so" in told
    told = boli("pool", "erase", "pool", "--record", record(0).id, "--runs", "runs").output
    assert "erased 1 records" in told
    assert "me  version 1" in told
    assert "runs in runs that read such a copy: none" in told
    assert "erased 1 records" in boli("pool", "log").output


def test_erased_text_stays_out_and_rows_of_other_sites_are_named(
    boli: Boli, tmp_path: Path
) -> None:
    boli("pool", "create", "pool", "--region", "IN-BR")
    boli("share", "text", "--pool", "pool", "--site", "arrah")
    other = record(7, text=record(0).text)
    open_pool("pool").write("gaya", [other])
    told = boli(
        "pool", "erase", "pool", "--site", "arrah",
        "--record", record(0).id, "--record", record(1).id,
    ).output  # fmt: skip
    assert "erased 2 records" in told
    command = f"boli pool erase pool --site gaya --record {other.id}"
    assert f"hold the same text, and stay; to erase these too:\n  {command}\n" in told
    prepared(tmp_path / "moved", [record(0, source="moved.txt#3")])
    told = boli("share", "moved", "--pool", "pool", "--site", "siwan").output
    assert told.split()[1] == "0"
    told = boli(*command.split()[1:]).output
    assert "erased 1 records" in told
    told = boli("share", "moved", "--pool", "pool", "--site", "siwan").output
    assert "its text was erased from this pool" in told


def test_a_broken_log_ends_with_an_error(boli: Boli, tmp_path: Path) -> None:
    boli("pool", "create", "pool", "--region", "IN-BR")
    boli("share", "text", "--pool", "pool", "--site", "arrah")
    path = tmp_path / "home" / "egress" / "log.jsonl"
    path.write_text(path.read_text().replace("arrah", "nalanda"))
    for words in (["pool", "log", "--verify"], ["pool", "log", str(path.parent), "--verify"]):
        with pytest.raises(BoliError, match="line 1 was altered") as error:
            boli(*words)
        assert error.value.exit_code == 21


def test_no_pool_is_told_before_anything_is_read(boli: Boli) -> None:
    with pytest.raises(BoliError, match="there is no pool at"):
        boli("share", "nothing", "--pool", "pool", "--site", "arrah")


def test_a_run_notes_the_copy_that_it_reads(
    boli: Boli, tmp_path: Path, tiny_plan: Callable[..., Plan], micro_base: Path
) -> None:
    boli("pool", "create", "pool", "--region", "IN-BR")
    boli("share", "text", "--pool", "pool", "--site", "arrah")
    boli("pool", "get", "pool", "--out", "copy", "--region", "IN-BR")
    text = str(tmp_path / "copy" / "records" / "bho.parquet")
    base = {"path": str(micro_base), "micro": None, "text": None}
    sites = [{"name": "arrah", "language": "bho", "text": [text]}]
    plan = tiny_plan(tmp_path, model={"base": base}, site=sites)
    folder = tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    prepare(folder, plan, Journal(folder / "journal.jsonl"), ignore, "0")
    told = json.loads((folder / "run.json").read_text())
    assert told["pools"] == [json.loads((tmp_path / "copy" / "pool.json").read_text())]
    assert prepare(folder, plan, Journal(folder / "journal.jsonl"), ignore, "0")[0].pools
    taken = told["pools"][0]["taken"]
    elsewhere = tmp_path / "runs" / "tiny-2"  # its site, on another machine, told of the copy
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text('{"pools": []}')
    with closing(Journal(elsewhere / "journal.jsonl")) as journal:
        journal.append(CopyRead("gaya", told["pools"][0]["pool"], 99, taken, 1, ""))
    output = boli("pool", "erase", "pool", "--record", record(0).id, "--runs", "runs").output
    assert "read such a copy: tiny-1 (version 1), tiny-2 (version 1)" in output
