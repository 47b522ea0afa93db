"""boli doctor over a real NATS server: each thing that can keep a site out, and what it says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from over_nats import free_port
from quadratic import LENIENT, Job
from typer.testing import CliRunner

from boli.cli.main import app
from boli.engine import nats_doctor
from boli.engine.identities import Address, Identities, Invitation, write_invitation
from boli.engine.nats import NatsTransport
from boli.engine.nats_server import Server, server_binary
from boli.errors import TransportError
from boli.plan import Plan
from boli.rounds.update import Release
from boli.site.kit import Kit

JOB = Job()


class Federation:
    """A coordinator's server, and an invitation for one site; by default nobody runs a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = Address("127.0.0.1", free_port())
        self.server = Server(folder / "coordinator", self.address)
        self.identities = Identities(folder / "coordinator")
        self.invitation = self.identities.invite("gaya", self.address)
        self.server.write_settings()

    def coordinator(self, plan: Plan) -> NatsTransport:
        """Return a coordinator that runs a plan."""
        transport = NatsTransport(
            self.identities.access(self.address),
            Kit(run="run", plan=json.loads(plan.model_dump_json())),
        )
        state = JOB.first_state()
        try:
            transport.start({"gaya": JOB.views["gaya"]}, Release(0, state.layout, state.theta))
        except TransportError:
            transport.hang_up()
            raise
        return transport

    def doctor(self, **changes: str) -> tuple[int, str]:
        """Return what a site's people see, and the exit code."""
        path = self.folder / "gaya.boli"
        write_invitation(self.invitation.model_copy(update=changes), path)
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        (self.folder / "limits.toml").write_text(LENIENT)
        places = ("--data", data, "--state", self.folder / "state")
        return examine(path, *places, "--limits", self.folder / "limits.toml")


def examine(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, " ".join(done.output.split())  # also of no-break spaces


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    there = Federation(tmp_path)
    yield there
    there.server.stop()


class Clock:
    """What a machine that is never busy shows: each look is a millisecond later."""

    sleep = staticmethod(time.sleep)
    time = staticmethod(time.time)
    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 0.001
        return self.seconds


def test_all_is_well_beside_a_running_plan(
    federation: Federation, tiny_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_doctor, "time", Clock())
    (federation.folder / "data").mkdir()
    plan = tiny_plan(federation.folder / "data")
    federation.server.start()
    with closing(federation.coordinator(plan)):
        code, said = federation.doctor()
    assert code == 0, said
    assert "ok coordinator there, with run run" in said
    assert re.search(r"ok line round trip \d+ ms, over 100 Mbit/s down, over 100 Mbit/s up", said)
    assert "ok clock" in said
    assert re.search(r"ok text mag: \d+ train, \d+ tuning, \d+ test lines", said)
    assert "ready; next: boli join" in said


def test_text_that_the_plan_wants_is_missing(
    federation: Federation, tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    federation.server.start()
    (tmp_path / "plan").mkdir()
    with closing(federation.coordinator(tiny_plan(tmp_path / "plan"))):
        code, said = federation.doctor()
    assert code == TransportError.exit_code
    assert "problem text there is no text at" in said
    assert "mag.txt" in said


def test_coordinator_runs_no_plan(federation: Federation) -> None:
    federation.server.start()
    code, said = federation.doctor()
    assert code == 0, said
    assert "warning coordinator it runs no plan with this site now" in said
    assert "boli join waits" in said


def test_name_does_not_resolve(federation: Federation) -> None:
    code, said = federation.doctor(address="coordinator.invalid:4222")
    assert code == TransportError.exit_code
    assert "problem address coordinator.invalid: " in said
    assert "check the name in the invitation" in said
    assert "connection" not in said
    assert "1 problem to solve" in said


def test_nothing_listens_on_the_port(federation: Federation) -> None:
    code, said = federation.doctor()
    assert code == TransportError.exit_code
    assert f"problem connection {federation.address}: Connection refused" in said
    assert "start boli coordinator" in said


def test_port_is_filtered(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_doctor, "REACH_SECONDS", 0.5)
    with socket.socket() as full:  # its queue is full: the kernel drops who knocks
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        code, said = federation.doctor(address=f"127.0.0.1:{full.getsockname()[1]}")
        for one in waiting:
            one.close()
    assert code == TransportError.exit_code
    assert "timed out" in said
    assert "firewall" in said


def test_server_shows_another_certificate(federation: Federation, tmp_path: Path) -> None:
    federation.server.start()
    other = Identities(tmp_path / "other")
    other.make()
    code, said = federation.doctor(authority=other.authority)
    assert code == TransportError.exit_code
    assert "problem certificate not the one that the invitation names" in said
    assert "ask for a new invitation" in said


def test_server_is_without_tls(federation: Federation) -> None:
    port = free_port()
    plain = subprocess.Popen(
        [server_binary(), "--addr", "127.0.0.1", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port)
        code, said = federation.doctor(address=f"127.0.0.1:{port}")
    finally:
        plain.kill()
        plain.wait()
    assert code == TransportError.exit_code
    assert "problem certificate no TLS there" in said
    assert "another program listens there" in said


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("nothing listens")


def test_key_was_revoked(federation: Federation) -> None:
    federation.server.start()
    federation.identities.revoke("gaya")
    federation.server.write_settings()
    federation.server.stop()
    federation.server = Server(federation.server.folder, federation.address)
    federation.server.start()
    code, said = federation.doctor()
    assert code == TransportError.exit_code
    assert "problem key refused: it was revoked, or a newer invitation was made" in said
    assert "ask the coordinator's people for a new invitation" in said


def test_server_is_without_jetstream(
    federation: Federation, tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    path = federation.server.folder / "server.conf"
    text = re.sub(r"(?s)^jetstream \{.*?^\}\n", "", path.read_text(), flags=re.MULTILINE)
    path.write_text(text.replace("    jetstream: enabled\n", ""))
    federation.server.start()
    code, said = federation.doctor()
    assert code == TransportError.exit_code
    assert "problem server it runs without JetStream" in said
    assert "server.conf" in said
    (tmp_path / "plan").mkdir()
    with pytest.raises(TransportError, match="without JetStream"):
        federation.coordinator(tiny_plan(tmp_path / "plan"))


def test_line_is_lost_in_the_middle(
    federation: Federation, tiny_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that falls silent counts as a lost line."""
    monkeypatch.setattr(nats_doctor, "ANSWER_SECONDS", 0.5)
    (federation.folder / "data").mkdir()
    federation.server.start()
    transport = federation.coordinator(tiny_plan(federation.folder / "data"))
    silent = threading.Event()

    def piece(site: str, wanted: dict[str, object]) -> bytes:
        if "probe" in wanted:
            silent.set()
            raise OSError  # as good as no answer
        return NatsTransport._piece(transport, site, wanted)

    monkeypatch.setattr(transport, "_piece", piece)
    with closing(transport):
        code, said = federation.doctor()
    assert silent.is_set()
    assert code == TransportError.exit_code
    assert "problem line the line was lost" in said


def test_without_an_invitation_only_the_machine_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "bho.txt").write_text("एक\n", encoding="utf-8")
    code, said = examine("--data", tmp_path, "--state", tmp_path / "state")
    assert code == 0, said
    assert "ok machine" in said
    assert "ok disk" in said
    assert f"ok text {tmp_path}: 1 file" in said
    assert "next: boli doctor INVITATION" in said


def test_file_is_no_invitation(tmp_path: Path) -> None:
    path = tmp_path / "gaya.boli"
    path.write_text("site = 3\n", encoding="utf-8")
    with pytest.raises(TransportError, match="is not an invitation"):
        Invitation.read(path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the test mounts a file system")
def test_disk_is_full(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        code, said = examine("--data", tmp_path, "--state", state)
    finally:
        subprocess.run(["umount", str(state)], check=True)
    assert code == TransportError.exit_code
    assert "problem disk" in said
    assert "free" in said
