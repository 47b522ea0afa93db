"""Kills at every moment of the protocol: the bits, and what is counted, stay the same.

Each run deals every moment of the coordinator and of a node once, in a seeded order:
20 kills. A killed node is started again by its coordinator, a killed coordinator by
the test, as a user would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mortal
import pytest
from fate import COORDINATOR, JOBS, Facts, Kill, Script, drawn_kills, killed_at
from quadratic import Tap, accepted_orders, counted_once, synchronous_reference, unaccounted

from boli.durable import Generations
from boli.journal import RoundStepped, UpdateAccepted, read_journal
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.update import ServerState, Update, Verdict

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Trial:
    """A run whose coordinator is started again and again until it comes to its end."""

    script: Script
    home: Path

    @property
    def folder(self) -> Path:
        return self.home / "run"

    def run(self) -> Trial:
        self.home.mkdir(parents=True)
        self.script.write(self.home / "script.json")
        program = [sys.executable, mortal.__file__, str(self.home / "script.json")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        code = None
        while code != 0:
            with (self.home / "log").open("ab") as log:
                done = subprocess.run(
                    [*program, str(self.folder)],
                    stdout=log,
                    stderr=log,
                    env=environment,
                    timeout=PATIENCE_SECONDS,
                )
            code = done.returncode
            assert code in (0, -signal.SIGKILL), (self.home / "log").read_text()[-3000:]
        return self

    @property
    def state(self) -> ServerState:
        found = CheckpointStore(self.folder / "checkpoints").load()
        assert found is not None
        assert not found[1]
        return found[0]

    def killed(self) -> dict[str, list[str]]:
        """Return the moments at which each victim died."""
        path = self.home / "script.json"
        return {victim: killed_at(path, victim) for victim in (COORDINATOR, *self.script.job.ranks)}

    def check(self, undisturbed: ServerState) -> None:
        """Check that every kill happened, and that nothing came of it."""
        planned = {name: [moment for moment, _ in k] for name, k in self.script.kills.items()}
        killed = self.killed()
        assert {name: killed[name] for name in planned} == planned
        facts = list(Facts(self.home / "script.json").read())
        history = [fact for fact in facts if isinstance(fact, ServerState)]
        check_acknowledged(facts)
        job, state = self.script.job, self.state
        total = job.plan.rounds.total
        # Each round's orders, and those that judge the end and what was restored then.
        judged = 1 + len(state.selection.restored)
        assert len(accepted_orders(job, history)) == len(job.ranks) * (total + judged)
        tap = updates_of(facts)
        stores = {site: Generations(self.folder / "sites" / site) for site in job.ranks}
        assert unaccounted(job, history, tap, stores) < 1e-4
        if job.plan.codec.name == "dense":
            assert counted_once(job, history, tap).tobytes() == state.theta.tobytes()
        assert state.theta.tobytes() == undisturbed.theta.tobytes()
        assert state.tokens == undisturbed.tokens
        self.check_journal(total)

    def check_journal(self, total: int) -> None:
        told = [entry.event for entry in read_journal(self.folder / "journal.jsonl")]
        accepted = {fact.order for fact in told if isinstance(fact, UpdateAccepted)}
        assert len(accepted) == total * len(self.script.job.ranks)
        stepped = {fact.version for fact in told if isinstance(fact, RoundStepped)}
        assert stepped == set(range(1, total + 1))


def check_acknowledged(facts: Sequence[Any]) -> None:
    """Check that every state since knows of what was acknowledged."""
    acknowledged: dict[str, int] = {}  # last sequence by site
    for fact in facts:
        match fact:
            case Verdict(accepted=True):
                acknowledged[fact.site] = max(fact.sequence, acknowledged.get(fact.site, 0))
            case ServerState():
                for site, sequence in acknowledged.items():
                    last = max(fact.sites[site].accepted, default=0)
                    assert last >= sequence, f"acknowledged, but lost: {site} {sequence}"


def updates_of(facts: Sequence[Any]) -> Tap:
    """Return a tap that holds the updates which arrived, each answered in one way only."""
    tap = Tap(None)  # type: ignore[arg-type]
    for fact in facts:
        if isinstance(fact, Update):
            found = (fact.header, fact.payload)
            assert tap.updates.setdefault(fact.header.order, found) == found, fact.header.order
    return tap


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ServerState]:
    """Return how each job ends when nobody dies."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trials = {name: Trial(Script(job), folder / name).run() for name, job in JOBS.items()}
    for trial in trials.values():
        trial.check(trial.state)
    return {name: trial.state for name, trial in trials.items()}


def test_undisturbed_run_is_what_the_formula_says(undisturbed: Mapping[str, ServerState]) -> None:
    theta = undisturbed["dense"].theta
    assert theta.tobytes() == synchronous_reference(JOBS["dense"]).tobytes()


def check_kills(name: str, seed: int, undisturbed: Mapping[str, ServerState], folder: Path) -> None:
    job = JOBS[name]
    kills = drawn_kills(seed, sorted(job.ranks))
    assert sum(map(len, kills.values())) == 20
    Trial(Script(job, kills), folder / str(seed)).run().check(undisturbed[name])


@pytest.mark.parametrize("name", JOBS)
def test_20_kills_at_every_moment_leave_no_trace(
    name: str, undisturbed: Mapping[str, ServerState], tmp_path: Path
) -> None:
    check_kills(name, 1, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seed", range(100, 120))
def test_800_kills_at_every_moment_leave_no_trace(
    name: str, seed: int, undisturbed: Mapping[str, ServerState], tmp_path: Path
) -> None:
    check_kills(name, seed, undisturbed, tmp_path)


# Controls: a flaw, and one of the kills above


def test_control_a_node_that_sends_before_it_saves_is_caught(
    undisturbed: Mapping[str, ServerState], tmp_path: Path
) -> None:
    kills: dict[str, list[Kill]] = {"gaya": [("sent", 3)]}
    trial = Trial(Script(JOBS["sparse"], kills, "sends before it saves"), tmp_path / "trial").run()
    assert trial.state.theta.tobytes() != undisturbed["sparse"].theta.tobytes()
    with pytest.raises(AssertionError):
        trial.check(undisturbed["sparse"])


def test_control_a_coordinator_that_answers_before_it_saves_is_caught(
    undisturbed: Mapping[str, ServerState], tmp_path: Path
) -> None:
    kills: dict[str, list[Kill]] = {COORDINATOR: [("between answers", 3)]}
    trial = Trial(Script(JOBS["dense"], kills, "answers before it saves"), tmp_path / "trial").run()
    with pytest.raises(AssertionError, match="acknowledged, but lost"):
        trial.check(undisturbed["dense"])
