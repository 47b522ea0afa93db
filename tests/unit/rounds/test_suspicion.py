from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli.codec.entries import Entries
from boli.journal import SiteBenched, UpdateWeighed
from boli.model.layout import Vector
from boli.rounds.suspicion import (
    BUCKETS,
    EARLY,
    OFFENCES,
    SEEN,
    Suspicion,
    directions,
    forgive,
    seen,
    sketch_of,
)
from boli.rounds.update import ServerState

Fed = Callable[..., Any]
FIVE = dict.fromkeys(("arrah", "gaya", "patna", "rewa", "satna"))
D = 20_000


def cosine(one: Vector, other: Vector) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# --- sketches


def test_sketch_keeps_cosines_to_about_two_percent() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal(D).astype(np.float32)
    for mix in (-1.0, -0.5, 0.0, 0.5, 1.0):
        other = (mix * one + rng.standard_normal(D) * (1 - abs(mix))).astype(np.float32)
        sketches = [sketch_of(Entries(D, v), ((0, D),), 7) for v in (one, other)]
        assert cosine(*sketches) == pytest.approx(cosine(one, other), abs=4 / BUCKETS**0.5)


def test_sketch_of_a_view_and_of_few_entries_is_the_sketch_of_the_whole_vector() -> None:
    rng = np.random.default_rng(1)
    whole = np.zeros(D, np.float32)
    part = rng.standard_normal(3_000).astype(np.float32)
    whole[5_000:8_000] = part
    expected = sketch_of(Entries(D, whole), ((0, D),), 7)
    assert sketch_of(Entries(3_000, part), ((5_000, 8_000),), 7) == pytest.approx(expected)
    places = np.flatnonzero(whole)
    assert sketch_of(Entries(D, whole[places], places), ((0, D),), 7) == pytest.approx(expected)


def test_sketches_of_unlike_seeds_have_nothing_in_common() -> None:
    vector = np.ones(D, np.float32)
    one, other = (sketch_of(Entries(D, vector), ((0, D),), seed) for seed in (7, 9))
    assert abs(cosine(one, other)) < 0.1


# --- directions


def test_direction_is_the_median_of_the_cosines_to_the_others() -> None:
    axes = np.eye(4, dtype=np.float32)
    found = directions({"a": axes[0], "b": axes[0], "c": -axes[0], "d": axes[1]})
    assert found == {"a": 0.0, "b": 0.0, "c": -1.0, "d": 0.0}
    found = directions({"a": axes[0], "b": axes[0], "c": -axes[0]})
    assert found == {"a": 1.0, "b": 1.0, "c": -1.0}
    assert directions({"a": axes[0]}) == {}


def played(
    fed: Any,
    headings: Mapping[str, Callable[[int, np.random.Generator], Vector]],
    rounds: int,
    **settings: Any,
) -> tuple[ServerState, list[Any]]:
    """Run synchronous rounds in which each site sends what its function makes."""
    strategy = fed.strategy(keeps_frames=True, norm_multiple=1.5, **settings)
    state, told = strategy.begin(fed.state()), []
    rng = np.random.default_rng(3)
    for number in range(rounds):
        for name in [name for name in headings if name in state.active]:
            vector = headings[name](number, rng)
            state, (verdict,), _ = strategy.fold(state, [fed.delivery(state, name, vector)])
            assert verdict.accepted
        assert strategy.ready(state)
        state, events = strategy.judge(state)
        told += events
        state = fed.ask(strategy.step(state)[0])
        for name, site in state.sites.items():
            state = state.with_site(name, outstanding=None) if site.benched else state
    return state, told


def toward(direction: Vector, noise: float = 1.0, sign: float = 1.0) -> Any:
    """Return what a site sends that goes into a direction, with noise of its own."""

    def made(_: int, rng: np.random.Generator) -> Vector:
        scattered = noise * rng.standard_normal(direction.size)
        return (sign * (direction + scattered)).astype(np.float32)

    return made


def wide(federation: Fed, names: Sequence[str]) -> Any:
    """Return a federation whose vectors have enough entries for directions to mean something."""
    from boli.model.layout import Layout

    return federation(dict.fromkeys(names), Layout.of({"a": ((4, 500), "rows")}))


def benched(events: Sequence[Any]) -> list[str]:
    return [event.site for event in events if isinstance(event, SiteBenched)]


def test_site_that_turns_its_updates_round_is_suspended_and_told_why(federation: Fed) -> None:
    fed = wide(federation, list(FIVE))
    common = np.ones(2_000, np.float32)
    sites = {name: toward(common) for name in FIVE} | {"satna": toward(common, sign=-1.0)}
    state, events = played(fed, sites, 8)
    assert benched(events) == ["satna"]
    site = state.sites["satna"]
    assert site.suspended
    assert site.benched == "of its last 3 updates 3 pointed against the other sites'"
    weighed = [event for event in events if isinstance(event, UpdateWeighed)]
    mine = [event for event in weighed if event.site == "satna"]
    assert [event.version for event in mine] == [1, 2, 3]
    assert all(event.direction < -0.3 and event.offence == "direction" for event in mine)
    others = [event for event in weighed if event.site != "satna"]
    assert all(event.direction > 0.2 and not event.offence for event in others)
    # What it sent last is in no version.
    assert len({event.sequence for event in mine}) == 3
    assert [len(names) for names in state.recent[:4]] == [5, 5, 4, 4]


def test_control_where_the_plan_suspends_nobody_it_goes_on(federation: Fed) -> None:
    fed = wide(federation, list(FIVE))
    common = np.ones(2_000, np.float32)
    sites = {name: toward(common) for name in FIVE} | {"satna": toward(common, sign=-1.0)}
    state, events = played(fed, sites, 8, suspicion=Suspicion(suspends=False))
    assert benched(events) == []
    assert len(state.active) == 5
    assert sum(event.offence == "direction" for event in events) == EARLY


@pytest.mark.parametrize("number", [3, 5])
def test_honest_sites_of_unlike_languages_are_never_suspended(federation: Fed, number: int) -> None:
    """At first all go the same way; then the others pull to one side, and one to the opposite."""
    names = list(FIVE)[:number]
    fed = wide(federation, names)
    common = np.ones(2_000, np.float32)
    own = np.tile(np.random.default_rng(5).standard_normal(2_000).astype(np.float32), (number, 1))
    own[-1] *= 1 - number  # where all have come as far as they come: the sum is zero

    def site(index: int) -> Any:
        def made(number: int, rng: np.random.Generator) -> Vector:
            fading = 0.9**number
            vector = fading * common + (1 - fading) * own[index] + rng.standard_normal(2_000)
            return vector.astype(np.float32)

        return made

    _, events = played(fed, {name: site(i) for i, name in enumerate(names)}, 25)
    assert benched(events) == []
    # It is seen, and it looks like a liar's: the control of the rule that only early rounds count.
    last = [e for e in events if isinstance(e, UpdateWeighed) if e.version == 25]
    directions = {event.site: event.direction for event in last}
    assert directions.pop(names[-1]) < -0.3
    assert min(directions.values()) > 0.3


def test_minority_of_liars_cannot_frame_an_honest_site(federation: Fed) -> None:
    """They know the direction of a victim of another dialect, and send the opposite of it."""
    names = [f"site-{n}" for n in range(9)]
    fed = wide(federation, names)
    rng = np.random.default_rng(6)
    common, dialect = (rng.standard_normal(2_000).astype(np.float32) for _ in range(2))
    victim = 0.2 * common + dialect
    sites = {name: toward(common) for name in names} | {names[0]: toward(victim, noise=0.3)}
    sites |= {name: toward(-victim, noise=0.0) for name in names[-4:]}
    _, events = played(fed, sites, 20)
    assert names[0] not in benched(events)
    assert not [
        e for e in events if isinstance(e, UpdateWeighed) if e.site == names[0] if e.offence
    ]


@pytest.mark.parametrize(("number", "most"), [(2, 0), (3, 1), (4, 1), (5, 2)])
def test_never_more_than_a_minority_is_suspended(federation: Fed, number: int, most: int) -> None:
    fed = federation(dict.fromkeys(list(FIVE)[:number]))
    state = fed.state()
    for name in fed.ranks:
        for _ in range(SEEN):
            state = seen(state, name, "norm")
    state, events = Suspicion().suspend(state)
    assert len(benched(events)) == most
    assert Suspicion().suspend(state) == (state, [])


def test_offences_that_were_long_ago_are_forgotten(federation: Fed) -> None:
    state = federation(FIVE).state()
    for _ in range(OFFENCES - 1):
        state = seen(state, "gaya", "refused")
    for _ in range(SEEN - OFFENCES + 2):
        state = seen(state, "gaya", "")
    state = seen(state, "gaya", "norm")
    assert Suspicion().suspend(state)[1] == []
    for _ in range(OFFENCES):
        state = seen(state, "gaya", "norm")
    (event,) = Suspicion().suspend(state)[1]
    assert "were more than 4 times too large" in event.reason


# --- forgiven, and not before


def test_suspended_site_stays_out_until_it_is_forgiven(federation: Fed) -> None:
    fed = federation(FIVE)
    state = fed.state()
    for _ in range(OFFENCES):
        state = seen(state, "gaya", "norm")
    state, _ = Suspicion().suspend(state)
    state = state.with_site("patna", benched="its disk is full")
    resumed = state.welcome_back()
    assert resumed.sites["gaya"].benched
    assert not resumed.sites["patna"].benched
    forgiven = forgive(resumed, "gaya")
    assert "gaya" in forgiven.active
    assert forgiven.sites["gaya"].seen == ()
    assert Suspicion().suspend(forgiven)[1] == []


def test_site_that_joins_again_is_not_taken_back(tmp_path: Path) -> None:
    from quadratic import Job

    from boli.journal import Journal
    from boli.rounds.checkpoint import CheckpointStore

    job = Job()
    journal = Journal(tmp_path / "journal.jsonl")
    rounds = job.loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
    state = job.first_state().with_site("gaya", benched="why", suspended=True)
    assert rounds._welcome(state, ["gaya"]).sites["gaya"].benched == "why"
    failed = job.first_state().with_site("gaya", benched="its disk is full")
    assert not rounds._welcome(failed, ["gaya"]).sites["gaya"].benched


def test_forgiven_site_trains_again_and_one_that_is_not_does_not(tmp_path: Path) -> None:
    from quadratic import Job

    from boli.engine.fake import FakeTransport
    from boli.errors import RunError
    from boli.journal import Journal, SiteForgiven, UpdateAccepted, read_journal
    from boli.rounds.checkpoint import CheckpointStore
    from boli.run import _forgiven

    job, accepted = Job(), {}
    for names in ((), ("gaya",)):
        folder = tmp_path / f"forgiven {len(names)}"
        folder.mkdir()
        journal, store = Journal(folder / "journal.jsonl"), CheckpointStore(folder)
        store.save(job.first_state().with_site("gaya", benched="why", suspended=True))
        found = store.load()
        assert found is not None
        state = _forgiven(found[0].welcome_back(), names, journal)
        engine = FakeTransport(job.node)
        job.loop(engine, store, journal).run(state)
        engine.close()
        journal.close()
        events = [entry.event for entry in read_journal(folder / "journal.jsonl")]
        assert [e.site for e in events if isinstance(e, SiteForgiven)] == list(names)
        accepted[names] = {e.site for e in events if isinstance(e, UpdateAccepted)}
    assert accepted == {
        (): {"arrah", "darbhanga"},
        ("gaya",): {"arrah", "darbhanga", "gaya"},
    }
    with pytest.raises(RunError, match="no site 'nobody' to forgive") as caught:
        _forgiven(job.first_state(), ["nobody"], journal)
    assert "arrah, darbhanga, gaya" in caught.value.hint


def test_frames_of_a_site_that_is_suspended_are_dropped(federation: Fed) -> None:
    fed = federation(FIVE)
    strategy = fed.strategy(keeps_frames=True, buffer_size=3, max_staleness=5)
    state = strategy.begin(fed.state())
    ones = np.ones(fed.layout.size, np.float32)
    for name in ("gaya", "patna", "rewa"):
        state, _, _ = strategy.fold(state, [fed.delivery(state, name, ones)])
    before = state.with_site("gaya", seen=("norm",) * (OFFENCES - 1))
    state, events = strategy.judge(before)
    assert benched(events) == []
    worse = replace(before, sites={**before.sites})
    for _ in range(OFFENCES):
        worse = seen(worse, "gaya", "norm")
    state, events = strategy.judge(worse)
    assert benched(events) == ["gaya"]
    assert set(state.frames) == {"patna/1", "rewa/1"}
    assert [entry.site for entry in state.folded] == ["patna", "rewa"]
