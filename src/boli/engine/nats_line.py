"""A connection to a NATS server that is made again for ever: the only importer of nats.

Lines of the field lose a third of their packets, stand still for half an hour, or
take five seconds each way. TCP alone then waits: after a cut of ten minutes its next
try may come ten minutes later. So whenever the kernel has heard nothing for a while
of what it sent, new connections are tried beside the old one, and the first that
gets through replaces it. What was sent and not acknowledged is sent again there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from boli.engine.identities import SERVER_NAME, Access, Address, inbox_of
from boli.errors import TransportError

ENTER_SECONDS = 60  # each step of the handshake; ten round trips of a line with 3 s each way
PING_SECONDS = 60
DIAL_SECONDS = 1.5  # between attempts, the first few
DIALS_AT_ONCE = 12
REFUSED_SECONDS = 30.0  # after a key was refused: it may be a server that starts
WATCH_SECONDS = 0.5
SILENT_SECONDS = 2.5  # without a word on what was sent, at least, until another line is tried
QUIET_ERRORS = (OSError, nats.errors.Error, asyncio.TimeoutError, asyncio.IncompleteReadError)


class KeyRefusedError(Exception):
    """The server does not know the key, or not any more."""


class _OpenTransport(TcpTransport):  # type: ignore[misc]
    """A transport on a socket that is connected already."""

    def __init__(self, opened: socket.socket) -> None:
        super().__init__()
        self.opened = opened

    def __bool__(self) -> bool:
        return True

    async def connect(self, uri: object, buffer_size: int, connect_timeout: int) -> None:  # noqa: ARG002
        streams = await asyncio.open_connection(sock=self.opened, limit=buffer_size)
        self._io_reader, self._io_writer = self._bare_io_reader, self._bare_io_writer = streams


@dataclass
class Line:
    """A thread with the connection; `connected` is called on every new one."""

    access: Access
    connected: Callable[[Client], Awaitable[None]]
    lost: Callable[[], None] = lambda: None
    on_error: Callable[[Exception], None] = lambda _: None

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client: Client | None = None  # while connected
        self.trouble = "not connected yet"  # why there is no connection; empty where there is
        self.num_connections = 0
        self.key_refused = False  # when last tried
        self.changed = asyncio.Event()  # the connection came or went
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="nats", daemon=True)

    # From other threads

    def open(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the line's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def soon(self, work: Callable[[], object]) -> None:
        """Call a function in the line's thread."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self.loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """End the connection, and the thread; harmless when repeated."""
        if self._thread.is_alive():
            self.soon(self._stopping.set)
            self._thread.join(10.0)

    # In the line's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._stay())
        finally:
            rest = asyncio.all_tasks(self.loop)
            for task in rest:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _stay(self) -> None:
        stay = asyncio.ensure_future(self._connect_for_ever())
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({stay, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stay.done():
            stay.result()  # a mistake of ours
        stay.cancel()
        client, self.client = self.client, None
        if client is not None:
            with contextlib.suppress(*QUIET_ERRORS):
                await asyncio.wait_for(client.drain(), 3.0)
            await _abandon(client)

    async def _connect_for_ever(self) -> None:
        opened: socket.socket | None = None
        while True:
            try:
                opened = opened or await dial(self.access.address, self._note)
                client, closed = await self._enter(opened)
            except KeyRefusedError:
                self.key_refused = True
                self._note(f"{self.access.address} refuses the key: it was revoked, or is unknown")
                await asyncio.sleep(REFUSED_SECONDS * random.uniform(0.7, 1.3))
                continue
            except QUIET_ERRORS as error:
                self._note(f"{self.access.address}: {error or type(error).__name__}")
                await asyncio.sleep(random.uniform(0.3, 1.5))
                continue
            finally:
                mine, opened = opened, None
            assert mine is not None
            self.client, self.trouble, self.key_refused = client, "", False
            self.num_connections += 1
            self._wake()
            try:
                await self.connected(client)
                opened = await self._watch(mine, closed)
            except QUIET_ERRORS as error:
                self._note(str(error) or type(error).__name__)
            self.client = None
            self.trouble = self.trouble or "the line was lost"
            self._wake()
            self.lost()
            await _abandon(client)

    def _note(self, trouble: str) -> None:
        self.trouble = trouble

    def _wake(self) -> None:
        """Let all know who wait for a connection, or for its end."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def ready(self) -> Client:
        """Return the connection, as soon as there is one."""
        while self.client is None:
            await self.changed.wait()
        return self.client

    async def _enter(self, opened: socket.socket) -> tuple[Client, asyncio.Event]:
        """Shake hands over a new connection."""
        client, closed, refused = Client(), asyncio.Event(), []
        client._transport = _OpenTransport(opened)

        async def on_close() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            if "authorization violation" in str(error).lower():
                refused.append(error)
            self.on_error(error)

        inbox = inbox_of(self.access.name or "coordinator")
        try:
            await client.connect(
                servers=[f"tls://{self.access.address}"],
                name=self.access.name or "coordinator",
                tls=trust(self.access.authority),
                tls_hostname=SERVER_NAME,
                tls_handshake_first=True,
                nkeys_seed_str=self.access.seed,
                inbox_prefix=inbox,
                allow_reconnect=False,
                connect_timeout=ENTER_SECONDS,
                ping_interval=PING_SECONDS,
                max_outstanding_pings=3,
                pending_size=1 << 30,  # what is under way is bounded by its senders
                closed_cb=on_close,
                error_cb=on_error,
            )
        except BaseException as error:
            opened.close()
            if refused or "authorization violation" in str(error).lower():
                raise KeyRefusedError from error
            raise
        return client, closed

    async def _watch(self, opened: socket.socket, closed: asyncio.Event) -> socket.socket | None:
        """Wait for the end of a connection; return a new one that got through instead."""
        dialing: asyncio.Task[socket.socket] | None = None
        try:
            while not closed.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(closed.wait(), WATCH_SECONDS)
                stands = _stands_still(opened)
                if stands and dialing is None:
                    dialing = asyncio.ensure_future(dial(self.access.address, self._note))
                elif dialing is not None and not stands:
                    dialing.cancel()
                    dialing = None
                if dialing is not None and dialing.done():
                    taken, dialing = dialing, None
                    return taken.result()
            return None
        finally:
            if dialing is not None:
                dialing.cancel()


async def _abandon(client: Client) -> None:
    """Let go of a connection at once: what its buffers hold will not get through."""
    transport = client._transport
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    with contextlib.suppress(*QUIET_ERRORS):
        await asyncio.wait_for(client.close(), 2.0)


def trust(authority: str) -> ssl.SSLContext:
    """Return what to check the server's certificate with: our own authority, nobody else."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


async def dial(address: Address, note: Callable[[str], None] = lambda _: None) -> socket.socket:
    """Return a TCP connection: try every few seconds, let the earlier attempts live on.

    A single attempt would follow the kernel's schedule, and wait the longer after a
    cut the longer the cut was.
    """
    loop = asyncio.get_running_loop()
    attempts: list[asyncio.Task[socket.socket]] = []
    pause = DIAL_SECONDS
    try:
        while True:
            attempts.append(asyncio.ensure_future(_attempt(loop, address)))
            until = loop.time() + pause * random.uniform(0.8, 1.2)
            while attempts and (left := until - loop.time()) > 0:
                done, _ = await asyncio.wait(
                    attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in done:
                    attempts.remove(attempt)
                    try:
                        return attempt.result()
                    except OSError as error:
                        note(f"{address}: {error.strerror or error}")
            await asyncio.sleep(max(0.0, until - loop.time()))
            pause = min(3.5, pause * 1.1)
            for old in attempts[: -DIALS_AT_ONCE + 1]:
                old.cancel()
                attempts.remove(old)
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_late)


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Close what came through when another one had already."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _attempt(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, where = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_CONGESTION"):  # it does not take every loss for congestion
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
        await loop.sock_connect(opened, where)
    except BaseException:
        opened.close()
        raise
    return opened


# struct tcp_info of Linux: 8 bytes, then 32-bit counters; times of it in ms, rtt in µs.
_TCP_INFO = struct.Struct("8B24I")
_UNACKED, _LAST_ACK_RECEIVED, _RTT, _RTT_VARIANCE = 4, 12, 15, 16


def _stands_still(opened: socket.socket) -> bool:
    """Tell whether something was sent and nothing heard for far longer than a round trip."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        data = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        found = _TCP_INFO.unpack(data)[8:]
    except (OSError, struct.error):
        return False
    patience = max(SILENT_SECONDS, (3 * found[_RTT] + 4 * found[_RTT_VARIANCE]) / 1e6)
    return bool(found[_UNACKED] and found[_LAST_ACK_RECEIVED] / 1e3 > patience)


async def request(client: Client, subject: str, data: bytes, seconds: float) -> Msg:
    """Ask and wait for the answer.

    Raises:
        nats.errors.Error: there is none.
    """
    return await client.request(subject, data, timeout=seconds)


def acknowledgement(answer: Msg) -> int:
    """Return a stored message's number in its stream.

    Raises:
        TransportError: the server could not store it.
    """
    try:
        body = json.loads(answer.data)
        if "error" in body:
            raise TransportError(str(body["error"].get("description")))
        return int(body["seq"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransportError(f"no acknowledgement: {answer.data[:100]!r}") from error
