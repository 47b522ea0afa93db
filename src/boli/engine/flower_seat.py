"""What the coordinator in a Flower federation knows of one site, and what may come from there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from boli.engine.flower_wire import Greeting
from boli.engine.local import HEADERS_BYTES
from boli.rounds.update import Spans

LINES_AHEAD = 1 << 42  # of now, 139 years: no clock of a coordinator went further back


@dataclass(frozen=True)
class Pace:
    """How long things may take; the ServerApp takes it from its run config."""

    hold_seconds: float = 60.0  # a message waits so long at a site for something to come back
    watch_seconds: float = 300.0  # a site with nothing to do is asked so often if it is there
    grace_seconds: float = 300.0  # for a message and its reply on the way

    @property
    def ttl_seconds(self) -> float:
        """How long Flower keeps a message."""
        return self.hold_seconds + self.grace_seconds


@dataclass
class Seat:
    """One site: the Flower node that speaks for it, and what waits to be told."""

    site: str
    spans: Spans
    payload_bytes: int  # of its largest update
    node: int | None = None
    last_node: int | None = None  # that there was
    line: int = 0  # higher after every break
    life: str = ""  # of the node's process
    joined: bool = False
    held: tuple[int, int] = (-1, 0)  # version and digest, once all that was sent has arrived
    waiting: list[bytes] = field(default_factory=list)
    awaited: int | None = None  # sequence of the order that is not answered yet
    in_flight: bool = False
    seated_at: float = 0.0  # monotonic, when the node sat down
    spoke_at: float = 0.0  # monotonic, of the last reply
    restarts: int = 0
    failures: int = 0  # ends of its process, since the last update
    failed: bool = False  # it could not do its work, and has not joined since
    problem: str = ""  # why
    bytes_down: int = 0

    def sit(self, node: int) -> None:
        """Let a node speak for the site, on a line above those of all coordinators before."""
        self.node = self.last_node = node
        self.line = max(self.line + 1, line_now())
        self.seated_at = time.monotonic()

    def has_sat(self, seconds: float) -> bool:
        """Tell whether the node is there for so long."""
        return time.monotonic() - self.seated_at >= seconds

    @property
    def largest_bytes(self) -> int:
        """What it may send at once: an update, and what it said before."""
        return 2 * (HEADERS_BYTES + self.payload_bytes)


@dataclass(frozen=True)
class Seen:
    """The nodes that are connected now."""

    nodes: set[int]


@dataclass(frozen=True)
class Greeted:
    """A node said which site it is."""

    node: int
    greeting: Greeting | None  # None: it did not answer


@dataclass(frozen=True)
class Answered:
    """An exchange ended, with an answer or without."""

    seat: Seat
    line: int
    data: bytes
    lost: str = ""


def line_now() -> int:
    """Return the line of a node that sits down now, in milliseconds."""
    return time.time_ns() // 1_000_000
