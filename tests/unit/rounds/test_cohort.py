from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boli.codec.codec import encode_frame
from boli.codec.public import PublicCodec
from boli.journal import UpdateRejected
from boli.rounds.cohort import Cohorts
from boli.rounds.schedule import Schedule
from boli.rounds.update import Folded, ServerState

Fed = Callable[..., Any]
TWO = {"arrah": None, "gaya": 2}
COHORTS = Cohorts(PublicCodec(density=0.5, value_bits=4), seed=7, typical=0.01)


def begun(fed: Any) -> tuple[Any, ServerState]:
    """Return a strategy, and version 0 with an open order for each site."""
    strategy = fed.strategy(cohorts=COHORTS)
    state = strategy.begin(fed.state())
    for name, site in state.sites.items():
        order = site.outstanding.model_copy(update={"support": state.support})
        state = state.with_site(name, outstanding=order)
    return strategy, state


def answer(fed: Any, state: ServerState, site: str, vector: Any, **values: Any) -> Any:
    view = fed.layout.view(fed.ranks[site])
    codec = COHORTS.agreed(state, view.spans)
    part = view.take(vector).astype(np.float32)
    frame = encode_frame(codec, part, state.layout, fed.ranks[site], state.version)
    return fed.delivery(state, site, vector, payload=frame, **values)


def complete(fed: Any, state: ServerState, strategy: Any, **left: float) -> ServerState:
    for name in fed.ranks:
        vector = np.full(fed.layout.size, 0.01)
        values = {"residual_norm": left.get(name, 0.0)}
        state, verdicts, _ = strategy.fold(state, [answer(fed, state, name, vector, **values)])
        assert verdicts[0].accepted
    after: ServerState = strategy.step(state)[0]
    return after


def test_first_cohort_goes_by_the_plan_and_begins_once(federation: Fed) -> None:
    strategy, state = begun(federation(TWO))
    assert np.array_equal(state.first, state.theta)
    assert state.support.above == 0
    assert state.support.unit == -7  # 2^-7 ≈ 6 · 0.01 ÷ 7
    assert strategy.begin(state) is state


def test_next_cohort_goes_on_where_the_walk_was_and_by_what_moved(federation: Fed) -> None:
    fed = federation(TWO)
    strategy, state = begun(fed)
    after = complete(fed, state, strategy)
    assert after.first.tobytes() == state.first.tobytes()
    assert after.support.seed == 7
    assert after.support.start == state.support.blocks % 3
    moved = np.sort(np.abs(after.theta - after.first))
    furthest = round(moved.size * 0.5 * 0.25)
    assert after.support.above == moved[-1 - furthest]


@pytest.mark.parametrize(
    ("left", "unit"),
    [
        ({"arrah": 0.0, "gaya": 0.0}, -8),  # nothing waits: finer
        ({"arrah": 0.1 * 45**0.5, "gaya": 1e30}, -4),  # one that says too much is not believed
        ({"arrah": 1e30, "gaya": 1e30}, 20),
    ],
)
def test_level_follows_the_lower_median_of_what_is_left(
    federation: Fed, left: dict[str, float], unit: int
) -> None:
    fed = federation(TWO)
    strategy, state = begun(fed)
    assert complete(fed, state, strategy, **left).support.unit == unit


def test_support_does_not_depend_on_the_order_of_arrival() -> None:
    state = ServerState("run", "0" * 32, np.ones(64, np.float32), {})
    state = COHORTS.begin(state)
    entries = [
        Folded(site=s, sequence=1, staleness=0, norm=1, left=x)
        for s, x in zip("abc", (3, 1, 2), strict=True)
    ]
    found = {
        COHORTS.following(replace(state, folded=tuple(order)), state.theta * 2).unit
        for order in (entries, entries[::-1], [entries[1], entries[0], entries[2]])
    }
    assert found == {1}


def test_update_of_another_support_is_refused_and_counted(federation: Fed) -> None:
    fed = federation(TWO)
    strategy, state = begun(fed)
    other = replace(state, support=state.support.model_copy(update={"start": 1}))
    delivery = answer(fed, other, "arrah", np.ones(fed.layout.size))
    after, (verdict,), events = strategy.fold(state, [delivery])
    assert not verdict.accepted
    assert not verdict.keep
    assert isinstance(events[0], UpdateRejected)
    assert events[0].reason == "malformed"
    assert after.sites["arrah"].rejections == 1


def test_update_from_a_version_that_overtook_its_order_goes_back_to_its_site(
    federation: Fed,
) -> None:
    """Its site used the support of another version than the others of its cohort."""
    fed = federation(TWO)
    strategy, state = begun(fed)
    newer = replace(state, version=1)
    delivery = answer(fed, newer, "arrah", np.ones(fed.layout.size), base_version=1)
    after, (verdict,), _ = strategy.fold(newer, [delivery])
    assert (verdict.accepted, verdict.keep, verdict.reason) == (False, True, "stale")
    assert after.sites["arrah"].outstanding is None


def test_training_orders_name_the_support_and_others_do_not(federation: Fed) -> None:
    _, state = begun(federation(TWO))
    schedule = Schedule(2, 4, synchronous=True, speed_aware=False, every_rounds=1)
    for version, expected in ((0, state.support), (2, None)):
        idle = replace(state, version=version)
        for name in TWO:
            idle = idle.with_site(name, outstanding=None)
        _, orders = schedule.issue(idle)
        assert [order.support for order in orders] == [expected, expected]


def test_site_that_comes_back_to_a_newer_version_gets_a_new_order(federation: Fed) -> None:
    """Not the old one moved: an answer to that may already be on its way, on the old support."""
    _, state = begun(federation(TWO))
    schedule = Schedule(9, 4, synchronous=True, speed_aware=False, every_rounds=1)
    same, order = schedule.reopen(state, "gaya")
    assert same is state
    assert order == state.sites["gaya"].outstanding
    after, order = schedule.reopen(replace(state, version=3), "gaya")
    assert order is not None
    assert (order.sequence, order.base_version) == (state.sites["gaya"].sequence + 1, 3)
    assert after.sites["gaya"].outstanding == order
