from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli.codec.public import PublicCodec
from boli.codec.sparse import SparseCodec
from boli.errors import CorruptFileError, StorageError
from boli.rounds.checkpoint import CheckpointStore, from_parts, to_parts
from boli.rounds.cohort import Cohorts
from boli.rounds.outer import Nesterov
from boli.rounds.token_rows import TokenRows
from boli.rounds.update import ServerState

Fed = Callable[..., Any]
RANKS = {"arrah": None, "gaya": 2, "patna": None}


def busy(fed: Any) -> tuple[Any, ServerState]:
    """Return a strategy, and a state with every field in use: two of three updates are in."""
    outer, downlink = Nesterov(np.float32(0.7), np.float32(0.9)), SparseCodec(density=0.25)
    cohorts = Cohorts(PublicCodec(), 0, 1.0)
    rows = TokenRows(((0, 2, 4),))
    strategy = fed.strategy(outer=outer, downlink=downlink, cohorts=cohorts, token_rows=rows)
    rng = np.random.default_rng(0)
    state = strategy.begin(fed.state())
    for name in (*RANKS, "arrah", "gaya"):
        vector = rng.normal(size=fed.layout.size).astype(np.float32)
        agreed = cohorts.agreed(state, strategy.spans[name])
        values = {"train_seconds": 3.0, "codec": agreed}
        state, _, _ = strategy.fold(state, [fed.delivery(state, name, vector, **values)])
        if strategy.ready(state):
            state = fed.ask(strategy.step(state)[0])
        strategy = replace(strategy, keeps_frames=name == "arrah")  # gaya's second is kept
    state = replace(state, journal_seq=7, journal_hash="ab" * 32, center=vector, average=vector)
    return strategy, state.with_site("patna", rejections=2, benched="why", judged=1)


def same(one: ServerState, other: ServerState) -> bool:
    for f in fields(ServerState):
        mine, theirs = getattr(one, f.name), getattr(other, f.name)
        if f.name in ("outer", "headings", "moved_rows"):
            if {k: v.tobytes() for k, v in mine.items()} != {
                k: v.tobytes() for k, v in theirs.items()
            }:
                return False
        elif isinstance(mine, np.ndarray):
            if mine.dtype != theirs.dtype or mine.tobytes() != theirs.tobytes():
                return False
        elif mine != theirs:
            return False
    return True


def test_state_in_the_middle_of_a_round_comes_back_whole(federation: Fed, tmp_path: Path) -> None:
    _, state = busy(federation(RANKS))
    plain = {"run", "layout"}
    defaults = ServerState("", "", state.theta, {})
    for f in fields(ServerState):  # nothing is left at its default: each field is put to the test
        value = getattr(state, f.name)
        if isinstance(value, np.ndarray):
            assert f.name == "theta" or getattr(defaults, f.name) is None
        elif f.name not in plain:
            assert value != getattr(defaults, f.name), f.name
    CheckpointStore(tmp_path).save(state)
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert same(found[0], state)
    assert found[1] == []


def test_first_state_comes_back_too(federation: Fed, tmp_path: Path) -> None:
    state = federation(RANKS).state()
    CheckpointStore(tmp_path).save(state)
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    assert same(found[0], state)
    assert found[0].partial_sum is None


def test_restored_run_goes_on_bit_for_bit(federation: Fed, tmp_path: Path) -> None:
    fed = federation(RANKS)
    strategy, state = busy(fed)
    state = state.with_site("patna", benched="", rejections=0)
    CheckpointStore(tmp_path).save(state)
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    results = []
    for start in (state, found[0]):
        now = start
        rng = np.random.default_rng(9)
        for _ in range(3):
            for name, site in now.sites.items():
                if site.outstanding is not None:
                    vector = rng.normal(size=fed.layout.size).astype(np.float32)
                    agreed = strategy.cohorts.agreed(now, strategy.spans[name])
                    delivery = fed.delivery(now, name, vector, codec=agreed)
                    now, _, _ = strategy.fold(now, [delivery])
            assert strategy.ready(now)
            now = fed.ask(strategy.step(now)[0])
        results.append(now)
    assert same(*results)


def test_duplicate_of_what_a_checkpoint_holds_is_known_after_a_restart(
    federation: Fed, tmp_path: Path
) -> None:
    fed = federation(RANKS)
    strategy, state = fed.strategy(), fed.state()
    delivery = fed.delivery(state, "gaya", np.ones(fed.layout.size, np.float32))
    state, _, _ = strategy.fold(state, [delivery])
    CheckpointStore(tmp_path).save(state)
    found = CheckpointStore(tmp_path).load()
    assert found is not None
    again, (verdict,), _ = strategy.fold(found[0], [delivery])
    assert verdict.reason == "duplicate"
    assert same(again, state)


def test_corrupt_newest_falls_back_to_the_one_before(federation: Fed, tmp_path: Path) -> None:
    state = federation(RANKS).state()
    store = CheckpointStore(tmp_path)
    for version in (1, 2):
        store.save(replace(state, version=version))
    newest = max(tmp_path.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-9])
    found = store.load()
    assert found is not None
    assert found[0].version == 1
    assert found[1] == [newest]


def test_state_older_than_its_sites_asks_them_anew(federation: Fed) -> None:
    fed = federation(RANKS)
    strategy, before = fed.strategy(), fed.state()
    ones = np.ones(fed.layout.size, np.float32)
    # A site answered orders that an older checkpoint does not know of.
    late = [fed.delivery(before, "gaya", ones, sequence=number) for number in (1, 2, 3)]
    state = fed.ask(before.forget_orders())
    assert all(site.sequence > 1000 for site in state.sites.values())
    for delivery in late:
        state, (verdict,), _ = strategy.fold(state, [delivery])
        assert (verdict.accepted, verdict.reason, verdict.keep) == (False, "superseded", True)
    state, (verdict,), _ = strategy.fold(state, [fed.delivery(state, "gaya", ones)])
    assert verdict.accepted
    assert [entry.site for entry in state.folded] == ["gaya"]
    assert before.sites["gaya"].sequence == 1  # left untouched


def test_run_without_a_checkpoint_is_not_an_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "checkpoints").load() is None


def test_run_whose_checkpoints_are_all_corrupt_cannot_be_resumed(
    federation: Fed, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(federation(RANKS).state())
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(CorruptFileError):
        store.load()


def test_checkpoint_of_another_format_says_what_to_do(federation: Fed) -> None:
    arrays, facts = to_parts(federation(RANKS).state())
    for schema in (0, 2, None):
        with pytest.raises(CorruptFileError, match=f"format {schema}, this program reads 1") as c:
            from_parts(arrays, facts | {"schema": schema})
        assert "the version of boli that started it" in c.value.hint


def test_taking_apart_shares_no_list_with_the_state(federation: Fed) -> None:
    state = federation(RANKS).state()
    _, facts = to_parts(state)
    facts["coverage"]["9"] = 1
    facts["folded"].append({})
    assert state.coverage == {}
    assert state.folded == ()


@pytest.mark.root
def test_full_disk_leaves_the_last_checkpoint(
    federation: Fed, tiny_disk: Callable[[int], Path]
) -> None:
    state = federation(RANKS).state()
    store = CheckpointStore(tiny_disk(64) / "checkpoints")
    store.save(state)
    large = replace(state, version=1, theta=np.zeros(50_000, np.float32))
    with pytest.raises(StorageError, match="No space left"):
        store.save(large)
    found = store.load()
    assert found is not None
    assert same(found[0], state)
