"""One connection to a NATS server: the way in, whether it still moves, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

from boli.engine.identities import SERVER_NAME, Access, inbox_of
from boli.engine.tcp import dial, limit_retries, tcp_info

ENTER_SECONDS = 60  # each step of the handshake; ten round trips of a line with 3 s each way
CLOSE_SECONDS = 2.0
FAR_SECONDS = 86400
PING_SECONDS = 60.0  # between words on an idle line
LOSSY_PING_SECONDS = 8.0
RESENT_BORNE = 5  # packets, until a line counts as lossy
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

    async def wait_closed(self) -> None:
        # Once a handshake has begun, the first writer does not hear of its end.
        if self._io_writer is not self._bare_io_writer:
            await super().wait_closed()


@dataclass
class Way:
    """A connection that came through."""

    client: Client
    socket: socket.socket
    closed: asyncio.Event

    @property
    def ended(self) -> bool:
        """Whether nothing comes through it any more, as far as this end knows."""
        reading = self.client._reading_task
        return self.closed.is_set() or (reading is not None and reading.done())


async def enter(access: Access, sockets: list[socket.socket], clients: set[Client]) -> Way:
    """Connect and shake hands.

    The socket is put into `sockets` once there is one; the client is in `clients` until
    somebody lets go of it.

    Raises:
        KeyRefusedError: the server does not know the key.
        OSError: nobody answers, or not as our server would; also nats.errors.Error.
    """
    opened = await asyncio.wait_for(dial(access.address), ENTER_SECONDS)
    sockets.append(opened)
    client, closed, refused = _Client(), asyncio.Event(), []
    client._transport = _OpenTransport(opened)
    clients.add(client)

    async def on_close() -> None:
        closed.set()

    async def note_error(error: Exception) -> None:
        if "authorization violation" in str(error).lower():
            refused.append(error)

    try:
        await client.connect(
            servers=[f"tls://{access.address}"],
            name=access.name or "coordinator",
            tls=trust(access.authority),
            tls_hostname=SERVER_NAME,
            tls_handshake_first=True,
            nkeys_seed_str=access.seed,
            inbox_prefix=inbox_of(access.name or "coordinator"),
            allow_reconnect=False,
            connect_timeout=ENTER_SECONDS,
            ping_interval=FAR_SECONDS,  # whoever has the way asks
            pending_size=1 << 30,  # what is under way is bounded by its senders
            closed_cb=on_close,
            error_cb=note_error,
        )
        if not client.is_connected:  # nats-py takes an end without a word for a greeting
            raise ConnectionResetError("the server ended the connection at the door")
    except BaseException as error:
        await abandon(client, clients)
        if refused or "authorization violation" in str(error).lower():
            raise KeyRefusedError from error
        raise
    return Way(client, opened, closed)


def reason_of(error: BaseException) -> str:
    """Return in a few words why a connection came to nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "not the server that the invitation names"
    if isinstance(error, ssl.SSLError):  # its numbers are none of the system's
        return f"no TLS there ({error.reason})"
    number = getattr(error, "errno", None)  # asyncio has words of its own for refused connections
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


async def abandon(client: Client, clients: set[Client]) -> None:
    """Let go of one of these connections at once: what its buffers hold will not get through.

    Once begun it goes on to its end, also where whoever began it is cancelled.
    """
    transport = client._transport
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:
        # In Python before 3.11.5 a TLS transport that is closed already says so by this error.
        with contextlib.suppress(AttributeError):
            writer.transport.abort()
    elif isinstance(transport, _OpenTransport):
        transport.opened.close()
    await asyncio.shield(asyncio.ensure_future(_close(client, clients)))


async def _close(client: Client, clients: set[Client]) -> None:
    with contextlib.suppress(*QUIET_ERRORS):
        await asyncio.wait_for(client.close(), CLOSE_SECONDS)
    clients.discard(client)


def trust(authority: str) -> ssl.SSLContext:
    """Return what to check the server's certificate with: our own authority, nobody else."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Pulse:
    """Finds out whether a connection stands still, in either direction.

    Upward the kernel knows. Downward nothing may be due, so the server is asked for a
    word now and then: more often on a line that loses packets.
    """

    def __init__(self, way: Way) -> None:
        self.way = way
        self._asked: asyncio.Task[None] | None = None
        self._asked_at = time.monotonic()
        self.loses_much = False

    def stands_still(self) -> bool:
        """Tell whether something is due that does not come."""
        found, now = tcp_info(self.way.socket), time.monotonic()
        if self._asked is not None and self._asked.done():
            self._asked = None
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
