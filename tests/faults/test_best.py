"""The version that is exported, over kills, lies and lines that fail: which one, and its bits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fate import COORDINATOR, MOMENTS_OF_COORDINATOR
from fate import Script as Kills
from quadratic import Job
from test_every_moment import Trial
from test_fake_faults import SITES, Play

from boli.engine.lies import Lie, lie_about_judgements
from boli.engine.script import Script
from boli.journal import Evaluated, OrderSent, VersionJudged, VersionRestored
from boli.rounds.update import ServerState

# Momentum carries all three sites past their targets: the second version is the best.
RUINED = Job(ranks={"arrah": None, "darbhanga": 1, "gaya": 3}, rounds={"total": 4}, truthful=True)
ASYNCHRONOUS = Job(
    rounds={
        "mode": "asynchronous",
        "buffer_size": 2,
        "max_staleness": 2,
        "total": 9,
        "norm_multiple": 1e9,
    },
    truthful=True,
)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def made(play: Play, version: int) -> ServerState:
    """Return the state in which a version was new."""
    return next(state for state in play.ledger.history if state.version == version)


def check_restored(play: Play, version: int = 2) -> None:
    """Check that the run ends with the bits of an earlier version, here and at every site."""
    total = play.job.plan.rounds.total
    assert play.state.version == total + 1
    assert play.state.selection.made(total + 1) == version
    assert play.state.theta.tobytes() == made(play, version).theta.tobytes()
    play.check_counts()


def test_version_that_got_worse_is_not_what_the_run_ends_with(tmp_path: Path) -> None:
    play = Play(RUINED, Script(), tmp_path).run()
    check_restored(play)
    (restored,) = play.of(VersionRestored)
    assert (restored.version, restored.restored) == (5, 2)
    assert restored.ratio < 0.999
    judged = {event.version: event for event in play.of(VersionJudged)}
    assert {version: event.kept for version, event in judged.items()} == {
        2: True,
        4: False,
        5: True,
    }
    assert judged[5].sites == judged[2].sites  # the very same version
    test = {event.version for event in play.of(Evaluated) if event.part == "test"}
    assert test == {0, 4, 5}
    assert {node[0] for node in play.nodes.values()} == {5}
    # It costs one order a site, and one more version.
    orders = [event for event in play.of(OrderSent) if event.base_version == 5]
    assert len(orders) == 3
    assert not any(event.local_steps for event in orders)


def test_control_run_that_gets_better_ends_with_its_last_version(tmp_path: Path) -> None:
    play = Play(replace(RUINED, truthful=False), Script(), tmp_path).run()
    assert play.state.version == 4
    assert not play.state.selection.restored
    assert not play.of(VersionRestored)


# --- kills, and lines that fail


@pytest.mark.parametrize("durable", [True, False])
def test_coordinator_may_die_at_each_of_its_moments(tmp_path: Path, durable: bool) -> None:
    for number in range(1, 120):
        script = Script(kill=[("coordinator", number)], durable=durable)
        play = Play(RUINED, script, tmp_path / str(number)).run()
        check_restored(play)
        if not play.engine.deaths:
            break
    assert 40 < number < 119


def test_node_may_die_at_each_of_its_moments(tmp_path: Path) -> None:
    for number in range(1, 80):
        script = Script(kill=[("gaya", number)], durable=bool(number % 2))
        play = Play(RUINED, script, tmp_path / str(number)).run()
        check_restored(play)
        if not play.engine.deaths:
            break
    assert 40 < number < 79


@pytest.mark.parametrize("part", range(2))
def test_whatever_goes_wrong_the_same_version_is_restored(tmp_path: Path, part: int) -> None:
    for seed in range(part, 60, 2):
        check_restored(Play(RUINED, Script.drawn(seed, SITES), tmp_path / str(seed)).run())


def test_asynchronous_runs_end_with_a_version_that_a_majority_finds_best(tmp_path: Path) -> None:
    restored = 0
    for seed in range(25):
        play = Play(ASYNCHRONOUS, Script.drawn(seed, SITES), tmp_path / str(seed)).run()
        play.check_counts()
        selection = play.state.selection
        assert 9 <= play.state.version <= 11
        assert play.state.version == 9 + len(selection.restored)
        # What the run ends with was judged by all, and the one that it replaced is not better.
        assert selection.open is not None
        assert selection.open.version == play.state.version
        assert set(selection.open.ratios) == set(SITES)
        if len(selection.restored) == 1:
            worse = selection.compare(selection.open, selection.kept[-1], SITES)
            assert worse is not None
            assert selection.better_than_last(SITES) is None
        restored += bool(selection.restored)
    assert restored > 3


# --- lies

LIES: Mapping[str, Lie] = {
    "the last is perfect": lie_about_judgements(
        lambda version, bits: bits if version < 4 else 1e-9
    ),
    "the first is terrible": lie_about_judgements(
        lambda version, bits: bits if version != 2 else 1e9
    ),
    "all is nothing": lie_about_judgements(lambda version, bits: 0.0),
    "all is perfect": lie_about_judgements(lambda version, bits: bits if not version else 1e-300),
}


@pytest.mark.parametrize("lie", LIES)
def test_one_site_that_lies_does_not_choose(tmp_path: Path, lie: str) -> None:
    play = Play(RUINED, Script(lies={"gaya": LIES[lie]}), tmp_path).run()
    check_restored(play)


def test_one_site_that_lies_does_not_take_a_better_version_away(tmp_path: Path) -> None:
    worse = lie_about_judgements(lambda version, bits: 1e3 + version)
    play = Play(replace(RUINED, truthful=False), Script(lies={"gaya": worse}), tmp_path).run()
    assert play.state.version == 4


def test_control_two_of_three_sites_that_lie_do_choose(tmp_path: Path) -> None:
    lie = LIES["the last is perfect"]
    play = Play(RUINED, Script(lies={"gaya": lie, "arrah": lie}), tmp_path).run()
    assert play.state.version == 4


# --- real processes, killed around the end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Return a run in which nobody dies, which noted how often it passed each moment."""
    never = Kills(RUINED, {COORDINATOR: [("", 0)]})
    return Trial(never, tmp_path_factory.mktemp("undisturbed") / "trial").run()


def moments(trial: Trial) -> dict[str, int]:
    passed = (trial.home / COORDINATOR).read_text().splitlines()
    return {moment: passed.count(moment) for moment in MOMENTS_OF_COORDINATOR}


@pytest.mark.parametrize("moment", MOMENTS_OF_COORDINATOR)
def test_coordinator_that_is_killed_around_the_restore_ends_with_the_same_bits(
    undisturbed: Trial, tmp_path: Path, moment: str
) -> None:
    assert undisturbed.state.selection.restored
    last = moments(undisturbed)[moment]
    assert last
    kills: dict[str, Any] = {COORDINATOR: [(moment, last)]}
    script = replace(undisturbed.script, kills=kills)
    trial = Trial(script, tmp_path / "trial").run()
    died = trial.killed()[COORDINATOR]
    # A moment may come less often in another run: updates arrive together, or one by one.
    assert died in ([moment], [])
    assert trial.state.theta.tobytes() == undisturbed.state.theta.tobytes()
    assert trial.state.selection.restored == undisturbed.state.selection.restored
