"""Sends messages into a stream in order, in parts, again and again until the server has them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from boli.engine.nats_line import Line
from boli.engine.nats_way import QUIET_ERRORS
from boli.engine.parts import Label, parts_of
from boli.errors import TransportError

ANSWER_SECONDS = 300.0  # then a part is sent again on the same connection
FEWEST_PARTS, MOST_PARTS = 2, 256  # under way at once
QUEUE_SECONDS = 0.25  # that parts may wait for each other on a full line
PAUSE_SECONDS = 0.3, 10.0  # after the server refused, growing


@dataclass(eq=False)
class _Part:
    label: Label
    data: bytes
    sent_at: float = 0.0
    last: bool = False  # of its message


@dataclass
class Sender:
    """One stream's writer; `run` is a task in the line's thread, `put` is for any thread.

    As much is under way as keeps the line full, and little more: what is under way
    when a line is cut has to travel again.
    """

    line: Line
    subject: str
    empty: Callable[[Client], Awaitable[None]] | None = None  # the stream
    refused: Callable[[str], None] = lambda _: None  # the server cannot store it
    _parts: list[_Part] = field(default_factory=list)  # not acknowledged yet
    _emptying: bool = False
    _window: float = FEWEST_PARTS
    _quickest: float = float("inf")  # seconds from a part to its acknowledgement

    def __post_init__(self) -> None:
        self._more = asyncio.Event()

    def put(self, message: bytes, starts: bool = False) -> None:
        """Send a message after all that wait already."""
        self.line.soon(lambda: self._put(message, starts))

    def begin_anew(self) -> None:
        """Drop what waits, and empty the stream before the next message."""
        self.line.soon(lambda: self._renew(emptying=True))

    def replace(self, message: bytes) -> None:
        """Send a message instead of all that wait."""

        def swap() -> None:
            self._renew(emptying=False)
            self._put(message, False)

        self.line.soon(swap)

    @property
    def num_waiting(self) -> int:
        """Parts that the server has not acknowledged."""
        return len(self._parts)

    def _put(self, message: bytes, starts: bool) -> None:
        parts = [_Part(label, data) for label, data in parts_of(message, starts)]
        parts[-1].last = True
        self._parts += parts
        self._more.set()

    def _renew(self, *, emptying: bool) -> None:
        self._parts, self._emptying = [], emptying or self._emptying
        self._more.set()

    async def run(self) -> None:
        """Send for ever."""
        pause = PAUSE_SECONDS[0]
        while True:
            client = await self.line.ready()
            try:
                if self._emptying and self.empty is not None:
                    await self.empty(client)
                self._emptying = False
                await self._pour(client)
                pause = PAUSE_SECONDS[0]
            except (TransportError, NoRespondersError) as error:
                self.refused(str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS[1])
            except QUIET_ERRORS:
                await asyncio.sleep(0.05)

    async def _pour(self, client: Client) -> None:
        """Keep the line full until it is lost, or the stream has to be emptied."""
        flying: dict[asyncio.Task[None], _Part] = {}
        self._window, self._quickest = FEWEST_PARTS, float("inf")
        try:
            while self.line.client is client and not self._emptying:
                self._more.clear()
                under_way = set(flying.values())
                for part in self._parts[: int(self._window)]:
                    if part not in under_way:
                        flying[asyncio.ensure_future(self._send(client, part))] = part
                events = [self._more.wait(), self.line.changed.wait()]
                waits = [asyncio.ensure_future(event) for event in events]
                try:
                    await asyncio.wait([*flying, *waits], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                for task in [task for task in flying if task.done()]:
                    part = flying.pop(task)
                    task.result()
                    if part in self._parts:
                        self._parts.remove(part)
        finally:
            for task in flying:
                task.cancel()

    async def _send(self, client: Client, part: _Part) -> None:
        """Send a part and wait until it is stored; learn how much the line takes."""
        part.sent_at = time.monotonic()
        headers = {"Nats-Msg-Id": str(part.label)}
        answer = await client.request(
            self.subject, part.data, timeout=ANSWER_SECONDS, headers=headers
        )
        acknowledgement(answer)
        taken = time.monotonic() - part.sent_at
        self._quickest = min(self._quickest, taken)
        # On a full line each further part lets all wait longer: more than this is in vain.
        aim = 1.5 * self._quickest + QUEUE_SECONDS
        change = min(1.0, 0.5 * (aim / taken - 1))  # twice the window in a round trip at most
        self._window = max(FEWEST_PARTS, min(MOST_PARTS, self._window + change))


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
