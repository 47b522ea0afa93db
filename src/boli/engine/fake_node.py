"""A site on the scripted engine: its seat, the lives of its node, and what outlives them.

A life is one process of the node. It runs only while the engine lets it, and ends
at the moment that the script names.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boli.durable import Arrays, Generations
from boli.engine.fake_line import heard
from boli.rounds.transport import Delivery, Instruction, Joined, Measurement, NodeLink
from boli.rounds.update import Order, Update, UpdateHeader, Verdict
from boli.site.node import Node

if TYPE_CHECKING:
    from boli.engine.fake import FakeTransport


class NodeMaker(Protocol):
    """Makes the node of a site anew, as a started process does."""

    def __call__(self, site: str, link: NodeLink, store: Generations, restarts: int) -> Node: ...


class _NodeKilled(BaseException):
    """The script ended the node here."""


class MemoryStore(Generations):
    """A node's durable state, in memory: copies, so that a dead node changes nothing in it."""

    def __init__(self) -> None:
        super().__init__(Path("memory"))
        self.saved: list[tuple[dict[str, Any], dict[str, Any]]] = []  # oldest first

    def save(self, arrays: Arrays, facts: Mapping[str, Any]) -> Path:
        copies = {name: array.copy() for name, array in arrays.items()}
        self.saved = [*self.saved[1 - self.keep :], (copies, dict(facts))]
        return self.folder

    def load(self) -> tuple[dict[str, Any], dict[str, Any], list[Path]] | None:
        if not self.saved:
            return None
        arrays, facts = self.saved[-1]
        return {name: array.copy() for name, array in arrays.items()}, dict(facts), []


@dataclass
class Seat:
    """One site: its node's present life, its line, and what waits on it."""

    site: str
    down: random.Random
    up: random.Random
    life: Life | None = None
    lives: int = 0
    joined: bool = False
    held_back: list[Order | Verdict] = field(default_factory=list)  # for the next life
    unanswered: list[Delivery] = field(default_factory=list)
    versions_there: float = 0.0  # when all that was published has arrived
    last_down: float = 0.0  # arrival of the last message each way
    last_up: float = 0.0
    last_presence: float = 0.0
    bytes_down: int = 0


class _ScriptedStore(Generations):
    """A store whose owner may die just before or just after it saves."""

    def __init__(self, inner: Generations, moment: Callable[[str], None]) -> None:
        super().__init__(inner.folder)
        self._inner, self.moment = inner, moment

    def save(self, arrays: Arrays, facts: Mapping[str, Any]) -> Path:
        self.moment("before save")
        path = self._inner.save(arrays, facts)
        self.moment("saved")
        return path

    def load(self) -> tuple[dict[str, Any], dict[str, Any], list[Path]] | None:
        return self._inner.load()


class Life:
    """One process of a node, and its NodeLink: a thread that runs only while it is let."""

    def __init__(self, engine: FakeTransport, seat: Seat) -> None:
        self.engine, self.seat = engine, seat
        self.number = seat.lives
        self.inbox: deque[Instruction] = deque()
        self.waits_for = "start"
        self.killed = self.ended = False
        self.failure: BaseException | None = None
        self.node: Node | None = None
        self._looking = False  # between the first look at the inbox and an empty one
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, name=f"node {seat.site}", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Let the node run until it waits, dies or ends; for the engine's side."""
        self._go.release()
        self._back.acquire()
        if self.ended:
            self._thread.join()

    def _serve(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                store = _ScriptedStore(self.engine.stores[self.seat.site], self.moment)
                self.node = self.engine.make_node(self.seat.site, self, store, self.number)
                self.node.run()
        except _NodeKilled:
            pass
        except BaseException as failure:
            self.failure = failure
        self.ended = True
        self._back.release()

    def _wait(self, what: str) -> None:
        self.waits_for = what
        self._back.release()
        self._go.acquire()
        self.waits_for = ""
        if self.killed:
            raise _NodeKilled

    def moment(self, name: str) -> None:
        """Die here, if the script says so."""
        if self.engine.falls(self.seat.site, name):
            self.killed = True
            raise _NodeKilled

    def joined(self) -> Joined:
        """Return what the node, as it is now, says of itself when it joins."""
        assert self.node is not None
        return heard(self.node.joined())

    def join(self, joined: Joined) -> None:
        self.moment("joining")
        self.engine.take_join(self, heard(joined))

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        if timeout_seconds == 0 and not self._looking:
            self._looking = True  # the first look after a local step: the step took this long
            seconds = self.engine.script.step_seconds.get(self.seat.site, 0.1)
            self.engine.wake(self, seconds, "step")
            self._wait("step")
            self.moment("step")
        elif timeout_seconds != 0:
            until = self.engine.now + (timeout_seconds or float("inf"))
            if timeout_seconds is not None:
                self.engine.wake(self, timeout_seconds, "instruction")
            while not self.inbox and self.engine.now < until:
                self._wait("instruction")
        if not self.inbox:
            self._looking = False
            return None
        instruction = self.inbox.popleft()
        self.moment("received")
        return instruction

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self.engine.take_update(self.seat, Update(header, payload))
        self.moment("sent")

    def measure(self, values: Mapping[str, float]) -> None:
        self.engine.measured[self.seat.site] = Measurement(self.seat.site, dict(values))
