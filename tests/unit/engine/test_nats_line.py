"""A line, its server, and connections that come to nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from over_nats import free_port

from boli.engine.identities import Access, Address, Identities, new_seed
from boli.engine.nats_line import Line
from boli.engine.nats_server import Server
from boli.engine.nats_way import KeyRefusedError, Way, enter
from boli.errors import TransportError


class Door:
    """A server that greets, hears who is there, and hangs up."""

    def __init__(self, identities: Identities) -> None:
        self.identities, self.port, self.num_guests = identities, 0, 0
        self._open, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Door:
        self._thread.start()
        assert self._open.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.identities.certificate, self.identities.certificate_key)
        server = await asyncio.start_server(self._greet, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self._open.set()
        await self._over.wait()
        server.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = {"server_id": "x", "version": "2.10.0", "headers": True, "max_payload": 1000}
        said |= {"nonce": "bm9uY2U", "auth_required": True, "tls_required": True}
        writer.write(f"INFO {json.dumps(said)}\r\n".encode())
        await reader.readuntil(b"PING\r\n")
        self.num_guests += 1
        writer.close()


def test_server_that_hangs_up_without_a_word_is_no_connection(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.make()
    connected: list[object] = []

    async def note(client: object) -> None:
        connected.append(client)

    with Door(identities) as door:
        address = Address("127.0.0.1", door.port)
        line = Line(Access("arrah", address, new_seed(), identities.authority), note)
        line.open()
        deadline = time.monotonic() + 20
        while not door.num_guests or "at the door" not in line.trouble:
            assert time.monotonic() < deadline, line.trouble
            time.sleep(0.02)
        assert (line.client, line.num_connections, connected) == (None, 0, [])
        assert not line.key_refused  # it never said so
        line.close()


class Stub:
    """A client that only ends."""

    _transport = _reading_task = None

    def __init__(self) -> None:
        self.num_closed, self._server_info = 0, {"jetstream": True}
        self.closing, self.pause = threading.Event(), 0.0

    async def close(self) -> None:
        self.closing.set()
        await asyncio.sleep(self.pause)
        self.num_closed += 1

    async def flush(self, timeout: int) -> None:
        await asyncio.sleep(0)


def stub_way() -> Any:
    gone = socket.socket()
    gone.close()
    return Way(Stub(), gone, asyncio.Event())  # type: ignore[arg-type]


async def nothing(_: object) -> None:
    pass


def line_to(port: int) -> Line:
    return Line(Access("arrah", Address("127.0.0.1", port), "", ""), nothing)


def test_key_refused_while_a_connection_stands_still_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = line_to(1)
    ways = [stub_way()]

    async def find() -> Any:
        return ways[0]

    async def watch(_: object) -> Any:
        raise KeyRefusedError

    monkeypatch.setattr(line, "_find_way", find)
    monkeypatch.setattr(line, "_watch", watch)
    line.open()
    deadline = time.monotonic() + 10
    while not line.key_refused:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    line.check()
    assert "refuses the key" in line.trouble
    assert (line.client, ways[0].client.num_closed) == (None, 1)
    line.close()


@pytest.mark.parametrize("num_found", [0, 1, 5])
def test_connections_that_nobody_wants_any_more_are_let_go(
    monkeypatch: pytest.MonkeyPatch, num_found: int
) -> None:
    line, ways, calls = line_to(1), [], asyncio.Event()

    async def enter(_: object, sockets: object, clients: set[Any]) -> Way:
        await (calls.wait() if num_found else asyncio.sleep(30.0))
        ways.append(stub_way())
        clients.add(ways[-1].client)
        return ways[-1]

    async def change_ones_mind() -> None:
        finding = asyncio.ensure_future(line._find_way())
        while len(asyncio.all_tasks()) < 2 + max(1, num_found):  # with this one, and `finding`
            await asyncio.sleep(0.01)
        calls.set()
        for _ in range(num_found):  # all come through at once
            await asyncio.sleep(0)
        line._give_up([finding])
        await asyncio.sleep(0.01)
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)

    monkeypatch.setattr("boli.engine.nats_line.enter", enter)
    monkeypatch.setattr("boli.engine.nats_line.DIAL_SECONDS", 0.01)
    line.loop.run_until_complete(change_ones_mind())
    line.close()
    assert len(ways) >= num_found
    assert {way.client.num_closed for way in ways} <= {1}
    assert not line._clients


def test_handshake_that_is_given_up_takes_no_time_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = Identities(tmp_path)
    identities.make()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        access = Access("arrah", Address("127.0.0.1", port), new_seed(), identities.authority)
        line = Line(access, nothing)

        async def give_up() -> None:
            attempt = asyncio.ensure_future(enter(access, [], line._clients))
            while not line._clients:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            attempt.cancel()
            await asyncio.wait([attempt])

        monkeypatch.setattr("boli.engine.nats_way.CLOSE_SECONDS", 3600.0)
        line.loop.run_until_complete(give_up())
        assert not line._clients
        line.close()


def test_line_that_was_never_opened_leaves_nothing_and_takes_no_calls() -> None:
    line = line_to(1)
    line.close()
    with pytest.raises(TransportError, match="closed"):
        line.call(nothing(None))
    del line
    gc.collect()


def test_line_to_a_server_that_stands_still_is_closed(tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    server = Server(tmp_path / "coordinator", address)
    access = server.identities.invite("arrah", address).access
    server.write_settings()
    server.start()
    assert server._process is not None

    async def listen(client: Any) -> None:
        await client.subscribe("boli.hello", cb=nothing)

    try:
        line = Line(access, listen)
        line.open()
        while not line.num_connections:
            time.sleep(0.01)
        server._process.send_signal(signal.SIGSTOP)
        line.close()
        assert not line._thread.is_alive()
        assert line.loop.is_closed()
        del line
        gc.collect()
    finally:
        server._process.send_signal(signal.SIGCONT)
        server.stop()


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("stops_first", [True, False])
def test_line_that_is_closed_as_its_connection_ends_lets_go_of_all(
    monkeypatch: pytest.MonkeyPatch, ticks: int, stops_first: bool
) -> None:
    """In some of these moments asyncio.wait_for forgets that it was cancelled."""
    line = line_to(1)
    ways: list[Way] = []

    async def enter(_: object, sockets: object, clients: set[Any]) -> Way:
        await asyncio.sleep(0)
        ways.append(stub_way())
        clients.add(ways[-1].client)
        return ways[-1]

    async def end_both() -> None:
        def stop() -> None:
            line._stopping.set()

        def end() -> None:
            ways[0].closed.set()

        first, second = (stop, end) if stops_first else (end, stop)
        first()
        for _ in range(ticks):
            await asyncio.sleep(0)
        second()

    monkeypatch.setattr("boli.engine.nats_line.enter", enter)
    line.open()
    while not line.num_connections:
        time.sleep(0.001)
    line.call(end_both())
    line.close()
    assert not line._thread.is_alive()
    assert [way.client.num_closed for way in ways if not way.client.num_closed] == []


def test_better_connection_found_as_the_line_is_closed_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = line_to(1)
    old, better = stub_way(), stub_way()
    old.client.pause = 0.5  # the old one hardly moves
    line._clients |= {old.client, better.client}

    async def find() -> Any:
        return old

    async def watch(_: object) -> Any:
        return better

    monkeypatch.setattr(line, "_find_way", find)
    monkeypatch.setattr(line, "_watch", watch)
    line.open()
    assert old.client.closing.wait(10)
    line.close()
    assert not line._thread.is_alive()
    assert (old.client.num_closed, better.client.num_closed) == (1, 1)


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_line_that_is_closed_while_it_connects_leaves_nothing_open(
    tmp_path: Path, pause: float
) -> None:
    """What is left open is told as a warning, which fails the test."""
    address = Address("127.0.0.1", free_port())
    server = Server(tmp_path / "coordinator", address)
    access = server.identities.invite("arrah", address).access
    server.write_settings()
    server.start()
    try:
        for number in range(10):
            line = Line(access, nothing)
            line.open()
            time.sleep(pause * (1 + number / 10))
            line.close()
            assert not line._thread.is_alive()
            assert line.loop.is_closed()
            del line
            gc.collect()
    finally:
        server.stop()
