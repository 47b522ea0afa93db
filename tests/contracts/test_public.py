"""A whole run whose cohorts share a support: it learns, repeats itself bit for bit, and adds up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratic import FIRST, LAYOUT, Job, Tap
from test_transport import ENGINES, EVERY_ENGINE, Outcome, carry_through, take_down

from boli.codec.codec import HEADER_BYTES, decode_frame
from boli.journal import SiteBenched, UpdateRejected
from boli.rounds.cohort import Cohorts, cohorts_for
from boli.rounds.transport import Left
from boli.rounds.update import ServerState

CODEC = {"name": "public", "density": 0.4, "value_bits": 4, "downlink": {"name": "dense"}}
ROUNDS = {"total": 8, "norm_multiple": 1e9}
JOB = Job(rounds=ROUNDS, codec=CODEC)
RANKED = replace(JOB, ranks={"arrah": None, "darbhanga": 1, "gaya": 3})
OVER = pytest.mark.parametrize("over", EVERY_ENGINE)
Start = Callable[..., Outcome]


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Return a function that carries a job through over an engine; that is closed after the test.

    `killed` says after which arrivals a node is killed; the rest is as in `carry_through`.
    """
    opened: list[Any] = []

    def carry(over: str, job: Job, killed: tuple[int, ...] = (), **values: Any) -> Outcome:
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        engine: Any = ENGINES[over](job, folder / "engine")
        opened.append(engine)

        def kill(count: int, tap: Tap) -> None:
            if count in killed:
                engine.kill(sorted(job.ranks)[count % 3])

        return carry_through(engine, folder, job, after_arrival=kill, **values)

    yield carry
    for engine in opened:
        take_down(engine)


def cohorts_of(job: Job) -> Cohorts:
    found = cohorts_for(job.plan)
    assert found is not None
    return found


def versions(outcome: Outcome) -> list[ServerState]:
    """Return the last state of every version, as saved."""
    return list({state.version: state for state in outcome.ledger.history}.values())


def loss(job: Job, theta: Any) -> float:
    target = np.mean([job.work(name).target for name in job.ranks], axis=0)
    return float(np.mean(np.square(theta - target)))


@pytest.mark.parametrize("job", [JOB, RANKED], ids=["equal", "ranked"])
def test_killed_nodes_and_coordinators_leave_no_trace_in_the_bits(start: Start, job: Job) -> None:
    undisturbed = start("fake", job)
    disturbed = start("rough", job, killed=(3, 9, 14), dies_at=(1, 17, 12))
    assert [arrival for arrival in disturbed.tap.arrivals if isinstance(arrival, Left)]
    assert disturbed.state.theta.tobytes() == undisturbed.state.theta.tobytes()
    assert disturbed.state.support == undisturbed.state.support
    for order, (header, payload) in undisturbed.tap.updates.items():
        if header.local_steps:
            assert disturbed.tap.updates[order][1] == payload


def test_real_processes_that_are_killed_send_the_same_bytes_again(start: Start) -> None:
    undisturbed = start("fake", RANKED)
    job = replace(RANKED, step_seconds=dict.fromkeys(RANKED.ranks, 0.01))
    disturbed = start("local", job, killed=(4, 11), dies_at=(14,))
    assert disturbed.state.theta.tobytes() == undisturbed.state.theta.tobytes()
    assert not disturbed.tap.changed


@OVER
def test_version_is_made_of_the_sum_of_the_integers(start: Start, over: str) -> None:
    """Nothing but their sum is needed, which is what masks will leave to be seen."""
    outcome = start(over, JOB)
    states = versions(outcome)
    for before, after in itertools.pairwise(states):
        codec = cohorts_of(JOB).agreed(before, ((0, LAYOUT.size),))
        payloads = [
            payload[HEADER_BYTES:]
            for header, payload in outcome.tap.updates.values()
            if header.local_steps and header.base_version == before.version
        ]
        assert len(payloads) == 3
        total = sum(codec.integers(payload) for payload in payloads)
        theta = before.theta.copy()
        theta[codec.positions] -= (total * 2.0**codec.unit / 3).astype(np.float32)
        assert after.theta.tobytes() == theta.tobytes()
    assert len(states) == 9


def test_members_of_all_ranks_send_their_part_of_one_support(start: Start) -> None:
    outcome, job = start("fake", RANKED), RANKED
    for before in versions(outcome)[:-1]:
        whole = cohorts_of(job).agreed(before, ((0, LAYOUT.size),)).positions
        for name, rank in job.ranks.items():
            view = LAYOUT.view(rank)
            codec = cohorts_of(job).agreed(before, view.spans)
            (payload,) = (
                payload
                for header, payload in outcome.tap.updates.values()
                if (header.site, header.base_version) == (name, before.version)
                and header.local_steps
            )
            found = decode_frame(payload, LAYOUT.digest, view.size, codec).entries
            places = np.concatenate([np.arange(*span) for span in view.spans])
            assert found.positions is not None
            assert places[found.positions].tolist() == [p for p in whole if p in places]


@pytest.mark.parametrize("bits", [4, 8])
def test_it_learns(start: Start, bits: int) -> None:
    codec = {**CODEC, "value_bits": bits, "train_from_residual": True}
    outcome = start("fake", replace(JOB, rounds={**ROUNDS, "total": 40}, codec=codec))
    assert loss(JOB, outcome.state.theta) < 0.03 * loss(JOB, FIRST)


def test_site_with_another_version_0_is_refused_and_the_others_go_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send other entries than it is read to have sent."""
    work = Job.work

    def other(job: Job, site: str) -> Any:
        found = work(job, site)
        if site == "gaya":
            found.first = found.first + np.float32(1) * (np.arange(found.first.size) % 5 == 0)
        return found

    monkeypatch.setattr(Job, "work", other)
    outcome = start("fake", JOB)
    refused = [fact for fact in outcome.of(UpdateRejected) if fact.site == "gaya"]
    assert {fact.reason for fact in refused} == {"malformed"}
    assert "another support" in refused[0].detail
    assert [fact.site for fact in outcome.of(SiteBenched)] == ["gaya"]
    assert outcome.state.version == 8


def test_other_codecs_have_no_support_to_carry_around(start: Start) -> None:
    outcome = start("fake", replace(JOB, codec={"name": "sparse"}))
    assert outcome.state.support is None
    assert outcome.state.first is None
