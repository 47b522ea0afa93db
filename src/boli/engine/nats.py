"""The coordinator's side over NATS JetStream: sites anywhere, each behind its own line.

Each site has two streams of its own, so that none can fill or read another's: what it
is sent (orders, versions, verdicts) and what it sends (updates). An update is stored
by the server when the site is told so, and leaves the stream only when the checkpoint
that holds it is on the disk. Whenever a site says that it is there, its stream is
emptied and begun anew from what it holds: nothing is sent in vain, and nothing is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from boli.codec.facts import unpack_facts
from boli.engine.identities import HELLO, Access, inbox_of
from boli.engine.nats_admission import AdmissionControl
from boli.engine.nats_line import Line
from boli.engine.nats_seat import Doorkeeper, Seat
from boli.engine.nats_sender import Sender
from boli.engine.nats_streams import create_streams, empty_down
from boli.engine.parts import FETCH_BYTES, Assembler, Label
from boli.engine.wire import FIGURES, Failing, pack_message, read_joining, unpack_message, unsound
from boli.errors import CodecError, TransportError
from boli.rounds.transport import (
    DENSE,
    Arrival,
    Delivery,
    Failed,
    Left,
    Malformed,
    Measurement,
    PayloadBytes,
    Refused,
    Version,
    VersionLog,
)
from boli.rounds.update import Order, Release, Spans, Update, UpdateHeader, Verdict
from boli.site.kit import Kit

HEADERS_BYTES = 1 << 20  # more than any header needs; a payload comes on top
FIGURES_BYTES = 1024, 4096  # of a measurement: as it comes, and as JSON
START_SECONDS = 120.0
WAITING_MESSAGES = 100  # of one site and kind, besides updates
JOIN_SECONDS = 0.5  # between two that a site says it is there
MEASURE_SECONDS = 0.1  # between two measurements of a site that are looked at
LOOK_SECONDS = 1.0  # between two looks at what the server refused


class NatsTransport:
    """The coordinator's side; `access` and `watcher` are its keys, for orders and for the news.

    Raises nothing on lost lines: everything is sent again.
    """

    def __init__(
        self,
        access: Access,
        kit: Kit,
        base: Path | None = None,  # folder of the base that sites fetch
        versions: Path | None = None,  # folder that outlives this process
        watcher: Access | None = None,
        refused: Callable[[], Sequence[Refused]] = tuple,  # by the server, since the last time
        revoked: Callable[[], Collection[str]] = tuple,  # sites without a key by now
        payload_bytes: PayloadBytes = DENSE,
    ) -> None:
        self._kit, self._base, self._versions_folder = kit, base, versions
        self._refused, self._revoked, self._looked_at = refused, revoked, 0.0
        self._payload_bytes = payload_bytes
        self._out: set[str] = set()  # sites whose key was revoked
        self._doorkeeper = Doorkeeper(self._gone)
        self._line = Line(access, self._connected)
        self._watcher = None if watcher is None else Line(watcher, self._watch)
        self._admission: asyncio.Task[None] | None = None
        self._seats: dict[str, Seat] = {}
        self._arrived: queue.SimpleQueue[Callable[[], Arrival | None]] = queue.SimpleQueue()
        self._versions: VersionLog | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._listens = False
        self._closing = False

    # The coordinator's loop

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        self._versions = VersionLog(views, release, self._versions_folder)
        for site, (_, spans) in views.items():
            entries = sum(stop - start for start, stop in spans)
            self._seats[site] = Seat(
                site,
                4 * entries,
                Sender(
                    self._line,
                    f"boli.down.{site}",
                    partial(empty_down, site=site),
                    partial(self._not_stored, site),
                ),
                Assembler(HEADERS_BYTES + self._payload_bytes(entries)),
            )
        self._line.open()
        deadline = time.monotonic() + START_SECONDS
        while not self._listens:
            if not self._line.keeps_streams:
                raise TransportError(
                    "the NATS server runs without JetStream: orders and updates cannot be stored "
                    "there",
                    "start it with server.conf of the coordinator's folder",
                )
            if time.monotonic() > deadline:
                raise TransportError(
                    f"the NATS server does not serve the coordinator: {self._line.trouble}",
                    "is it running? server.log in the coordinator's folder says more",
                )
            time.sleep(0.02)
        if self._watcher is not None:
            self._watcher.open()

    def publish(self, release: Release) -> None:
        assert self._versions is not None
        self._versions.publish(release)
        for seat in self._seats.values():
            if seat.joined and not seat.behind:
                self._send_version(seat, self._versions.step_for(seat.site))
                seat.behind = seat.unheard_bytes > seat.snapshot_bytes + HEADERS_BYTES

    def _send_version(self, seat: Seat, version: Version) -> None:
        kind = "snapshot" if version.snapshot else "delta"
        seat.unheard_bytes += len(version.frame)
        self._send(seat, kind, {"version": version.version}, version.frame)

    def _send(self, seat: Seat, kind: str, body: Mapping[str, Any], payload: bytes = b"") -> None:
        data = pack_message(kind, body, payload)
        seat.bytes_down += len(data)
        seat.sender.put(data, seat.starts)
        seat.starts = False

    def _begin_anew(self, seat: Seat) -> None:
        seat.sender.begin_anew()
        seat.starts, seat.behind, seat.unheard_bytes = True, False, 0

    def send_order(self, order: Order) -> None:
        seat = self._seats[order.site]
        if not seat.joined:
            return  # the loop sends it again when the node joins
        if seat.behind:
            assert self._versions is not None
            self._begin_anew(seat)
            self._send_version(seat, self._versions.snapshot_for(seat.site))
        self._send(seat, "order", order.facts())

    def answer(self, verdict: Verdict) -> None:
        seat = self._seats[verdict.site]
        if seat.joined:
            self._send(seat, "verdict", verdict.facts())
        handles = seat.handles.pop(verdict.sequence, [])
        is_good = verdict.keep or (verdict.accepted and verdict.reason != "duplicate")
        self._acknowledge(handles) if is_good else self._pardon(seat, handles)

    def _not_stored(self, site: str, reason: str) -> None:
        self._arrived.put(lambda: Refused("not stored", site, 1, reason[:200]))

    def _pardon(self, seat: Seat, handles: list[str]) -> None:
        """Acknowledge a message that was wrong; the more of them there are, the later."""
        self._acknowledge(handles, seat.pardon_seconds(time.monotonic()))

    def _acknowledge(self, handles: list[str], pause_seconds: float = 0.0) -> None:
        """Let the server forget messages; it sends them again if it does not hear this."""

        async def acknowledge() -> None:
            await asyncio.sleep(pause_seconds)
            client = self._line.client
            if client is not None:
                for handle in handles:
                    await client.publish(handle, b"+ACK")

        if handles:
            self._line.call(acknowledge())

    def bytes_down(self, site: str) -> int:
        return self._seats[site].bytes_down

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        now = time.monotonic()
        deadline = now + timeout_seconds
        if now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            for line in (self._line, self._watcher):
                if line is not None:
                    line.check()
            arrivals += [*self._refused(), *self._doorkeeper.turned_away(), *self._locked_out()]
        with contextlib.suppress(queue.Empty):
            while True:
                left = 0.0 if arrivals else deadline - time.monotonic()
                take = self._arrived.get(timeout=left) if left > 0 else self._arrived.get_nowait()
                found = take()
                if found is not None:
                    arrivals.append(found)
                if time.monotonic() > deadline:
                    break  # whoever sends very much does not keep the loop from its work
        return arrivals

    def close(self) -> None:
        self._closing = True
        if self._line.client is not None:
            with contextlib.suppress(Exception):
                self._line.call(self._say("stop")).result(5.0)
        self.hang_up()

    def hang_up(self) -> None:
        """End the connection without a word, as when this process is killed."""
        self._line.close()
        if self._watcher is not None:
            self._watcher.close()

    async def _say(self, word: str) -> None:
        """Tell all sites: hello, the coordinator is there; or stop, the run is over."""
        client = await self._line.ready()
        await client.publish(HELLO, json.dumps({word: self._kit.run}).encode())
        await client.flush(5)

    # In the line's thread

    async def _connected(self, client: Client) -> None:
        """Make the streams and listen; then ask all sites to say what they hold."""
        for task in self._tasks:
            task.cancel()
        for seat in self._seats.values():
            largest_bytes = HEADERS_BYTES + seat.snapshot_bytes  # either way
            await create_streams(client, seat.site, self._kit.run, largest_bytes)
        # By its full name each: the server pushes only so, and a site that shouts is alone with it.
        for site in self._seats:
            for what, take in (
                ("arrived", self._on_part),
                ("join", self._on_join),
                ("live", self._on_live),
                ("fetch", self._on_fetch),
            ):
                limit = -1 if what == "arrived" else WAITING_MESSAGES
                await client.subscribe(
                    f"boli.{what}.{site}",
                    cb=take,
                    pending_msgs_limit=limit,
                    pending_bytes_limit=-1,
                )
        self._tasks = [asyncio.ensure_future(seat.sender.run()) for seat in self._seats.values()]
        await self._say("hello")
        self._listens = True

    def _seat_of(self, message: Msg) -> Seat | None:
        return self._seats.get(message.subject.rsplit(".", 1)[1])

    async def _on_part(self, message: Msg) -> None:
        seat = self._seat_of(message)
        if seat is not None:
            self._arrived.put(partial(self._take_part, seat, message))

    async def _on_join(self, message: Msg) -> None:
        """Hear that a site is there, but not too often: each time costs a line of the journal."""
        seat = self._seat_of(message)
        if seat is not None:
            await asyncio.sleep(max(0.0, seat.joined_at + JOIN_SECONDS - time.monotonic()))
            seat.joined_at = time.monotonic()
            self._arrived.put(partial(self._take_join, seat, message.data))
            await self._respond(seat.site, message, b"{}")

    async def _on_live(self, message: Msg) -> None:
        seat, now = self._seat_of(message), time.monotonic()
        if seat is None or len(message.data) > FIGURES_BYTES[0]:
            return
        if now - seat.measured_at > MEASURE_SECONDS:
            seat.measured_at = now
            self._arrived.put(partial(self._take_figures, seat, message.data))

    async def _on_fetch(self, message: Msg) -> None:
        seat = self._seat_of(message)
        if seat is not None and not self._closing:
            with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                piece = self._piece(seat.site, json.loads(message.data))
                await self._respond(seat.site, message, piece)

    def _piece(self, site: str, wanted: Any) -> bytes:
        """Return the kit, a piece of one of the base's files, or so many bytes and the time."""
        if wanted.get("kit"):
            return json.dumps(self._kit.for_site(site).facts()).encode()
        if "probe" in wanted:
            padding = "x" * min(max(0, int(wanted["probe"])), FETCH_BYTES)
            return json.dumps({"time": time.time(), "padding": padding}).encode()
        names = [file.name for file in self._kit.files if file.sha256 == wanted["file"]]
        if self._base is None or not names:
            return b""
        with (self._base / names[0]).open("rb") as file:
            file.seek(int(wanted["offset"]))
            return file.read(FETCH_BYTES)

    async def _respond(self, site: str, message: Msg, data: bytes) -> None:
        """Answer, but only into the site's own inbox: it names the subject, we may write all."""
        client = self._line.client
        if client is not None and message.reply.startswith(f"{inbox_of(site)}."):
            await client.publish(message.reply, data)

    def _locked_out(self) -> Iterator[Failed]:
        """Yield the sites whose key was revoked since the last look."""
        out = self._seats.keys() & self._revoked()
        for site in sorted(out - self._out):
            yield Failed(site, "its key was revoked", f"boli invite {site} lets it in again")
        self._out = out

    async def _watch(self, client: Client) -> None:
        # First, and whatever comes of the rest: it makes room for sites.
        if self._admission is not None:
            self._admission.cancel()
        control = AdmissionControl(partial(self._doorkeeper.note, "too many connections"))
        self._admission = asyncio.ensure_future(control.run(client))
        await self._doorkeeper.watch(client, self._seats.values())

    def _gone(self, seat: Seat, reason: str) -> None:
        self._arrived.put(partial(self._take_leave, seat, reason))

    # Back in the coordinator's thread

    def _take_part(self, seat: Seat, message: Msg) -> Arrival | None:
        try:
            label = Label.of((message.headers or {}).get("Nats-Msg-Id"))
            whole, handles = seat.assembler.add(label, message.data, message.reply)
        except TransportError as error:
            self._pardon(seat, [message.reply])
            return Malformed(seat.site, error.problem[:200])
        if whole is None:
            if handles:  # of a message that nobody will complete
                self._pardon(seat, handles)
            return None
        return self._read(seat, whole, handles)

    def _read(self, seat: Seat, data: bytes, handles: list[str]) -> Arrival | None:
        seat.unheard_bytes = 0
        try:
            kind, body, payload = unpack_message(data)
            if kind == "update":
                header = UpdateHeader.model_validate(body)
                seat.handles.setdefault(header.sequence, []).extend(handles)
                return Delivery(seat.site, Update(header, payload))
            if kind != "failed":
                raise TransportError("a message of an unknown kind")
            failed = Failing.model_validate(body).failed(seat.site)
        except (TransportError, ValidationError) as error:
            self._pardon(seat, handles)
            return unsound(seat.site, error)
        self._pardon(seat, handles)  # it comes seldom
        return failed

    def _take_join(self, seat: Seat, data: bytes) -> Arrival | None:
        assert self._versions is not None
        try:
            found = read_joining(unpack_facts(data))
        except (CodecError, TransportError, ValidationError) as error:
            return unsound(seat.site, error)
        seat.restarts += 1
        seat.joined = True
        self._out.discard(seat.site)  # a revoked key that is still let in is told again
        joined = found.joined(seat.site, seat.restarts)
        self._begin_anew(seat)
        for version in self._versions.catch_up(joined):
            self._send_version(seat, version)
        return joined

    def _take_figures(self, seat: Seat, data: bytes) -> Arrival | None:
        with contextlib.suppress(CodecError, ValidationError):
            return Measurement(
                seat.site, FIGURES.validate_python(unpack_facts(data, FIGURES_BYTES[1]))
            )
        return None

    def _take_leave(self, seat: Seat, reason: str) -> Arrival | None:
        if seat.connections or not seat.joined or not seat.watched:
            return None
        seat.joined = False
        return Left(seat.site, reason or "the line was lost")
