from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from boli.rounds.schedule import Schedule
from boli.rounds.update import Folded, Judgement, Order, ServerState, SiteProgress

Fed = Callable[..., Any]
THREE = {"arrah": None, "gaya": 2, "patna": None}


def schedule(**values: Any) -> Schedule:
    settings: dict[str, Any] = {
        "total": 10,
        "local_steps": 16,
        "synchronous": True,
        "speed_aware": False,
        "every_rounds": 3,
    }
    return Schedule(**(settings | values))


def fresh(fed: Any, **values: Any) -> ServerState:
    sites = {name: SiteProgress(rank=rank) for name, rank in fed.ranks.items()}
    state: ServerState = replace(fed.state(), sites=sites, **values)
    return state


def folded(*names: str) -> tuple[Folded, ...]:
    return tuple(Folded(site=name, sequence=1, staleness=0, norm=1.0) for name in names)


def sites_of(orders: list[Order]) -> list[str]:
    return [order.site for order in orders]


# --- who is asked


def test_every_site_is_asked_once_at_the_start(federation: Fed) -> None:
    state = fresh(federation(THREE))
    after, orders = schedule().issue(state)
    assert sites_of(orders) == ["arrah", "gaya", "patna"]
    for order in orders:
        assert order.order == f"run-{order.site}-1"
        assert (order.sequence, order.attempt, order.base_version) == (1, 0, 0)
        assert (order.layout, order.rank) == (state.layout, THREE[order.site])
        assert order.local_steps == 16
        assert after.sites[order.site].outstanding == order
    assert schedule().issue(after)[1] == []
    assert all(site.outstanding is None for site in state.sites.values())  # left untouched


def test_orders_are_the_same_after_a_restart(federation: Fed) -> None:
    state = fresh(federation(THREE), version=4)
    assert schedule().issue(state)[1] == schedule().issue(state)[1]


def test_synchronous_site_waits_until_the_round_is_made(federation: Fed) -> None:
    state, _ = schedule().issue(fresh(federation(THREE)))
    state = state.with_site("gaya", outstanding=None)
    assert schedule().issue(replace(state, folded=folded("gaya")))[1] == []
    made = replace(state, version=1, folded=())
    _, orders = schedule().issue(made)
    assert sites_of(orders) == ["gaya"]
    assert (orders[0].sequence, orders[0].base_version) == (2, 1)


def test_synchronous_site_whose_update_was_refused_is_asked_again(federation: Fed) -> None:
    state, _ = schedule().issue(fresh(federation(THREE)))
    state = replace(state.with_site("gaya", outstanding=None), folded=folded("arrah"))
    _, orders = schedule().issue(state)
    assert [order.order for order in orders] == ["run-gaya-2"]


def test_asynchronous_site_is_asked_at_once(federation: Fed) -> None:
    strategy = schedule(synchronous=False)
    state, _ = strategy.issue(fresh(federation(THREE)))
    state = replace(state.with_site("gaya", outstanding=None), folded=folded("gaya"))
    _, orders = strategy.issue(state)
    assert [order.order for order in orders] == ["run-gaya-2"]
    assert orders[0].base_version == 0


def test_benched_site_is_not_asked(federation: Fed) -> None:
    state = fresh(federation(THREE)).with_site("gaya", benched="why")
    assert sites_of(schedule().issue(state)[1]) == ["arrah", "patna"]


def test_position_of_an_order_walks_through_the_run(federation: Fed) -> None:
    for version in range(10):
        state = fresh(federation(THREE), version=version)
        order = schedule().issue(state)[1][0]
        assert order.position == pytest.approx(version / 10)
        assert order.position + 16 * order.position_step == pytest.approx((version + 1) / 10)


# --- the end


def test_open_training_is_superseded_once_the_last_version_is_made(federation: Fed) -> None:
    state, _ = schedule().issue(fresh(federation(THREE), version=9))
    state = replace(state.with_site("arrah", outstanding=None), version=10)
    assert not schedule().finished(state)
    after, orders = schedule().issue(state)
    assert sites_of(orders) == ["arrah", "gaya", "patna"]
    for order in orders:
        assert (order.local_steps, order.base_version, order.sequence) == (0, 10, 2)
        assert order.evaluate == ("tuning", "test")
        assert order.position == 1.0
    assert schedule().issue(after)[1] == []  # judging is not superseded again


def test_run_is_finished_when_every_active_site_has_judged_the_last_version(
    federation: Fed,
) -> None:
    state = fresh(federation(THREE), version=10)
    for name in ("arrah", "gaya"):
        state = state.with_site(name, finished=True)
    assert not schedule().finished(state)
    assert sites_of(schedule().issue(state)[1]) == ["patna"]
    assert schedule().finished(state.with_site("patna", finished=True))
    assert schedule().finished(state.with_site("patna", benched="why"))
    assert not schedule().finished(replace(state.with_site("patna", finished=True), version=9))


# --- what is judged


def test_tuning_part_is_judged_every_few_rounds_and_the_test_part_at_both_ends(
    federation: Fed,
) -> None:
    tuning = ("tuning",)
    judged = judged_versions(fresh(federation({"gaya": None})))
    assert judged[0] == judged[10] == ("tuning", "test")
    assert judged[1:10] == [(), (), tuning, (), (), tuning, (), (), tuning]


def judged_versions(state: ServerState) -> list[Any]:
    """Return what a site judged at each version; each order is answered at once."""
    judged, each = [], schedule()
    for version in range(11):
        if version:
            selection, _ = state.selection.follow(
                state.theta, version, state.active, each.every_rounds, each.total
            )
            state = replace(state, version=version, selection=selection)
        state, (order,) = each.issue(state)
        judged.append(order.evaluate)
        found = [Judgement(language="mag", part=p, bits=8.0, bytes=4) for p in order.evaluate]
        told = {"judged": version, "judged_sequence": order.sequence} if found else {}
        state = state.with_site("gaya", outstanding=None, **told)
        if found:
            state = replace(state, selection=state.selection.hear("gaya", version, found))
    return judged


def test_slow_asynchronous_site_does_not_mostly_judge(federation: Fed) -> None:
    """It was asked for few orders since the last judgement; another comes in its own time."""
    state = fresh(federation({"gaya": None, "patna": None}))
    state = state.with_site("patna", benched="away")
    slow = {"synchronous": False, "every_rounds": 4}
    selection, _ = state.selection.follow(state.theta, 4, state.active, 4, 10)
    state = replace(state, version=4, selection=selection)
    state = replace(state, selection=replace(selection, base={"gaya": 2.0}))
    state = state.with_site("gaya", judged=0, judged_sequence=1, sequence=1)
    assert schedule(**slow).issue(state)[1][0].evaluate == ()
    state = state.with_site("gaya", sequence=2)
    assert schedule(**slow).issue(state)[1][0].evaluate == ("tuning",)
    assert schedule(every_rounds=4).issue(state)[1][0].evaluate == ("tuning",)


def test_site_that_has_judged_nothing_by_the_end_judges_the_first_version_before_the_last(
    federation: Fed,
) -> None:
    fed = federation({"gaya": None})
    state, (training,) = schedule().issue(fresh(fed))
    assert training.first
    state = replace(state, version=10)
    state, (first,) = schedule().issue(state)
    assert (first.first, first.local_steps) == (True, 0)
    assert schedule().issue(state)[1] == []
    state = state.with_site("gaya", outstanding=None, judged=0)
    state, (last,) = schedule().issue(state)
    assert (last.first, last.base_version, last.local_steps) == (False, 10, 0)


# --- speed


def speeds(fed: Any, **found: float) -> ServerState:
    state = fresh(fed)
    for name, speed in found.items():
        state = state.with_site(name, steps_per_second=speed)
    return state


def asked(state: ServerState, **values: Any) -> dict[str, int]:
    _, orders = schedule(**({"synchronous": False, "speed_aware": True} | values)).issue(state)
    return {order.site: order.local_steps for order in orders}


def test_steps_follow_the_measured_speed(federation: Fed) -> None:
    fed = federation(THREE)
    found = asked(speeds(fed, arrah=2.0, gaya=1.0, patna=3.0))
    assert found == {"arrah": 16, "gaya": 8, "patna": 24}


@pytest.mark.parametrize(("speed", "steps"), [(1e-6, 2), (0.1, 2), (1e6, 64), (4.5, 64)])
def test_steps_are_clamped_between_an_eighth_and_four_times(
    federation: Fed, speed: float, steps: int
) -> None:
    found = asked(speeds(federation(THREE), arrah=1.0, patna=1.0, gaya=speed))
    assert found == {"arrah": 16, "gaya": steps, "patna": 16}


def test_at_least_one_step_is_asked_for(federation: Fed) -> None:
    state = speeds(federation(THREE), arrah=1.0, patna=1.0, gaya=1e-6)
    assert asked(state, local_steps=3)["gaya"] == 1


def test_site_whose_speed_is_not_known_does_the_ordinary_number(federation: Fed) -> None:
    assert asked(speeds(federation(THREE), arrah=1.0, patna=3.0))["gaya"] == 16
    assert set(asked(speeds(federation(THREE))).values()) == {16}


def test_speed_does_not_count_unless_asked_for(federation: Fed) -> None:
    state = speeds(federation(THREE), arrah=1.0, gaya=9.0, patna=3.0)
    assert set(asked(state, speed_aware=False).values()) == {16}


def test_time_on_a_line_is_taken_from_the_steps_so_that_all_are_done_together(
    federation: Fed,
) -> None:
    state = speeds(federation(THREE), arrah=2.0, gaya=2.0, patna=1.0)
    state = state.with_site("gaya", link_seconds=4.0)
    found = asked(state)  # 16 steps take 8, 8 + 4 and 16 s
    assert found == {"arrah": 24, "gaya": 16, "patna": 12}
    slow = state.with_site("gaya", link_seconds=100.0)
    assert asked(slow)["gaya"] == 2  # however long the line takes, some work is asked for


def densities(state: ServerState, **values: Any) -> dict[str, float]:
    settings = {"synchronous": False, "speed_aware": True, "densities": (0.01, 0.1)}
    after, orders = schedule(**(settings | values)).issue(state)
    assert {name: site.density for name, site in after.sites.items()} == {
        order.site: order.density for order in orders
    }
    return {order.site: order.density for order in orders}


def test_thin_line_is_spared_within_the_bounds_of_the_plan(federation: Fed) -> None:
    state = speeds(federation(THREE), arrah=2.0, gaya=2.0, patna=2.0)
    assert set(densities(state).values()) == {0.0}  # no line measured: as the plan says
    state = state.with_site("gaya", link_seconds=3.0).with_site("patna", link_seconds=1.0)
    assert densities(state) == {"arrah": 0.0, "gaya": 0.075, "patna": 0.0}
    state = state.with_site("gaya", density=0.011, link_seconds=50.0)
    assert densities(state)["gaya"] == 0.01
    assert densities(state, densities=(0.1, 0.1))["gaya"] == 0.0
    assert densities(state, speed_aware=False)["gaya"] == 0.0
    state = state.with_site("gaya", density=0.06, link_seconds=0.5)
    assert densities(state)["gaya"] == 0.0  # back at what the plan says


def test_benched_site_does_not_count_in_the_median(federation: Fed) -> None:
    state = speeds(federation(THREE), arrah=1.0, gaya=1.0, patna=1000.0)
    state = state.with_site("patna", benched="why")
    assert asked(state) == {"arrah": 16, "gaya": 16}


# --- hurry


def test_late_order_is_halved_again_and_again_and_stays_the_same_order(federation: Fed) -> None:
    state, _ = schedule().issue(fresh(federation(THREE)))
    found = []
    for _ in range(4):
        before = state.sites["gaya"].outstanding
        state, order = schedule().shrink(state, "gaya")
        assert order is not None
        assert before is not None
        assert state.sites["gaya"].outstanding == order
        assert (order.order, order.sequence) == (before.order, before.sequence)
        found.append((order.attempt, order.local_steps))
    assert found == [(1, 8), (2, 4), (3, 2), (4, 1)]
    assert schedule().shrink(state, "gaya") == (state, None)


def test_nothing_is_halved_where_nothing_is_open_or_only_judging_is(federation: Fed) -> None:
    state = fresh(federation(THREE))
    assert schedule().shrink(state, "gaya") == (state, None)
    state, _ = schedule().issue(replace(state, version=10))
    assert schedule().shrink(state, "gaya") == (state, None)


# --- coming back


def test_site_that_comes_back_gets_its_open_order_on_the_version_there_is(
    federation: Fed,
) -> None:
    state, orders = schedule().issue(fresh(federation(THREE)))
    assert schedule().reopen(state, "gaya") == (state, orders[1])  # nothing has changed
    state, order = schedule().reopen(replace(state, version=4), "gaya")
    assert order is not None
    assert state.sites["gaya"].outstanding == order
    assert (order.order, order.sequence, order.attempt) == ("run-gaya-1", 1, 1)
    assert (order.base_version, order.local_steps) == (4, 16)
    assert order.position == pytest.approx(0.4)


def test_site_that_comes_back_without_an_open_order_gets_none(federation: Fed) -> None:
    state = fresh(federation(THREE))
    assert schedule().reopen(state, "gaya") == (state, None)


# --- never less than the plan says


def test_no_order_asks_for_fewer_steps_than_the_plan_says(federation: Fed) -> None:
    state = fresh(federation({"arrah": None, "gaya": None, "patna": None}))
    for name, speed in (("arrah", 10.0), ("gaya", 10.0), ("patna", 0.1)):
        state = state.with_site(name, steps_per_second=speed)
    aware = schedule(synchronous=False, speed_aware=True)
    steps = {order.site: order.local_steps for order in aware.issue(state)[1]}
    assert steps["patna"] == 2  # the control: an eighth of 16
    bounded = schedule(synchronous=False, speed_aware=True, min_local_steps=10)
    state, orders = bounded.issue(state)
    assert {order.site: order.local_steps for order in orders}["patna"] == 10
    assert bounded.shrink(state, "patna") == (state, None)
    state, order = bounded.shrink(state, "arrah")
    assert order is not None
    assert order.local_steps == 10
    assert bounded.shrink(state, "arrah") == (state, None)
