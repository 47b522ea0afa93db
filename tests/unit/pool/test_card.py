from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest
from pool_records import record, send

from boli.pool.card import CARD, CROISSANT, card, croissant, write_card
from boli.pool.egress_log import EgressLog
from boli.pool.figures import figures, printable
from boli.pool.table import Pool, row_schema


@pytest.fixture
def full(pool: Pool, log: EgressLog) -> Pool:
    send(pool, "arrah", [record(n) for n in range(3)], log)
    send(pool, "gaya", [record(n, "gaya", language="mag", licence="MIT") for n in range(2)], log)
    return pool


def test_figures_count_rows_and_characters(full: Pool) -> None:
    found = figures(full)
    assert (found.version, found.rows) == (2, 5)
    assert found.by["language"] == {
        "bho": (3, sum(len(record(n).text) for n in range(3))),
        "mag": (2, sum(len(record(n, "gaya").text) for n in range(2))),
    }
    assert {name: number for name, (number, _) in found.by["site"].items()} == {
        "arrah": 3,
        "gaya": 2,
    }


def test_an_empty_pool_has_a_card(pool: Pool) -> None:
    found = figures(pool)
    assert croissant(pool, found)["license"]
    assert "0 records" in card(pool, found)


def test_croissant_names_every_column_and_its_source(full: Pool) -> None:
    told = croissant(full, figures(full))
    assert told["@type"] == "sc:Dataset"
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    for name in ("name", "description", "url", "license", "version", "datePublished"):
        assert told[name], name
    assert told["version"] == "1.0.2"
    assert told["license"] == [
        "https://spdx.org/licenses/CC-BY-4.0.html",
        "https://spdx.org/licenses/MIT.html",
    ]
    (files,), (records,) = told["distribution"], told["recordSet"]
    assert [one["name"] for one in records["field"]] == row_schema().names
    for one in records["field"]:
        assert one["@type"] == "cr:Field"
        assert one["@id"] == f"records/{one['name']}"
        assert one["dataType"].startswith("sc:")
        assert one["source"]["fileSet"]["@id"] == files["@id"]
        assert one["source"]["extract"]["column"] == one["name"]
    prefixes = {key for key in told["@context"] if not key.startswith("@")}
    used = {["cr", "Field"][0], "sc", "dct"}
    assert used <= prefixes


def test_croissant_names_the_data_and_not_the_log(full: Pool) -> None:
    full.records.create_checkpoint()
    (files,) = croissant(full, figures(full))["distribution"]
    assert full.address.folder is not None
    there = [p.relative_to(full.address.folder) for p in full.address.folder.rglob("*.parquet")]
    # As readers do: * goes over folders too.
    named = [path for path in there if fnmatch(path.as_posix(), files["includes"])]
    assert named
    assert named == [p for p in there if p.parts[0] == "records" and "_delta_log" not in p.parts]
    assert len(there) > len(named)


def test_card_has_a_head_that_hubs_read(full: Pool) -> None:
    write_card(full)
    assert full.address.folder is not None
    text = (full.address.folder / CARD).read_text()
    head = text.split("---\n")[1]
    told = {
        line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1])
        for line in head.split("\n")
        if line
    }
    assert told["language"] == ["bho", "mag"]
    assert told["license"] == "other"
    assert told["license_name"] == "CC-BY-4.0, MIT"
    assert json.loads((full.address.folder / CROISSANT).read_text())["name"] == "bhojpuri"


def test_neither_holds_text_names_of_sites_or_addresses(full: Pool) -> None:
    found = figures(full)
    for text in (card(full, found), json.dumps(croissant(full, found))):
        for word in ("वाक्य", "arrah", "gaya", "archive@example.org", record(1).id):
            assert word not in text


def test_what_others_wrote_cannot_break_a_table() -> None:
    assert printable("a|b\n<script>") == "a�b��script�"
    assert len(printable("x" * 5000)) == 60
