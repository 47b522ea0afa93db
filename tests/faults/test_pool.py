"""Eight writers share at once and are killed: no row is lost, doubled or half there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_records import files_with, prepared, record, send

from boli.corpus.record import content_hash
from boli.pool.card import CARD, CROISSANT
from boli.pool.egress import TEXT_ERASED
from boli.pool.egress_log import EgressLog, first_break
from boli.pool.erase import erase
from boli.pool.ledger import marks
from boli.pool.share import share
from boli.pool.table import Pool, create_pool, open_pool

HERE = Path(__file__).parent
SITES = ("arrah", "gaya", "darbhanga", "siwan")
ROWS = 12  # of a site
BUCKET = b"""<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<LocationConstraint>ap-south-1</LocationConstraint></CreateBucketConfiguration>"""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the address of a pool in moto's S3, where there is none yet."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    command = [sys.executable, HERE / "s3_server.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        request = urllib.request.Request(f"{endpoint}/texts", BUCKET, method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        yield f"s3://texts/bhojpuri?endpoint={endpoint}&region=ap-south-1"
        server.kill()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a pool that is yet to be made: in a folder, or in S3."""
    if request.param == "folder":
        return str(tmp_path / "pool")
    address: str = request.getfixturevalue("s3")
    return address


def job(tmp_path: Path, url: str, **values: Any) -> dict[str, Any]:
    """Return what pool_writers.py is to do: two writers for each of four sites.

    The second one has the same records, and three of them with a newer text.
    """
    writers = []
    for site in SITES:
        for name, newer in ((site, 0), (f"{site}-2", 3)):
            texts = [f"नया {n} {site}" if n < newer else record(n, site).text for n in range(ROWS)]
            records = [record(n, site, text=text) for n, text in enumerate(texts)]
            folder = prepared(tmp_path / name, records)
            writers.append({"site": site, "folder": str(folder)})
    told = {"url": url, "home": str(tmp_path / "egress"), "writers": writers, "seed": 7}
    return {**told, "kills": 0, "latest": 1.0, **values}


def run(tmp_path: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Carry a job out; returns what was done."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(told))
    command = [sys.executable, HERE / "pool_writers.py", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["failures"] == 0 or told.get("careless"), done.stderr
    return found


def rows_of(url: str) -> list[dict[str, Any]]:
    """Return the rows of the newest version, all columns read."""
    return list(open_pool(url).records.to_pyarrow_table().to_pylist())


def fetched(pool: Pool, folder: Path) -> Path:
    """Return a folder with every file of a pool."""
    if pool.address.folder is not None:
        return pool.address.folder
    address = pool.address
    for name in [*address.files("records"), *address.files("ledger"), CARD, CROISSANT]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with address._bucket().open_input_stream(address._key(name)) as file:
            path.write_bytes(file.read())
    return folder


@pytest.mark.parametrize(
    ("place", "kills", "latest"),
    [
        ("folder", 60, 0.4),
        ("s3", 10, 0.6),
        pytest.param("folder", 600, 0.4, marks=pytest.mark.slow),
        pytest.param("s3", 60, 0.6, marks=pytest.mark.slow),
    ],
    indirect=["place"],
)
def test_eight_killed_writers_lose_and_double_nothing(
    tmp_path: Path, place: str, kills: int, latest: float
) -> None:
    create_pool(place, "bhojpuri", "IN-BR")
    done = run(tmp_path, job(tmp_path, place, kills=kills, latest=latest))
    assert done["kills"] == kills
    rows = rows_of(place)
    expected = {(site, record(n, site).id) for site in SITES for n in range(ROWS)}
    assert Counter((row["site"], row["id"]) for row in rows) == Counter(expected)
    assert all(content_hash(row["text"]) == row["content_hash"] for row in rows)
    pool = open_pool(place)
    assert first_break(tmp_path / "egress", marks(pool), pool.description.id) == ""


def test_control_careless_writers_double_rows(tmp_path: Path) -> None:
    place = str(tmp_path / "pool")
    create_pool(place, "bhojpuri", "IN-BR")
    run(tmp_path, job(tmp_path, place, kills=20, latest=0.4, careless=True))
    assert len(rows_of(place)) > len(SITES) * ROWS


@pytest.mark.parametrize(
    ("place", "kills", "latest"),
    [
        ("folder", 30, 0.4),
        ("s3", 6, 0.6),
        pytest.param("folder", 120, 0.4, marks=pytest.mark.slow),
        pytest.param("s3", 24, 0.6, marks=pytest.mark.slow),
    ],
    indirect=["place"],
)
def test_killed_erases_among_killed_writers_leave_a_whole_pool(
    tmp_path: Path, place: str, kills: int, latest: float
) -> None:
    create_pool(place, "bhojpuri", "IN-BR")
    gone = [record(n, "arrah").id for n in (0, 4, 8, 11)]
    told = job(tmp_path, place, kills=kills, latest=latest)
    told["writers"] = [*told["writers"][::2], {"site": "arrah", "erase": gone}]
    assert run(tmp_path, told)["kills"] == kills
    pool = open_pool(place)
    for site in SITES:  # also for one that was killed after the last erase
        share(tmp_path / site, pool, site, EgressLog(tmp_path / "egress"))
    rows = rows_of(place)
    expected = {(site, record(n, site).id) for site in SITES for n in range(ROWS)}
    expected -= {("arrah", name) for name in gone}
    assert Counter((row["site"], row["id"]) for row in rows) == Counter(expected)
    assert open_pool(place).erasing is None
    root = fetched(pool, tmp_path / "fetched")
    words = [record(n, "arrah").text for n in (0, 4, 8, 11)]
    assert files_with(root, words) == []
    assert files_with(root, [record(1, "arrah").text]) != []


def test_killed_erases_let_no_text_back_under_another_id_or_site(tmp_path: Path) -> None:
    place = str(tmp_path / "pool")
    pool = create_pool(place, "bhojpuri", "IN-BR")
    own = [record(n, "arrah") for n in range(ROWS)]
    share(prepared(tmp_path / "own", own), pool, "arrah", EgressLog(tmp_path / "egress"))
    moved = [record(n, "arrah", source=f"moved/{n}.txt#3") for n in range(ROWS)]
    folder = str(prepared(tmp_path / "moved", moved))
    gone = [own[n] for n in (0, 4, 8, 11)]
    writers: list[dict[str, Any]] = [
        {"site": site, "folder": folder} for site in ("arrah", "siwan") * 2
    ]
    writers.append({"site": "arrah", "erase": [one.id for one in gone]})
    told = job(tmp_path, place, kills=60, latest=0.4, writers=writers)
    assert run(tmp_path, told)["kills"] == 60
    left = [one.text for one in own if one not in gone]
    assert Counter(row["text"] for row in rows_of(place)) == Counter(left)
    assert open_pool(place).erasing is None
    assert files_with(tmp_path / "pool", [one.text for one in gone]) == []


def test_text_that_was_erased_in_s3_stays_out(tmp_path: Path, s3: str) -> None:
    pool, log = create_pool(s3, "bhojpuri", "IN-BR"), EgressLog(tmp_path / "egress")
    again = [record(1, "arrah", source="moved/1.txt#3")]
    assert send(pool, "arrah", [record(1, "arrah"), record(2, "arrah")], log).added
    erase(open_pool(s3), log, record=record(1).id, site="arrah")  # another process
    assert send(pool, "arrah", again, log).stayed == {again[0].id: TEXT_ERASED}
