"""A scripted engine in one process and on simulated time: part of the test API.

Real nodes run on it, their code unchanged: each in a thread of its own, but only
one of them at a time and only when the script's clock says so. What goes wrong
is a `Script`, and everything in it follows from its seed. A message may be late,
lost (then it comes later), doubled or overtaken, a node or the coordinator may
die at any moment, and a site may lie. What the protocol promises is kept all the
same: orders and updates arrive at least once, versions in order or as a
snapshot, and an order not before the versions that were published before it.

Simulated after the idea of FoundationDB's deterministic simulation, Zhou et al.
2021. https://doi.org/10.1145/3448016.3457559
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from boli.durable import Arrays, Generations
from boli.engine.lies import Lie
from boli.errors import BoliError, TransportError
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.loop import Rounds
from boli.rounds.transport import (
    Arrival,
    Delivery,
    Failed,
    Instruction,
    Joined,
    Left,
    Malformed,
    Measurement,
    NodeLink,
    Stop,
    Version,
    VersionLog,
    held_digest,
)
from boli.rounds.update import Order, Release, ServerState, Spans, Update, UpdateHeader, Verdict
from boli.site.node import Node

COORDINATOR = "coordinator"

Kill = tuple[str, int] | tuple[str, str, int]


class NodeMaker(Protocol):
    """Makes the node of a site anew, as a started process does."""

    def __call__(self, site: str, link: NodeLink, store: Generations, restarts: int) -> Node: ...


@dataclass(frozen=True)
class Script:
    """What goes wrong in a run; the same script goes wrong in the same way every time.

    `kill` names a victim (a site, or "coordinator") and its n-th moment, counted
    over all its lives: `("gaya", 7)`, or `("gaya", "saved", 2)` for the second time
    that it has just saved. A node's moments are joining, received, step, "before
    save", saved and sent; the coordinator's are start, receive, publish, answer,
    "send order", "before save" and saved (the last two by `ScriptedCheckpoints`).
    """

    seed: int = 0
    delay: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)  # s; down, up
    jitter: float = 0.0  # up to so many seconds more, for each message
    lose: float = 0.0  # share of messages that are lost; each comes `retry_seconds` later
    retry_seconds: float = 1.0
    duplicate: float = 0.0  # share that comes a second time, up to `retry_seconds` later
    reorder: bool = False  # messages may overtake, but versions overtake nothing
    overtake: bool = False  # an order may even come before the version that it is for
    step_seconds: Mapping[str, float] = field(default_factory=dict)  # 0.1 where not named
    coordinator_seconds: float = 0.0  # of each of its turns
    kill: Sequence[Kill] = ()
    kill_share: float = 0.0  # of all moments of nodes, at random
    coordinator_kill_share: float = 0.0
    most_kills: int = 5  # at random, of each victim
    restart_seconds: float = 0.5
    outages: Sequence[tuple[str, float, float]] = ()  # site, from, until: its line is down
    lies: Mapping[str, Lie] = field(default_factory=dict)  # by site; alters what it sends
    durable: bool = True  # lines and nodes outlive the other end, as with a broker; else a socket
    patience_seconds: float = 60.0  # without any event, until the run counts as stuck
    longest_seconds: float = 100_000.0

    @classmethod
    def drawn(cls, seed: int, sites: Sequence[str], *, coordinator: bool = True) -> Script:
        """Draw a script in which anything may go wrong, short of lies."""
        draw = random.Random(f"script {seed}")
        often = draw.choice([0.0, 0.1, 0.3])
        start = draw.uniform(0, 5)
        return cls(
            seed=seed,
            delay={site: (draw.uniform(0, 0.5), draw.uniform(0, 0.5)) for site in sites},
            jitter=draw.choice([0.0, 0.3]),
            lose=draw.choice([0.0, often]),
            duplicate=draw.choice([0.0, often]),
            reorder=draw.random() < 0.5,
            step_seconds={site: draw.choice([0.02, 0.1, 0.4]) for site in sites},
            coordinator_seconds=draw.choice([0.0, 0.0, 0.3]),
            kill_share=draw.choice([0.0, 0.02, 0.1]),
            coordinator_kill_share=draw.choice([0.0, 0.02, 0.1]) if coordinator else 0.0,
            outages=[(draw.choice(sites), start, start + draw.uniform(1, 10))],
            durable=draw.random() < 0.5,
        )


class CoordinatorKilled(BaseException):
    """The script ended the coordinator here; no `except Exception` may survive that."""


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
class _Seat:
    """One site: its node's present life, its line, and what waits on it."""

    site: str
    down: random.Random
    up: random.Random
    life: _Life | None = None
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


class _Life:
    """One process of a node, and its NodeLink: a thread that runs only while it is let."""

    def __init__(self, engine: FakeTransport, seat: _Seat) -> None:
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

    def join(self, joined: Joined) -> None:
        self.moment("joining")
        self.engine.take_join(self, joined)

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


class FakeTransport:
    """The coordinator's side, the lines and the nodes; `now` is simulated, nothing sleeps.

    A node that fails with an error of ours has Failed and does not come back; one
    that fails otherwise is a mistake, which `receive` raises. It raises
    TransportError where nothing can happen any more.
    """

    def __init__(
        self,
        make_node: NodeMaker,
        script: Script | None = None,
        stores: Mapping[str, Generations] | None = None,
    ) -> None:
        self.make_node, self.script = make_node, script or Script()
        self.stores: dict[str, Generations] = dict(stores or {})  # what outlives a node
        self.now = 0.0
        self.log: list[str] = []  # what happened when, to read when a script fails
        self.deaths: Counter[str] = Counter()
        self.measured: dict[str, Measurement] = {}
        self._seats: dict[str, _Seat] = {}
        self._events: list[tuple[float, str, int, Callable[[], None]]] = []
        self._count = 0
        self._mailbox: list[Arrival] = []
        self._versions: VersionLog | None = None
        self._moments: Counter[tuple[str, str | int]] = Counter()
        self._draws: dict[str, random.Random] = {}
        self._last_event = 0.0

    # The coordinator's side

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        """Bring up the nodes; those that live on are handed to the new coordinator."""
        self.moment("start")
        self._versions = VersionLog(views, release)
        for site in views:
            seat = self._seats.get(site)
            if seat is None:
                draws = [random.Random(f"{self.script.seed}/{site}/{way}") for way in "du"]
                seat = self._seats[site] = _Seat(site, draws[0], draws[1])
                self.stores.setdefault(site, MemoryStore())
            self._mailbox += seat.unanswered
            if seat.life is None:
                self._at(self.now, site, partial(self._bring_up, seat))
            elif seat.joined:
                self._mailbox.append(self._joined_by(seat.life))
                self._catch_up(seat, None)  # what is on its way may be of a lost future

    def publish(self, release: Release) -> None:
        self.moment("publish")
        assert self._versions is not None
        self._versions.publish(release)
        for seat in self._seats.values():
            if seat.joined:
                self._send_version(seat, self._versions.step_for(seat.site))

    def send_order(self, order: Order) -> None:
        self.moment("send order")
        self._send(self._seats[order.site], order, len(order.model_dump_json()))

    def answer(self, verdict: Verdict) -> None:
        self.moment("answer")
        seat = self._seats[verdict.site]
        seat.unanswered = [
            delivery
            for delivery in seat.unanswered
            if delivery.update.header.sequence != verdict.sequence
        ]
        self._send(seat, verdict, 0)

    def bytes_down(self, site: str) -> int:
        return self._seats[site].bytes_down

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        self._run_until(self.now + self.script.coordinator_seconds)
        self.moment("receive")
        deadline = self.now + timeout_seconds
        while not self._mailbox and self._events and self._events[0][0] <= deadline:
            self._next_event()
        self._run_until(self.now if self._mailbox else deadline)
        self._check_progress()
        arrivals = [*self._mailbox, *self.measured.values()]
        self._mailbox, self.measured = [], {}
        return arrivals

    def close(self) -> None:
        self._events, self._mailbox = [], []
        for seat in self._seats.values():
            life, seat.life, seat.joined = seat.life, None, False
            if life is None:
                continue
            life.inbox.append(Stop())
            while not life.ended and life.waits_for:
                life.resume()
        self._seats = {}

    # What a test does and sees

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes that are alive, by site: what each holds can be looked at."""
        lives = {site: seat.life for site, seat in self._seats.items()}
        return {site: life.node for site, life in lives.items() if life and life.node}

    def kill(self, site: str) -> None:
        """End a node now, wherever it is; the script's restart follows."""
        life = self._seats[site].life
        if life is not None and not life.ended:
            self._note(f"{site} is killed")
            life.killed = True
            self._run(life)

    def bury_coordinator(self) -> None:
        """Take in that the coordinator is gone: sockets close, or a broker keeps all there is."""
        self._mailbox = []
        if self.script.durable:
            return
        self._events = []
        for seat in self._seats.values():
            life, seat.life, seat.joined = seat.life, None, False
            seat.held_back, seat.unanswered, seat.lives = [], [], 0
            if life is not None and not life.ended:
                life.killed = True
                life.resume()

    # Moments, events and lines

    def falls(self, victim: str, moment: str) -> bool:
        """Count a moment; tell whether the victim dies of it."""
        script, counts = self.script, self._moments
        counts[victim, 0] += 1
        counts[victim, moment] += 1
        named = (victim, moment, counts[victim, moment])
        planned = (victim, counts[victim, 0]) in script.kill or named in script.kill
        share = script.coordinator_kill_share if victim == COORDINATOR else script.kill_share
        if victim not in self._draws:
            self._draws[victim] = random.Random(f"{script.seed}/{victim}/kill")
        draw = self._draws[victim]
        by_chance = draw.random() < share and self.deaths[victim] < script.most_kills
        if planned or by_chance:
            self.deaths[victim] += 1
            self._note(f"{victim} dies: {moment} {counts[victim, moment]}")
        return planned or by_chance

    def moment(self, name: str) -> None:
        """Raise CoordinatorKilled here, if the script says so."""
        if self.falls(COORDINATOR, name):
            raise CoordinatorKilled(name)

    def _note(self, line: str) -> None:
        self.log.append(f"{self.now:9.3f} {line}")

    def _at(self, when: float, site: str, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, site, self._count, action))

    def _next_event(self) -> None:
        when, _, _, action = heapq.heappop(self._events)
        self.now = self._last_event = max(self.now, when)
        action()

    def _run_until(self, when: float) -> None:
        while self._events and self._events[0][0] <= when:
            self._next_event()
        self.now = max(self.now, when)

    def _check_progress(self) -> None:
        idle = self.now - self._last_event
        stuck = not self._mailbox and not self._events and idle > self.script.patience_seconds
        if stuck or self.now > self.script.longest_seconds:
            waits = {
                site: seat.life.waits_for if seat.life else "dead"
                for site, seat in self._seats.items()
            }
            raise TransportError(
                f"nothing has come for {idle:.0f} of {self.now:.0f} simulated seconds: {waits}",
                "the transport's log says what happened before",
            )

    def _arrival(self, site: str, draw: random.Random, way: int) -> float:
        """Return when a message that is sent now will be there."""
        script = self.script
        delay = script.delay.get(site, 0.01)
        when = self.now + (delay if isinstance(delay, float | int) else delay[way])
        when += draw.random() * script.jitter
        while draw.random() < script.lose:
            when += script.retry_seconds
        for where, begin, end in script.outages:
            if where == site and begin <= when < end:
                when = end + when - self.now
        return when

    def _send(self, seat: _Seat, instruction: Order | Verdict | Version, size: int) -> None:
        seat.bytes_down += size
        life = seat.life
        if life is None or not seat.joined:
            if self.script.durable and not isinstance(instruction, Version):
                seat.held_back.append(instruction)
            return
        draw, script = seat.down, self.script
        when = self._arrival(seat.site, draw, 0)
        is_version, is_order = isinstance(instruction, Version), isinstance(instruction, Order)
        if not script.reorder and not (is_order and script.overtake):
            when = seat.last_down = max(when, seat.last_down)
        if is_version:
            when = seat.versions_there = max(when, seat.versions_there)
        elif is_order and not script.overtake:
            when = max(when, seat.versions_there)
        self._at(when, seat.site, lambda: self._arrive(life, instruction))
        if draw.random() < script.duplicate:
            # A version's second copy comes at once: later, it would be out of turn.
            again = when if is_version else when + draw.random() * script.retry_seconds
            seat.bytes_down += size
            self._at(again, seat.site, lambda: self._arrive(life, instruction))

    def _arrive(self, life: _Life, instruction: Order | Verdict | Version) -> None:
        if life.ended:
            if self.script.durable and not isinstance(instruction, Version):
                self._send(life.seat, instruction, 0)
            return
        self._note(f"{life.seat.site} <- {_brief(instruction)}")
        life.inbox.append(instruction)
        if life.waits_for == "instruction":
            self._run(life)

    # A node's side

    def _bring_up(self, seat: _Seat) -> None:
        if seat.life is None:
            seat.life = _Life(self, seat)
            seat.lives += 1
            self._run(seat.life)

    def _run(self, life: _Life) -> None:
        """Let a node run on; take note if it does not live through it."""
        if life.ended:
            return
        life.resume()
        seat = life.seat
        failure = life.failure
        if isinstance(failure, BoliError):
            seat.life, seat.joined = None, False
            failed = Failed(seat.site, failure.problem, failure.hint)
            self._presence(seat, lambda: self._mailbox.append(failed))
            return
        if failure is not None:
            raise failure
        if life.ended and seat.life is life:
            seat.life, seat.joined = None, False
            if self.script.durable:
                left = (i for i in life.inbox if isinstance(i, Order | Verdict))
                seat.held_back += left
            self._presence(seat, lambda: self._mailbox.append(Left(seat.site, "killed")))
            when = self.now + self.script.restart_seconds
            self._at(when, seat.site, lambda: self._bring_up(seat))

    def wake(self, life: _Life, seconds: float, what: str) -> None:
        """Let a node run on after a time, if that is what it waits for."""

        def run() -> None:
            if life.waits_for == what:
                self._run(life)

        self._at(self.now + seconds, life.seat.site, run)

    def _presence(self, seat: _Seat, action: Callable[[], None]) -> None:
        """Let the coordinator's side know of a coming or going, in order."""
        when = max(self._arrival(seat.site, seat.up, 1), seat.last_presence)
        if not self.script.reorder:
            when = seat.last_up = max(when, seat.last_up)
        seat.last_presence = when
        self._at(when, seat.site, action)

    def take_join(self, life: _Life, joined: Joined) -> None:
        """Pass on that a node is there; it gets what it missed when that is known."""

        def arrive() -> None:
            self._note(f"{life.seat.site} -> joined with version {joined.held_version}")
            self._mailbox.append(joined)
            if life.seat.life is life:
                self._seat_node(life.seat, joined)

        self._presence(life.seat, arrive)

    def _joined_by(self, life: _Life) -> Joined:
        node = life.node
        assert node is not None
        layout, lines = node.work.layout.describe(), node.work.num_lines
        digest = held_digest(node.theta)
        return Joined(life.seat.site, layout, lines, node.version, digest, life.number)

    def _seat_node(self, seat: _Seat, joined: Joined) -> None:
        seat.joined = True
        self._catch_up(seat, joined)
        waiting, seat.held_back = seat.held_back, []
        for instruction in waiting:
            self._send(seat, instruction, 0)

    def _catch_up(self, seat: _Seat, joined: Joined | None) -> None:
        """Send what a node missed; a snapshot where nobody knows what it holds."""
        assert self._versions is not None
        for version in self._versions.catch_up(joined or Joined(seat.site, [], {}, -1)):
            self._send_version(seat, version)

    def _send_version(self, seat: _Seat, version: Version) -> None:
        self._send(seat, version, len(version.frame))

    def take_update(self, seat: _Seat, update: Update) -> None:
        """Carry an update to the coordinator, as often as the script says."""
        lie = self.script.lies.get(seat.site)
        sent = update if lie is None else lie(update, seat.up)
        when = self._arrival(seat.site, seat.up, 1)
        if not self.script.reorder:
            when = seat.last_up = max(when, seat.last_up)
        arrival = _over_the_wire(seat.site, sent)
        self._at(when, seat.site, lambda: self._deliver(seat, arrival))
        if seat.up.random() < self.script.duplicate:
            again = when + seat.up.random() * self.script.retry_seconds
            self._at(again, seat.site, lambda: self._deliver(seat, arrival))

    def _deliver(self, seat: _Seat, arrival: Delivery | Malformed) -> None:
        self._note(f"{seat.site} -> {_brief(arrival)}")
        self._mailbox.append(arrival)
        if isinstance(arrival, Delivery):
            seat.unanswered.append(arrival)


def _brief(message: Instruction | Arrival) -> str:
    match message:
        case Order():
            steps, base = message.local_steps, message.base_version
            return f"order {message.sequence}.{message.attempt}: {steps} steps from {base}"
        case Version():
            return f"{'snapshot' if message.snapshot else 'delta'} {message.version}"
        case Verdict():
            outcome = "accepted" if message.accepted else "refused"
            return f"{message.sequence} {outcome} {message.reason}{' keep' * message.keep}"
        case Delivery():
            header = message.update.header
            return (
                f"update {header.sequence}: {header.local_steps} steps from {header.base_version}"
            )
    return type(message).__name__.lower()


def _over_the_wire(site: str, sent: Update | bytes) -> Delivery | Malformed:
    """Return what comes out at the other end, checked as every engine checks it."""
    if isinstance(sent, bytes):
        return Malformed(site, f"not a message: {sent[:8].hex()}")
    try:
        header = UpdateHeader.model_validate_json(sent.header.model_dump_json())
    except ValidationError as error:
        return Malformed(site, str(error).splitlines()[0])
    return Delivery(site, Update(header, sent.payload))


class ScriptedCheckpoints(CheckpointStore):
    """Checkpoints of a coordinator that may die just before or just after it saves."""

    def __init__(self, engine: FakeTransport, inner: CheckpointStore) -> None:
        self._engine, self._inner = engine, inner

    def save(self, state: ServerState) -> None:
        self._engine.moment("before save")
        self._inner.save(state)
        self._engine.moment("saved")

    def load(self) -> tuple[ServerState, list[Path]] | None:
        return self._inner.load()


def run_through_kills(
    engine: FakeTransport,
    rounds: Callable[[], Rounds],
    state: ServerState,
    checkpoints: CheckpointStore,
    resumed: Callable[[ServerState, list[Path]], None] = lambda *_: None,
) -> ServerState:
    """Run to the end; where the script kills the coordinator, go on from its checkpoint.

    `resumed` gets the state that is gone on with and the corrupt files passed over.
    """
    died = False
    while True:
        try:
            if died:
                found = checkpoints.load()
                state, corrupt = found or (state, [])
                if found is not None:
                    state = state.welcome_back()
                    checkpoints.save(state)
                resumed(state, corrupt)
            return rounds().run(state)
        except CoordinatorKilled:
            engine.bury_coordinator()
            died = True
