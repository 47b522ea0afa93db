"""The three-machine tutorial as a reader types it: each machine in a network namespace of its own.

A block that stays open is a terminal. When the same machine opens another although the
first goes on, the power was cut in between: everything that it runs is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boli.journal import RoundStepped, RunStarted, UpdateAccepted, read_journal

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "three-machines.md"
COORDINATOR_ADDRESS = "203.0.113.5"
SHORTER = ("total = 300 ", "total = 20 ")  # rounds: the only thing that is not as a reader has it
ROUNDS_BEFORE_THE_CUT = 2
SKIPPED = ("every machine", "bhojpur, as root")  # to install, and what systemd does

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(1800),  # nothing in it waits for long without progress
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: network namespaces need it"),
    pytest.mark.skipif(not shutil.which("ip"), reason="needs the command ip (package iproute2)"),
]


@dataclass(frozen=True)
class Block:
    machine: str
    stays_open: bool
    code: str


def blocks(page: str) -> list[Block]:
    """Return what a reader types, in order."""
    found = []
    assert SHORTER[0] in page
    for first, code in re.findall(r"^```sh\n# (.+)\n((?:.*\n)*?)```$", page, re.MULTILINE):
        if first not in SKIPPED:
            machine, _, stays = first.partition(", ")
            assert stays in ("", "stays open"), first
            found.append(Block(machine, bool(stays), code.replace(*SHORTER)))
    assert page.count("```sh\n") == len(found) + len(SKIPPED)
    return found


@dataclass
class Machine:
    """A namespace, a home, and what was left running there."""

    name: str
    namespace: str
    home: Path
    environment: dict[str, str]
    terminals: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)
    screens: list[int] = field(default_factory=list)  # our ends of them

    @property
    def folder(self) -> Path:
        return self.home / "villages"

    def _start(self, code: str, output: Path, answer: int | None = None) -> subprocess.Popen[bytes]:
        with output.open("wb") as screen:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "bash", "-euc", code],
                cwd=self.folder,
                env={**self.environment, "HOME": str(self.home)},
                stdin=subprocess.DEVNULL if answer is None else answer,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def type(self, code: str) -> str:
        """Carry out a block; return what it prints."""
        output = self.home / "output"
        done = self._start(code, output).wait(300)
        said = output.read_text(encoding="utf-8")
        assert done == 0, f"at {self.name}:\n{code}\n{said}"
        return said

    def open(self, code: str) -> Path:
        """Carry out a block that stays open; return where its output goes."""
        output = self.home / f"terminal{len(self.terminals)}"
        ours, theirs = pty.openpty()
        os.write(ours, b"y\n")  # to what boli join asks, whenever it does
        self.screens.append(ours)
        self.terminals.append((self._start(code, output, theirs), output))
        os.close(theirs)
        return output

    @property
    def is_busy(self) -> bool:
        return bool(self.terminals) and self.terminals[-1][0].poll() is None

    def cut_power(self) -> None:
        """Kill whatever runs in the namespace."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        for pid in map(int, listed.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process, _ in self.terminals:
            process.wait()
        while self.screens:
            os.close(self.screens.pop())


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot make network namespaces here: ip {words}: {done.stderr.strip()}")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[dict[str, Machine]]:
    """Wire each site to the coordinator, and to nothing else."""
    shims = tmp_path / "bin"
    shims.mkdir()
    copy = f'#!/bin/sh\ncp "$1" "{tmp_path}/${{2%%:*}}/${{2#*:}}"\n'  # there is no sshd here
    (shims / "scp").write_text(copy)
    (shims / "scp").chmod(0o755)
    here = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "BOLI_HOME"},
        "PATH": os.pathsep.join([str(shims), here, os.environ["PATH"]]),
        "COLUMNS": "120",
    }
    key = f"b{os.getpid() % 100000}"
    found: dict[str, Machine] = {}
    try:
        for number, name in enumerate(("coordinator", "bhojpur", "gaya")):
            one = Machine(name, f"{key}n{number}", tmp_path / name, environment)
            one.folder.mkdir(parents=True)
            _ip(f"netns add {one.namespace}")
            found[name] = one
            _ip(f"-n {one.namespace} link set lo up")
        hub = found["coordinator"].namespace
        _ip(f"-n {hub} addr add {COORDINATOR_ADDRESS}/32 dev lo")
        for number, name in enumerate(("bhojpur", "gaya")):
            site, cable = found[name].namespace, f"{key}c{number}"
            _ip(f"-n {hub} link add {cable} type veth peer name up0 netns {site}")
            for space, device, end in ((hub, cable, 1), (site, "up0", 2)):
                _ip(f"-n {space} addr add 10.88.{number}.{end}/30 dev {device}")
                _ip(f"-n {space} link set {device} up")
            _ip(f"-n {site} route add default via 10.88.{number}.1")
        yield found
    finally:
        for one in found.values():
            one.cut_power()
            subprocess.run(["ip", "netns", "del", one.namespace], check=False)


def wait_until(there: Callable[[], bool], machines: dict[str, Machine], what: str) -> None:
    """Wait; a run that still makes progress is only slow."""
    runs, size = machines["coordinator"].folder / "runs", -1
    while not there():
        grown = sum(path.stat().st_size for path in runs.glob("*/journal*"))
        if grown != size:
            size, deadline = grown, time.monotonic() + 120
        if time.monotonic() > deadline:
            screens = [path for one in machines.values() for _, path in one.terminals]
            told = "\n".join(f"== {path}\n{path.read_text()[-800:]}" for path in screens)
            raise AssertionError(f"{what}:\n{told}")
        time.sleep(0.05)


def test_tutorial_works_as_it_is_written(machines: dict[str, Machine]) -> None:
    coordinator, bhojpur = machines["coordinator"], machines["bhojpur"]
    runs = coordinator.folder / "runs"
    said, beside = {}, ""

    def rounds() -> int:
        return sum(path.read_bytes().count(b'"round_stepped"') for path in runs.glob("*/journal*"))

    for block in blocks(TUTORIAL.read_text(encoding="utf-8")):
        machine = machines[block.machine]
        if block.stays_open:
            cut = machine.is_busy
            if cut:
                beside = bhojpur.type("boli doctor bhojpur.boli --data text")  # and boli join
                wait_until(lambda: rounds() >= ROUNDS_BEFORE_THE_CUT, machines, "no round")
                machine.cut_power()
                assert not list(runs.glob("*/adapter")), "the run was over before the cut"
            screen = machine.open(block.code)
            words = "sites reach" if machine is coordinator else "connected"
            wait_until(lambda: words in screen.read_text(), machines, words)  # noqa: B023
            continue
        if "boli report" in block.code:
            wait_until(lambda: not coordinator.is_busy, machines, "the run goes on")
        said[block.code] = machine.type(block.code)

    def output_of(command: str) -> str:
        (found,) = [text for code, text in said.items() if command in code]
        return " ".join(found.split())

    assert "ready; next: boli join bhojpur.boli --data text" in output_of("boli doctor")
    assert "problem" not in output_of("boli doctor")
    assert "ready" in beside
    assert "better at the sites' languages than the base was" in output_of("boli report latest")
    assert "gaya is out" in output_of("boli revoke")
    assert "gaya revoked" in output_of("boli revoke")
    assert "ExecStart=" in (bhojpur.folder / "boli-join.service").read_text()
    assert (bhojpur.folder / "boli-join.service").read_text().count(str(bhojpur.folder)) >= 2

    (journal,) = runs.glob("*/journal.jsonl")
    events = [entry.event for entry in read_journal(journal)]
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    # What was told and not yet in a checkpoint when the power went is done, and told, again.
    assert {e.version for e in events if isinstance(e, RoundStepped)} == set(range(1, 21))
    assert len({e.order for e in events if isinstance(e, UpdateAccepted)}) == 40
    report = json.loads((journal.parent / "report.json").read_text())
    assert report["status"] == "finished"
    assert [site["updates"] for site in report["sites"].values()] == [20, 20]
