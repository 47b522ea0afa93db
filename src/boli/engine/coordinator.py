"""A coordinator for sites elsewhere: its folder, its server, and the run that it goes on with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boli.engine.identities import Address, Identities
from boli.engine.nats_log import ServerLog
from boli.engine.nats_server import Server
from boli.rounds.transport import Refused, Transport
from boli.site.kit import kit_of

if TYPE_CHECKING:
    from boli.engine.nats import NatsTransport
    from boli.plan import Plan


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
        self, run: str, plan: Plan, base: str, versions: Path | None
    ) -> Iterator[Transport]:
        """Yield the coordinator's side, with the server up for as long.

        Raises:
            TransportError: the server does not start, or is not reached.
        """
        server = Server(self.folder, self.listen)
        self.prepare()
        if self.connect is None:
            server.start()
        try:
            transport = self._open(run, plan, base, versions, self.connect or server.address)
            with contextlib.closing(transport):
                yield transport
        finally:
            if self.connect is None:
                server.stop()

    def _refused(self, identities: Identities) -> Callable[[], Sequence[Refused]]:
        """Return what tells what the server refused; one that runs elsewhere keeps its log."""
        if self.connect is not None:
            return tuple
        return ServerLog(self.folder / "server.log", identities.owners).read

    def _open(
        self, run: str, plan: Plan, base: str, versions: Path | None, address: Address
    ) -> NatsTransport:
        from boli.engine.nats import NatsTransport

        identities = Identities(self.folder)
        kit = kit_of(run, plan, base)
        self.say(f"sites reach this coordinator at {self.listen}")
        for site in plan.site:
            guest = identities.guests().get(site.name)
            if guest is None or not guest.public:
                self.say(f"site {site.name} has no key yet: boli invite {site.name}")
        return NatsTransport(
            identities.access(address),
            kit,
            Path(base) if kit.files else None,
            versions,
            identities.access(address, "system"),
            self._refused(identities),
            identities.revoked,
        )
