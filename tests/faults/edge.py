"""A synchronous run over thin, broken lines: each site in a network namespace of its own.

As a program it is the coordinator's machine, or says what a run without any fault
would have come to: edge.py coordinate FOLDER PORT, edge.py reference FOLDER.
What counts is that both end with the same bits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import over_nats
from over_nats import free_port
from quadratic import Job, read_job, synchronous_reference, write_job
from thin_line import Line

from boli.engine.identities import Address, Identities, write_invitation
from boli.engine.nats import NatsTransport
from boli.engine.nats_log import ServerLog
from boli.engine.nats_server import Server
from boli.journal import Event, Journal, read_journal
from boli.rounds.checkpoint import CheckpointStore
from boli.site.kit import Kit


def coordinate(folder: Path, port: int) -> None:
    """Run the job to its end from wherever it is; leave the last version in theta.npy."""
    job = read_job(folder)
    server = Server(folder / "coordinator", Address("0.0.0.0", port))
    server.write_settings()
    server.start()
    identities = Identities(folder / "coordinator")
    transport = NatsTransport(
        identities.access(server.address),
        Kit(run="run", plan={}),
        versions=folder / "versions",
        watcher=identities.access(server.address, "system"),
        refused=ServerLog(folder / "coordinator/server.log", identities.owners).read,
    )
    checkpoints, journal = (
        CheckpointStore(folder / "checkpoints"),
        Journal(folder / "journal.jsonl"),
    )
    found = checkpoints.load()
    state = found[0] if found else job.first_state()
    try:
        state = job.loop(transport, checkpoints, journal).run(state)
    finally:
        transport.close()
        server.stop()
        journal.close()
    np.save(folder / "theta.npy", state.theta)


@dataclass
class Edge:
    """The machines and the lines between them; whatever dies is started again."""

    folder: Path
    job: Job
    lines: Mapping[str, Mapping[str, Any]]  # of thin_line.Line, by site
    width: int = 6
    hub: str = field(default_factory=lambda: f"eh{os.getpid() % 100000}")
    links: dict[str, Line] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    off: set[str] = field(default_factory=set)  # not to be started again now
    _guard: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _port: int = 0

    def __enter__(self) -> Edge:
        self._port = free_port()
        write_job(self.job, self.folder)
        identities = Identities(self.folder / "coordinator")
        with contextlib.ExitStack() as stack:
            for number, (site, line) in enumerate(self.lines.items()):
                name = f"e{os.getpid() % 100000}n{number}"
                link = stack.enter_context(Line(name, hub=self.hub, seed=number, **line))
                self.links[site] = link
                address = Address(link.hub_ip, self._port)
                write_invitation(identities.invite(site, address), self.folder / f"{site}.boli")
            stack.callback(self._end)
            self._guard = threading.Thread(target=self._keep_alive, daemon=True)
            self._guard.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._over.set()
        if self._guard is not None:
            self._guard.join()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _keep_alive(self) -> None:
        while not self._over.wait(0.1):
            for name in ("coordinator", *self.lines):
                there = self.processes.get(name)
                if name in self.off or (self.folder / "theta.npy").exists():
                    continue
                if there is None or there.poll() is not None:
                    self._spawn(name)

    def _spawn(self, name: str) -> None:
        link = next(iter(self.links.values())) if name == "coordinator" else self.links[name]
        if name == "coordinator":
            where = self.hub
            command = [__file__, "coordinate", str(self.folder), str(self._port)]
        else:
            where = link.site
            command = [over_nats.__file__, str(self.folder), name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = link.popen(
                where,
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self.environment,
            )

    @property
    def environment(self) -> dict[str, str]:
        contracts = str(Path(over_nats.__file__).parent)
        paths = [contracts, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "QUADRATIC_WIDTH": str(self.width),
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def kill(self, name: str) -> None:
        """End a machine's process; it is started again unless it is `off`."""
        process = self.processes.get(name)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill_server(self) -> None:
        """End the NATS server; the coordinator starts it again, or the next one does."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "coordinator" / "server.pid").read_text())
            os.kill(pid, signal.SIGKILL)

    def events(self) -> list[Event]:
        """Return what the journal holds by now."""
        path = self.folder / "journal.jsonl"
        return [entry.event for entry in read_journal(path)] if path.exists() else []

    def wait(self, seconds: float, meanwhile: Callable[[float], None] = lambda _: None) -> float:
        """Wait for the end of the run; `meanwhile` is called with the seconds so far.

        Raises:
            AssertionError: it takes longer, or its bits are not those of a run without faults.
        """
        started = time.monotonic()
        while not (self.folder / "theta.npy").exists():
            passed = time.monotonic() - started
            assert passed < seconds, f"not done after {seconds:.0f} s:\n{self.story()}"
            meanwhile(passed)
            time.sleep(0.05)
        taken = time.monotonic() - started
        done = self.processes["coordinator"].wait(30)
        assert done == 0, self.story()
        expected = subprocess.run(
            [sys.executable, __file__, "reference", str(self.folder)],
            env=self.environment,
            check=True,
            capture_output=True,
        ).stdout
        assert np.load(self.folder / "theta.npy").tobytes() == expected
        return taken

    def story(self) -> str:
        """Return the last lines of every machine."""
        found = []
        for log in sorted(self.folder.glob("*.log")):
            found += [f"== {log.name}", *log.read_text(errors="replace").splitlines()[-6:]]
        return "\n".join([*found, *(str(event)[:200] for event in self.events()[-6:])])


def main(what: str, folder: Path, *more: str) -> None:
    if what == "coordinate":
        coordinate(folder, int(more[0]))
    else:
        sys.stdout.buffer.write(synchronous_reference(read_job(folder)).tobytes())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
