"""Room for a plan's streams: taken from the free disk, and looked at before anything starts."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boli.engine import coordinator as engine
from boli.engine import nats_server
from boli.engine.coordinator import Coordinator, stream_bytes
from boli.engine.identities import Address
from boli.engine.nats_server import STORE_BYTES, Server, free_bytes, readmit
from boli.errors import StorageError
from boli.plan import Plan

ENTRIES = {"arrah": 40_000_000, "gaya": 40_000_000}
NEEDED = 2 * stream_bytes(40_000_000)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that says how much of the disk is free."""

    def say(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 50, 0, free))

    return say


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """Return a coordinator whose server need not start."""
    monkeypatch.setattr(Server, "start", lambda _: None)
    monkeypatch.setattr(Coordinator, "_open", lambda *_: open(os.devnull))  # noqa: PTH123, SIM115
    return Coordinator(tmp_path / "coordinator", Address("127.0.0.1", 4300))


@contextmanager
def started(place: Coordinator, plan: Plan, entries: dict[str, int]) -> Iterator[int]:
    """Start it for a run; yield how much room its server's settings give to streams."""
    with place.transport("run", plan, "some/base", None, entries):
        yield Server(place.folder, place.listen).store_bytes


def leave_stream(folder: Path, name: str, max_bytes: int, held: int = 0) -> None:
    """Leave what the server keeps of a stream."""
    stream = folder / "jetstream" / "jetstream" / "BOLI" / "streams" / name
    stream.mkdir(parents=True)
    (stream / "meta.inf").write_text(json.dumps({"name": name, "max_bytes": max_bytes}))
    (stream / "1.blk").write_bytes(bytes(held))


def test_most_of_the_free_disk_is_for_streams(tmp_path: Path, disk: Callable[[int], None]) -> None:
    disk(10_000_000)
    assert free_bytes(tmp_path) == 9_000_000
    disk(100 << 30)
    assert free_bytes(tmp_path) == 99 << 30
    leave_stream(tmp_path, "UP_gaya", 1, held=5000)
    disk(0)
    assert 5000 < free_bytes(tmp_path) < 5100, "what they hold already is theirs"


def test_store_is_as_large_as_the_disk_allows(
    place: Coordinator, tiny_plan: Callable[..., Plan], tmp_path: Path, disk: Callable[[int], None]
) -> None:
    plan = tiny_plan(tmp_path)
    disk(1 << 40)
    with started(place, plan, ENTRIES) as room:
        assert room == STORE_BYTES
    with started(place, plan, {"gaya": 2_000_000_000}) as room:
        assert room == stream_bytes(2_000_000_000) > STORE_BYTES
    disk(5 << 30)
    with started(place, plan, ENTRIES) as room:
        assert NEEDED < room < 5 << 30


def test_plan_whose_streams_do_not_fit_is_refused_before_the_server_starts(
    place: Coordinator,
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: Server) -> None:
        raise AssertionError("the server was started")

    monkeypatch.setattr(Server, "start", start)
    disk(1_000_000_000)
    with (
        pytest.raises(StorageError) as refused,
        started(place, tiny_plan(tmp_path), ENTRIES),
    ):
        pass
    said = str(refused.value).replace("\N{NO-BREAK SPACE}", " ")
    assert "to and from 2 sites needs 1.94 GB of disk, and the server may have 900 MB" in said
    assert f"make room on the disk of {place.folder}" in said
    assert "sites that the plan does not have" not in said


def test_streams_of_former_sites_count_too(
    place: Coordinator, tiny_plan: Callable[..., Plan], tmp_path: Path, disk: Callable[[int], None]
) -> None:
    plan = tiny_plan(tmp_path)
    disk(4_000_000_000)
    leave_stream(place.folder, "UP_gaya", 500_000_000)
    with started(place, plan, ENTRIES):
        pass
    leave_stream(place.folder, "DOWN_siwan", 3_000_000_000)
    with pytest.raises(StorageError, match=r"3.GB are of sites that the plan does not have"):
        started(place, plan, ENTRIES).__enter__()


def test_running_server_keeps_the_size_that_it_was_started_with(
    place: Coordinator,
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk(3_000_000_000)
    plan = tiny_plan(tmp_path)
    with started(place, plan, ENTRIES) as room:
        pass
    disk(1 << 40)
    for module in (engine, nats_server):
        monkeypatch.setattr(module, "running", lambda _: 4711)
    monkeypatch.setattr(nats_server, "reload", lambda _: True)
    monkeypatch.setattr(Server, "stop", lambda _: None)
    readmit(place.folder)  # boli invite
    with started(place, plan, ENTRIES) as later:
        assert later == room
    with pytest.raises(StorageError, match=r"stop the server that runs \(process 4711\)"):
        started(place, plan, {"gaya": 900_000_000}).__enter__()


def test_server_of_ones_own_keeps_its_size_too(
    place: Coordinator, tiny_plan: Callable[..., Plan], tmp_path: Path, disk: Callable[[int], None]
) -> None:
    disk(1_000_000_000)
    elsewhere = Coordinator(place.folder, place.listen, Address("203.0.113.7"))
    with pytest.raises(StorageError, match=r"raise max_file_store in server\.conf"):
        started(elsewhere, tiny_plan(tmp_path), ENTRIES).__enter__()
    conf = place.folder / "server.conf"
    conf.write_text(
        conf.read_text().replace("max_file_store: 900000000", "max_file_store: 2000000000")
    )
    with started(elsewhere, tiny_plan(tmp_path), ENTRIES):
        pass
