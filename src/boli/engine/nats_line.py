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
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.js.errors import APIError

from boli.engine.identities import Access
from boli.engine.nats_way import (
    QUIET_ERRORS,
    KeyRefusedError,
    Pulse,
    Way,
    abandon,
    enter,
    reason_of,
)
from boli.engine.tcp import moves
from boli.errors import TransportError

DIAL_SECONDS, LONGEST_DIAL_SECONDS = 1.5, 2.5  # between attempts
LOCAL_DIAL_SECONDS = 0.1  # of the coordinator beside its server: before strangers fill it
DIALS_AT_ONCE = 12
SHORT_SECONDS = 2.0  # of a stop after which the old connection may as well go on
REFUSED_SECONDS = 30.0  # after a key was refused: it may be a server that starts
WATCH_SECONDS = 0.5
FLUSH_SECONDS = 3  # for the last words on a line
END_SECONDS = 4.0  # twice what tasks may take to end once they are cancelled


@dataclass
class Line:
    """A thread with the connection; `connected` is called on every new one."""

    access: Access
    connected: Callable[[Client], Awaitable[None]]
    on_trouble: Callable[[str], None] = lambda _: None  # whenever it is another one

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.client: Client | None = None  # while connected
        self.trouble = f"calling {self.access.address}"  # empty while there is a connection
        self.num_connections = 0
        self.keeps_streams = True  # the server, as far as it has said
        self.key_refused = False  # when last tried
        self.changed = asyncio.Event()  # the connection came or went
        self._clients: set[Client] = set()  # also those that are still shaking hands
        self._ending: set[asyncio.Task[None]] = set()  # or they would be forgotten
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
        """Run a coroutine in the line's thread.

        Raises:
            TransportError: the line is closed.
        """
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise TransportError("the line is closed", "start again") from None

    def soon(self, work: Callable[[], object]) -> None:
        """Call a function in the line's thread."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self.loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """End the connection, and the thread; harmless when repeated."""
        if self._thread.is_alive():
            self.soon(self._stopping.set)
            self._thread.join(5 * END_SECONDS)
        elif self._thread.ident is None:  # it was never opened
            self.loop.close()

    # In the line's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._stay())
        finally:
            try:
                self.loop.run_until_complete(self._end_all())
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            finally:
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
                await asyncio.wait_for(client.flush(FLUSH_SECONDS), FLUSH_SECONDS)

    async def _end_all(self) -> None:
        """Cancel until nothing is left, then let go of all connections.

        A task may begin others while it ends. Nor does every task end when cancelled:
        asyncio.wait_for forgets it where what it waits for comes at the same moment.
        """
        for _ in range(5):
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            if not rest:
                break
            for task in rest:
                task.cancel()
            await asyncio.wait(rest, timeout=END_SECONDS / 2)
        for client in tuple(self._clients):
            await abandon(client, self._clients)

    async def _connect_for_ever(self) -> None:
        found: Way | None = None
        while not self._stopping.is_set():
            try:
                way, found = found or await self._find_way(), None
                found = await self._use(way)
            except KeyRefusedError:
                self.key_refused = True
                self._note(f"{self.access.address} refuses the key: it was revoked, or is unknown")
                await asyncio.sleep(REFUSED_SECONDS * random.uniform(0.7, 1.3))

    async def _use(self, way: Way) -> Way | None:
        """Stay with a connection until it ends; return a better one that came through instead.

        Raises:
            KeyRefusedError: the server does not know the key any more.
        """
        self.client, self.trouble, self.key_refused = way.client, "", False
        self.keeps_streams = bool(way.client._server_info.get("jetstream"))
        self.num_connections += 1
        self._wake()
        found: Way | None = None
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
        await abandon(way.client, self._clients)
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

    async def _find_way(self) -> Way:
        """Return the first connection that comes through, of attempts every few seconds.

        A single attempt would follow the kernel's schedule: after a cut it waits the
        longer the longer the cut was, and on a line that loses half of its packets it may
        stand still for a minute in the middle of a handshake.

        Raises:
            KeyRefusedError: the server does not know the key.
        """
        attempts: dict[asyncio.Task[Way], list[socket.socket]] = {}
        here = not self.access.name and self.access.address.is_loopback
        pause = LOCAL_DIAL_SECONDS if here else DIAL_SECONDS
        try:
            while True:
                if not any(map(moves, attempts.values())) and len(attempts) < DIALS_AT_ONCE:
                    opened: list[socket.socket] = []
                    task = asyncio.ensure_future(enter(self.access, opened, self._clients))
                    attempts[task] = opened
                until = self.loop.time() + pause * random.uniform(0.8, 1.2)
                while attempts and (left := until - self.loop.time()) > 0:
                    done, _ = await asyncio.wait(
                        attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for attempt in done:
                        attempts.pop(attempt)
                        try:
                            return attempt.result()
                        except QUIET_ERRORS as error:
                            self._note(f"{self.access.address}: {reason_of(error)}")
                await asyncio.sleep(max(0.0, until - self.loop.time()))
                pause = min(LONGEST_DIAL_SECONDS, pause * (1.5 if here else 1.1))
        finally:
            self._give_up(attempts)

    async def _watch(self, way: Way) -> Way | None:
        """Wait for the end of a connection; return a better one that came through instead."""
        finding: asyncio.Task[Way] | None = None
        since = 0.0
        pulse = Pulse(way)
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
                    self._give_up([finding])
                    finding = None
            return None
        finally:
            pulse.end()
            if finding is not None:
                self._give_up([finding])

    def _give_up(self, attempts: Iterable[asyncio.Task[Way]]) -> None:
        """End attempts, and let go of what they may have found by now; nobody waits for it."""
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(self._let_go)

    def _let_go(self, attempt: asyncio.Task[Way]) -> None:
        if not attempt.cancelled() and attempt.exception() is None:
            task = asyncio.ensure_future(abandon(attempt.result().client, self._clients))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
