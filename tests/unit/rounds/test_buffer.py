from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from boli.codec.codec import DenseCodec, encode_frame
from boli.codec.entries import Entries
from boli.codec.sparse import SparseCodec
from boli.journal import (
    DifferenceJudged,
    Evaluated,
    Event,
    MixedEvaluated,
    PpmdEvaluated,
    SixGramEvaluated,
    UpdateAccepted,
    UpdateRejected,
)
from boli.model.layout import Vector
from boli.rounds.buffer import BufferedStrategy
from boli.rounds.checkpoint import from_parts, to_parts
from boli.rounds.outer import Averaging, Nesterov
from boli.rounds.schedule import Schedule
from boli.rounds.sums import GRID, add_to
from boli.rounds.transport import Delivery
from boli.rounds.update import Difference, Judgement, Order, ServerState, Verdict

Fed = Callable[..., Any]
THREE = {"arrah": None, "gaya": None, "patna": None}
NESTED = {"arrah": None, "gaya": 2, "patna": 1}


def vectors(fed: Any, names: Sequence[str], seed: int = 0) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=fed.layout.size).astype(np.float32) for name in names}


def parts(state: ServerState) -> tuple[dict[str, bytes], dict[str, Any]]:
    arrays, facts = to_parts(state)
    return {name: array.tobytes() for name, array in arrays.items()}, deepcopy(facts)


def fold_one(strategy: BufferedStrategy, state: ServerState, delivery: Delivery) -> Any:
    state, (verdict,), events = strategy.fold(state, [delivery])
    return state, verdict, events


# --- the sum


@pytest.mark.parametrize("ranks", [THREE, NESTED], ids=["equal ranks", "nested ranks"])
def test_order_of_arrival_never_changes_the_round(federation: Fed, ranks: dict[str, Any]) -> None:
    fed = federation(ranks)
    found = vectors(fed, list(ranks))
    scales = {"arrah": 1e-6, "gaya": 1.0, "patna": 3e3}
    results = set()
    for order in itertools.permutations(ranks):
        for at_once in (True, False):
            state = fed.state()
            strategy = fed.strategy(outer=Nesterov(np.float32(0.7), np.float32(0.9)))
            deliveries = [
                fed.delivery(state, name, found[name] * scales[name], tokens=700 + len(name))
                for name in order
            ]
            for batch in [deliveries] if at_once else [[one] for one in deliveries]:
                state, verdicts, _ = strategy.fold(state, batch)
                assert all(verdict.accepted for verdict in verdicts)
            assert strategy.ready(state)
            state, release, norm = strategy.step(state)
            results.add((state.theta.tobytes(), release.step.tobytes(), norm))
    assert len(results) == 1


def test_all_sites_and_no_staleness_is_federated_averaging(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    found, tokens = vectors(fed, list(THREE)), {"arrah": 1000, "gaya": 250, "patna": 1999}
    deliveries = [fed.delivery(state, n, found[n], tokens=tokens[n]) for n in THREE]
    folded, _, _ = strategy.fold(state, deliveries)
    after, release, norm = strategy.step(folded)
    mean = sum(found[n].astype(np.float64) * tokens[n] for n in THREE) / sum(tokens.values())
    assert np.abs(release.step - mean).max() <= 2**-23 * np.abs(mean).max()
    assert np.array_equal(after.theta, state.theta - release.step)
    assert np.array_equal(release.theta, after.theta)
    assert (after.version, release.version) == (1, 1)
    assert norm == pytest.approx(np.linalg.norm(mean), rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weight_of_an_update_is_its_tokens_to_a_power(federation: Fed, power: float) -> None:
    fed = federation({"arrah": None, "gaya": None})
    state, strategy = fed.state(), fed.strategy(token_power=power)
    one, zero = np.ones(fed.layout.size, np.float32), np.zeros(fed.layout.size, np.float32)
    state, _, events = strategy.fold(
        state,
        [
            fed.delivery(state, "arrah", one, tokens=400),
            fed.delivery(state, "gaya", zero, tokens=1600),
        ],
    )
    weights = [event.weight for event in events]
    assert weights == pytest.approx([0.4**power, 1.6**power], rel=1e-5)
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx(weights[0] / sum(weights), rel=1e-6)


def test_each_coordinate_is_divided_by_the_weight_of_the_sites_that_covered_it(
    federation: Fed,
) -> None:
    fed = federation(NESTED)
    state, strategy = fed.state(), fed.strategy()
    found, tokens = vectors(fed, list(NESTED)), {"arrah": 500, "gaya": 1000, "patna": 1500}
    total, weight = np.zeros(fed.layout.size), np.zeros(fed.layout.size)
    for name, rank in NESTED.items():
        covered = np.zeros(fed.layout.size)
        view = fed.layout.view(rank)
        view.put(covered, np.ones(view.size))
        total += covered * found[name] * tokens[name]
        weight += covered * tokens[name]
    assert len(set(weight)) == 3
    state, _, _ = strategy.fold(
        state, [fed.delivery(state, n, found[n], tokens=tokens[n]) for n in NESTED]
    )
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx(total / weight, rel=1e-6, abs=1e-9)


def test_coordinate_that_no_site_covered_does_not_move(federation: Fed) -> None:
    fed = federation({"gaya": 2, "patna": 1})
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    folded, _, _ = strategy.fold(state, [fed.delivery(state, n, ones) for n in ("gaya", "patna")])
    after, _, _ = strategy.step(folded)
    view = fed.layout.view(2)
    moved = np.flatnonzero(after.theta != state.theta)
    assert moved.tolist() == [i for start, stop in view.spans for i in range(start, stop)]
    assert view.take(after.theta) == pytest.approx(view.take(state.theta) - 1, abs=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_update_alone_is_taken_as_it_is(federation: Fed, rank: int | None) -> None:
    fed = federation({"gaya": rank})
    state, strategy = fed.state(), fed.strategy()
    vector = vectors(fed, ["gaya"])["gaya"]
    folded, _, _ = strategy.fold(state, [fed.delivery(state, "gaya", vector, tokens=321)])
    _, release, _ = strategy.step(folded)
    view = fed.layout.view(rank)
    assert view.take(release.step) == pytest.approx(view.take(vector), rel=1e-6, abs=1e-10)


def test_sum_over_many_blocks_is_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boli.rounds.sums.BLOCK", 7)
    vector = np.arange(40, dtype=np.float32) / 8
    sums = np.ones(64, np.int64)
    add_to(sums, Entries(vector.size, vector), ((3, 20), (21, 22), (30, 52)), 0.5)
    expected = np.ones(64)
    positions = [*range(3, 20), 21, *range(30, 52)]
    expected[positions] += np.rint(vector * 0.5 * GRID)
    assert np.array_equal(sums, expected.astype(np.int64))


@pytest.mark.parametrize("spans", [((0, 40),), ((3, 43),), ((3, 20), (21, 22), (30, 52))])
def test_sum_of_few_entries_is_the_sum_of_the_vector_they_stand_for(spans: Any) -> None:
    positions = np.array([0, 16, 17, 18, 39])
    entries = Entries(40, np.linspace(-2, 3, 5, dtype=np.float32), positions)
    sparse, dense = np.ones(64, np.int64), np.ones(64, np.int64)
    add_to(sparse, entries, spans, 0.3)
    add_to(dense, Entries(40, entries.vector()), spans, 0.3)
    assert np.array_equal(sparse, dense)
    assert np.count_nonzero(sparse != 1) == 5


def test_sum_keeps_what_float32_would_lose(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    size = {"arrah": 1e5, "gaya": -1e5, "patna": 3e-3}
    state, _, _ = strategy.fold(state, [fed.delivery(state, n, ones * size[n]) for n in THREE])
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx(1e-3, rel=1e-6)


# --- staleness


def stale_by(fed: Any, rounds: int) -> tuple[ServerState, Delivery]:
    state = fed.state()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    return replace(state, version=rounds), delivery


@pytest.mark.parametrize("staleness", [0, 1, 3, 8])
def test_stale_update_takes_a_smaller_step(federation: Fed, staleness: int) -> None:
    fed = federation({"gaya": None})
    strategy = fed.strategy(max_staleness=10)
    state, delivery = stale_by(fed, staleness)
    state, verdict, (event,) = fold_one(strategy, state, delivery)
    assert verdict.accepted
    assert event.staleness == staleness
    assert [entry.staleness for entry in state.folded] == [staleness]
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx((1 + staleness) ** -0.5, rel=1e-6)


def test_update_at_the_bound_is_taken_and_one_beyond_it_is_given_back(federation: Fed) -> None:
    fed = federation({"gaya": None})
    strategy = fed.strategy(max_staleness=3)
    state, delivery = stale_by(fed, 3)
    assert fold_one(strategy, state, delivery)[1].accepted
    state, delivery = stale_by(fed, 4)
    after, verdict, (event,) = fold_one(strategy, state, delivery)
    assert (verdict.accepted, verdict.reason, verdict.keep) == (False, "stale", True)
    assert isinstance(event, UpdateRejected)
    assert event.detail == "4 rounds behind"
    assert after.folded == ()
    assert after.sites["gaya"].outstanding is None  # so that a new order is issued
    assert after.sites["gaya"].rejections == 0  # no fault of the site's


def test_what_a_late_update_judged_is_kept_and_what_a_wrong_one_judged_is_asked_again(
    federation: Fed,
) -> None:
    fed = federation({"gaya": None})
    strategy, ones = fed.strategy(max_staleness=3), np.ones(fed.layout.size, np.float32)
    judged = (Judgement(language="mag", part="tuning", bits=80.0, bytes=40),)
    state = fed.state()
    late = fed.delivery(state, "gaya", ones, judgements=judged)
    after, _, events = fold_one(strategy, replace(state, version=4), late)
    assert Evaluated("gaya", "mag", "tuning", 0, 80.0, 40) in events
    assert after.sites["gaya"].judged == 0
    wrong = fed.delivery(state, "gaya", ones, judgements=judged, tokens=0)
    after, _, events = fold_one(strategy, state, wrong)
    assert [type(event) for event in events] == [UpdateRejected]
    assert after.sites["gaya"].judged == -1
    _, (order,) = schedule().issue(after)
    assert order.evaluate == ("tuning", "test")
    assert order.first


def test_judgement_that_nobody_asked_for_is_not_taken(federation: Fed) -> None:
    fed = federation({"gaya": None})
    state, ones = fed.state(), np.ones(fed.layout.size, np.float32)
    order = state.sites["gaya"].outstanding.model_copy(update={"evaluate": ()})
    state = state.with_site("gaya", outstanding=order)
    judged = (Judgement(language="mag", part="tuning", bits=80.0, bytes=40),)
    after, verdict, events = fold_one(
        fed.strategy(), state, fed.delivery(state, "gaya", ones, judgements=judged)
    )
    assert verdict.accepted
    assert [type(event) for event in events] == [UpdateAccepted]
    assert after.sites["gaya"].judged == -1


# --- once, and only once


def test_duplicate_counts_once_and_is_accepted_again(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    once, _, _ = strategy.fold(state, [delivery])
    for batches in ([[delivery, delivery]], [[delivery], [delivery], [delivery]]):
        again = state
        for batch in batches:
            again, verdicts, _ = strategy.fold(again, batch)
            assert all(verdict.accepted for verdict in verdicts)
        assert parts(again) == parts(once)
    _, verdict, events = fold_one(strategy, once, delivery)
    assert verdict.reason == "duplicate"
    assert events == []


def test_duplicate_after_the_round_was_made_still_counts_once(federation: Fed) -> None:
    fed = federation({"gaya": None})
    state, strategy = fed.state(), fed.strategy()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    state, _, _ = strategy.fold(state, [delivery])
    state, _, _ = strategy.step(state)
    asked = fed.ask(state)
    after, verdict, _ = fold_one(strategy, asked, delivery)
    assert verdict.accepted
    assert parts(after) == parts(asked)


def test_answer_to_another_order_than_the_open_one_is_given_back(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    for values in ({"sequence": 7}, {"sequence": 0}, {"order": "run-gaya-9"}):
        after, verdict, _ = fold_one(strategy, state, fed.delivery(state, "gaya", ones, **values))
        assert (verdict.accepted, verdict.reason, verdict.keep) == (False, "superseded", True)
        assert after.sites["gaya"].outstanding == state.sites["gaya"].outstanding
        assert after.folded == ()


def test_order_that_was_shrunk_is_still_the_open_one(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32), local_steps=5)
    state, _ = schedule().shrink(state, "gaya")
    assert fold_one(strategy, state, delivery)[1].accepted


def test_answer_to_an_earlier_attempt_is_taken_at_the_version_it_was_trained_from(
    federation: Fed,
) -> None:
    fed = federation({"gaya": None})
    state, strategy = fed.state(), fed.strategy(max_staleness=5)
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    state, order = schedule().reopen(replace(state, version=3), "gaya")
    assert order is not None
    assert (order.base_version, order.sequence) == (3, 1)
    state, verdict, (event,) = fold_one(strategy, state, delivery)
    assert verdict.accepted
    assert (event.base_version, event.staleness) == (0, 3)
    _, release, _ = strategy.step(state)
    assert release.step == pytest.approx(0.5, rel=1e-6)


def test_site_is_told_again_what_was_given_back_to_it(federation: Fed) -> None:
    fed = federation({"gaya": None})
    strategy = fed.strategy(max_staleness=3)
    state, delivery = stale_by(fed, 4)
    state, _, _ = fold_one(strategy, state, delivery)
    assert state.sites["gaya"].returned == 1
    _, (order,) = schedule().issue(state)
    assert (order.sequence, order.returned) == (2, 1)


def test_steps_done_before_the_order_was_shrunk_are_taken(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy(max_tokens_per_step=100)
    ones = np.ones(fed.layout.size, np.float32)
    delivery = fed.delivery(state, "gaya", ones, local_steps=8, tokens=800)
    state, order = schedule().shrink(state, "gaya")
    assert order is not None
    assert order.local_steps == 5
    assert fold_one(strategy, state, delivery)[1].accepted


def schedule() -> Schedule:
    return Schedule(total=5, local_steps=10, synchronous=False, speed_aware=False, every_rounds=1)


# --- what is refused


def test_forged_sender_is_refused_and_held_against_whoever_sent_it(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    forged = [
        fed.delivery(state, "gaya", ones, sender="patna"),
        fed.delivery(state, "gaya", ones, sender="nobody"),
        fed.delivery(state, "gaya", ones, site="nobody", sender="nobody"),
        fed.delivery(state, "gaya", ones, site="patna"),
    ]
    for delivery in forged:
        after, verdict, _ = fold_one(strategy, state, delivery)
        assert (verdict.accepted, verdict.reason, verdict.keep) == (False, "forged", False)
        assert after.folded == ()
        for name, site in after.sites.items():
            if name == delivery.site:
                assert (site.rejections, site.outstanding) == (1, None)
            else:
                assert site == state.sites[name]


def frame_of(fed: Any, vector: Vector, rank: int | None = None, version: int = 0) -> bytes:
    return encode_frame(DenseCodec(), vector, fed.layout.digest, rank, version)


def nan_frame(fed: Any) -> bytes:
    import zlib

    data = bytearray(frame_of(fed, np.ones(fed.layout.size, np.float32)))
    data[56:60] = np.float32(np.nan).tobytes()
    data[52:56] = zlib.crc32(data[56:], zlib.crc32(data[:52])).to_bytes(4, "little")
    return bytes(data)


BAD: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "other layout": ("layout", lambda fed: {"layout": "f" * 32}),
    "other rank": ("layout", lambda fed: {"rank": 2}),
    "version to come": ("version", lambda fed: {"base_version": 1}),
    "no steps where some were asked": (
        "malformed",
        lambda fed: {"local_steps": 0, "tokens": 0, "payload": b""},
    ),
    "too many tokens": ("tokens", lambda fed: {"tokens": 2001}),
    "no tokens": ("tokens", lambda fed: {"tokens": 0}),
    "torn payload": (
        "malformed",
        lambda fed: {"payload": frame_of(fed, np.ones(fed.layout.size, np.float32))[:-1]},
    ),
    "empty payload": ("malformed", lambda fed: {"payload": b""}),
    "too few entries": (
        "malformed",
        lambda fed: {"payload": frame_of(fed, np.ones(fed.layout.size - 1, np.float32))},
    ),
    "too many entries": (
        "malformed",
        lambda fed: {"payload": frame_of(fed, np.ones(fed.layout.size + 1, np.float32))},
    ),
    "tokens of more steps than were done": (
        "tokens",
        lambda fed: {"local_steps": 4, "tokens": 1000},  # 200 a step
    ),
    "NaN": ("malformed", lambda fed: {"payload": nan_frame(fed)}),
    "payload of another rank": (
        "malformed",
        lambda fed: {"payload": frame_of(fed, np.ones(fed.layout.size, np.float32), rank=2)},
    ),
    "payload of another version": (
        "malformed",
        lambda fed: {"payload": frame_of(fed, np.ones(fed.layout.size, np.float32), version=3)},
    ),
    "oversized entry": (
        "too large",
        lambda fed: {"payload": frame_of(fed, np.full(fed.layout.size, 3e38, np.float32))},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_update_is_refused_counted_and_leaves_the_sum_alone(federation: Fed, case: str) -> None:
    fed = federation(THREE)
    strategy, ones = fed.strategy(), np.ones(fed.layout.size, np.float32)
    start = fed.state()
    first = fed.delivery(start, "arrah", ones)
    state, _, _ = strategy.fold(start, [first])
    reason, make = BAD[case]
    delivery = fed.delivery(state, "gaya", ones, **make(fed))
    after, verdict, (event,) = fold_one(strategy, state, delivery)
    assert (verdict.accepted, verdict.reason, verdict.keep) == (False, reason, False)
    assert isinstance(event, UpdateRejected)
    assert (event.site, event.reason) == ("gaya", reason)
    assert after.sites["gaya"].rejections == 1
    assert after.sites["gaya"].outstanding is None
    arrays, facts = parts(after)
    expected, told = parts(state)
    assert arrays == expected
    assert facts | {"sites": None} == told | {"sites": None}
    assert after.sites["arrah"] == state.sites["arrah"]


def test_bad_update_among_good_ones_does_not_spoil_them(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    good = [fed.delivery(state, name, ones) for name in ("arrah", "patna")]
    bad = fed.delivery(state, "gaya", ones, payload=nan_frame(fed))
    with_bad, verdicts, _ = strategy.fold(state, [good[0], bad, good[1]])
    assert [verdict.accepted for verdict in verdicts] == [True, False, True]
    without, _, _ = strategy.fold(state, good)
    assert parts(with_bad)[0] == parts(without)[0]
    assert with_bad.coverage == without.coverage
    assert with_bad.folded == without.folded


def test_accepted_update_ends_the_row_of_rejections(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    ones = np.ones(fed.layout.size, np.float32)
    for expected in (1, 2):
        state, _, _ = strategy.fold(state, [fed.delivery(state, "gaya", ones, tokens=0)])
        assert state.sites["gaya"].rejections == expected
        state = fed.ask(state)
    state, _, _ = strategy.fold(state, [fed.delivery(state, "gaya", ones)])
    assert state.sites["gaya"].rejections == 0


@pytest.mark.parametrize("buffer_size", [1, 2, 3, 12])
@pytest.mark.parametrize("power", [12, *range(17, 25), 40, 126])
def test_entries_are_refused_before_they_overflow_the_sum(
    federation: Fed, buffer_size: int, power: int
) -> None:
    fed = federation(THREE)
    strategy = fed.strategy(buffer_size=buffer_size, max_staleness=5)
    state, accepted = fed.state(), 0
    entry = np.full(fed.layout.size, 1.999 * 2.0**power, np.float32)
    for _ in range(-(-(buffer_size - 1) // 3)):  # the buffer is full but for one
        state, verdicts, _ = strategy.fold(state, [fed.delivery(state, n, entry) for n in THREE])
        accepted += sum(verdict.accepted for verdict in verdicts)
        state = fed.ask(state)
    state, verdicts, _ = strategy.fold(state, [fed.delivery(state, n, entry) for n in THREE])
    accepted += sum(verdict.accepted for verdict in verdicts)
    if power < 17:
        assert accepted >= buffer_size
    if power > 23:
        assert accepted == 0
    if accepted:
        _, release, _ = strategy.step(state)
        assert release.step == pytest.approx(entry, rel=1e-6)


# --- bounds on norms (bounds themselves: test_bounds.py)


def known(fed: Any, norm: float = 2.0) -> ServerState:
    """Return a state that remembers an update of that norm from every site."""
    state: ServerState = fed.state()
    for name in fed.ranks:
        added = norm / fed.layout.size**0.5
        state = state.with_site(name, weight=1.0, contribution=added)
    return state


def test_norm_above_its_bound_is_scaled_down_to_it_as_the_update_comes(federation: Fed) -> None:
    fed = federation({"gaya": None, "patna": None})
    strategy = fed.strategy(norm_multiple=10.0, buffer_size=1)
    direction = np.ones(fed.layout.size, np.float32) / np.float32(np.sqrt(fed.layout.size))
    for size, expected in ((19.0, 19.0), (100.0, 20.0), (5000.0, 20.0)):
        state = known(fed)
        state, _, (event,) = fold_one(
            strategy, state, fed.delivery(state, "gaya", direction * np.float32(size))
        )
        assert event.norm == pytest.approx(size, rel=1e-5)
        assert event.scaled == pytest.approx(min(1, expected / size), rel=1e-5)
        _, release, norm = strategy.step(state)
        assert norm == pytest.approx(expected, rel=1e-5)
        assert release.step == pytest.approx(direction * expected, rel=1e-5)


def test_bound_comes_from_whole_rounds_and_so_not_from_the_order_of_arrival(
    federation: Fed,
) -> None:
    fed = federation(THREE)
    sizes = {"arrah": 0.001, "gaya": 50.0, "patna": 400.0}
    ones = np.ones(fed.layout.size, np.float32)
    for keeps_frames in (False, True):
        results = set()
        for order in itertools.permutations(THREE):
            after = known(fed)
            strategy = fed.strategy(keeps_frames=keeps_frames, norm_multiple=1.5)
            for name in order:
                after, _, _ = strategy.fold(after, [fed.delivery(after, name, ones * sizes[name])])
            after, _, norm = strategy.step(after)
            results.add((after.theta.tobytes(), tuple(after.sites.items()), norm))
        assert len({theta for theta, _, _ in results}) == 1
        assert len({norm for _, _, norm in results}) == 1


# --- state


@pytest.mark.parametrize("ranks", [THREE, NESTED], ids=["equal ranks", "nested ranks"])
def test_fold_and_step_leave_the_state_they_were_given_untouched(
    federation: Fed, ranks: dict[str, Any]
) -> None:
    fed = federation(ranks)
    strategy = fed.strategy(outer=Nesterov(np.float32(0.7), np.float32(0.9)))
    state = fed.state()
    for seed in range(3):
        for name, vector in vectors(fed, list(ranks), seed).items():
            before = parts(state)
            after, _, _ = strategy.fold(state, [fed.delivery(state, name, vector)])
            assert parts(state) == before
            state = after
        before = parts(state)
        after, _, _ = strategy.step(state)
        assert parts(state) == before
        state = fed.ask(after)
    assert state.version == 3


def test_folding_nothing_returns_the_same_state(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    state, _, _ = strategy.fold(
        state, [fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))]
    )
    assert strategy.fold(state, [])[0] is state


def test_step_empties_the_buffer(federation: Fed) -> None:
    fed = federation(NESTED)
    state, strategy = fed.state(), fed.strategy()
    state, _, _ = strategy.fold(
        state, [fed.delivery(state, n, v) for n, v in vectors(fed, list(NESTED)).items()]
    )
    assert len(state.folded) == 3
    assert state.coverage == {"": 2**20, "2": 2**20, "1": 2**20}
    state, _, _ = strategy.step(state)
    assert (state.partial_sum, state.coverage, state.folded) == (None, {}, ())
    assert (state.version, state.outer_round, state.tokens) == (1, 1, 3000)
    assert not strategy.ready(state)


def test_round_is_ready_when_the_buffer_is_full(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy(buffer_size=2)
    assert not strategy.ready(state)
    for name, ready in (("arrah", False), ("gaya", True)):
        vector = np.ones(fed.layout.size, np.float32)
        state, _, _ = strategy.fold(state, [fed.delivery(state, name, vector)])
        assert strategy.ready(state) is ready


def test_benched_site_is_not_waited_for(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    state = state.with_site("patna", benched="why", outstanding=None)
    ones = np.ones(fed.layout.size, np.float32)
    state, _, _ = strategy.fold(state, [fed.delivery(state, "arrah", ones)])
    assert not strategy.ready(state)
    state, _, _ = strategy.fold(state, [fed.delivery(state, "gaya", ones)])
    assert strategy.ready(state)


def test_update_of_a_benched_site_is_not_folded_in(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    state = state.with_site("gaya", benched="why", outstanding=None)
    after, verdict, _ = fold_one(strategy, state, delivery)
    assert not verdict.accepted
    assert after.folded == ()


@pytest.mark.parametrize("seconds", [5e-324, 1e-30, 1e30])
def test_claimed_speed_is_a_speed_and_the_checkpoint_can_be_read(
    federation: Fed, seconds: float
) -> None:
    fed = federation(THREE)
    state, ones = fed.state(), np.ones(fed.layout.size, np.float32)
    delivery = fed.delivery(state, "gaya", ones, train_seconds=seconds)
    state, verdict, _ = fold_one(fed.strategy(), state, delivery)
    assert verdict.accepted
    assert 0 <= state.sites["gaya"].steps_per_second <= 1e6
    arrays, facts = to_parts(state)
    assert from_parts(arrays, json.loads(json.dumps(facts))).sites == state.sites


@pytest.mark.parametrize(
    "name", ["train_seconds", "evaluate_seconds", "work_seconds", "idle_seconds", "residual_norm"]
)
def test_less_than_no_time_and_no_residual_is_no_header(federation: Fed, name: str) -> None:
    fed = federation(THREE)
    with pytest.raises(ValidationError, match=name):
        fed.delivery(fed.state(), "gaya", np.ones(fed.layout.size), **{name: -1.0})


# --- what is told


def test_accepted_update_is_journaled_with_its_figures(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    judged = Judgement(language="mag", part="tuning", bits=80.0, bytes=40)
    vector = np.zeros(fed.layout.size, np.float32)
    vector[:2] = 3, -4
    delivery = fed.delivery(
        state,
        "gaya",
        vector,
        local_steps=8,
        tokens=500,
        loss=2.5,
        train_seconds=4.0,
        judgements=(judged,),
    )
    after, verdict, events = fold_one(strategy, state, delivery)
    assert verdict == Verdict(order="run-gaya-1", site="gaya", sequence=1, accepted=True)
    evaluated, accepted = events
    assert evaluated == Evaluated("gaya", "mag", "tuning", 0, 80.0, 40)
    assert isinstance(accepted, UpdateAccepted)
    assert (accepted.norm, accepted.weight, accepted.scaled, accepted.loss) == (5, 0.5, 1, 2.5)
    assert accepted.bytes_up == delivery.update.num_bytes > len(delivery.update.payload)
    assert after.sites["gaya"].steps_per_second == 2.0
    assert after.sites["gaya"].accepted == (1,)
    assert after.sites["gaya"].outstanding is None
    assert after.tokens == 500


def test_judgement_without_training_finishes_the_site_and_moves_nothing(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    order = state.sites["gaya"].outstanding.model_copy(update={"local_steps": 0})
    state = state.with_site("gaya", outstanding=order)
    vector = np.zeros(fed.layout.size, np.float32)
    judged = Judgement(language="mag", part="test", bits=80.0, bytes=40)
    values: dict[str, Any] = {"tokens": 0, "payload": b"", "judgements": (judged,)}
    after, verdict, events = fold_one(
        strategy, state, fed.delivery(state, "gaya", vector, **values)
    )
    assert verdict.accepted
    assert [type(event) for event in events] == [Evaluated]
    assert after.sites["gaya"].finished
    assert after.folded == ()
    _, verdict, _ = fold_one(
        strategy,
        state,
        fed.delivery(state, "gaya", vector, **values | {"payload": b"x"}),
    )
    assert verdict.reason == "malformed"


def test_six_gram_is_believed_once_and_only_of_the_lines_that_were_judged(
    federation: Fed,
) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    first = state.sites["gaya"].outstanding.model_copy(update={"first": True})
    later = state.sites["gaya"].outstanding
    vector = np.zeros(fed.layout.size, np.float32)
    here = Judgement(language="mag", part="test", bits=80.0, bytes=40)
    lower = here.model_copy(update={"bits": 60.0})
    others = [
        here.model_copy(update=values)
        for values in ({"bytes": 41}, {"language": "bho"}, {"part": "tuning"}, {"bits": -1.0})
    ]
    values = {"judgements": (here,), "six_gram": (lower, *others[:3], lower), "mixed": (lower,)}
    for order, expected in ((first, [SixGramEvaluated]), (later, [])):
        asked = state.with_site("gaya", outstanding=order)
        _, _, events = fold_one(strategy, asked, fed.delivery(asked, "gaya", vector, **values))
        beside = [one for one in events if isinstance(one, SixGramEvaluated | MixedEvaluated)]
        assert [type(event) for event in beside] == expected
    asked = state.with_site("gaya", outstanding=first)
    values |= {"six_gram": (others[3],)}
    _, _, events = fold_one(strategy, asked, fed.delivery(asked, "gaya", vector, **values))
    assert not any(isinstance(event, SixGramEvaluated) for event in events)


def test_mixture_is_believed_of_the_last_version_alone(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    order = state.sites["gaya"].outstanding.model_copy(update={"local_steps": 0})
    state = state.with_site("gaya", outstanding=order)
    here = Judgement(language="mag", part="test", bits=80.0, bytes=40)
    mixed = here.model_copy(update={"bits": 50.0})
    values = {"tokens": 0, "payload": b"", "judgements": (here,), "mixed": (mixed,)}
    vector = np.zeros(fed.layout.size, np.float32)
    _, _, events = fold_one(strategy, state, fed.delivery(state, "gaya", vector, **values))
    assert events == [
        Evaluated("gaya", "mag", "test", 0, 80.0, 40),
        MixedEvaluated("gaya", "mag", "test", 0, 50.0, 40),
    ]


def test_compressor_is_believed_with_the_base_alone(federation: Fed) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    here = Judgement(language="mag", part="test", bits=80.0, bytes=40)
    other = here.model_copy(update={"bytes": 41})
    values = {"judgements": (here,), "ppmd": (here, other)}
    vector = np.zeros(fed.layout.size, np.float32)
    later = state.sites["gaya"].outstanding
    for order, expected in ((later.model_copy(update={"first": True}), 1), (later, 0)):
        asked = state.with_site("gaya", outstanding=order)
        _, _, events = fold_one(strategy, asked, fed.delivery(asked, "gaya", vector, **values))
        assert sum(isinstance(event, PpmdEvaluated) for event in events) == expected


def test_differences_are_believed_of_the_last_version_and_where_they_can_be(
    federation: Fed,
) -> None:
    fed = federation(THREE)
    state, strategy = fed.state(), fed.strategy()
    order = state.sites["gaya"].outstanding.model_copy(update={"local_steps": 0})
    here = Judgement(language="mag", part="test", bits=80.0, bytes=40)
    sound = Difference(language="mag", a="model", b="base", documents=9, low=-0.25, high=0.5)
    plain = sound.model_copy(update={"b": "ppmd", "documents": None, "low": None, "high": None})
    few = sound.model_copy(update={"b": "six_gram", "documents": 2, "low": None, "high": None})
    wrong = [
        sound.model_copy(update={"a": "mixed", "b": "six_gram"} | values)
        for values in (
            {"b": "base"},
            {"a": "other"},
            {"language": "bho"},
            {"low": 0.75},  # above its other end
            {"high": None},
            {"documents": 0},
            {"documents": 41},  # there are 40 bytes
            {"documents": None},
        )
    ]
    vector = np.zeros(fed.layout.size, np.float32)

    def told(*differences: Difference, order: Order = order) -> list[Event]:
        asked = state.with_site("gaya", outstanding=order)
        values = {"judgements": (here,), "differences": differences}
        if not order.local_steps:
            values |= {"tokens": 0, "payload": b""}
        _, _, events = fold_one(strategy, asked, fed.delivery(asked, "gaya", vector, **values))
        return [event for event in events if isinstance(event, DifferenceJudged)]

    assert told(sound, plain, few, *wrong, sound) == [
        DifferenceJudged("gaya", "mag", 0, "model", "base", 9, -0.25, 0.5),
        DifferenceJudged("gaya", "mag", 0, "model", "ppmd", None, None, None),
        DifferenceJudged("gaya", "mag", 0, "model", "six_gram", 2, None, None),
    ]
    for each in wrong:
        assert told(each) == []
    assert told(sound, order=state.sites["gaya"].outstanding) == []
    assert told(sound, order=order.model_copy(update={"first": True})) == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", -1.5, 1e7, "a"])
def test_interval_with_ends_that_no_change_has_is_no_message(value: object) -> None:
    facts = {"language": "mag", "a": "model", "b": "base", "documents": 9, "low": 0, "high": value}
    with pytest.raises(ValidationError):
        Difference.model_validate(facts)


# --- what decoding may cost


def test_update_of_another_codec_or_density_than_the_plan_s_is_never_decoded(
    federation: Fed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation(THREE)
    state, vector = fed.state(), vectors(fed, ["gaya"])["gaya"]
    plan = SparseCodec(density=0.1, chunk=64)
    strategy = fed.strategy(uplink=plan)
    _, verdict, _ = fold_one(strategy, state, fed.delivery(state, "gaya", vector, codec=plan))
    assert verdict.accepted  # an honest one is
    monkeypatch.setattr("boli.codec.sparse.decode_positions", None)
    for codec in (DenseCodec(), DenseCodec("fp16"), SparseCodec(density=0.5, chunk=64)):
        delivery = fed.delivery(state, "gaya", vector, codec=codec)
        _, verdict, (event,) = fold_one(strategy, state, delivery)
        assert (verdict.reason, verdict.keep) == ("malformed", False)
        assert "agreed on" in event.detail or "at most" in event.detail


def test_order_says_how_dense_its_answer_may_be(federation: Fed) -> None:
    fed = federation(THREE)
    state, vector = fed.state(), vectors(fed, ["gaya"])["gaya"]
    plan = SparseCodec(density=0.5, chunk=64)
    order = state.sites["gaya"].outstanding.model_copy(update={"density": 0.1})
    state = state.with_site("gaya", outstanding=order)
    for codec, accepted in ((plan, False), (SparseCodec(density=0.1, chunk=64), True)):
        delivery = fed.delivery(state, "gaya", vector, codec=codec)
        _, verdict, _ = fold_one(fed.strategy(uplink=plan), state, delivery)
        assert verdict.accepted == accepted


@pytest.mark.parametrize("restarts", [False, True])
def test_last_version_is_the_mean_of_the_last_ones_also_over_a_restart(
    federation: Fed, restarts: bool
) -> None:
    fed = federation(THREE)
    strategy = fed.strategy(averaging=Averaging(versions=3, total=4))
    plain = fed.strategy()
    found = other = fed.state()
    versions = []
    for seed in range(4):
        given = vectors(fed, list(THREE), seed)
        for name in THREE:
            found, *_ = fold_one(strategy, found, fed.delivery(found, name, given[name]))
            other, *_ = fold_one(plain, other, fed.delivery(other, name, given[name]))
        found, release, _ = strategy.step(found)
        other, *_ = plain.step(other)
        versions.append(other.theta)
        assert np.array_equal(release.theta, found.theta)
        found = from_parts(*to_parts(found)) if restarts else found
        found, other = fed.ask(found), fed.ask(other)
    assert np.allclose(found.theta, np.mean(versions[-3:], axis=0), atol=1e-6)
    assert found.average is None
