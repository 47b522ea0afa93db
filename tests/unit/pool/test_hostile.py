"""5,000 hostile names and keys: whatever they say, nothing is touched outside the pool."""

from __future__ import annotations

import contextlib
import random
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from pool_records import prepared, record, send
from typer.testing import CliRunner

from boli.cli.main import app
from boli.corpus.record import Record, record_id
from boli.errors import BoliError, PoolError
from boli.pool.address import parse_address
from boli.pool.card import write_card
from boli.pool.egress import check_site, why_stay
from boli.pool.egress_log import EgressLog, first_break
from boli.pool.erase import erase
from boli.pool.figures import figures
from boli.pool.share import share
from boli.pool.table import Pool, create_pool, open_pool, row_key, row_schema, rows_of, site_key
from boli.pool.take import take

COUNT = 5000
PIECES = [
    "../", "..\\", "..", "/", "//", "\\", "./", "~/", "\0", "\n", "\r", "\t", "\x1b[2J", "\x7f",
    "%2e%2e%2f", "%00", "..%c0%af", "\u202e", "\u200b", "\ufeff", "\u2028", "．．／", "‥/", "∕",
    "e\u0301", "\u0958", "🙂", "CON", "nul.txt", "C:\\", "file://", "s3://", "http://", "-rf", "--",
    "'; DROP TABLE t; --", "' OR '1'='1", '"', "`id`", "$(touch x)", "${HOME}", "{}", "%s", "*",
    "_delta_log", "_delta_log/00000000000000000000.json", "kind=erased", "records", "ledger",
    "pool.json", "README.md", ".parquet", "etc/passwd", "bho", "arrah", "भोजपुरी", "a" * 300,
]  # fmt: skip
FIELDS = [
    "id", "language", "script", "text", "source", "licence", "residency", "region", "contact",
    "personal", "content_hash", "pipeline",
]  # fmt: skip


def hostile(root: Path, count: int = COUNT) -> list[str]:
    """Return different names; some lead to a folder beside `root`, and some are very long."""
    rng = random.Random(5000)
    names: dict[str, None] = {}
    while len(names) < count:
        name = "".join(rng.choices(PIECES, k=rng.randint(1, 5)))
        match rng.randrange(10):
            case 0:
                name = f"{root.parent}/outside/{len(names)}"
            case 1:
                name = "../" * rng.randint(1, 6) + f"outside/{len(names)}"
            case 2:
                name = name * (10_000 // len(name))
        if not re.fullmatch("[a-z]+", name):  # that would be a name like any other
            names[name] = None
    return list(names)


def hostile_records(root: Path) -> list[Record]:
    """Return records of which each has one hostile value, and all else in form."""
    found = []
    for number, name in enumerate(hostile(root)):
        field = FIELDS[number % len(FIELDS)]
        values: dict[str, object] = {field: name}
        if field not in ("source", "id"):
            values["id"] = record_id(f"{number}")
        if field == "source":
            values["id"] = record_id(name)
        found.append(record(number, **values))
    return found


@pytest.fixture
def jail(tmp_path: Path) -> Path:
    """Return a folder with others around it that hostile names would reach."""
    for name in ("outside", "a/outside", "a/b/outside", "a/b/c/outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "precious").write_text("untouched")
    return tmp_path / "a" / "b" / "c"


def tree(jail: Path, *own: str) -> dict[str, bytes]:
    """Return every file and folder around the jail but the ones that are to change."""
    top, roots = jail.parents[2], [jail / name for name in own]
    return {
        str(path.relative_to(top)): path.read_bytes() if path.is_file() else b""
        for path in top.rglob("*")
        if not any(path == root or root in path.parents for root in roots)
    }


def test_control_such_names_leave_a_folder_that_joins_them(jail: Path) -> None:
    root = jail / "pool"
    out = [
        name
        for name in hostile(root)
        if "\0" not in name and root not in (root / name).resolve().parents
    ]
    assert len(out) > COUNT / 5


def test_hostile_records_stay_in_the_pool_or_at_home(jail: Path) -> None:
    pool, log = create_pool(str(jail / "pool"), "bhojpuri", "IN-BR"), EgressLog(jail / "home")
    records = hostile_records(jail / "pool")
    folder = prepared(jail / "prepared", records)
    before = tree(jail, "pool", "prepared", "home", "out")
    shared = share(folder, pool, "arrah", log)
    assert shared.total == COUNT
    assert shared.added > COUNT / 5  # those with a hostile source, contact and the like
    assert shared.stayed.total() > COUNT / 5
    taken = take(pool, jail / "out", region="IN-BR")
    assert taken.pin.rows == shared.added
    assert [path.name for path in (jail / "out" / "records").iterdir()] == ["bho.parquet"]
    for one in records[4 :: len(FIELDS)][:3]:  # a hostile source names its record's id
        assert erase(pool, log, record=one.id, site="arrah").rows == 1
    assert first_break(log.folder) == ""
    assert tree(jail, "pool", "prepared", "home", "out") == before
    assert {path.name for path in (jail / "pool").iterdir()} == {
        "records", "ledger", "README.md", "croissant.json"
    }  # fmt: skip


def test_hostile_rows_of_another_program_name_no_file(jail: Path) -> None:
    pool, log = create_pool(str(jail / "pool"), "bhojpuri", "IN-BR"), EgressLog(jail / "home")
    names = hostile(jail / "pool")
    rows = rows_of("gaya", [record(number, "gaya") for number in range(COUNT)])
    for field in ("site", "language", "script", "source"):
        column = rows.column_names.index(field)
        rows = rows.set_column(column, field, pa.array(names, pa.string()))
    rows = rows.set_column(
        rows.column_names.index("site_key"), "site_key", [[site_key(name) for name in names]]
    )
    keys = [row_key(name, record(number).id) for number, name in enumerate(names)]
    rows = rows.set_column(rows.column_names.index("key"), "key", [keys]).cast(row_schema())
    before = tree(jail, "pool", "home", "out")
    deltalake.write_deltalake(pool.records, rows, mode="append")
    taken = take(open_pool(pool.address.url), jail / "out", region="IN-BR")
    assert taken.rows == {"other": COUNT}
    assert [path.name for path in (jail / "out" / "records").iterdir()] == ["other.parquet"]
    assert figures(pool).rows == COUNT
    write_card(pool)
    runner = CliRunner()
    assert runner.invoke(app, ["pool", "stats", pool.address.url]).exit_code == 0
    rng = random.Random(1)
    for name in rng.sample(names, 5):
        assert erase(pool, log, site=name).rows == 1
    assert tree(jail, "pool", "home", "out") == before


def test_hostile_names_are_no_sites_addresses_or_filters(jail: Path, pool: Pool) -> None:
    log = EgressLog(jail / "home")
    before = tree(jail)
    names = hostile(jail / "pool")
    refused = 0
    for name in names:
        try:
            check_site(name)
        except PoolError:
            refused += 1
        for s3 in (f"s3://{name}", f"s3://texts/{name}"):
            try:
                address = parse_address(s3)
            except PoolError:
                continue
            assert ".." not in address.url.split("/")
        with contextlib.suppress(PoolError):
            parse_address(name)
        for field in ("language", "region", "taker"):
            if field == "taker" and name.isprintable() and len(name) <= 80:
                continue
            with pytest.raises(BoliError):
                take(pool, jail / "out", **{field: name})  # type: ignore[arg-type]
    assert refused > COUNT * 0.95
    for name in names[:300]:
        with pytest.raises(PoolError):
            send(pool, f"../{name}", [record(1)], log)
    assert tree(jail) == before


@pytest.mark.parametrize("field", ["text", "source", "contact", "personal", "licence", "id"])
def test_halves_of_characters_stay(pool: Pool, field: str) -> None:
    broken = replace(record(1), **{field: "\ud800"})
    assert why_stay(broken, pool.description, date.today()) == f"its {field} is not in form"
