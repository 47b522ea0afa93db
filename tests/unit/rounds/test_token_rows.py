from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boli.codec.sparse import SparseCodec
from boli.model.layout import Layout, Vector
from boli.rounds.checkpoint import from_parts, to_parts
from boli.rounds.token_rows import TokenRows

Fed = Callable[..., Any]
SITES = {"arrah": None, "gaya": None, "patna": None}
LAYOUT = Layout.of(
    {"layers.0.w": ((3, 4), "whole"), "model.embed_tokens.weight": ((5, 4), "whole")}
)
EMBEDDING = slice(12, 32)
ROWS = TokenRows(tuple((s.offset, *s.shape) for s in LAYOUT.token_tables))


def updates() -> dict[str, Vector]:
    """Return updates of sites that all have tokens 0 and 1; token 2 arrah alone, 4 nobody."""
    found = {name: np.ones(LAYOUT.size, np.float32) for name in SITES}
    for name, without in (("arrah", (3, 4)), ("gaya", (2, 4)), ("patna", (2, 4))):
        found[name][EMBEDDING].reshape(5, 4)[list(without)] = 0
    return found


@pytest.fixture
def fed(federation: Fed) -> Any:
    built = federation(SITES)
    built.layout = LAYOUT
    return built


@pytest.mark.parametrize("kept", [True, False], ids=["frames kept", "summed as they come"])
def test_row_of_a_token_is_averaged_over_the_sites_that_have_it(fed: Any, kept: bool) -> None:
    for rows, expected in ((ROWS, [1, 1, 1, 1, 0]), (TokenRows(), [1, 1, 1 / 3, 2 / 3, 0])):
        strategy = fed.strategy(token_rows=rows, keeps_frames=kept)
        state = fed.ask(fed.state())
        deliveries = [fed.delivery(state, name, vector) for name, vector in updates().items()]
        state, _, _ = strategy.fold(state, deliveries)
        _, release, _ = strategy.step(state)
        moved = release.step[EMBEDDING].reshape(5, 4)
        assert np.allclose(moved, np.array(expected)[:, None])
        assert np.allclose(release.step[:12], 1)


def test_site_that_moved_a_row_before_counts_where_a_sparse_update_leaves_it_out(fed: Any) -> None:
    codec = SparseCodec(density=0.25, value_bits=8, chunk=0)
    strategy = fed.strategy(token_rows=ROWS, uplink=codec)
    state = fed.ask(fed.state())
    first = np.zeros(LAYOUT.size, np.float32)
    first[12:20] = 1  # tokens 0 and 1
    state, _, _ = strategy.fold(state, [fed.delivery(state, n, first, codec=codec) for n in SITES])
    state = fed.ask(strategy.step(state)[0])
    state = from_parts(*to_parts(state))  # it is remembered over a restart
    second = np.zeros(LAYOUT.size, np.float32)
    second[:4] = 1
    deliveries = [fed.delivery(state, name, second, codec=codec) for name in ("gaya", "patna")]
    only = second.copy()
    only[12:16] = 1
    deliveries.append(fed.delivery(state, "arrah", only, codec=codec))
    state, _, _ = strategy.fold(state, deliveries)
    _, release, _ = strategy.step(state)
    assert np.allclose(release.step[12:16], 1 / 3, rtol=0.02)


def test_restart_in_the_middle_of_a_round_changes_nothing(fed: Any) -> None:
    strategy = fed.strategy(token_rows=ROWS)
    state = fed.ask(fed.state())
    found = updates()
    state, _, _ = strategy.fold(state, [fed.delivery(state, "arrah", found["arrah"])])
    again = from_parts(*to_parts(state))
    thetas = []
    for each in (state, again):
        rest = [fed.delivery(each, name, found[name]) for name in ("gaya", "patna")]
        each, _, _ = strategy.fold(each, rest)
        thetas.append(strategy.step(each)[0].theta.tobytes())
    assert thetas[0] == thetas[1]
    # The control: without what it remembers, the same restart gives another version.
    lost = replace(again, moved_rows={})
    rest = [fed.delivery(lost, name, found[name]) for name in ("gaya", "patna")]
    lost, _, _ = strategy.fold(lost, rest)
    assert strategy.step(lost)[0].theta.tobytes() != thetas[0]


def test_updates_from_before_rows_were_noted_are_averaged_over_all(fed: Any) -> None:
    strategy = fed.strategy(token_rows=ROWS, keeps_frames=True)
    state = fed.ask(fed.state())
    deliveries = [fed.delivery(state, name, vector) for name, vector in updates().items()]
    state, _, _ = strategy.fold(state, deliveries)
    found = [strategy.step(replace(state, moved_rows={}))[1].step]
    found.append(replace(strategy, token_rows=TokenRows()).step(state)[1].step)
    assert np.allclose(*found)
