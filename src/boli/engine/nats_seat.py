"""One site as the coordinator has it over NATS, and which connections the server says it has."""

from __future__ import annotations

import contextlib
import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from nats.aio.client import Client

from boli.engine.nats_sender import Sender
from boli.engine.nats_streams import connections_of, note_comings, note_strangers
from boli.engine.parts import Assembler
from boli.rounds.transport import Refused

# Of what is wrong, so many are acknowledged at once and then one a second: the server remembers
# the name of whatever it had, and a site could make it remember very many.
WRONG_BORNE, LONGEST_PARDON_SECONDS = 1000.0, 300.0
# In the server's words and in ours.
GOODBYES = {"Client Closed": "it hung up", "Stale Connection": "its line is silent"}


@dataclass
class Seat:
    """One site: what it is sent, and what came of what it sends."""

    site: str
    snapshot_bytes: int
    sender: Sender
    assembler: Assembler
    joined: bool = False
    behind: bool = False  # it is silent while versions pass; its next order brings a snapshot
    starts: bool = True  # the next message is the first of its stream
    unheard_bytes: int = 0  # of versions since it last said something
    bytes_down: int = 0
    joined_at: float = 0.0
    measured_at: float = 0.0
    wrong_borne: float = WRONG_BORNE
    wrong_at: float = 0.0
    restarts: int = -1  # joins so far, less the first
    handles: dict[int, list[str]] = field(default_factory=dict)  # by sequence, to acknowledge
    connections: set[int] = field(default_factory=set)
    watched: bool = False  # `connections` are all there are

    def pardon_seconds(self, now: float) -> float:
        """Count a message that was wrong; return how long it should not be acknowledged yet."""
        borne = min(WRONG_BORNE, self.wrong_borne + now - self.wrong_at) - 1
        self.wrong_borne, self.wrong_at = max(-LONGEST_PARDON_SECONDS, borne), now
        return max(0.0, -self.wrong_borne)


@dataclass
class Doorkeeper:
    """Hears from the server who comes and goes, those without a key too."""

    gone: Callable[[Seat, str], None]  # its last connection ended, and why
    # Kind, how many, and the address of one.
    _strangers: queue.SimpleQueue[tuple[str, int, str]] = field(default_factory=queue.SimpleQueue)

    async def watch(self, client: Client, seats: Iterable[Seat]) -> None:
        """Note from now on which connections each site has; it may have had some before."""
        left: set[int] = set()  # numbers are never given twice

        def went(seat: Seat, number: int, reason: str) -> None:
            left.add(number)
            seat.connections.discard(number)
            if seat.watched and not seat.connections:
                self.gone(seat, GOODBYES.get(reason, reason))

        for seat in seats:
            seat.watched = False
            seat.connections.clear()
            await note_comings(client, seat.site, seat.connections.add, partial(went, seat))
            seat.connections |= await connections_of(client, seat.site) - left
            seat.watched = True
            if not seat.connections:  # it went while nobody watched
                self.gone(seat, "")
        await note_strangers(client, lambda address: self.note("no handshake", 1, address))

    def note(self, kind: str, count: int, address: str) -> None:
        """Count strangers who were turned away, until `turned_away` is asked."""
        self._strangers.put((kind, count, address))

    def turned_away(self) -> Iterator[Refused]:
        """Yield, as one of each kind, those who were turned away since the last time."""
        counts, addresses = Counter[str](), dict[str, str]()
        with contextlib.suppress(queue.Empty):
            while True:
                kind, count, addresses[kind] = self._strangers.get_nowait()
                counts[kind] += count
        for kind, count in counts.items():
            yield Refused(kind, "", count, addresses[kind])
