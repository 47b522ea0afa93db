"""A whole run whose coordinator and nodes end themselves with SIGKILL where a script says.

Real processes, sockets and files around `QuadraticWork`, so that a process is there in
a third of a second. As a program it is the coordinator, or the node of one site:

    mortal.py SCRIPT FOLDER [SITE DESCRIPTOR RESTARTS]

Before a version is published, stdout tells what is durable by then: "ACK" and JSON of
the version and of the sequence of each site's stored answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fate import COORDINATOR, Facts, Fate, Script

from boli.durable import Arrays, Generations, locked, write_file
from boli.engine.local import LocalTransport
from boli.engine.local_node import LOCK_SECONDS, LocalLink
from boli.engine.wire import pack_message
from boli.errors import BoliError
from boli.journal import Journal, RunResumed
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.transport import Arrival, Delivery, Instruction, Joined, Transport
from boli.rounds.update import Order, Release, ServerState, Spans, UpdateHeader, Verdict


def watch_fsync(fate: Fate, flaw: str) -> None:
    """Let this process die around the fsync of a temporary file; a flaw leaves some fsync out."""
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        kind = "folders" if path.is_dir() else "files" if path.suffix == ".tmp" else "the journal"
        if kind == "files":
            half = os.fstat(descriptor).st_size // 2
            fate.moment("half written", lambda: os.ftruncate(descriptor, half))
        if flaw != f"no fsync of {kind}":
            fsync(descriptor)
        if kind == "files":
            fate.moment("written")

    os.fsync = watched  # type: ignore[assignment]


# The coordinator


@dataclass
class MortalJournal(Journal):
    fate: Fate | None = None

    def _write(self, line: bytes) -> None:
        assert self.fate is not None
        write = super()._write
        self.fate.moment("half a line", lambda: write(line[: len(line) // 2]))
        write(line)


class MortalCheckpoints(CheckpointStore):
    def __init__(self, folder: Path, fate: Fate, facts: Facts, late: bool) -> None:
        super().__init__(folder)
        self._fate, self._facts, self._late = fate, facts, late
        self._due: ServerState | None = None

    def save(self, state: ServerState) -> None:
        self._due = state
        if not self._late:
            self.save_due()

    def save_due(self) -> None:
        """Save what is not saved yet: at the next turn only, where that is the flaw."""
        if self._due is not None:
            self._fate.moment("before save")
            super().save(self._due)
            self._facts.note(self._due)
            self._due = None
            self._fate.moment("saved")

    def load(self) -> tuple[ServerState, list[Path]] | None:
        found = super().load()
        if found is not None:
            self._facts.note(found[0])
        self._fate.moment("loaded")
        return found


@dataclass
class MortalTransport:
    """A transport that hands on every update twice, and tells what is durable."""

    inner: Transport
    checkpoints: MortalCheckpoints
    fate: Fate
    facts: Facts
    answers: dict[str, int] = field(default_factory=dict)  # sequence by site
    published: bool = False  # in this turn
    answered: bool = False  # in this turn

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        self.inner.start(views, release)
        self.fate.moment("started")

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        self.checkpoints.save_due()
        self.published = self.answered = False
        arrivals: list[Arrival] = []
        for arrival in self.inner.receive(timeout_seconds):
            arrivals.append(arrival)
            if isinstance(arrival, Delivery):
                arrivals.append(arrival)
                self.facts.note(arrival.update)
                self.answers[arrival.site] = arrival.update.header.sequence
        if arrivals:
            self.fate.moment("received")
        return arrivals

    def publish(self, release: Release) -> None:
        durable = {"version": release.version, "answers": self.answers}
        sys.stdout.write(f"ACK {json.dumps(durable)}\n")
        sys.stdout.flush()
        self.inner.publish(release)
        self.published = True

    def answer(self, verdict: Verdict) -> None:
        if self.answered:
            self.fate.moment("between answers")
        elif self.published:
            self.fate.moment("between publish and answer")
        self.answered = True
        self.facts.note(verdict)
        self.inner.answer(verdict)

    def send_order(self, order: Order) -> None:
        self.fate.moment("before send order")
        self.inner.send_order(order)

    def bytes_down(self, site: str) -> int:
        return self.inner.bytes_down(site)

    def close(self) -> None:
        self.inner.close()


def coordinate(script_path: Path, folder: Path) -> None:
    """Begin a run in this folder, or go on with it, to its end."""
    script = Script.read(script_path)
    facts = Facts(script_path)
    fate = Fate(script_path, COORDINATOR, script.kills.get(COORDINATOR, ()))

    def command(site: str, descriptor: int, restarts: int) -> list[str]:
        arguments = [str(script_path), str(folder), site, str(descriptor), str(restarts)]
        return [sys.executable, __file__, *arguments]

    with locked(folder, "run"), contextlib.ExitStack() as stack:
        if not (folder / "plan.json").exists():
            write_file(folder / "plan.json", script.job.plan.model_dump_json().encode())
        watch_fsync(fate, script.flaw)
        late = script.flaw == "answers before it saves"
        checkpoints = MortalCheckpoints(folder / "checkpoints", fate, facts, late)
        journal = MortalJournal(folder / "journal.jsonl", fate=fate)
        stack.enter_context(contextlib.closing(journal))
        state, found = script.job.first_state(), checkpoints.load()
        if found is not None:
            state = found[0].welcome_back()
            checkpoints.save(state)
            passed_over = [path.name for path in found[1]]
            journal.append(RunResumed(state.version, passed_over, state.journal_seq))
        inner = LocalTransport(command, folder / "sites")
        transport = MortalTransport(inner, checkpoints, fate, facts)
        stack.enter_context(contextlib.closing(transport))
        script.job.loop(transport, checkpoints, journal).run(state)


# A site's node


class MortalLink(LocalLink):
    def __init__(self, descriptor: int, fate: Fate) -> None:
        self._fate = fate
        super().__init__(descriptor)

    def join(self, joined: Joined) -> None:
        self._fate.moment("joining")
        super().join(joined)

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        if timeout_seconds == 0:  # a look between two local steps
            self._fate.moment("step")
        instruction = super().receive(timeout_seconds)
        if instruction is not None:
            self._fate.moment("received")
        return instruction

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        message = pack_message("update", header.facts(), payload)
        framed = struct.pack("!i", len(message)) + message
        half = framed[: len(framed) // 2]
        self._fate.moment("half sent", lambda: os.write(self._line.fileno(), half))
        super().send_update(header, payload)
        self._fate.moment("sent")


class MortalGenerations(Generations):
    def __init__(self, folder: Path, fate: Fate, sends_first: LocalLink | None) -> None:
        super().__init__(folder)
        self._fate, self._sends_first = fate, sends_first

    def save(self, arrays: Arrays, facts: Mapping[str, Any]) -> Path:
        if self._sends_first is not None:
            header = UpdateHeader.model_validate(facts["answer"])
            self._sends_first.send_update(header, arrays["payload"].tobytes())
        self._fate.moment("before save")
        path = super().save(arrays, facts)
        self._fate.moment("saved")
        return path


def serve(script_path: Path, folder: Path, site: str, descriptor: int, restarts: int) -> None:
    """Be a site's node until told to stop, as boli.engine.local_node is."""
    script = Script.read(script_path)
    fate = Fate(script_path, site, script.kills.get(site, ()))
    watch_fsync(fate, script.flaw)
    link, home = MortalLink(descriptor, fate), folder / "sites" / site
    hasty = link if script.flaw == "sends before it saves" else None
    try:
        with locked(home, "the site folder", LOCK_SECONDS):
            store = MortalGenerations(home, fate, hasty)
            script.job.node(site, link, store, restarts).run()
    except BoliError as error:
        link.fail(error)
        raise


def main(arguments: Sequence[str]) -> None:
    script_path, folder = Path(arguments[0]), Path(arguments[1])
    if arguments[2:]:
        serve(script_path, folder, arguments[2], int(arguments[3]), int(arguments[4]))
    else:
        coordinate(script_path, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
