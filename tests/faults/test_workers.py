"""A site of two processes in a real run: either is killed, and the run ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from boli.journal import SiteLeft, read_journal
from boli.plan_file import load_plan
from boli.run import Run, list_runs, train

pytest.importorskip("accelerate", reason="needs the extra boli[cluster]")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")

PATIENCE_SECONDS = 60.0


def processes_of(parent: int, module: str) -> list[int]:
    """Return the living children of a process that run a module."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            state, parent_of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent_of) == parent and module in command and state != "Z":
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < deadline, "the run stands still"
        time.sleep(0.005)


def train_and_kill(plan: Path, folder: Path) -> Run:
    """Run to the end; kill the worker on the way and then, after some more rounds, the node."""
    runs = folder / "runs"
    runs.mkdir()
    command = [sys.executable, "-m", "boli.cli.main", "train", str(plan), "--runs", str(runs)]
    with (runs / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _kill_one_after_the_other(runs, process)
        assert process.wait(PATIENCE_SECONDS) == 0, (runs / "log").read_text()
    finally:
        process.kill()
    (run,) = list_runs(runs)
    return run


def _kill_one_after_the_other(runs: Path, process: subprocess.Popen[bytes]) -> None:
    def lines() -> int:
        return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/journal.jsonl"))

    wait_until(lambda: lines() > 5, process)
    (node,) = processes_of(process.pid, "boli.engine.local_node")
    (worker,) = processes_of(node, "boli.site.worker")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not alive(node), process)
    known = lines()
    wait_until(lambda: lines() > known + 5, process)
    (node,) = processes_of(process.pid, "boli.engine.local_node")
    (worker,) = processes_of(node, "boli.site.worker")
    os.kill(node, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while alive(worker):
        assert time.monotonic() < deadline, "the worker outlived its node"
        time.sleep(0.01)


def test_run_ends_with_the_same_bits_where_a_worker_and_a_node_were_killed(
    tiny_plan_file: Callable[..., Path], tmp_path: Path
) -> None:
    site = {"name": "arrah", "language": "bho", "text": ["bho.txt"], "processes": 2}
    steps = {"batch_sequences": 3, "learning_rate": 1e-2}
    plan = tiny_plan_file(
        tmp_path,
        site=[site],
        rounds={"total": 16, "local_steps": 4},
        model={"local_steps": steps},
        evaluation={"every_rounds": 50, "max_lines": 2},
    )
    undisturbed = train(load_plan(plan), runs=tmp_path / "undisturbed")
    killed = train_and_kill(plan, tmp_path)
    adapters = [one / "adapter_model.safetensors" for one in (undisturbed.adapter, killed.adapter)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    journal = [entry.event for entry in read_journal(killed.folder / "journal.jsonl")]
    left = [event.reason for event in journal if isinstance(event, SiteLeft)]
    assert left == ["exit code 20", "signal 9"]
    log = next(killed.folder.rglob("arrah.log")).read_text()
    assert "process 1 of the site ended (signal 9)" in log
