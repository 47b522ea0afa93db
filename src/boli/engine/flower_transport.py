"""The coordinator's side in a Flower federation: one message at a time to each site.

A node hears a message only when it has answered the one before, and cannot begin
to speak. So an order travels with all that was waiting for its site, and the reply
is the update; where the work takes longer than a message may wait, the reply says
how far it is and the next message waits on. A reply that never comes breaks the
line: the site is asked anew what it holds, its order is sent again, and a node that
had answered it sends the very same bytes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from boli.engine.flower_greeter import Greeter, LineLost, Post, converse
from boli.engine.flower_seat import LINES_AHEAD, Answered, Greeted, Pace, Seat, Seen, line_now
from boli.engine.flower_wire import Asked, UnheardError, pack, read_told
from boli.engine.local import RESTARTS_BORNE
from boli.engine.wire import (
    FIGURES,
    Failing,
    Joining,
    pack_message,
    read_joining,
    unpack_message,
    unsound,
)
from boli.errors import TransportError, public_words
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
    VersionLog,
    held_digest,
)
from boli.rounds.update import Order, Release, Spans, Update, UpdateHeader, Verdict, take
from boli.site.kit import Kit

LOOK_SECONDS = 2.0  # between two looks at which nodes are connected
AGAIN_SECONDS = 5.0  # before a node that was lost, or whose site is taken, is asked again
MEND_SECONDS = 30.0  # before a site that cannot do its work is asked again: it may be mended
STOP_SECONDS = 30.0

log = logging.getLogger("flwr.boli")  # Flower shows what its own logger gets


class FlowerTransport:
    """The coordinator's side: learns which node is which site, and exchanges bundles."""

    def __init__(
        self,
        post: Post,
        kit: Kit,
        base: Path,
        versions: Path | None = None,
        pace: Pace | None = None,
        payload_bytes: PayloadBytes = DENSE,
    ) -> None:
        self._post, self._kit, self._pace = post, kit, pace or Pace()
        self._payload_bytes = payload_bytes
        self._seats: dict[str, Seat] = {}
        self._greeter = Greeter(
            post, kit, base, self._pace.ttl_seconds, lambda site: site in self._seats
        )
        self._nodes: dict[int, float] = {}  # when to ask a node who it is; inf: not again
        self._incoming: queue.SimpleQueue[Seen | Greeted | Answered | Exception] = (
            queue.SimpleQueue()
        )
        self._versions_folder = versions
        self._versions: VersionLog | None = None
        self._closed = threading.Event()

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        self._versions = VersionLog(views, release, self._versions_folder)
        for site, (_, spans) in views.items():
            entries = sum(stop - start for start, stop in spans)
            self._seats[site] = Seat(site, spans, self._payload_bytes(entries))
        self._in_thread(self._look)

    def _in_thread(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # `receive` raises it where the loop can hear it
                self._incoming.put(error)

        threading.Thread(target=guarded, name="flower", daemon=True).start()

    def _look(self) -> None:
        while not self._closed.is_set():
            self._incoming.put(Seen(self._post.node_ids()))
            self._closed.wait(LOOK_SECONDS)

    # What the loop calls

    def publish(self, release: Release) -> None:
        assert self._versions is not None
        self._versions.publish(release)  # a site gets it with its next order

    def send_order(self, order: Order) -> None:
        seat = self._seats[order.site]
        if not seat.joined:
            return  # the loop sends it again when the node joins
        assert self._versions is not None
        held = Joined(seat.site, [], {}, *seat.held)
        for version in self._versions.catch_up(held):
            kind = "snapshot" if version.snapshot else "delta"
            self._put(seat, kind, {"version": version.version}, version.frame)
        release = self._versions.release
        seat.held = release.version, held_digest(take(release.theta, seat.spans))
        self._put(seat, "order", order.facts())
        seat.awaited = order.sequence
        self._tend()

    def answer(self, verdict: Verdict) -> None:
        seat = self._seats[verdict.site]
        if seat.joined:
            self._put(seat, "verdict", verdict.facts())

    def _put(self, seat: Seat, kind: str, body: Mapping[str, Any], payload: bytes = b"") -> None:
        seat.waiting.append(pack_message(kind, body, payload))
        seat.bytes_down += len(seat.waiting[-1])

    def bytes_down(self, site: str) -> int:
        return self._seats[site].bytes_down

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        deadline = time.monotonic() + timeout_seconds
        while not arrivals:
            self._tend()
            try:
                found = self._incoming.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            arrivals += self._take(found)
        return arrivals

    def _take(self, found: Seen | Greeted | Answered | Exception) -> list[Arrival]:
        match found:
            case Seen():
                return self._seen(found.nodes)
            case Greeted():
                return self._greeted(found)
            case Answered():
                return self._answered(found)
        raise found

    # Which node is which site

    def _seen(self, nodes: set[int]) -> list[Arrival]:
        """Note who is connected; a site whose node is not has left."""
        for node in nodes - self._nodes.keys():
            self._nodes[node] = 0.0
        for node in self._nodes.keys() - nodes:
            del self._nodes[node]
        gone = [s for s in self._seats.values() if s.node is not None and s.node not in nodes]
        return [arrival for seat in gone for arrival in self._break(seat, "its SuperNode is gone")]

    def _ask_names(self) -> None:
        """Greet the nodes whose turn it is."""
        now = time.monotonic()
        for node, at in self._nodes.items():
            if now >= at:
                self._nodes[node] = float("inf")
                self._in_thread(partial(self._greet, node))

    def _greet(self, node: int) -> None:
        try:
            greeting = self._greeter.greet(
                node, lambda: node in self._nodes and not self._closed.is_set()
            )
        except LineLost as lost:
            log.info("node %d did not say who it is: %s", node, lost)
            self._incoming.put(Greeted(node, None))
        else:
            self._incoming.put(Greeted(node, greeting))

    def _greeted(self, found: Greeted) -> list[Arrival]:
        """Seat a node at the site that it names, unless another node sits there."""
        node, greeting = found.node, found.greeting
        if node not in self._nodes:
            return []
        if greeting is None:
            self._nodes[node] = time.monotonic() + AGAIN_SECONDS
            return []
        seat = self._seats.get(greeting.site)
        if seat is None:
            log.info("node %d is no site of this run: %s", node, greeting.site or "it names none")
            return []
        if seat.node is not None:
            log.warning("node %d says it is %s, which node %d is", node, seat.site, seat.node)
            self._nodes[node] = time.monotonic() + 2 * AGAIN_SECONDS
            return []
        if greeting.code:
            self._nodes[node] = time.monotonic() + MEND_SECONDS
            return self._fail(seat, *public_words(greeting.code))
        seat.sit(node)
        return []

    # Exchanges

    def _tend(self) -> None:
        """Begin what is due."""
        self._ask_names()
        now = time.monotonic()
        for seat in self._seats.values():
            if seat.node is None or seat.in_flight:
                continue
            if not seat.joined or seat.awaited is not None:
                self._exchange(seat, self._pace.hold_seconds)
            elif now - seat.spoke_at >= self._pace.watch_seconds:
                self._exchange(seat, 0.0)

    def _exchange(self, seat: Seat, hold_seconds: float, start: bool = True) -> None:
        messages, seat.waiting = seat.waiting, []
        asked = Asked(
            run=self._kit.run,
            line=seat.line,
            life=seat.life,
            hold_seconds=hold_seconds,
            start=start,
        )
        data, node, line = pack("asked", asked, messages), seat.node, seat.line
        assert node is not None
        seat.in_flight = True

        def is_wanted() -> bool:
            return seat.line == line

        def work() -> None:
            try:
                answer = converse(self._post, node, data, self._pace.ttl_seconds, is_wanted)
            except LineLost as lost:
                self._incoming.put(Answered(seat, line, b"", str(lost) or "lost"))
            else:
                self._incoming.put(Answered(seat, line, answer))

        self._in_thread(work)

    def _answered(self, found: Answered) -> list[Arrival]:
        seat = found.seat
        if found.line != seat.line:
            return []  # of a line that was given up
        seat.in_flight, seat.spoke_at = False, time.monotonic()
        if found.lost:
            return self._break(seat, found.lost)
        try:
            if len(found.data) > seat.largest_bytes:
                raise UnheardError(f"{len(found.data)} bytes, above {seat.largest_bytes}")
            told, messages = read_told(found.data)
            if told.line > line_now() + LINES_AHEAD:
                raise UnheardError(f"line {told.line}, which no coordinator had")
        except UnheardError as error:
            return [Malformed(seat.site, error.problem[:200]), *self._break(seat, "malformed")]
        if told.lost:
            return self._process_lost(seat, public_words(told.lost)[0])
        if told.line > seat.line:  # the clock went back since the coordinator before
            seat.line = told.line
            return self._break(seat, "it knows a later line")
        arrivals: list[Arrival] = []
        if seat.life and told.life != seat.life:
            arrivals += self._vacate(seat, "its process ended")
            seat.restarts += 1
        seat.life = told.life
        for message in messages:
            arrivals += self._read(seat, message)
            if seat.node is None:
                break  # what it said was its last word
        return arrivals

    def _read(self, seat: Seat, message: bytes) -> list[Arrival]:
        try:
            kind, body, payload = unpack_message(message)
            match kind:
                case "update":
                    header = UpdateHeader.model_validate(body)
                    seat.failures = 0
                    if header.sequence == seat.awaited:
                        seat.awaited = None
                    return [Delivery(seat.site, Update(header, payload))]
                case "measure":
                    return [Measurement(seat.site, FIGURES.validate_python(body))]
                case "join":
                    return [self._join(seat, read_joining(body))]
                case "failed":
                    return self._fail(seat, *public_words(Failing.model_validate(body).code))
            return [Malformed(seat.site, "a message of an unknown kind")]
        except (TransportError, ValidationError) as error:
            return [unsound(seat.site, error)]

    def _join(self, seat: Seat, found: Joining) -> Joined:
        seat.joined, seat.failed = True, False
        seat.held = (found.held_version, found.held_digest)
        seat.waiting, seat.awaited = [], None
        return found.joined(seat.site, seat.restarts)

    def _process_lost(self, seat: Seat, reason: str) -> list[Arrival]:
        """Note that a node's process ended; the next message starts it again, up to a limit."""
        seat.failures += 1
        seat.restarts += 1
        if seat.failures <= RESTARTS_BORNE:
            return self._break(seat, reason)
        return self._fail(seat, f"ended over {RESTARTS_BORNE} times without an update", reason)

    def _fail(self, seat: Seat, problem: str, hint: str) -> list[Arrival]:
        """Let a site rest that cannot do its work; the same reason is not told twice in a row."""
        is_news = not seat.failed or problem != seat.problem
        seat.failed, seat.problem = True, problem
        if seat.node is not None:
            self._break(seat, problem)
        return [Failed(seat.site, problem, hint)] if is_news else []

    def _break(self, seat: Seat, reason: str) -> list[Arrival]:
        """Give up a line: the node is asked again who it is, and then what it holds."""
        if seat.node in self._nodes:
            held = seat.joined and seat.failures <= 1 and seat.has_sat(AGAIN_SECONDS)
            delay = MEND_SECONDS if seat.failed else 0.0 if held else AGAIN_SECONDS
            self._nodes[seat.node] = time.monotonic() + delay
        log.info("the line to site %s is lost: %s", seat.site, reason)
        seat.node, seat.life, seat.in_flight = None, "", False
        seat.line += 1
        return self._vacate(seat, reason)

    def _vacate(self, seat: Seat, reason: str) -> list[Arrival]:
        """Forget what was on its way to a process."""
        was_there, seat.joined = seat.joined, False
        seat.waiting, seat.awaited = [], None
        return [Left(seat.site, reason)] if was_there else []

    def close(self) -> None:
        """Ask every node to stop; one that does not hear it ends by itself when idle for long."""
        if self._closed.is_set():
            return
        told: set[str] = set()
        deadline = time.monotonic() + self._pace.hold_seconds + STOP_SECONDS
        while time.monotonic() < deadline and self._stop_some(told):
            try:
                found = self._incoming.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(found, Exception):
                break  # Flower is gone: nobody can be told anything
            self._take(found)
        self._closed.set()

    def _stop_some(self, told: set[str]) -> bool:
        """Tell sites to stop as soon as they listen; False once nobody is left to wait for."""
        self._ask_names()
        for seat in self._seats.values():
            if seat.node is not None and not seat.in_flight and seat.site not in told:
                told.add(seat.site)
                self._put(seat, "stop", {})
                self._exchange(seat, 0.0, start=False)
        return any(
            seat.in_flight
            or (seat.site not in told and seat.last_node in self._nodes and not seat.failed)
            for seat in self._seats.values()
        )
