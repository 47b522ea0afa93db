from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boli.rounds.shares import WINDOW, Shares
from boli.rounds.update import Folded, ServerState, SiteProgress

Fed = Callable[..., Any]


def state_of(number: int, folded: str = "", recent: Collection[str] = ()) -> ServerState:
    """Return a state of sites a, b, …; `folded` and `recent` are strings of their names."""
    names = [chr(ord("a") + i) for i in range(number)]
    sites = {name: SiteProgress() for name in names}
    entries = [
        Folded(site=name, sequence=folded[:i].count(name) + 1, staleness=0, norm=1)
        for i, name in enumerate(folded)
    ]
    return ServerState(
        "run",
        "0" * 32,
        np.zeros(4, np.float32),
        sites,
        folded=tuple(entries),
        frames={entry.key: b"" for entry in entries},
        recent=tuple(tuple(names) for names in recent),
    )


def shares(buffer_size: int, **values: Any) -> Shares:
    return Shares(buffer_size, **{"synchronous": False} | values)


def chosen(found: Shares, state: ServerState) -> str:
    return "".join(entry.site for entry in found.chosen(state))


def test_version_holds_one_update_of_a_site_and_the_next_waits() -> None:
    state = state_of(5, "aabac")
    found = shares(3)
    assert chosen(found, state) == "abc"
    assert [entry.sequence for entry in found.chosen(state)] == [1, 1, 1]
    assert found.needed(state, None) == 3


def test_plan_that_says_so_lets_a_version_hold_more() -> None:
    assert chosen(shares(3, most=0.67), state_of(3, "aab")) == "aab"
    assert chosen(shares(3, most=1.0), state_of(3, "aaa")) == "aaa"
    assert chosen(shares(12), state_of(3, "aaaaaa")) == "aaaa"  # 12 of 3 sites: 4 of each
    assert shares(12).needed(state_of(3), None) == 12


def test_site_trains_one_update_ahead_and_then_waits() -> None:
    found = shares(3)
    assert found.may_train(state_of(5), "a", None)
    assert found.may_train(state_of(5, "a"), "a", None)
    assert not found.may_train(state_of(5, "aa"), "a", None)
    assert found.may_train(state_of(5, "aa"), "b", None)
    assert not shares(3, synchronous=True).may_train(state_of(5, "a"), "a", None)


@pytest.mark.parametrize(("number", "buffer_size"), [(5, 3), (10, 5), (20, 10)])
def test_nobody_has_more_than_its_share_of_any_ten_versions(number: int, buffer_size: int) -> None:
    """A site answers at once, whenever it may; the others fill the versions in turn."""
    found, state = shares(buffer_size), state_of(number)
    others = [name for name in state.sites if name != "a"]
    turn, made = 0, []
    for _ in range(60):
        while found.may_train(state, "a", None):
            state = folded(state, "a")
        while len(found.chosen(state)) < found.needed(state, None):
            state = folded(state, others[turn % len(others)])
            turn += 1
        used = found.chosen(state)
        made.append([entry.site for entry in used])
        gone = {entry.key for entry in used}
        left = tuple(entry for entry in state.folded if entry.key not in gone)
        state = replace(state, folded=left, recent=(*state.recent, tuple(made[-1]))[-9:])
    for start in range(len(made) - WINDOW):
        window = [name for names in made[start : start + WINDOW] for name in names]
        assert window.count("a") <= np.ceil(1.5 / number * len(window)) + 1


def folded(state: ServerState, name: str) -> ServerState:
    sequence = state.sites[name].sequence + 1
    entry = Folded(site=name, sequence=sequence, staleness=0, norm=1)
    state = state.with_site(name, sequence=sequence)
    frames = {**state.frames, entry.key: b""}
    return replace(state, folded=(*state.folded, entry), frames=frames)


def test_those_who_are_away_are_not_waited_for() -> None:
    found = shares(10)
    assert found.needed(state_of(20), None) == 10
    assert found.needed(state_of(20), {"a", "b"}) == 2
    assert found.needed(state_of(20, "ab"), {"a", "b"}) == 2
    assert found.may_train(state_of(20, recent=["ab"] * 9), "a", {"a", "b"})


def test_site_that_is_there_alone_makes_no_version() -> None:
    """Nothing would be left to compare it to; with two sites in all it has to go on."""
    assert shares(10).needed(state_of(20, "aa"), {"a"}) == 2
    assert shares(2).needed(state_of(3, "aa"), {"a"}) == 2
    assert shares(1).needed(state_of(2, "a"), {"a"}) == 1


def test_site_with_its_share_is_not_waited_for_either() -> None:
    state = state_of(3, "b", recent=["a"] * 9)
    found = shares(1)
    assert not found.may_train(state, "a", {"a", "b", "c"})
    assert found.may_train(state, "b", {"a", "b", "c"})
    assert found.needed(state, {"a", "b"}) == 1


@pytest.mark.parametrize("keeps_frames", [True, False])
def test_flood_fills_no_version_and_is_taken_one_by_one(
    federation: Fed, keeps_frames: bool
) -> None:
    fed = federation(dict.fromkeys(("arrah", "gaya", "patna")))
    strategy = fed.strategy(buffer_size=2, max_staleness=5, keeps_frames=keeps_frames)
    state = strategy.begin(fed.state())
    ones = np.ones(fed.layout.size, np.float32)
    for _ in range(2):
        state, (verdict,), _ = strategy.fold(state, [fed.delivery(state, "gaya", ones * 9)])
        assert verdict.accepted
        state = fed.ask(state)
    assert not strategy.ready(state)
    assert len(state.frames) == (2 if keeps_frames else 1)
    state, _, _ = strategy.fold(state, [fed.delivery(state, "arrah", ones)])
    assert strategy.ready(state)
    state, release, _ = strategy.step(state)
    assert [entry.site for entry in state.folded] == ["gaya"]
    assert state.recent == (("arrah", "gaya"),)
    assert not strategy.ready(state)
    assert release.step == pytest.approx((1 + 9) / 2)  # norm_multiple is 10 here
    state = fed.ask(state)
    state, _, _ = strategy.fold(state, [fed.delivery(state, "patna", ones)])
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx((1 + 9) / 2**0.5 / 2)  # both are one version old now


@pytest.mark.parametrize("most", [None, 0.05, 0.3, 0.67])
@pytest.mark.parametrize("there", [1, 2, 3, 5])
@pytest.mark.parametrize("buffer_size", [1, 2, 3, 5])
def test_somebody_always_goes_on(most: float | None, there: int, buffer_size: int) -> None:
    """Whoever may train does, and answers at once: no version is waited for by nobody."""
    found, state = shares(buffer_size, most=most), state_of(5)
    present = set(list(state.sites)[:there])
    for _ in range(40):
        for name in [*present] * 5:
            if found.may_train(state, name, present):
                state = folded(state, name)
        if there == 1 and buffer_size > 1:
            assert len(found.chosen(state)) < found.needed(state, present)  # it is alone
            return
        used = found.chosen(state)
        assert len(used) >= found.needed(state, present)
        gone = {entry.key for entry in used}
        left = tuple(entry for entry in state.folded if entry.key not in gone)
        names = tuple(entry.site for entry in used)
        state = replace(state, folded=left, recent=(*state.recent, names)[-9:])
