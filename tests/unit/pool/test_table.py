from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pool_records import record

from boli.errors import PoolError
from boli.pool.delta import ConflictError
from boli.pool.table import Pool, create_pool, open_pool, row_key, rows_of


def test_pool_says_what_it_is(pool: Pool, tmp_path: Path) -> None:
    found = open_pool(str(tmp_path / "pool")).description
    assert found == pool.description
    assert (found.name, found.region) == ("bhojpuri", "IN-BR")
    assert "CC-BY-4.0" in found.licences


def test_a_place_without_a_pool_is_told(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="there is no pool at") as error:
        open_pool(str(tmp_path))
    assert "boli pool create" in error.value.hint


def test_a_pool_is_not_made_twice(pool: Pool) -> None:
    with pytest.raises(PoolError, match="already"):
        create_pool(pool.address.url, "other", "IN")


def test_a_killed_create_is_no_pool_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DeltaTable.create

    def die(uri: str, *values: Any, **more: Any) -> Any:
        if uri.endswith("records"):
            raise OSError("killed")
        return whole(uri, *values, **more)

    monkeypatch.setattr(DeltaTable, "create", die)
    with pytest.raises(PoolError):
        create_pool(str(tmp_path), "bhojpuri", "IN")
    monkeypatch.undo()
    with pytest.raises(PoolError, match="there is no pool"):
        open_pool(str(tmp_path))
    assert create_pool(str(tmp_path), "bhojpuri", "IN").version == 0


@pytest.mark.parametrize(
    ("name", "region", "licences"),
    [
        ("../up", "IN", ()),
        ("Upper", "IN", ()),
        ("a", "India", ()),
        ("a", "IN-", ()),
        ("a", "IN", ("a b",)),
        ("a", "IN\n", ()),
    ],
)
def test_a_description_out_of_form_is_refused(
    tmp_path: Path, name: str, region: str, licences: tuple[str, ...]
) -> None:
    with pytest.raises(PoolError):
        create_pool(str(tmp_path), name, region, licences)
    assert list(tmp_path.iterdir()) == []


def test_an_altered_description_is_refused(pool: Pool) -> None:
    text = pool.records.metadata().description.replace("IN-BR", "IN-UP")
    pool.records.alter.set_table_description(text)
    with pytest.raises(PoolError, match="was altered"):
        open_pool(pool.address.url)


def test_a_table_of_others_is_no_pool(tmp_path: Path) -> None:
    for name in ("records", "ledger"):
        DeltaTable.create(str(tmp_path / name), rows_of("arrah", []).schema)
    with pytest.raises(PoolError, match="not a boli pool"):
        open_pool(str(tmp_path))


def test_a_row_carries_its_site_and_all_of_its_record(pool: Pool) -> None:
    pool.write("arrah", [record(1, expires=None)])
    row = pool.records.to_pyarrow_table().to_pylist()[0]
    one = record(1)
    assert row["key"] == row_key("arrah", one.id)
    assert row["site"] == "arrah"
    assert row["characters"] == len(one.text)
    for name in ("language", "script", "source", "licence", "residency", "pipeline", "text"):
        assert row[name] == getattr(one, name)
    assert tuple(row["purposes"]) == one.purposes


def test_same_id_with_other_text_replaces_the_row(pool: Pool) -> None:
    pool.write("arrah", [record(1), record(2)])
    pool.write("arrah", [record(1, text="anew"), record(3)])
    rows = pool.records.to_pyarrow_table().to_pylist()
    assert sorted(row["text"] for row in rows) == sorted(["anew", record(2).text, record(3).text])


def test_same_id_at_two_sites_is_two_rows(pool: Pool) -> None:
    pool.write("arrah", [record(1)])
    pool.write("gaya", [record(1)])
    assert pool.records.to_pyarrow_table().num_rows == 2


def test_second_writer_of_a_site_has_to_look_again(pool: Pool) -> None:
    other = open_pool(pool.address.url)
    pool.write("arrah", [record(1)])
    with pytest.raises(ConflictError):
        other.write("arrah", [record(1)])
    other.refresh()
    assert list(other.held("arrah").hashes) == [record(1).id]


def test_second_writer_of_a_site_has_to_look_again_before_it_replaces(pool: Pool) -> None:
    pool.write("arrah", [record(1)])
    other = open_pool(pool.address.url)
    pool.write("arrah", [record(1, text="second")])
    with pytest.raises(ConflictError):
        other.write("arrah", [record(1, text="third")])


def test_writers_of_two_sites_do_not_disturb_each_other(pool: Pool) -> None:
    other = open_pool(pool.address.url)
    pool.write("arrah", [record(1)])
    other.write("gaya", [record(1)])
    pool.refresh()
    assert pool.records.to_pyarrow_table().num_rows == 2


def test_older_versions_can_be_read(pool: Pool) -> None:
    pool.write("arrah", [record(1)])
    pool.write("arrah", [record(2)])
    assert pool.at_version(1).to_pyarrow_table().num_rows == 1
    for version in (3, 10**9):
        with pytest.raises(PoolError, match="no version"):
            pool.at_version(version)


def test_the_log_of_the_table_holds_no_text(pool: Pool) -> None:
    pool.write("arrah", [record(1)])
    pool.write("arrah", [record(1, text="anew and different")])
    assert pool.address.folder is not None
    for path in (pool.address.folder / "records" / "_delta_log").glob("*.json"):
        for line in path.read_text().splitlines():
            stats = json.loads(json.loads(line).get("add", {}).get("stats", "{}"))
            assert not stats.get("minValues")
            assert "anew" not in line


def test_a_folder_of_others_becomes_no_pool(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("ours")
    with pytest.raises(PoolError, match="not empty"):
        create_pool(str(tmp_path), "p", "IN-BR")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
