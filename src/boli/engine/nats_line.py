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
import errno
import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.js.errors import APIError

from boli.engine.identities import SERVER_NAME, Access, inbox_of
from boli.engine.tcp import dial, limit_retries, moves, tcp_info
from boli.errors import TransportError

ENTER_SECONDS = 60  # each step of the handshake; ten round trips of a line with 3 s each way
FAR_SECONDS = 86400
PING_SECONDS = 60.0  # between words on an idle line
LOSSY_PING_SECONDS = 8.0
RESENT_BORNE = 5  # packets, until a line counts as lossy
DIAL_SECONDS, LONGEST_DIAL_SECONDS = 1.5, 2.5  # between attempts
DIALS_AT_ONCE = 12
SHORT_SECONDS = 2.0  # of a stop after which the old connection may as well go on
REFUSED_SECONDS = 30.0  # after a key was refused: it may be a server that starts
WATCH_SECONDS = 0.5
QUIET_ERRORS = (OSError, nats.errors.Error, asyncio.TimeoutError, asyncio.IncompleteReadError)


class KeyRefusedError(Exception):
    """The server does not know the key, or not any more."""


class _Client(Client):  # type: ignore[misc]
    """A client whose reading survives what nats-py cannot read: it would stop for good."""

    def _build_message(self, *parts: Any) -> Msg | None:
        try:
            message: Msg | None = super()._build_message(*parts)
        except UnicodeDecodeError:  # where to answer to
            return None
        return message

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except Exception:
            return None
        return found


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
    on_trouble: Callable[[str], None] = lambda _: None  # whenever it is another one

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client: Client | None = None  # while connected
        self.trouble = f"calling {self.access.address}"  # empty while there is a connection
        self.num_connections = 0
        self.keeps_streams = True  # the server, as far as it has said
        self.key_refused = False  # when last tried
        self.changed = asyncio.Event()  # the connection came or went
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="nats", daemon=True)

    # From other threads

    def open(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def check(self) -> None:
        """Make sure that the line is tended.

        Raises:
            TransportError: its thread has ended, by a mistake of ours.
        """
        if not self._thread.is_alive():
            raise TransportError("the line is not tended any more", "start again; report this")

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
        found: _Way | None = None
        while True:
            try:
                way, found = found or await self._find_way(), None
                found = await self._use(way)
            except KeyRefusedError:
                self.key_refused = True
                self._note(f"{self.access.address} refuses the key: it was revoked, or is unknown")
                await asyncio.sleep(REFUSED_SECONDS * random.uniform(0.7, 1.3))

    async def _use(self, way: _Way) -> _Way | None:
        """Stay with a connection until it ends; return a better one that came through instead.

        Raises:
            KeyRefusedError: the server does not know the key any more.
        """
        self.client, self.trouble, self.key_refused = way.client, "", False
        self.keeps_streams = bool(way.client._server_info.get("jetstream"))
        self.num_connections += 1
        self._wake()
        found: _Way | None = None
        ended: KeyRefusedError | None = None
        pause = 0.0
        try:
            await self.connected(way.client)
            found = await self._watch(way)
        except KeyRefusedError as error:
            ended = error
        except QUIET_ERRORS as error:
            self._note(str(error) or type(error).__name__)
            # Where the server says no, it will say so again at once.
            pause = REFUSED_SECONDS / 10 if isinstance(error, APIError) else 0.0
        self.client = None
        if not self.trouble:
            self._note("the line was lost")
        self._wake()
        self.lost()
        await _abandon(way.client)
        if ended is not None:
            raise ended
        await asyncio.sleep(pause)
        return found

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            self.on_trouble(trouble)

    def _wake(self) -> None:
        """Let all know who wait for a connection, or for its end."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def ready(self) -> Client:
        """Return the connection, as soon as there is one."""
        while self.client is None:
            await self.changed.wait()
        return self.client

    async def _find_way(self) -> _Way:
        """Return the first connection that comes through, of attempts every few seconds.

        A single attempt would follow the kernel's schedule: after a cut it waits the
        longer the longer the cut was, and on a line that loses half of its packets it may
        stand still for a minute in the middle of a handshake.

        Raises:
            KeyRefusedError: the server does not know the key.
        """
        attempts: dict[asyncio.Task[_Way], list[socket.socket]] = {}
        found: list[_Way] = []
        pause = DIAL_SECONDS
        try:
            while True:
                if not any(map(moves, attempts.values())) and len(attempts) < DIALS_AT_ONCE:
                    opened: list[socket.socket] = []
                    attempts[asyncio.ensure_future(self._enter(opened))] = opened
                until = self.loop.time() + pause * random.uniform(0.8, 1.2)
                while attempts and (left := until - self.loop.time()) > 0:
                    done, _ = await asyncio.wait(
                        attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for attempt in done:
                        attempts.pop(attempt)
                        try:
                            found.append(attempt.result())
                            return found[0]
                        except QUIET_ERRORS as error:
                            self._note(f"{self.access.address}: {_reason(error)}")
                await asyncio.sleep(max(0.0, until - self.loop.time()))
                pause = min(LONGEST_DIAL_SECONDS, pause * 1.1)
        finally:
            try:
                for attempt in attempts:
                    attempt.cancel()
                rest = await asyncio.gather(*attempts, return_exceptions=True)
                for way in rest:
                    if isinstance(way, _Way):
                        await _abandon(way.client)
            except asyncio.CancelledError:  # nobody wants it any more
                for way in found:
                    await _abandon(way.client)
                raise

    async def _enter(self, sockets: list[socket.socket]) -> _Way:
        """Connect and shake hands; the socket is put into `sockets` once there is one."""
        opened = await asyncio.wait_for(dial(self.access.address), ENTER_SECONDS)
        sockets.append(opened)
        client, closed, refused = _Client(), asyncio.Event(), []
        client._transport = _OpenTransport(opened)

        async def on_close() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            if "authorization violation" in str(error).lower():
                refused.append(error)
            self.on_error(error)

        try:
            await client.connect(
                servers=[f"tls://{self.access.address}"],
                name=self.access.name or "coordinator",
                tls=trust(self.access.authority),
                tls_hostname=SERVER_NAME,
                tls_handshake_first=True,
                nkeys_seed_str=self.access.seed,
                inbox_prefix=inbox_of(self.access.name or "coordinator"),
                allow_reconnect=False,
                connect_timeout=ENTER_SECONDS,
                ping_interval=FAR_SECONDS,  # `_watch` does that
                pending_size=1 << 30,  # what is under way is bounded by its senders
                closed_cb=on_close,
                error_cb=on_error,
            )
            if not client.is_connected:  # nats-py takes an end without a word for a greeting
                raise ConnectionResetError("the server ended the connection at the door")
        except BaseException as error:
            await _abandon(client)
            if refused or "authorization violation" in str(error).lower():
                raise KeyRefusedError from error
            raise
        return _Way(client, opened, closed)

    async def _watch(self, way: _Way) -> _Way | None:
        """Wait for the end of a connection; return a better one that came through instead."""
        finding: asyncio.Task[_Way] | None = None
        since = 0.0
        pulse = _Pulse(way)
        try:
            while not way.ended:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(way.closed.wait(), WATCH_SECONDS)
                if finding is not None and finding.done():
                    found, finding = finding, None
                    return found.result()
                stands = pulse.stands_still()
                if stands and finding is None:
                    finding = asyncio.ensure_future(self._find_way())
                    since = self.loop.time()
                # After a longer stop a new connection is quicker than one that recovers;
                # but on a line that always stops, none is better than the one there is.
                is_short = self.loop.time() - since < SHORT_SECONDS or pulse.loses_much
                if finding is not None and not stands and is_short:
                    given_up, finding = finding, None
                    await _give_up(given_up)
            return None
        finally:
            pulse.end()
            if finding is not None:
                await _give_up(finding)


@dataclass
class _Way:
    """A connection that came through."""

    client: Client
    socket: socket.socket
    closed: asyncio.Event

    @property
    def ended(self) -> bool:
        """Whether nothing comes through it any more, as far as this end knows."""
        reading = self.client._reading_task
        return self.closed.is_set() or (reading is not None and reading.done())


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "not the server that the invitation names"
    if isinstance(error, ssl.SSLError):  # its numbers are none of the system's
        return f"no TLS there ({error.reason})"
    number = getattr(error, "errno", None)  # asyncio has words of its own for refused connections
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


async def _give_up(finding: asyncio.Task[_Way]) -> None:
    """End an attempt, and what it may have found in the meantime."""
    finding.cancel()
    (found,) = await asyncio.gather(finding, return_exceptions=True)
    if isinstance(found, _Way):
        await _abandon(found.client)


async def _abandon(client: Client) -> None:
    """Let go of a connection at once: what its buffers hold will not get through."""
    transport = client._transport
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    elif isinstance(transport, _OpenTransport):
        transport.opened.close()
    with contextlib.suppress(*QUIET_ERRORS):
        await asyncio.wait_for(client.close(), 2.0)


def trust(authority: str) -> ssl.SSLContext:
    """Return what to check the server's certificate with: our own authority, nobody else."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class _Pulse:
    """Finds out whether a connection stands still, in either direction.

    Upward the kernel knows. Downward nothing may be due, so the server is asked for a
    word now and then: more often on a line that loses packets.
    """

    def __init__(self, way: _Way) -> None:
        self.way = way
        self._asked: asyncio.Task[None] | None = None
        self._asked_at = self._heard_at = time.monotonic()
        self.loses_much = False

    def stands_still(self) -> bool:
        found, now = tcp_info(self.way.socket), time.monotonic()
        if self._asked is not None and self._asked.done():
            self._asked, self._heard_at = None, now
        lossy = found is not None and found.resent > RESENT_BORNE
        if self._asked is None and now - self._asked_at > (
            LOSSY_PING_SECONDS if lossy else PING_SECONDS
        ):
            self._asked = asyncio.ensure_future(self._ask())
            self._asked_at = now
        if found is None:
            return self._asked is not None and now - self._asked_at > PING_SECONDS
        limit_retries(self.way.socket, found)
        self.loses_much = found.loses_much
        # The server's kernel has our question, so that only its word is missing.
        waits = self._asked is not None and not found.unacked
        overdue = waits and now - self._asked_at > 2 * found.patience_seconds
        return found.is_silent or overdue

    async def _ask(self) -> None:
        with contextlib.suppress(*QUIET_ERRORS):
            await self.way.client.flush(FAR_SECONDS)

    def end(self) -> None:
        if self._asked is not None:
            self._asked.cancel()


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
