"""Real processes killed with SIGKILL: a resumed synchronous run ends with the same bits.

Each case runs the command line as a user does, and kills the coordinator or
a site after a seeded number of journal lines and a seeded moment more, or after
a seeded time that also falls into starting, preparing and resuming. A killed
site is started again by its coordinator; a killed coordinator is resumed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from boli.errors import CorruptFileError
from boli.journal import RoundStepped, UpdateAccepted, read_journal
from boli.rounds.checkpoint import CheckpointStore

ROUNDS = 60
PATIENCE_SECONDS = 120.0
STARTING_SECONDS = 3.0  # less than a command takes until its first round


@dataclass
class Trial:
    """One run, resumed until it is finished; kills as its seed says."""

    plan: Path
    runs: Path
    seed: int
    kills: int
    done: list[str] = field(default_factory=list)  # who was killed
    _process: subprocess.Popen[bytes] | None = None

    def run(self) -> Path:
        """Return the finished run's folder."""
        draw = random.Random(self.seed)
        while not list(self.runs.glob("*/report.json")):
            resume = ["--resume", "latest"] if list(self.runs.glob("*/run.json")) else []
            self._start(resume or [str(self.plan)])
            if len(self.done) < self.kills and draw.random() < 0.4:
                time.sleep(draw.random() * STARTING_SECONDS)
                self._kill(draw)
            while self._process.poll() is None:  # type: ignore[union-attr]
                if len(self.done) >= self.kills:
                    self._process.wait(PATIENCE_SECONDS)  # type: ignore[union-attr]
                elif self._wait_for_lines(draw.randint(1, 8)):
                    time.sleep(draw.random() * 0.1)
                    self._kill(draw)
            self._end()
        (report,) = self.runs.glob("*/report.json")
        return report.parent

    def _start(self, arguments: list[str]) -> None:
        self.log = (self.runs / "log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "boli.cli.main", "train", *arguments, "--runs", str(self.runs)],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def _end(self) -> None:
        assert self._process is not None
        self.log.close()
        code = self._process.returncode
        text = (self.runs / "log").read_text(errors="replace")[-3000:]
        assert code in (0, -signal.SIGKILL), f"exit code {code}:\n{text}"

    def _wait_for_lines(self, count: int) -> bool:
        """Wait until the journal grew by so many lines; False when the run ended before."""
        wanted = self._lines() + count
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._lines() < wanted:
            if self._process.poll() is not None:  # type: ignore[union-attr]
                return False
            assert time.monotonic() < deadline, "the run stands still"
            time.sleep(0.005)
        return True

    def _lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in self.runs.glob("*/journal.jsonl"))

    def _kill(self, draw: random.Random) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            return
        nodes = children(self._process.pid)
        victims = [("coordinator", self._process.pid), *nodes.items()]
        name, pid = draw.choice(victims)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.done.append(name)
        if name == "coordinator":
            self._process.wait()


def children(coordinator: int) -> dict[str, int]:
    """Return the node processes of a coordinator, by site."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == coordinator and "boli.engine.local_node" in command:
            found[command[4]] = int(entry.name)
    return found


def result(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plan_file(
    tiny_plan_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return tiny_plan_file(
        tmp_path_factory.mktemp("plan"),
        rounds={
            "total": ROUNDS,
            "local_steps": 3,
            "outer": {"name": "nesterov", "learning_rate": 0.7, "momentum": 0.5},
        },
        evaluation={"every_rounds": 10, "max_lines": 4},
    )


@pytest.fixture(scope="module")
def undisturbed(plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trial(plan_file, tmp_path_factory.mktemp("undisturbed"), 0, 0).run()


def check(trial: Trial, undisturbed: Path) -> None:
    folder = trial.run()
    assert len(trial.done) == trial.kills, f"only {trial.done}"
    assert result(folder) == result(undisturbed)
    facts = [entry.event for entry in read_journal(folder / "journal.jsonl")]
    assert {fact.version for fact in facts if isinstance(fact, RoundStepped)} == set(
        range(1, ROUNDS + 1)
    )
    state = CheckpointStore(folder / "checkpoints").load()
    reference = CheckpointStore(undisturbed / "checkpoints").load()
    assert state is not None
    assert reference is not None
    assert state[0].tokens == reference[0].tokens
    accepted = {fact.order for fact in facts if isinstance(fact, UpdateAccepted)}
    assert len(accepted) == ROUNDS * len(state[0].sites)


@pytest.mark.timeout(400)
def test_killed_and_resumed_run_ends_with_the_same_bits(
    plan_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    check(Trial(plan_file, tmp_path, 1, kills=4), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 120))
def test_200_kills_end_with_the_same_bits(
    seed: int, plan_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    check(Trial(plan_file, tmp_path, seed, kills=10), undisturbed)


@pytest.fixture(scope="module")
def killed(plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs with one whose coordinator was killed, and never resumed."""
    trial = Trial(plan_file, tmp_path_factory.mktemp("killed"), 3, kills=1)
    trial._start([str(plan_file)])
    assert trial._wait_for_lines(30)
    assert trial._process is not None
    os.kill(trial._process.pid, signal.SIGKILL)
    trial._process.wait()
    trial._end()
    time.sleep(0.5)  # its nodes end by themselves
    return trial.runs


def test_control_a_site_that_forgets_its_state_ends_with_other_bits(
    plan_file: Path, undisturbed: Path, killed: Path, tmp_path: Path
) -> None:
    """The comparison would notice: the same kills, and one site's state is lost on the way."""
    trial = Trial(plan_file, shutil.copytree(killed, tmp_path / "runs"), 3, kills=0)
    (site,) = trial.runs.glob("*/sites/arrah")
    for path in site.glob("*.safetensors"):
        path.unlink()
    assert result(trial.run()) != result(undisturbed)


@pytest.mark.timeout(120)
def test_corrupt_checkpoint_falls_back_and_says_so(
    plan_file: Path, killed: Path, tmp_path: Path
) -> None:
    trial = Trial(plan_file, shutil.copytree(killed, tmp_path / "runs"), 4, kills=0)
    (folder,) = (path.parent for path in trial.runs.glob("*/run.json"))
    newest = max((folder / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    finished = trial.run()
    assert f"checkpoint {newest.name} is corrupt" in (trial.runs / "log").read_text()
    state = CheckpointStore(finished / "checkpoints").load()
    assert state is not None
    assert state[0].version == ROUNDS
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match="no whole file"):
        CheckpointStore(folder / "checkpoints").load()
