"""What a site's people can look at before they join: the way to the coordinator, step by step.

Each step stands on the one before: the name, a connection, the certificate, the key,
the coordinator itself; then how fast the line is, and whether the clocks agree.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import nats.errors
from nats.aio.client import Client

from boli.engine.identities import SERVER_NAME, Access
from boli.engine.nats_line import Line
from boli.engine.nats_way import QUIET_ERRORS, trust
from boli.engine.parts import FETCH_BYTES
from boli.errors import BoliError, SiteError, TransportError
from boli.evaluation.units import duration
from boli.site.doctor import Finding, look_at_disk, look_at_folder, look_at_machine, look_at_text
from boli.site.kit import Kit, SiteFolder, read_kit

REACH_SECONDS = 30.0  # a line may take five seconds each way, and lose the first tries
ENTER_SECONDS = 90.0
ANSWER_SECONDS = 120.0
ENOUGH_SECONDS = 2.0  # of a transfer, to tell the rate by
PIECES = (1, 4, 16)  # of FETCH_BYTES each, under way at once: 672 kB each way at most
CLOCK_SECONDS = 60.0  # off by more is worth a word
THIN_MBITS, LONG_SECONDS = 0.1, 2.0
NO_STREAMS = Finding(
    "server",
    "problem",
    "it runs without JetStream: orders and updates cannot be stored there",
    "ask the coordinator's people to start it with server.conf of the coordinator's folder",
)


def examine(access: Access, folder: SiteFolder) -> Iterator[Finding]:
    """Look at everything between a site and its coordinator, as far as one gets."""
    kit: Kit | None = None
    findings = []
    for finding in look_outward(access):
        findings.append(finding)
        yield finding
    if findings[-1].level != "problem":
        try:
            with visit(access) as there:
                yield Finding("key", "ok", f"accepted, as site {access.name}")
                if there.keeps_streams:
                    kit = there.kit()
                    yield _coordinator_found(kit)
                    if kit is not None:
                        yield from there.measure()
                else:
                    yield NO_STREAMS
        except SiteError as error:
            yield Finding("coordinator", "problem", error.problem, error.hint)
        except TransportError as error:
            yield Finding("line" if kit else "key", "problem", error.problem, error.hint)
    yield from _look_here(folder, kit)


def _coordinator_found(kit: Kit | None) -> Finding:
    if kit is None:
        advice = "nothing to do here: boli join waits for a run that has this site"
        return Finding("coordinator", "warning", "it runs no plan with this site now", advice)
    return Finding("coordinator", "ok", f"there, with run {kit.run}")


def _look_here(folder: SiteFolder, kit: Kit | None) -> Iterator[Finding]:
    whole = lacking = 0
    if kit is not None:
        whole = sum(file.size for file in kit.files)
        try:
            lacking = sum(file.size for file in folder.missing(kit))
        except BoliError as error:
            yield Finding("base", "problem", error.problem, error.hint)
    yield look_at_machine(whole)
    yield look_at_disk(folder.state, lacking)
    yield from (look_at_text(folder, kit) if kit else [look_at_folder(folder.data)])


def look_outward(access: Access) -> Iterator[Finding]:
    """Reach for the server; ends with the first step that fails."""
    where = access.address
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except OSError as error:
        advice = "check the name in the invitation, and whether this machine is on a network"
        yield Finding("address", "problem", f"{where.host}: {error.strerror}", advice)
        return
    name = str(found[0][4][0])
    yield Finding("address", "ok", where.host if name == where.host else f"{where.host} is {name}")
    started = time.monotonic()
    try:
        opened = socket.create_connection((where.host, where.port), REACH_SECONDS)
    except OSError as error:
        yield Finding("connection", "problem", f"{where}: {_reason(error)}", _way_out(error))
        return
    with opened:
        taken = time.monotonic() - started
        yield Finding("connection", "ok", f"{where} answers in {duration(taken)}")
        yield _certificate(opened, access)


def _reason(error: OSError) -> str:
    return str(error.strerror or error or type(error).__name__)


def _way_out(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the machine is there, but no server: ask its people to start boli coordinator"
    return "check this machine's line; then whether firewalls, here and there, let the port pass"


def _certificate(opened: socket.socket, access: Access) -> Finding:
    try:
        with trust(access.authority).wrap_socket(opened, server_hostname=SERVER_NAME):
            return Finding("certificate", "ok", "the coordinator's own")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "certificate",
            "problem",
            f"not the one that the invitation names: {error.verify_message}",
            "the coordinator has new keys, or somebody else answers: ask for a new invitation",
        )
    except (ValueError, ssl.SSLError, OSError) as error:
        advice = "another program listens there, or something on the way changes what passes"
        return Finding("certificate", "problem", f"no TLS there: {_reason_of(error)}", advice)


def _reason_of(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error or type(error).__name__)


class Visit:
    """A connection with a site's key, beside that of its node, to ask the coordinator."""

    def __init__(self, line: Line, site: str) -> None:
        self._line, self._subject = line, f"boli.fetch.{site}"

    @property
    def keeps_streams(self) -> bool:
        """Whether the server says that JetStream is on."""
        return self._line.keeps_streams

    def kit(self) -> Kit | None:
        """Return what the coordinator is doing; nothing while it is away.

        Raises:
            SiteError: it says what no site can follow.
            TransportError: the line was lost, or it speaks another protocol.
        """
        answer = self._ask([{"kit": True}])
        return read_kit(answer[0]) if answer else None

    def _ask(self, wanted: list[dict[str, Any]]) -> list[bytes]:
        """Ask all at once; empty while the coordinator is away."""

        async def ask() -> list[bytes]:
            client = await self._line.ready()
            asked = [
                client.request(self._subject, json.dumps(each).encode(), timeout=ANSWER_SECONDS)
                for each in wanted
            ]
            return [bytes(answer.data) for answer in await asyncio.gather(*asked)]

        try:
            return list(self._line.call(ask()).result(2 * ANSWER_SECONDS))
        except nats.errors.NoRespondersError:
            return []
        except QUIET_ERRORS as error:
            problem = f"the line was lost: {error or type(error).__name__}"
            raise TransportError(problem, "try again, nearer to the mast or at night") from None

    def measure(self) -> Iterator[Finding]:
        """Tell round trip, rates and clock.

        Raises:
            TransportError: the line was lost.
        """
        trips, ahead = [], 0.0
        for _ in range(3):
            started, now = time.monotonic(), time.time()
            answer = self._ask([{"probe": 0}])
            trips.append(time.monotonic() - started)
            try:
                ahead = now + trips[-1] / 2 - float(json.loads(answer[0])["time"])
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                raise TransportError(
                    f"the coordinator's answer cannot be read: {type(error).__name__}",
                    "tell the coordinator's people",
                ) from None
        trip = statistics.median(trips)
        down = self._rate(lambda: {"probe": FETCH_BYTES}, trip)
        up = self._rate(lambda: {"probe": 0, "padding": "x" * FETCH_BYTES}, trip)
        yield _line_found(trip, down, up)
        yield _clock_found(ahead)

    def _rate(self, wanted: Callable[[], dict[str, Any]], trip: float) -> float:
        """Return Mbit/s; more is asked for until it takes long enough to tell."""
        rate = 0.0
        for pieces in PIECES:
            started = time.monotonic()
            self._ask([wanted() for _ in range(pieces)])
            taken = time.monotonic() - started
            rate = 8e-6 * pieces * FETCH_BYTES / max(taken - trip, 1e-3)
            if taken > ENOUGH_SECONDS:
                break
        return rate


def _line_found(trip: float, down: float, up: float) -> Finding:
    value = f"round trip {duration(trip)}, {_mbits(down)} down, {_mbits(up)} up"
    if min(down, up) < THIN_MBITS:
        advice = 'a thin line: the plan should say codec.name = "sparse"; boli check tells the time'
        return Finding("line", "warning", value, advice)
    if trip > LONG_SECONDS:
        return Finding("line", "warning", value, "a long way: more rounds.local_steps suit it")
    return Finding("line", "ok", value)


def _mbits(rate: float) -> str:
    return f"{rate:.2g} Mbit/s" if rate < 100 else "over 100 Mbit/s"


def _clock_found(ahead: float) -> Finding:
    if abs(ahead) < CLOCK_SECONDS:
        return Finding("clock", "ok", f"{duration(abs(ahead))} from the coordinator's")
    way = "ahead of" if ahead > 0 else "behind"
    value = f"{duration(abs(ahead))} {way} the coordinator's"
    advice = "nothing fails for it, but times in logs mislead: timedatectl set-ntp true"
    return Finding("clock", "warning", value, advice)


@contextmanager
def visit(access: Access) -> Iterator[Visit]:
    """Come in with the key.

    Raises:
        TransportError: the key is refused, or the line is too bad to shake hands.
    """

    async def nothing(_: Client) -> None:
        pass

    line = Line(access, nothing)
    line.open()
    with closing(line):
        deadline = time.monotonic() + ENTER_SECONDS
        while line.client is None:
            if line.key_refused:
                raise TransportError(
                    "refused: it was revoked, or a newer invitation was made for this site",
                    "ask the coordinator's people for a new invitation",
                )
            if time.monotonic() > deadline:
                raise TransportError(line.trouble, "try again when the line is better")
            time.sleep(0.05)
        yield Visit(line, access.name)
