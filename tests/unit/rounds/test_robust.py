from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boli.model.layout import Vector
from boli.rounds import robust
from boli.rounds.robust import Share, robust_mean

Fed = Callable[..., Any]
ALL = ((0, 40),)
RULES: list[Literal["trimmed_mean", "median", "centered_clipping"]] = [
    "trimmed_mean",
    "median",
    "centered_clipping",
]


def share(vector: Vector, weight: float = 1.0, spans: Any = ALL, factor: float = 1.0) -> Share:
    return Share(weight, factor, spans, lambda: vector.astype(np.float32))


def mean(rule: Any, shares: list[Share], **values: Any) -> Vector:
    settings = {"length": 40, "trim_share": 0.2, "center": None, "multiple": 1.5} | values
    return robust_mean(rule, shares, **settings)


def vectors(number: int, seed: int = 0) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [(1 + rng.normal(size=40)).astype(np.float32) for _ in range(number)]


@pytest.mark.parametrize("block", [7, 1 << 16])
def test_rules_are_what_numpy_makes_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(robust, "BLOCK", block)
    rows = vectors(10)
    ordered = np.sort(np.stack(rows), axis=0)
    shares = [share(row) for row in rows]
    assert mean("trimmed_mean", shares) == pytest.approx(ordered[2:8].mean(axis=0), rel=1e-5)
    assert mean("median", shares) == pytest.approx(np.median(ordered, axis=0), rel=1e-5)
    assert mean("trimmed_mean", shares, trim_share=0.01) == pytest.approx(
        ordered[1:9].mean(axis=0), rel=1e-5
    )


def test_weights_count_among_what_is_kept() -> None:
    rows = [np.full(40, x, np.float32) for x in (-9.0, 1.0, 2.0, 4.0, 99.0)]
    shares = [share(r, w) for r, w in zip(rows, (1, 1, 3, 1, 1), strict=True)]
    assert mean("trimmed_mean", shares) == pytest.approx((1 + 6 + 4) / 5)
    assert mean("median", shares) == pytest.approx(2.0)


def test_entry_goes_by_the_sites_that_cover_it() -> None:
    ones = np.ones(40, np.float32)
    shares = [share(ones * x) for x in (1.0, 2.0, 30.0)]
    shares += [share(ones[:10] * x, spans=((0, 10),)) for x in (-70.0, 3.0)]
    found = mean("trimmed_mean", shares)
    assert found[:10] == pytest.approx(np.full(10, 2.0))  # of 5: 1, 2 and 3
    assert found[10:] == pytest.approx(np.full(30, 2.0))  # of 3: the middle one
    found = mean("median", [share(ones[:10] * 5.0, spans=((0, 10),))])
    assert found.tolist() == [5.0] * 10 + [0.0] * 30  # what nobody covers stays where it is


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(0, 99), st.integers(5, 12), st.sampled_from([-1e3, -1.0, 0.0, 1e6, 1e9]))
def test_a_fifth_of_liars_stays_among_the_honest(
    rule: Any, seed: int, number: int, lie: float
) -> None:
    honest, liars = vectors(number - number // 5, seed), number // 5
    shares = [share(v) for v in honest]
    shares += [share(np.full(40, lie, np.float32)) for _ in range(liars)]
    found = mean(rule, shares)
    if rule == "centered_clipping":
        largest = max(float(np.linalg.norm(v)) for v in honest)
        assert np.linalg.norm(found) <= 1.5 * largest * 1.001
    else:
        low, high = np.min(honest, axis=0), np.max(honest, axis=0)
        assert (found >= low - 1e-5).all()
        assert (found <= high + 1e-5).all()


def test_control_plain_mean_leaves_the_honest() -> None:
    honest = vectors(4)
    plain = np.mean([*honest, np.full(40, 1e6, np.float32)], axis=0)
    assert (plain > np.max(honest, axis=0)).all()


def test_clipping_is_around_the_mean_of_the_round_before() -> None:
    center = np.full(40, 3.0, np.float32)
    rows = [center + np.float32(d) for d in (0.1, -0.1, 0.1, 5.0)]
    found = mean("centered_clipping", [share(row) for row in rows], center=center, multiple=1.0)
    assert found == pytest.approx(center + (0.1 - 0.1 + 0.1 + 0.1) / 4, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_round_by_a_rule_does_not_depend_on_arrival_and_survives_a_checkpoint(
    federation: Fed, rule: Any
) -> None:
    from boli.rounds.checkpoint import from_parts, to_parts

    ranks: Mapping[str, int | None] = {"arrah": None, "gaya": 2, "patna": None, "rewa": 1}
    fed = federation(ranks)
    rng = np.random.default_rng(1)
    sent = {name: rng.normal(size=fed.layout.size).astype(np.float32) for name in ranks}
    results = set()
    for restarts, order in itertools.product((False, True), itertools.permutations(ranks)):
        strategy = fed.strategy(robust=rule, keeps_frames=True, norm_multiple=1.5)
        state = strategy.begin(replace(fed.state(), sketch_seed=1))
        for _ in range(2):
            for name in order:
                state, _, _ = strategy.fold(state, [fed.delivery(state, name, sent[name])])
                state = from_parts(*to_parts(state)) if restarts else state
            assert strategy.ready(state)
            state = fed.ask(strategy.step(state)[0])
        results.add(state.theta.tobytes())
    assert len(results) == 1


def test_sparse_updates_of_own_entries_collapse_to_nothing_which_is_why_the_plan_refuses_them() -> (
    None
):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(5):
        row = np.zeros(40, np.float32)
        row[rng.choice(40, 4, replace=False)] = 1.0
        rows.append(row)
    assert np.mean(rows, axis=0).sum() == pytest.approx(4.0)
    assert mean("trimmed_mean", [share(row) for row in rows]).sum() < 2.0
