"""A plan as its users run it: boli coordinator, invite and join, each a process, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from federation import SITES, check_same_as_local, free_port
from quadratic import LENIENT, Job

from boli.engine.coordinator import Coordinator, stream_bytes
from boli.engine.identities import Address
from boli.engine.nats import NatsTransport
from boli.engine.nats_server import reserved_bytes
from boli.errors import StorageError
from boli.journal import CopyRead, PiecesTaken, read_journal
from boli.plan import Plan
from boli.pool.pins import PIN, Pin, runs_with
from boli.rounds.update import Release
from boli.run import Run, list_runs

ROUNDS = 3
FIRST, SECOND = "1" * 32, "2" * 32  # copies of a pool


def boli(*words: object) -> list[str]:
    return [sys.executable, "-m", "boli.cli.main", *map(str, words)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function (name, *command) → a process that writes name.log and ends with us."""
    processes = []

    def spawn(name: str, *words: object) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                boli(*words), cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
        processes.append(process)
        return process

    yield spawn
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with contextlib.suppress(OSError, ValueError):  # the server outlives a killed coordinator
        os.kill(int((tmp_path / "coordinator/server.pid").read_text()), signal.SIGKILL)


def leave_pin(folder: Path, taken: str, version: int) -> None:
    """Make a folder a copy of a pool, as `boli pool get` leaves one."""
    pin = Pin("a" * 32, str(folder), version, taken, "mag", "IN-BR", 160, "b" * 64)
    (folder / PIN).write_text(json.dumps(asdict(pin)))


@pytest.mark.timeout(600)
def test_plan_over_nats_ends_with_the_bits_of_the_local_engine(
    tiny_plan_file: Callable[..., Path],
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """Also where the coordinator is killed in the middle of a round, and one site's machine.

    That site reads a copy of a pool, and after its restart a newer one. The coordinator
    never sees its folder, and knows of both. The other site comes last: no version is made
    without it, so that however quick the machine is, the run is not over before.
    """
    plan, address = tiny_plan_file(tmp_path), f"127.0.0.1:{free_port()}"
    settings = ("--set", f"rounds.total={ROUNDS}", "--set", "engine.threads_per_site=1")
    told = ("coordinator", plan, "--listen", address, *settings)
    coordinator = start("coordinator", *told)
    sites = dict[str, subprocess.Popen[bytes]]()
    for site in SITES:
        while not (tmp_path / "coordinator").exists():
            time.sleep(0.1)
        invited = subprocess.run(
            boli("invite", site, "--address", address),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert invited.returncode == 0, invited.stderr
        data = tmp_path / "data" / site
        data.mkdir(parents=True)
        for text in ("bho.txt", "mag.txt"):
            (data / text).write_bytes((tmp_path / text).read_bytes())

    def join(site: str) -> None:
        data, state = tmp_path / "data" / site, tmp_path / site
        (tmp_path / "limits.toml").write_text(LENIENT)
        words = ("--data", data, "--state", state, "--limits", tmp_path / "limits.toml")
        sites[site] = start(site, "join", f"{site}.boli", *words, "--accept")

    def wait_for(sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not sign():
            logs = [path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log"))]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.1)

    def has(number: int, kind: str) -> bool:
        journals = list(tmp_path.glob("runs/*/journal.jsonl"))
        return any(path.read_text().count(f'"{kind}"') >= number for path in journals)

    leave_pin(tmp_path / "data" / "gaya", FIRST, 3)
    join("gaya")
    wait_for(lambda: has(1, "update_accepted"))
    os.killpg(coordinator.pid, signal.SIGKILL)
    os.killpg(sites["gaya"].pid, signal.SIGKILL)
    assert not has(1, "round_stepped")
    coordinator = start("coordinator", *told)
    leave_pin(tmp_path / "data" / "gaya", SECOND, 4)
    join("gaya")
    wait_for(lambda: has(2, "copy_read"))
    join("arrah")
    wait_for(lambda: coordinator.poll() is not None)
    (run,) = list_runs(tmp_path / "runs")
    assert run.finished, (tmp_path / "coordinator.log").read_text()
    check_same_as_local(plan, run.folder, tmp_path, ROUNDS)
    for site in SITES:
        assert sites[site].poll() is None, "a site stays, for the next run"
        sites[site].send_signal(signal.SIGTERM)
        assert sites[site].wait(120) == 0
        assert "is over" in (tmp_path / f"{site}.log").read_text()
    assert Run(run.folder).adapter.is_dir()
    facts = [entry.event for entry in read_journal(run.folder / "journal.jsonl")]
    copies = [fact for fact in facts if isinstance(fact, CopyRead)]
    assert [(fact.site, fact.taken, fact.version) for fact in copies] == [
        ("gaya", FIRST, 3),
        ("gaya", SECOND, 4),
    ]
    assert str(tmp_path) not in " ".join(map(str, copies))
    for taken, version in ((FIRST, 3), (SECOND, 4)):
        named = {run.id: version}
        assert runs_with(tmp_path / "runs", {taken: version}) == named
        assert runs_with(tmp_path / "gaya" / "runs", {taken: version}) == named
        assert runs_with(tmp_path / "arrah" / "runs", {taken: version}) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_words_of_the_sites_make_the_tokenizer_over_nats(
    tiny_plan_file: Callable[..., Path],
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """Also where the coordinator is killed when it has the words of one site alone."""
    plan = tiny_plan_file(tmp_path, model={"base": {"micro": {"tokenizer": "sites"}}})
    address = f"127.0.0.1:{free_port()}"
    settings = ("--set", f"rounds.total={ROUNDS}", "--set", "engine.threads_per_site=1")
    told = ("coordinator", plan, "--listen", address, *settings)
    coordinator = start("coordinator", *told)

    def wait_for(sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not sign():
            logs = [path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log"))]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.1)

    wait_for((tmp_path / "coordinator" / "server.conf").exists)
    sites = {}
    (tmp_path / "limits.toml").write_text(LENIENT)
    for site in SITES:
        invited = boli("invite", site, "--address", address)
        assert subprocess.run(invited, cwd=tmp_path, check=False).returncode == 0
        words = ("--data", tmp_path, "--state", tmp_path / site, "--accept")
        sites[site] = ("join", f"{site}.boli", *words, "--limits", tmp_path / "limits.toml")
    first, second = SITES
    start(first, *sites[first])
    wait_for(lambda: bool(list(tmp_path.glob(f"runs/*/pieces/{first}"))))
    os.killpg(coordinator.pid, signal.SIGKILL)
    coordinator = start("coordinator", *told)
    start(second, *sites[second])
    wait_for(lambda: coordinator.poll() is not None)
    (run,) = list_runs(tmp_path / "runs")
    assert run.finished, (tmp_path / "coordinator.log").read_text()
    check_same_as_local(plan, run.folder, tmp_path, ROUNDS)
    facts = [entry.event for entry in read_journal(run.folder / "journal.jsonl")]
    taken = {fact.site: fact for fact in facts if isinstance(fact, PiecesTaken)}
    assert sorted(taken) == sorted(SITES)
    for site in SITES:
        (sent,) = (tmp_path / site).glob("runs/*-pieces/pieces-10-3.tsv")
        assert len(sent.read_text(encoding="utf-8").splitlines()) == taken[site].num_pieces


def test_server_reserves_just_what_the_coordinator_makes_room_for(
    tiny_plan: Callable[..., Plan],
    micro_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, state = tiny_plan(tmp_path), Job().first_state()
    views = dict.fromkeys(SITES, Job().views["gaya"])
    entries = {
        site: sum(stop - start for start, stop in spans) for site, (_, spans) in views.items()
    }
    needed = sum(map(stream_bytes, entries.values()))
    place = Coordinator(tmp_path / "coordinator", Address("127.0.0.1", free_port()))
    monkeypatch.setattr("boli.engine.nats_server.free_bytes", lambda _: needed)
    with place.transport("run", plan, str(micro_base), None, entries) as transport:
        transport.start(views, Release(0, state.layout, state.theta))
        deadline = time.monotonic() + 120
        assert isinstance(transport, NatsTransport)
        assert transport._watcher is not None
        while not transport._tasks or transport._watcher.client is None:
            assert time.monotonic() < deadline, "the streams are not made"
            time.sleep(0.05)
        there = reserved_bytes(place.folder)
        assert (len(there), sum(there.values())) == (2 * len(SITES), needed)
    monkeypatch.setattr("boli.engine.nats_server.free_bytes", lambda _: needed - 1)
    with (
        pytest.raises(StorageError, match="needs"),
        place.transport("run", plan, str(micro_base), None, entries),
    ):
        pass
