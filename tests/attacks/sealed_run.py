"""A run that was stopped half-way, and what an attacker with its folder can do to the files.

The attacker can read and write every file of the run, and knows all formats. What they have not is
the key in BOLI_HOME.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from attack import Outcome, boli

from boli.errors import CorruptFileError
from boli.journal import (
    GENESIS,
    SCHEMA,
    Journal,
    RoundStepped,
    RunInterrupted,
    RunStarted,
    _line,
    _line_hash,
    whole_lines,
)
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.update import ServerState, SiteProgress
from boli.run import Run
from boli.signature import own_key

Edit = Callable[[Path], None]
PLAN = """
name = "attacked"
[model.base]
language = "hin"
text = [{ starter = "hin", lines = 300 }]
[model.base.micro]
vocabulary_size = 320
hidden_size = 32
num_layers = 2
intermediate_size = 64
steps = 10
[rounds]
total = 20
local_steps = 2
[[site]]
name = "gaya"
language = "mag"
text = [{ starter = "mag", lines = 200 }]
"""


def at_home(home: Path | None) -> AbstractContextManager[Any]:
    """Use the key of another user meanwhile; None: of the one who runs this."""
    return mock.patch.dict(os.environ, {"BOLI_HOME": str(home)} if home else {})


class Writer:
    """Writes a run's files as the coordinator does, without training anything."""

    def __init__(self, folder: Path, run: str = "", home: Path | None = None) -> None:
        self.folder, self.run = folder, run or folder.name
        with at_home(home):
            key = own_key()
        self.journal = Journal(folder / "journal.jsonl", key=key)
        self.checkpoints = CheckpointStore(folder / "checkpoints", key)

    def begin(self) -> ServerState:
        self.folder.mkdir(parents=True)
        (self.folder / "plan.json").write_text("{}")
        self.journal.append(RunStarted(self.run, "0" * 16, "0", "0" * 32, 4, {"gaya": "mag"}))
        self.journal.seal(self.run, 0, -1)
        (self.folder / "run.json").write_text(json.dumps({"run": self.run}))
        return ServerState(self.run, "0" * 32, np.zeros(4, np.float32), {"gaya": SiteProgress()})

    def step(self, state: ServerState) -> ServerState:
        """Make a round: journal, checkpoint, head."""
        state = self.save_checkpoint(self.write_journal(state))
        self.seal(state)
        return state

    def write_journal(self, state: ServerState) -> ServerState:
        version = state.version + 1
        self.journal.append(RoundStepped(version, 1, 100 * version, 0.5, float(version)))
        theta = state.theta + np.float32(1)
        return replace(state, version=version, theta=theta)

    def save_checkpoint(self, state: ServerState) -> ServerState:
        state = replace(state, journal_seq=self.journal.seq, journal_hash=self.journal.last)
        self.journal.sync()
        self.checkpoints.save(state)
        return state

    def seal(self, state: ServerState) -> None:
        self.journal.seal(state.run, state.version, state.journal_seq)

    def stop(self, state: ServerState) -> None:
        self.journal.append(RunInterrupted(state.version))
        self.journal.seal_rest()
        self.journal.close()


def make(folder: Path, home: Path, *, fast: bool) -> Path:
    """Return the folder of a run that was stopped: written by hand, or by `boli train`."""
    if fast:
        writer = Writer(folder / "runs" / "attacked-1", home=home)
        with at_home(home):
            state = writer.begin()
            for _ in range(5):
                state = writer.step(state)
            writer.stop(state)
        return writer.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.toml").write_text(PLAN)
    command = [str(Path(sys.executable).with_name("boli")), "train", str(folder / "plan.toml")]
    process = subprocess.Popen(
        [*command, "--runs", str(folder / "runs")],
        env={**os.environ, "BOLI_HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for journal in (folder / "runs").glob("*/journal.jsonl"):
            if journal.read_text().count('"round_stepped"') >= 3:
                process.send_signal(signal.SIGINT)
                process.wait(120)
                return journal.parent
        time.sleep(0.1)
    raise RuntimeError("boli train made no rounds")


def lines_of(run: Path) -> list[bytes]:
    return (run / "journal.jsonl").read_bytes().splitlines(keepends=True)


def write_lines(run: Path, lines: list[bytes]) -> None:
    (run / "journal.jsonl").write_bytes(b"".join(lines))


def rechained(bodies: list[dict[str, Any]]) -> list[bytes]:
    """Number and hash lines anew, so that their chain is whole: it takes no key."""
    lines, last = [], GENESIS
    for number, body in enumerate(bodies):
        body = {k: v for k, v in body.items() if k not in ("hash", "prev", "seq", "v")}
        body = {"v": SCHEMA, "seq": number, **body, "prev": last}
        last = body["hash"] = _line_hash(body)
        lines.append(_line(body))
    return lines


def chain_alone_accepts(run: Path) -> bool:
    """Tell whether the chain of hashes shows anything: all that there was before heads."""
    try:
        lines = list(whole_lines(run / "journal.jsonl"))
    except Exception:
        return False
    return len(lines) > 1


def try_all(folder: Path, run: Path, home: Path, edits: Mapping[str, Edit], fast: bool) -> Outcome:
    """Make every edit in a copy of its own, and verify that; in the full form, resume it too."""
    passed, unseen, told = [], [], []
    for number, (name, edit) in enumerate(edits.items()):
        copy = folder / f"copy-{number}" / run.name
        shutil.copytree(run, copy)
        edit(copy)
        unseen += [name] if chain_alone_accepts(copy) else []
        problem = problem_of(copy, home, by_command=not fast or number == 0)
        told.append(problem)
        passed += [] if problem else [name]
        if not fast and not is_refused_on_resume(copy, home):
            passed.append(f"{name}, resumed")
    noticed = unseen and not problem_of(run, home, by_command=True)
    good = f"the untouched run is verified; the chain of hashes alone accepts {', '.join(unseen)}"
    return Outcome(
        refused=not passed,
        observed=f"accepted: {', '.join(passed)}"
        if passed
        else f"{len(edits)} edits, none accepted; the last: {told[-1]}",
        control=good if noticed else "",
        figures={"edits": len(edits), "of which the chain alone accepts": len(unseen)},
    )


def problem_of(run: Path, home: Path, *, by_command: bool) -> str:
    """Return what `boli verify` finds wrong; empty where it finds nothing."""
    if not by_command:  # what the command calls: it takes a second to start
        with at_home(home):
            try:
                return Run(run).verify().problem
            except CorruptFileError as error:
                return error.problem
    found = boli("verify", run, home=home)
    if found.returncode == 0:
        return ""
    if found.returncode != CorruptFileError.exit_code:
        raise RuntimeError(found.stderr)
    return found.stderr.splitlines()[0]


def is_refused_on_resume(run: Path, home: Path) -> bool:
    """Tell whether `boli train --resume` refuses a run, or says which checkpoint it passes over."""
    journal = (run / "journal.jsonl").read_bytes()
    resumed = boli("train", "--resume", run, "--runs", run.parent, home=home)
    if resumed.returncode == CorruptFileError.exit_code:
        return (run / "journal.jsonl").read_bytes() == journal
    return resumed.returncode == 0 and "is corrupt" in resumed.stdout
