from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from boli.journal import UpdateRejected
from boli.plan import LocalStepsPlan
from boli.rounds.bounds import (
    MULTIPLE,
    Reach,
    furthest_step,
    lower_median,
    multiple_of,
    muon_steps,
    reach_of,
    weigh,
)
from boli.rounds.update import Folded, Order, ServerState, SiteProgress, UpdateHeader

Fed = Callable[..., Any]
FIVE = dict.fromkeys(("arrah", "gaya", "patna", "rewa", "satna"))


def entry(site: str, norm: float, weight: float = 1.0, **values: Any) -> Folded:
    figures = {"sequence": 1, "staleness": 0, "size": 100, "rate": 0.1} | values
    return Folded(site=site, norm=norm, weight=weight, **figures)


def empty(*names: str) -> ServerState:
    sites = {name: SiteProgress() for name in names}
    return ServerState("run", "0" * 32, np.zeros(100, np.float32), sites)


# --- what the other sites add


def test_lower_median_has_fewer_than_half_below_it() -> None:
    assert [lower_median(range(n)) for n in range(1, 6)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("size", [3.0, 9.0, 100.0, 1e6])
def test_no_update_adds_more_than_its_multiple_of_what_the_median_site_adds(size: float) -> None:
    entries = [entry(name, 1.0 + i / 10) for i, name in enumerate("abcd")] + [entry("e", size)]
    found = {one.entry.site: one for one in weigh(empty(*"abcde"), entries, entries, 1.5)}
    assert found["e"].scaled * size == pytest.approx(1.5 * 1.2)
    assert found["e"].bound == pytest.approx(1.5 * 1.2)
    assert all(found[name].scaled == 1 for name in "abcd")


def test_claimed_weight_counts_as_much_as_a_norm_does() -> None:
    entries = [entry(name, 1.0) for name in "abcd"] + [entry("e", 1.0, weight=4.0)]
    liar = weigh(empty(*"abcde"), entries, entries, 1.5)[-1]
    assert liar.weight == pytest.approx(1.5, rel=1e-5)  # it does not dilute the others
    assert liar.weight * liar.scaled * 1.0 == pytest.approx(1.5, rel=1e-5)


def test_many_updates_of_one_site_have_one_vote() -> None:
    flood = [entry("e", 50.0, sequence=n) for n in range(30)]
    entries = [entry(name, 1.0) for name in "abcd"] + flood
    found = weigh(empty(*"abcde"), entries, entries, 1.5)
    scaled = [one.scaled for one in found if one.entry.site == "e"]
    assert scaled == pytest.approx([0.03] * 30)


@pytest.mark.parametrize("liars", [1, 2])
def test_minority_moves_no_bound_beyond_what_honest_sites_add(liars: int) -> None:
    honest = [1.0, 1.1, 1.3]
    for sizes in itertools.product((0.0, 1e-3, 1e3, 1e9), repeat=liars):
        entries = [entry(f"h{i}", norm) for i, norm in enumerate(honest)]
        entries += [entry(f"l{i}", norm) for i, norm in enumerate(sizes)]
        found = weigh(empty(*(e.site for e in entries)), entries, entries, 1.5)
        assert all(1.5 * 0.999 <= one.bound <= 1.5 * 1.301 for one in found)


def test_result_does_not_depend_on_the_order_of_the_updates() -> None:
    entries = [entry(name, norm) for name, norm in zip("abc", (0.1, 2.0, 9.0), strict=True)]
    results = set()
    for order in itertools.permutations(entries):
        found = weigh(empty(*"abc"), list(order), list(order), 1.5)
        results.add(tuple(sorted((one.entry.site, one.scaled, one.weight) for one in found)))
    assert len(results) == 1


def test_sites_that_are_not_in_this_round_vote_with_their_last_update() -> None:
    state = empty(*"abcde")
    for name in "abc":
        state = state.with_site(name, weight=1.0, contribution=1.0 / (10 * 0.1))
    (one,) = weigh(state, [entry("e", 100.0)], [entry("e", 100.0)], 1.5)
    assert one.scaled * 100.0 == pytest.approx(1.5)
    state = state.with_site("a", benched="why").with_site("b", benched="why")
    state = state.with_site("c", benched="why")
    (one,) = weigh(state, [entry("e", 100.0)], [entry("e", 100.0)], 1.5)
    assert one.scaled == 1  # nobody to compare it to


def test_views_of_unlike_size_and_orders_of_unlike_rate_are_compared_by_entry_and_rate() -> None:
    small = [entry(name, 1.0, size=25, rate=0.1) for name in "ab"]
    large = entry("c", 4.0, size=100, rate=0.2)  # twice √entries and twice the rate
    assert all(w.scaled == 1 for w in weigh(empty(*"abc"), [*small, large], [*small, large], 1.01))


def test_no_multiple_is_no_bound_even_where_others_add_nothing() -> None:
    entries = [entry("a", 0.0), entry("b", 0.0), entry("c", 5.0)]
    assert [one.scaled for one in weigh(empty(*"abc"), entries, entries, math.inf)] == [1, 1, 1]


def test_control_without_a_bound_one_site_outweighs_all_others(federation: Fed) -> None:
    fed = federation(FIVE)
    ones = np.ones(fed.layout.size, np.float32)
    steps = {}
    for multiple in (1.5, math.inf):
        strategy, state = fed.strategy(norm_multiple=multiple, keeps_frames=True), fed.state()
        for name in FIVE:
            sent = ones * (-100 if name == "satna" else 1)
            state, (verdict,), _ = strategy.fold(state, [fed.delivery(state, name, sent)])
            assert verdict.accepted
        steps[multiple] = float(strategy.step(state)[1].step[0])
    assert steps[1.5] == pytest.approx((4 - 1.5) / 5, rel=1e-5)
    assert steps[math.inf] == pytest.approx((4 - 100) / 5, rel=1e-5)


def test_bound_holds_in_the_first_round_and_what_is_kept_survives_a_checkpoint(
    federation: Fed,
) -> None:
    from boli.rounds.checkpoint import from_parts, to_parts

    fed = federation({"arrah": None, "gaya": 2, "patna": None})
    strategy = fed.strategy(norm_multiple=1.5, keeps_frames=True)
    vectors = {
        n: np.full(fed.layout.size, x, np.float32)
        for n, x in zip(fed.ranks, (1, 2, 50), strict=True)
    }
    results = set()
    for restarts in (False, True):
        state = strategy.begin(replace(fed.state(), sketch_seed=1))
        for name, vector in vectors.items():
            state, _, _ = strategy.fold(state, [fed.delivery(state, name, vector)])
            state = from_parts(*to_parts(state)) if restarts else state
        assert state.partial_sum is None
        assert set(state.frames) == {"arrah/1", "gaya/1", "patna/1"}
        after, release, _ = strategy.step(state)
        assert (after.frames, after.folded) == ({}, ())
        results.add(release.step.tobytes())
    assert len(results) == 1


def test_default_multiple_is_below_the_number_of_others(tiny_plan: Any, tmp_path: Any) -> None:
    site = {"language": "bho", "text": ["bho.txt"]}
    for number in (3, 5, 10):
        sites = [{"name": f"s{i}", **site} for i in range(number)]
        assert multiple_of(tiny_plan(tmp_path, site=sites)) == MULTIPLE < number - 1
    given = tiny_plan(tmp_path, rounds={"norm_multiple": 7.0})
    assert multiple_of(given) == 7.0


# --- what local steps can reach


def reach(**values: Any) -> Reach:
    steps = LocalStepsPlan(**{"learning_rate": 0.01, "schedule": "constant", "warmup": 0} | values)
    return Reach(steps, total=10, most_steps=8, orders=1, rounding=1.0, multiple=1.0)


def order_of(**values: Any) -> Order:
    figures: dict[str, Any] = {"sequence": 1, "base_version": 0, "local_steps": 8, "at_most": 8}
    figures |= values
    return Order(order="o", site="gaya", layout="0" * 32, **figures)


def header_of(**values: Any) -> UpdateHeader:
    figures = {"sequence": 1, "base_version": 0, "local_steps": 8, "tokens": 8} | values
    return UpdateHeader(order="o", site="gaya", layout="0" * 32, **figures)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.99), (0.9, 0.999), (0.0, 0.99), (0.5, 0.6)])
@pytest.mark.parametrize("kind", ["growing", "constant", "spike", "noise"])
def test_no_step_of_adamw_goes_further_than_the_furthest(
    beta1: float, beta2: float, kind: str
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], 1.0, (beta1, beta2), eps=1e-12, weight_decay=0)
    draw = np.random.default_rng(0)
    growth = beta2 / beta1 if beta1 else 1.5
    furthest, worst = furthest_step(beta1, beta2), 0.0
    for step in range(500):
        gradient = {
            "growing": growth**step,  # equality in Cauchy and Schwarz
            "constant": 1.0,
            "spike": 1e6 if step == 499 else 1e-6,
            "noise": float(draw.standard_normal()),
        }[kind]
        before = parameter.item()
        parameter.grad = torch.full((1,), gradient, dtype=torch.float64)
        optimizer.step()
        worst = max(worst, abs(parameter.item() - before))
    assert worst <= furthest * (1 + 1e-6)
    if kind == "growing" and (beta1, beta2) in ((0.9, 0.99), (0.5, 0.6)):
        assert worst > 0.9 * furthest  # the bound is tight: nothing smaller would be sound


def test_reach_follows_the_schedule_of_the_claimed_steps() -> None:
    theta = np.zeros(4, np.float32)
    typical, furthest = reach().limits(order_of(), header_of(), (), theta, 0.0)
    assert typical == pytest.approx(8 * 0.01 * 1.01)
    assert furthest == pytest.approx(8 * 0.01 * 1.01 * furthest_step(0.9, 0.99))
    half, _ = reach().limits(order_of(), header_of(local_steps=4), (), theta, 0.0)
    assert half == pytest.approx(typical / 2)
    falling = reach(schedule="linear", final_learning_rate=0.0)
    late, _ = falling.limits(
        order_of(position=0.9, base_version=9), header_of(base_version=9), (), theta, 0.0
    )
    assert late < typical / 8
    # An answer to an attempt from earlier in the run was made at the rates of that time.
    early, _ = falling.limits(
        order_of(position=0.9, base_version=9), header_of(base_version=5), (), theta, 0.0
    )
    assert early == pytest.approx(typical * (0.5 - 0.05 * 7 / 8), rel=1e-6)


def test_what_was_given_back_may_come_with_the_next_update() -> None:
    theta = np.zeros(4, np.float32)
    plain, _ = reach().limits(order_of(), header_of(sequence=4), (3,), theta, 0.0)
    carrying, _ = reach().limits(order_of(), header_of(sequence=4), (1,), theta, 0.0)
    assert carrying == pytest.approx(3 * plain)
    forever, _ = reach().limits(order_of(), header_of(sequence=10**6), (1,), theta, 0.0)
    assert forever <= 11 * plain


def test_codec_that_leaves_some_may_send_what_is_left_of_earlier_orders(
    tiny_plan: Any, tmp_path: Any
) -> None:
    plan = tiny_plan(tmp_path, codec={"name": "sparse", "density": 0.25})
    found, theta = reach_of(plan), np.zeros(4, np.float32)
    assert found.orders == 4
    first, *_, last = (
        found.limits(order_of(local_steps=2), header_of(sequence=n), (), theta, 0.0)[0]
        for n in range(1, 9)
    )
    assert first < last < 10 * first * 4 * 10
    assert reach_of(tiny_plan(tmp_path)).orders == 1


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16), (3, 40)])
def test_steps_of_muon_stay_within_their_reach(shape: tuple[int, int]) -> None:
    """An orthogonal matrix, scaled as Muon scales it, with singular values as they come out."""
    draw = np.random.default_rng(0)
    typical, furthest = muon_steps([shape, (5,)])
    for _ in range(20):
        u, _, v = np.linalg.svd(draw.normal(size=shape), full_matrices=False)
        values = draw.uniform(0.7, 1.2, min(shape))
        step = max(1.0, shape[0] / shape[1]) ** 0.5 * (u * values) @ v
        assert np.sqrt(np.mean(step**2)) <= typical
        assert np.abs(step).max() <= furthest
    assert typical < 2.5 * np.sqrt(np.mean(step**2))


def test_muon_reaches_further_where_its_rate_is_higher(tiny_plan: Any, tmp_path: Any) -> None:
    theta = np.zeros(4, np.float32)

    def typical(rate: float) -> float:
        steps = {"optimizer": "muon", "muon_learning_rate": rate, "learning_rate": 1e-3}
        plan = tiny_plan(tmp_path, model={"local_steps": steps})
        found = reach_of(plan, [(4, 16)])
        return found.limits(order_of(), header_of(), (), theta, 0.0)[0]

    assert typical(1e-5) == pytest.approx(typical(1e-6))  # AdamW's, of vectors
    assert typical(0.2) == pytest.approx(2 * typical(0.1))


def test_weight_decay_widens_the_reach() -> None:
    theta = np.full(4, 5.0, np.float32)
    plain, _ = reach().limits(order_of(), header_of(), (), theta, 0.0)
    decayed, _ = reach(weight_decay=0.1).limits(order_of(), header_of(), (), theta, 0.0)
    assert decayed > plain + 0.1 * 0.08 * 5.0


def test_update_that_no_steps_can_have_made_is_refused_and_counted(federation: Fed) -> None:
    fed = federation(FIVE)
    strategy, state = fed.strategy(reach=reach(), keeps_frames=True), fed.state()
    ones = np.ones(fed.layout.size, np.float32)
    honest, (verdict,), _ = strategy.fold(state, [fed.delivery(state, "gaya", ones * 0.08)])
    assert verdict.accepted
    assert honest.folded[0].reach == pytest.approx(0.1 * 1.01 * fed.layout.size**0.5)
    after, (verdict,), (event,) = strategy.fold(state, [fed.delivery(state, "gaya", ones)])
    assert (verdict.accepted, verdict.reason, verdict.keep) == (False, "too large", False)
    assert isinstance(event, UpdateRejected)
    assert "10 local steps reach" in event.detail
    assert after.sites["gaya"].rejections == 1
    assert after.sites["gaya"].seen == ("refused",)


def test_reach_alone_bounds_the_first_update_that_is_added_as_it_comes(federation: Fed) -> None:
    fed = federation(FIVE)
    strategy, state = fed.strategy(reach=reach(), buffer_size=1, max_staleness=5), fed.state()
    sent = np.full(fed.layout.size, 0.2, np.float32)  # below the furthest, above the typical
    state, _, (event,) = strategy.fold(state, [fed.delivery(state, "gaya", sent)])
    assert event.scaled == pytest.approx(0.1 * 1.01 / 0.2, rel=1e-3)
