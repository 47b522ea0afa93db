"""A coordinator for sites elsewhere: its folder, its server, and the run that it goes on with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boli.engine.identities import Address, Identities, down_stream, up_stream
from boli.engine.nats_log import ServerLog
from boli.engine.nats_server import STORE_BYTES, Server, reserved_bytes, running
from boli.errors import StorageError
from boli.evaluation.units import size
from boli.pretrained import folder_of
from boli.rounds.pieces import payload_bytes_of
from boli.rounds.transport import Refused, Transport
from boli.site.kit import kit_of, pieces_kit

if TYPE_CHECKING:
    from boli.engine.nats import NatsTransport
    from boli.plan import Plan


def stream_bytes(num_entries: int) -> int:
    """Return what the server reserves for a site that trains so many entries, both ways."""
    from boli.engine.nats import HEADERS_BYTES
    from boli.engine.nats_streams import stream_room

    return 2 * stream_room(HEADERS_BYTES + 4 * num_entries)


@dataclass(frozen=True)
class Coordinator:
    """Brings up the engine for a run: a server of its own, or one that runs elsewhere."""

    folder: Path
    listen: Address
    connect: Address | None = None  # a server that was started with our server.conf
    say: Callable[[str], None] = lambda _: None

    def prepare(self) -> None:
        """Make keys, certificates and settings, so that sites can be invited from now on."""
        server = Server(self.folder, self.listen)
        server.identities.make()
        server.write_settings()

    @contextlib.contextmanager
    def transport(
        self,
        run: str,
        plan: Plan,
        base: str,
        versions: Path | None,
        entries: Mapping[str, int],  # site to the number that it trains
        asks: str = "",  # "pieces": of sites, before there is a base
    ) -> Iterator[Transport]:
        """Yield the coordinator's side, with the server up for as long.

        Raises:
            ModelError: sites would refuse the base.
            StorageError: the streams of the plan's sites do not fit.
            TransportError: the server does not start, or is not reached.
        """
        server = Server(self.folder, self.listen)
        self.prepare()
        self._make_room(server, entries)
        if self.connect is None:
            server.start()
        try:
            address = self.connect or server.address
            transport = self._open(run, plan, base, versions, address, asks)
            with contextlib.closing(transport):
                yield transport
        finally:
            if self.connect is None:
                server.stop()

    def _make_room(self, server: Server, entries: Mapping[str, int]) -> None:
        """See to it that the streams fit: the server reserves all of them when they are made."""
        ours = {name(site) for site in entries for name in (up_stream, down_stream)}
        there = reserved_bytes(self.folder)
        others = sum(number for name, number in there.items() if name not in ours)
        needed = sum(map(stream_bytes, entries.values())) + others
        process = running(self.folder)
        can_size = self.connect is None and process is None
        if can_size:
            server.size_store(max(STORE_BYTES, needed))
        if needed <= server.store_bytes:
            return
        hint = f"make room on the disk of {self.folder.resolve()}, or let the plan train less"
        if not can_size:
            which = f"process {process}" if process else f"at {self.connect}"
            hint = f"stop the server that runs ({which})"
            if self.connect is not None:
                hint += ", raise max_file_store in server.conf (bytes), and start it again"
        if others:
            hint += (
                f"; {size(others)} are of sites that the plan does not have: "
                f"delete {self.folder / 'jetstream'} while no server runs"
            )
        raise StorageError(
            f"what travels to and from {len(entries)} sites needs {size(needed)} of disk, "
            f"and the server may have {size(server.store_bytes)}",
            hint,
        )

    def _refused(self, identities: Identities) -> Callable[[], Sequence[Refused]]:
        """Return what tells what the server refused; one that runs elsewhere keeps its log."""
        if self.connect is not None:
            return tuple
        return ServerLog(self.folder / "server.log", identities.owners).read

    def _open(
        self, run: str, plan: Plan, base: str, versions: Path | None, address: Address, asks: str
    ) -> NatsTransport:
        from boli.engine.nats import NatsTransport

        identities = Identities(self.folder)
        folder = None if asks else folder_of(base)
        kit = pieces_kit(run, plan) if folder is None else kit_of(run, plan, folder, base)
        self.say(f"sites reach this coordinator at {self.listen}")
        for site in plan.site:
            guest = identities.guests().get(site.name)
            if guest is None or not guest.public:
                self.say(f"site {site.name} has no key yet: boli invite {site.name}")
        return NatsTransport(
            identities.access(address),
            kit,
            folder,
            versions,
            identities.access(address, "system"),
            self._refused(identities),
            identities.revoked,
            payload_bytes_of(plan, asks),
        )
