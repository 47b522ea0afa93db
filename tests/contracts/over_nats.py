"""The contract's engine over a real NATS server, with an agent's process for each site.

As a program it is one site's agent: over_nats.py FOLDER SITE. Whoever starts it also
starts it again, as systemd would.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quadratic import Job, read_job, truly, write_job

from boli.durable import Generations
from boli.engine.identities import Address, Identities, Invitation, write_invitation
from boli.engine.nats import NatsTransport
from boli.engine.nats_log import ServerLog
from boli.engine.nats_node import Agent
from boli.engine.nats_server import Server
from boli.rounds.transport import NodeLink
from boli.site.kit import Accept, Kit, SiteFolder
from boli.site.node import Node


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class QuadraticFolder(SiteFolder):
    """A site whose work is the job's, without a base and without text."""

    job: Job = field(default_factory=Job)

    def admit(self, kit: Kit, accept: Accept) -> None:
        pass

    def open_node(self, kit: Kit, link: NodeLink, restarts: int = 0) -> Node:
        home = self.run_folder(kit)
        home.mkdir(parents=True, exist_ok=True)
        (self.data / f"{self.site}.serving").write_text(str(os.getpid()))
        link = truly(self.job, self.site, link)
        return self.job.node(self.site, link, Generations(home), restarts)


@dataclass
class OverNats:
    """A server, and one process for each site, that is started again when it ends."""

    job: Job
    folder: Path
    transport: NatsTransport | None = None
    server: Server | None = None
    slowness: float = 1.0
    off: set[str] = field(default_factory=set)  # not to be started again now
    _agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _guard: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def identities(self) -> Identities:
        return Identities(self.folder / "coordinator")

    def open(self) -> NatsTransport:
        if self.server is None:
            self._bring_up()
        assert self.server is not None
        self.transport = NatsTransport(
            self.identities.access(self.server.address),
            Kit(run="run", plan={}),
            watcher=self.identities.access(self.server.address, "system"),
            refused=ServerLog(self.folder / "coordinator/server.log", self.identities.owners).read,
        )
        return self.transport

    def _bring_up(self) -> None:
        write_job(self.job, self.folder)
        address = Address("127.0.0.1", free_port())
        self.server = Server(self.folder / "coordinator", address)
        for site in self.job.ranks:
            path = self.folder / f"{site}.boli"
            write_invitation(self.identities.invite(site, address), path)
        self.server.write_settings()
        self.server.start()
        self._guard = threading.Thread(target=self._keep_alive, daemon=True)
        self._guard.start()

    def _keep_alive(self) -> None:
        while not self._over.wait(0.05):
            for site in self.job.ranks:
                agent = self._agents.get(site)
                # In this order: one that was killed after it was set `off` is not started again.
                if (agent is None or agent.poll() is not None) and site not in self.off:
                    with (self.folder / f"{site}.log").open("ab") as log:
                        self._agents[site] = subprocess.Popen(
                            [sys.executable, __file__, str(self.folder), site],
                            stdout=log,
                            stderr=log,
                        )

    def _state(self, site: str) -> Path:
        return self.folder / "sites" / site

    def lose_coordinator(self) -> None:
        assert self.transport is not None
        self.transport.hang_up()

    def kill(self, site: str) -> None:
        if site in self._agents:
            self._agents[site].send_signal(signal.SIGKILL)

    def stored(self, site: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found = Generations(self._state(site) / "runs" / "run").load()
        assert found is not None
        return found[:2]

    def num_alive(self) -> int:
        """Return how many serve a run; what was told to stop gets a moment."""
        is_over = self.transport is not None and self.transport._closing
        until = time.monotonic() + (60.0 if is_over else 0.0)
        while True:
            alive = [site for site in self.job.ranks if (self.folder / f"{site}.serving").exists()]
            if not alive or time.monotonic() > until:
                return len(alive)
            time.sleep(0.02)

    def end(self) -> None:
        """Bring everything down."""
        self._over.set()
        if self._guard is not None:
            self._guard.join()
        for agent in self._agents.values():
            agent.kill()
            agent.wait()
        if self.server is not None:
            self.server.stop()


def main(folder: Path, site: str) -> None:
    """Be one site's agent until killed."""
    state = folder / "sites" / site
    state.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%X')} {line}\n")
        sys.stdout.flush()
        if "is over" in line:
            with contextlib.suppress(OSError):
                (folder / f"{site}.serving").unlink()

    with contextlib.suppress(OSError):
        (folder / f"{site}.serving").unlink()
    place = QuadraticFolder(site, folder, state, job=read_job(folder))
    Agent(Invitation.read(folder / f"{site}.boli").access, place, say).serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
