"""A plan as its users run it: boli coordinator, invite and join, each a process, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import SITES, check_same_as_local, free_port
from quadratic import Job

from boli.engine.coordinator import Coordinator, stream_bytes
from boli.engine.identities import Address
from boli.engine.nats import NatsTransport
from boli.engine.nats_server import reserved_bytes
from boli.errors import StorageError
from boli.plan import Plan
from boli.rounds.update import Release
from boli.run import Run, list_runs

ROUNDS = 3


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


@pytest.mark.timeout(280)
def test_plan_over_nats_ends_with_the_bits_of_the_local_engine(
    tiny_plan_file: Callable[..., Path],
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    """Also where the coordinator is killed in between, and one site's machine."""
    plan, address = tiny_plan_file(tmp_path), f"127.0.0.1:{free_port()}"
    settings = ("--set", f"rounds.total={ROUNDS}", "--set", "engine.threads_per_site=1")
    told = ("coordinator", plan, "--listen", address, *settings)
    coordinator = start("coordinator", *told)
    sites = {}
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
        joining = ("join", f"{site}.boli", "--data", tmp_path, "--state", tmp_path / site)
        sites[site] = start(site, *joining)

    def wait_for(sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not sign():
            logs = [path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.log"))]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.1)

    def has(number: int, kind: str) -> bool:
        journals = list(tmp_path.glob("runs/*/journal.jsonl"))
        return any(path.read_text().count(f'"{kind}"') >= number for path in journals)

    wait_for(lambda: has(1, "round_stepped"))
    os.killpg(coordinator.pid, signal.SIGKILL)
    os.killpg(sites["gaya"].pid, signal.SIGKILL)
    coordinator = start("coordinator", *told)
    again = ("join", "gaya.boli", "--data", tmp_path, "--state", tmp_path / "gaya")
    sites["gaya"] = start("gaya", *again)
    wait_for(lambda: coordinator.poll() is not None)
    (run,) = list_runs(tmp_path / "runs")
    assert run.finished, (tmp_path / "coordinator.log").read_text()
    check_same_as_local(plan, run.folder, tmp_path, ROUNDS)
    for site in SITES:
        assert sites[site].poll() is None, "a site stays, for the next run"
        sites[site].send_signal(signal.SIGTERM)
        assert sites[site].wait(20) == 0
        assert "is over" in (tmp_path / f"{site}.log").read_text()
    assert Run(run.folder).adapter.is_dir()


def test_server_reserves_just_what_the_coordinator_makes_room_for(
    tiny_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, state = tiny_plan(tmp_path), Job().first_state()
    views = dict.fromkeys(SITES, Job().views["gaya"])
    entries = {
        site: sum(stop - start for start, stop in spans) for site, (_, spans) in views.items()
    }
    needed = sum(map(stream_bytes, entries.values()))
    place = Coordinator(tmp_path / "coordinator", Address("127.0.0.1", free_port()))
    monkeypatch.setattr("boli.engine.nats_server.free_bytes", lambda _: needed)
    with place.transport("run", plan, "some/base", None, entries) as transport:
        transport.start(views, Release(0, state.layout, state.theta))
        deadline = time.monotonic() + 20
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
        place.transport("run", plan, "some/base", None, entries),
    ):
        pass
