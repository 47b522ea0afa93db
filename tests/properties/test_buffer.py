from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

Fed = Callable[..., Any]


@st.composite
def rounds(draw: st.DrawFn) -> tuple[dict[str, int | None], int, list[int], list[float]]:
    """Draw the ranks of some sites, a seed, their tokens, and the sizes of their updates."""
    ranks = draw(st.lists(st.sampled_from([None, 1, 2, 3, 4]), min_size=1, max_size=5))
    number = len(ranks)
    tokens = draw(st.lists(st.integers(1, 2000), min_size=number, max_size=number))
    powers = draw(st.lists(st.integers(-8, 4), min_size=number, max_size=number))
    named = {f"site-{i}": rank for i, rank in enumerate(ranks)}
    return named, draw(st.integers(0, 999)), tokens, [10.0**power for power in powers]


def drawn_vectors(fed: Any, seed: int, sizes: list[float]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=fed.layout.size) * size).astype(np.float32) for size in sizes]


@given(rounds(), st.data())
def test_round_does_not_depend_on_order_or_batches(
    federation: Fed, drawn: Any, data: st.DataObject
) -> None:
    ranks, seed, tokens, sizes = drawn
    fed = federation(ranks)
    start = fed.state()
    if data.draw(st.booleans()):
        for name in ranks:
            start = start.with_site(name, weight=1.0, contribution=1.0)
    vectors = drawn_vectors(fed, seed, sizes)
    deliveries = [
        fed.delivery(start, name, vectors[i], tokens=tokens[i]) for i, name in enumerate(ranks)
    ]
    strategy = fed.strategy(
        norm_multiple=data.draw(st.sampled_from([0.5, 1.5, math.inf])),
        keeps_frames=data.draw(st.booleans()),
    )
    results = []
    for order in (list(range(len(ranks))), data.draw(st.permutations(range(len(ranks))))):
        cut = data.draw(st.integers(0, len(order)))
        state = start
        for batch in (order[:cut], order[cut:]):
            state, _, _ = strategy.fold(state, [deliveries[i] for i in batch])
        assert strategy.ready(state)
        state, release, _ = strategy.step(state)
        added = [(site.weight, site.contribution) for site in state.sites.values()]
        results.append((state.theta.tobytes(), release.step.tobytes(), added, state.tokens))
    assert results[0] == results[1]


@given(rounds())
def test_step_is_the_coverage_weighted_mean(federation: Fed, drawn: Any) -> None:
    ranks, seed, tokens, sizes = drawn
    fed = federation(ranks)
    state, strategy = fed.state(), fed.strategy(norm_multiple=math.inf)
    vectors = drawn_vectors(fed, seed, sizes)
    total, weight = np.zeros(fed.layout.size), np.zeros(fed.layout.size)
    deliveries = []
    for i, (name, rank) in enumerate(ranks.items()):
        deliveries.append(fed.delivery(state, name, vectors[i], tokens=tokens[i]))
        covered = np.zeros(fed.layout.size)
        view = fed.layout.view(rank)
        view.put(covered, np.ones(view.size))
        share = max(1, round(tokens[i] / 1000 * 2**20)) / 2**20
        total += covered * share * vectors[i]
        weight += covered * share
    state, verdicts, _ = strategy.fold(state, deliveries)
    assert all(verdict.accepted for verdict in verdicts)
    _, release, _ = strategy.step(state)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    # Each update is rounded to the grid of 2^-40 once; the quotient once to float32.
    grid = len(ranks) * 2.0**-41 / np.maximum(weight, 2**-20)
    assert (np.abs(release.step - mean) <= 1e-12 + grid + 2**-23 * np.abs(mean)).all()


@given(rounds(), st.integers(0, 12))
def test_staler_round_never_takes_a_longer_step(
    federation: Fed, drawn: Any, staleness: int
) -> None:
    ranks, seed, tokens, sizes = drawn
    fed = federation(ranks)
    start, strategy = fed.state(), fed.strategy(max_staleness=20, norm_multiple=math.inf)
    vectors = drawn_vectors(fed, seed, sizes)
    deliveries = [
        fed.delivery(start, name, vectors[i], tokens=tokens[i]) for i, name in enumerate(ranks)
    ]
    norms = []
    for version in (0, staleness):
        state, _, _ = strategy.fold(replace(start, version=version), deliveries)
        norms.append(strategy.step(state)[2])
    expected = norms[0] / np.sqrt(1 + staleness)
    assert abs(norms[1] - expected) <= 1e-5 * expected + 1e-9
