"""The server's process: found again, told from others, and watched at little cost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boli.engine import nats_server
from boli.engine.identities import Address, Identities
from boli.engine.nats_server import Server, readmit, running
from boli.errors import TransportError

STAND_IN = """
import pathlib, signal, sys
signal.signal(signal.SIGHUP, lambda *_: pathlib.Path("told").touch())
pathlib.Path("ready").touch()
while True:
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Return a function: argument → a process under the server's number, which notes reloads."""
    processes = []

    def start(argument: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", STAND_IN, "--config", argument], cwd=tmp_path
        )
        processes.append(process)
        (tmp_path / "server.pid").write_text(str(process.pid))
        wait_for(tmp_path / "ready")
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def no_ps(*_: object, **__: object) -> None:
    raise FileNotFoundError("ps")


has_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc")


@has_proc
def test_server_is_found_and_told_where_there_is_no_ps(
    tmp_path: Path,
    stand_in: Callable[[str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a slim container: a revoked key must end at the server that runs."""
    Identities(tmp_path).make()
    process = stand_in(str(tmp_path / "server.conf"))
    monkeypatch.setattr(nats_server.subprocess, "run", no_ps)
    assert running(tmp_path) == process.pid
    assert readmit(tmp_path)
    wait_for(tmp_path / "told")


def test_server_is_found_by_ps_where_there_is_no_proc(
    tmp_path: Path,
    stand_in: Callable[[str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = stand_in(str(tmp_path / "server.conf"))
    exists = Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda path: not str(path).startswith("/proc") and exists(path)
    )
    asked = []

    def listed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[0])
        return subprocess.CompletedProcess(command, 0, f"nats-server -c {tmp_path}/server.conf\n")

    monkeypatch.setattr(nats_server.subprocess, "run", listed)
    assert running(tmp_path) == process.pid
    assert asked == ["ps"]
    monkeypatch.setattr(nats_server.subprocess, "run", no_ps)
    with pytest.raises(TransportError, match="neither /proc nor ps"):
        running(tmp_path)


def test_another_program_under_the_servers_number_is_not_the_server(
    tmp_path: Path, stand_in: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    stand_in("/elsewhere/server.conf")
    assert running(tmp_path) is None


def test_server_that_has_ended_does_not_run(
    tmp_path: Path, stand_in: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = stand_in(str(tmp_path / "server.conf"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert running(tmp_path) is None


def test_server_that_was_taken_over_is_watched_without_looking_at_its_command(
    tmp_path: Path,
    stand_in: Callable[[str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = stand_in(str(tmp_path / "server.conf"))
    looks = []

    def look(pid: int) -> str:
        looks.append(pid)
        return str(tmp_path / "server.conf") if process.poll() is None else "another program"

    monkeypatch.setattr(nats_server, "_command_of", look)
    monkeypatch.setattr(nats_server, "LOOK_SECONDS", 1e6)
    server = Server(tmp_path, Address("127.0.0.1"))
    assert not any(server._is_gone() for _ in range(20))
    assert len(looks) == 1
    monkeypatch.setattr(nats_server, "LOOK_SECONDS", 0.0)
    assert not server._is_gone()
    assert len(looks) == 2
    process.kill()
    process.wait()
    assert server._is_gone()


def test_number_that_another_program_took_is_noticed(
    tmp_path: Path,
    stand_in: Callable[[str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(str(tmp_path / "server.conf"))
    server = Server(tmp_path, Address("127.0.0.1"))
    assert not server._is_gone()
    monkeypatch.setattr(nats_server, "_command_of", lambda _: "another program")
    monkeypatch.setattr(nats_server, "LOOK_SECONDS", 0.0)
    assert server._is_gone()
