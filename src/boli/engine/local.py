"""Sites as long-lived processes on this machine: the default engine.

No server and no port: each node has one socket pair to the coordinator, with
frames of JSON header and payload. A node that dies is started again and finds
its own durable state; a node whose coordinator dies ends at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from boli.durable import open_private
from boli.engine.wire import (
    FIGURES,
    Failing,
    Joining,
    Line,
    pack_message,
    read_joining,
    unpack_message,
    unsound,
)
from boli.errors import OWN_LOG, TransportError
from boli.rounds.transport import (
    DENSE,
    Arrival,
    Delivery,
    Failed,
    Joined,
    Left,
    Malformed,
    Measurement,
    PayloadBytes,
    Version,
    VersionLog,
)
from boli.rounds.update import (
    Order,
    Release,
    Spans,
    Update,
    UpdateHeader,
    Verdict,
)

RESTARTS_BORNE = 5  # of one site without an update in between
UNREAD_BORNE = 8  # messages to a node that it has not read yet
HEADERS_BYTES = 4 << 20  # more than any header needs; a payload comes on top
STOP_SECONDS = 10.0
HANG_UP_SECONDS = 1.0


class NodeCommand(Protocol):
    """Says how to start the node of a site."""

    def __call__(self, site: str, descriptor: int, restarts: int) -> Sequence[str]: ...


@dataclass
class _Seat:
    """One site's process and its line."""

    site: str
    largest_bytes: int  # of a message that it may send
    process: subprocess.Popen[bytes] | None = None
    line: Line | None = None
    threads: tuple[threading.Thread, ...] = ()  # of the line, one each way
    outgoing: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    behind: bool = False  # it reads too slowly for every version; its next order brings one
    joined: bool = False
    restarts: int = 0  # in all
    failed: bool = False  # it said that it cannot go on
    failures: int = 0  # since the last update
    start_at: float | None = None  # monotonic, when it is to be started again
    bytes_down: int = 0


class LocalTransport:
    """The coordinator's side: starts nodes, watches them, passes messages."""

    def __init__(
        self,
        command: NodeCommand,
        folder: Path,
        threads: int = 1,
        versions: Path | None = None,
        payload_bytes: PayloadBytes = DENSE,
    ) -> None:
        self._command = command
        self._folder = folder  # one log file a site
        self._threads = threads
        self._payload_bytes = payload_bytes
        self._seats: dict[str, _Seat] = {}
        self._incoming: queue.SimpleQueue[tuple[_Seat, Line, bytes | None]] = queue.SimpleQueue()
        self._versions_folder = versions  # outlives this process
        self._versions: VersionLog | None = None

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        self._versions = VersionLog(views, release, self._versions_folder)
        for site, (_, spans) in views.items():
            entries = sum(stop - start for start, stop in spans)
            self._seats[site] = _Seat(site, HEADERS_BYTES + self._payload_bytes(entries))
            self._spawn(self._seats[site])

    def _spawn(self, seat: _Seat) -> None:
        mine, theirs = socket.socketpair()
        log = self._log(seat)
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "MKL_NUM_THREADS": str(self._threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other sites
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with theirs, os.fdopen(open_private(log), "ab") as output:
            seat.process = subprocess.Popen(
                self._command(seat.site, theirs.fileno(), seat.restarts),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the coordinator, who stops the nodes
            )
        seat.line = Connection(mine.detach())
        seat.joined, seat.behind, seat.start_at = False, False, None
        seat.outgoing = queue.SimpleQueue()
        # One thread each way, so that a node that stands still delays nobody else.
        send = partial(_send_all, seat.line, seat.outgoing)
        receive = partial(_receive_all, seat, seat.line, self._incoming)
        seat.threads = tuple(
            threading.Thread(target=target, name=seat.site, daemon=True)
            for target in (send, receive)
        )
        for thread in seat.threads:
            thread.start()

    def publish(self, release: Release) -> None:
        assert self._versions is not None
        self._versions.publish(release)
        for seat in self._seats.values():
            seat.behind = seat.behind or seat.outgoing.qsize() >= UNREAD_BORNE
            if seat.joined and not seat.behind:
                self._send_version(seat, self._versions.step_for(seat.site))

    def _send_version(self, seat: _Seat, version: Version) -> None:
        kind = "snapshot" if version.snapshot else "delta"
        self._send(seat, kind, {"version": version.version}, version.frame)

    def _send(self, seat: _Seat, kind: str, body: Mapping[str, Any], payload: bytes = b"") -> None:
        data = pack_message(kind, body, payload)
        seat.bytes_down += len(data)
        seat.outgoing.put(data)

    def send_order(self, order: Order) -> None:
        seat = self._seats[order.site]
        if not seat.joined:
            return  # the loop sends it again when the node joins
        if seat.behind:
            assert self._versions is not None
            self._send_version(seat, self._versions.snapshot_for(seat.site))
            seat.behind = False
        self._send(seat, "order", order.facts())

    def answer(self, verdict: Verdict) -> None:
        seat = self._seats[verdict.site]
        if seat.joined:
            self._send(seat, "verdict", verdict.facts())

    def bytes_down(self, site: str) -> int:
        return self._seats[site].bytes_down

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        self._start_again()
        arrivals: list[Arrival] = []
        wait = timeout_seconds
        with contextlib.suppress(queue.Empty):
            while True:
                seat, line, data = (
                    self._incoming.get(timeout=wait) if wait else (self._incoming.get_nowait())
                )
                wait = 0.0
                if line is seat.line:  # not of a process before
                    arrivals.append(self._lost(seat) if data is None else self._read(seat, data))
        return arrivals

    def _read(self, seat: _Seat, data: bytes) -> Arrival:
        try:
            kind, body, payload = unpack_message(data)
            match kind:
                case "update":
                    seat.failures = 0
                    return Delivery(seat.site, Update(UpdateHeader.model_validate(body), payload))
                case "measure":
                    return Measurement(seat.site, FIGURES.validate_python(body))
                case "join":
                    return self._joined(seat, read_joining(body))
                case "failed":
                    failed = Failing.model_validate(body).failed(seat.site)
                    seat.failed = True
                    hint = failed.hint.replace(OWN_LOG, self._log_says_more(seat))
                    return replace(failed, hint=hint)
                case _:
                    return Malformed(seat.site, "a message of an unknown kind")
        except (TransportError, ValidationError) as error:
            return unsound(seat.site, error)

    def _log(self, seat: _Seat) -> Path:
        return self._folder / f"{seat.site}.log"

    def _log_says_more(self, seat: _Seat) -> str:
        return f"its log says more: {self._log(seat)}"

    def _joined(self, seat: _Seat, found: Joining) -> Joined:
        assert self._versions is not None
        joined = found.joined(seat.site, seat.restarts)
        seat.joined = True
        for version in self._versions.catch_up(joined):
            self._send_version(seat, version)
        return joined

    def _lost(self, seat: _Seat) -> Left | Failed:
        """Note that a node is gone, and when it is to be started again, if at all."""
        assert seat.process is not None
        assert seat.line is not None
        seat.process.kill()
        code = seat.process.wait()
        _hang_up(seat)
        seat.joined = False
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        if seat.failed:
            return Left(seat.site, reason)
        seat.failures += 1
        if seat.failures > RESTARTS_BORNE:
            problem = f"ended {seat.failures} times without an update ({reason})"
            return Failed(seat.site, problem, self._log_says_more(seat))
        seat.restarts += 1
        seat.start_at = time.monotonic() + 0.2 * (2 ** (seat.failures - 1) - 1)
        return Left(seat.site, reason)

    def _start_again(self) -> None:
        for seat in self._seats.values():
            if seat.start_at is not None and time.monotonic() >= seat.start_at:
                self._spawn(seat)

    def close(self) -> None:
        for seat in self._seats.values():
            seat.outgoing.put(pack_message("stop", {}))
        deadline = time.monotonic() + STOP_SECONDS
        for seat in self._seats.values():
            if seat.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    seat.process.wait(max(0.0, deadline - time.monotonic()))
                seat.process.kill()
                seat.process.wait()
            _hang_up(seat)
        self._seats = {}


def _hang_up(seat: _Seat) -> None:
    """Close the line of a process that is gone, once nobody reads or writes there."""
    seat.outgoing.put(None)
    for thread in seat.threads:
        thread.join(HANG_UP_SECONDS)
    if seat.line is not None and not any(thread.is_alive() for thread in seat.threads):
        seat.line.close()
    seat.line, seat.threads = None, ()


def _send_all(line: Line, outgoing: queue.SimpleQueue[bytes | None]) -> None:
    while (data := outgoing.get()) is not None:
        try:
            line.send_bytes(data)
        except OSError:
            return


def _receive_all(
    seat: _Seat, line: Line, incoming: queue.SimpleQueue[tuple[_Seat, Line, bytes | None]]
) -> None:
    while True:
        try:
            data = line.recv_bytes(seat.largest_bytes)
        except (EOFError, OSError):
            incoming.put((seat, line, None))
            return
        incoming.put((seat, line, data))


def node_command(run_folder: Path, asks: str = "") -> NodeCommand:
    """Return the command that starts a site's node on a run's folder.

    With "pieces" it answers with its pieces of words, and trains nothing.
    """

    def command(site: str, descriptor: int, restarts: int) -> Sequence[str]:
        arguments = [str(run_folder), site, str(descriptor), str(restarts), asks]
        return [sys.executable, "-m", "boli.engine.local_node", *arguments]

    return command
