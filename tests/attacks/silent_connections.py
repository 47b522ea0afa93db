"""A stranger opens hundreds or thousands of connections to the server, and says nothing on them.

The server waits for a minute for each handshake, as poor lines need it. Connections that are
ended are opened again at once. Meanwhile a site that was not there yet joins, and both sites make
their rounds. In the full form the strangers come from 50 addresses, and want more places than the
server has.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from attack import HERE, Outcome

sys.path += [str(HERE.parent / "contracts"), str(HERE.parent / "faults")]

from over_nats import free_port
from quadratic import Job
from strangers import Fort

from boli.engine import nats_settings
from boli.engine.identities import Access, Address
from boli.engine.nats_server import Server
from boli.engine.nats_way import QUIET_ERRORS, abandon, enter
from boli.journal import AttemptsRefused, Event, RoundStepped, SiteJoined

PROMISE = "Strangers without a key cannot keep a site out, however many connections they open."
SITES = ("arrah", "gaya")
ROUNDS = 3
FORMER_LIMIT = 512  # of all connections; nobody looked after them
PATIENCE_SECONDS = 60.0


@dataclass
class Silence:
    """Holds so many connections from so many addresses, and opens again what is ended."""

    address: Address
    num: int
    num_addresses: int
    opened: int = 0  # all in all
    held: int = 0
    ended: int = 0  # by the server
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Silence:
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.opened < self.num and time.monotonic() < deadline:
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _hold(self) -> None:
        sources = itertools.cycle(f"127.0.1.{number + 1}" for number in range(self.num_addresses))
        with contextlib.closing(selectors.DefaultSelector()) as open_ones:
            while not self._stopping.is_set():
                # No more than 100 at a time: the kernel's queue of new ones is no place to hide.
                for source in itertools.islice(sources, min(100, self.num - self.held)):
                    with contextlib.suppress(OSError):
                        one = socket.create_connection(
                            (self.address.host, self.address.port), 1.0, (source, 0)
                        )
                        open_ones.register(one, selectors.EVENT_READ)
                        self.opened += 1
                for key, _ in open_ones.select(0.005):
                    open_ones.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    self.ended += 1
                self.held = len(open_ones.get_map())
            for key in tuple(open_ones.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process have as many sockets as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def comes_in(access: Access, seconds: float) -> bool:
    """Try to connect with a site's key, again and again; tell whether it came to anything."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        clients: set = set()
        with contextlib.suppress(*QUIET_ERRORS):
            way = await asyncio.wait_for(enter(access, [], clients), seconds)
            await abandon(way.client, clients)
            return True
        await asyncio.sleep(0.1)
    return False


def former_server(folder: Path) -> str:
    """Do the same to a server with the limit that it had, and nobody to make room."""
    server = Server(folder, Address("127.0.0.1", free_port()))
    server.identities.make()
    invited = server.identities.invite("gaya", server.address)
    with mock.patch.object(nats_settings, "MOST_CONNECTIONS", FORMER_LIMIT):
        server.write_settings()
        server.start()
    try:
        before = asyncio.run(comes_in(invited.access, 10.0))
        with Silence(server.address, FORMER_LIMIT + 8, 1) as silence:
            while silence.ended < 8:  # there is no more room
                time.sleep(0.02)
            during = asyncio.run(comes_in(invited.access, 1.5))
    finally:
        server.stop()
    if not before or during:
        return ""
    return f"a limit of {FORMER_LIMIT} alone lets the site in before, and not during the attack"


def first(events: list[Event], kind: type[Event], after: int) -> bool:
    return any(isinstance(event, kind) for event in events[after:])


def attack(folder: Path, *, fast: bool) -> Outcome:
    num, num_addresses = (520, 1) if fast else (9000, 50)
    job = Job(ranks=dict.fromkeys(SITES), rounds={"total": ROUNDS})
    (folder / "fort").mkdir()
    with many_files():
        control = former_server(folder / "former")
        with Fort(folder / "fort", job, (SITES[0],)) as fort:
            fort.wait_for(lambda events: first(events, SiteJoined, 0))
            before = fort.memory()["server"]
            with Silence(fort.address, num, num_addresses) as silence:
                there, began = len(fort.events()), time.monotonic()
                fort.start_site(SITES[1])
                fort.wait_for(lambda events: first(events, SiteJoined, there), PATIENCE_SECONDS)
                joined = time.monotonic() - began
                fort.wait_for(lambda events: first(events, RoundStepped, there), PATIENCE_SECONDS)
                grown = fort.memory()["server at most"] - before
                opened, held = silence.opened, silence.held
                fort.finish(PATIENCE_SECONDS)
                seconds = time.monotonic() - began
            fort.check_bits()
            events = fort.events()
    steps = sum(isinstance(event, RoundStepped) for event in events)
    told = sum(event.count for event in events if isinstance(event, AttemptsRefused))
    return Outcome(
        refused=steps == ROUNDS,
        observed=f"beside {held} silent connections of {num_addresses} addresses ({opened} opened) "
        f"a new site joined in {joined:.1f} s, and {steps} rounds were made",
        control=control,
        figures={
            "silent": num,
            "addresses": num_addresses,
            "opened": opened,
            "journaled as refused": told,
            "seconds until the site had joined": round(joined, 2),
            "seconds until the run was over": round(seconds, 2),
            "server grew by bytes": grown,
        },
    )
