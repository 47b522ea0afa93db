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
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from boli.codec.facts import pack_facts
from boli.durable import Generations
from boli.engine.fake_line import arrival_time, brief, over_the_wire
from boli.engine.fake_node import Life, MemoryStore, NodeMaker, Seat
from boli.engine.script import COORDINATOR, Script
from boli.errors import BoliError, TransportError, public_words
from boli.rounds.transport import (
    Arrival,
    Delivery,
    Failed,
    Joined,
    Left,
    Malformed,
    Measurement,
    Stop,
    Version,
    VersionLog,
)
from boli.rounds.update import Order, Release, Spans, Update, Verdict
from boli.site.node import Node


class CoordinatorKilled(BaseException):
    """The script ended the coordinator here; no `except Exception` may survive that."""


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
        self._seats: dict[str, Seat] = {}
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
                seat = self._seats[site] = Seat(site, draws[0], draws[1])
                self.stores.setdefault(site, MemoryStore())
            self._mailbox += seat.unanswered
            if seat.life is None:
                self._at(self.now, site, partial(self._bring_up, seat))
            elif seat.joined:
                self._mailbox.append(seat.life.joined())
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
        self._send(self._seats[order.site], order, len(pack_facts(order.facts())))

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

    def _send(self, seat: Seat, instruction: Order | Verdict | Version, size: int) -> None:
        seat.bytes_down += size
        life = seat.life
        if life is None or not seat.joined:
            if self.script.durable and not isinstance(instruction, Version):
                seat.held_back.append(instruction)
            return
        draw, script = seat.down, self.script
        when = arrival_time(self.script, self.now, seat.site, draw, 0)
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

    def _arrive(self, life: Life, instruction: Order | Verdict | Version) -> None:
        if life.ended:
            if self.script.durable and not isinstance(instruction, Version):
                self._send(life.seat, instruction, 0)
            return
        self._note(f"{life.seat.site} <- {brief(instruction)}")
        life.inbox.append(instruction)
        if life.waits_for == "instruction":
            self._run(life)

    # A node's side

    def _bring_up(self, seat: Seat) -> None:
        if seat.life is None:
            seat.life = Life(self, seat)
            seat.lives += 1
            self._run(seat.life)

    def _run(self, life: Life) -> None:
        """Let a node run on; take note if it does not live through it."""
        if life.ended:
            return
        life.resume()
        seat = life.seat
        failure = life.failure
        if isinstance(failure, BoliError):
            seat.life, seat.joined = None, False
            failed = Failed(seat.site, *public_words(failure.code))
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

    def wake(self, life: Life, seconds: float, what: str) -> None:
        """Let a node run on after a time, if that is what it waits for."""

        def run() -> None:
            if life.waits_for == what:
                self._run(life)

        self._at(self.now + seconds, life.seat.site, run)

    def _presence(self, seat: Seat, action: Callable[[], None]) -> None:
        """Let the coordinator's side know of a coming or going, in order."""
        when = max(arrival_time(self.script, self.now, seat.site, seat.up, 1), seat.last_presence)
        if not self.script.reorder:
            when = seat.last_up = max(when, seat.last_up)
        seat.last_presence = when
        self._at(when, seat.site, action)

    def take_join(self, life: Life, joined: Joined) -> None:
        """Pass on that a node is there; it gets what it missed when that is known."""

        def arrive() -> None:
            self._note(f"{life.seat.site} -> joined with version {joined.held_version}")
            self._mailbox.append(joined)
            if life.seat.life is life:
                self._seat_node(life.seat, joined)

        self._presence(life.seat, arrive)

    def _seat_node(self, seat: Seat, joined: Joined) -> None:
        seat.joined = True
        self._catch_up(seat, joined)
        waiting, seat.held_back = seat.held_back, []
        for instruction in waiting:
            self._send(seat, instruction, 0)

    def _catch_up(self, seat: Seat, joined: Joined | None) -> None:
        """Send what a node missed; a snapshot where nobody knows what it holds."""
        assert self._versions is not None
        for version in self._versions.catch_up(joined or Joined(seat.site, [], {}, -1)):
            self._send_version(seat, version)

    def _send_version(self, seat: Seat, version: Version) -> None:
        self._send(seat, version, len(version.frame))

    def take_update(self, seat: Seat, update: Update) -> None:
        """Carry an update to the coordinator, as often as the script says."""
        lie = self.script.lies.get(seat.site)
        sent = update if lie is None else lie(update, seat.up)
        when = arrival_time(self.script, self.now, seat.site, seat.up, 1)
        if not self.script.reorder:
            when = seat.last_up = max(when, seat.last_up)
        arrival = over_the_wire(seat.site, sent)
        self._at(when, seat.site, lambda: self._deliver(seat, arrival))
        if seat.up.random() < self.script.duplicate:
            again = when + seat.up.random() * self.script.retry_seconds
            self._at(again, seat.site, lambda: self._deliver(seat, arrival))

    def _deliver(self, seat: Seat, arrival: Delivery | Malformed) -> None:
        self._note(f"{seat.site} -> {brief(arrival)}")
        self._mailbox.append(arrival)
        if isinstance(arrival, Delivery):
            seat.unanswered.append(arrival)
