"""A plan through a real Flower federation: SuperLink, SuperNodes and `flwr run`, on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import SITES, Federation, check_same_as_local, settings_of, wait_for, write_app

from boli.journal import SiteJoined, read_journal
from boli.run import list_runs

ROUNDS = 2


@pytest.fixture
def federation(short_folder: Path) -> Iterator[Federation]:
    one = Federation(short_folder / "flower")
    one.start_superlink()
    yield one
    one.close()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("tokenizer", ["base", pytest.param("sites", marks=pytest.mark.slow)])
def test_plan_in_a_federation_ends_with_the_bits_of_the_local_engine(
    tiny_plan_file: Callable[..., Path],
    federation: Federation,
    short_folder: Path,
    tmp_path: Path,
    tokenizer: str,
) -> None:
    plan = tiny_plan_file(tmp_path, model={"base": {"micro": {"tokenizer": tokenizer}}})
    run = write_app(plan, short_folder, f"rounds.total={ROUNDS}", "engine.threads_per_site=1")
    for site in SITES:
        federation.start_supernode(site, settings_of(site, short_folder, tmp_path))
    federation.submit(short_folder / "app")
    wait_for(run, lambda: (run / "report.html").exists(), federation, 240)
    check_same_as_local(plan, run, short_folder, ROUNDS)
    facts = [entry.event for entry in read_journal(run / "journal.jsonl")]
    assert [f.site for f in facts if isinstance(f, SiteJoined)].count("gaya") == 1
    assert not federation.pids("boli.engine.flower_node"), "a node was not told to stop"
    assert [one.id for one in list_runs(short_folder / "runs")] == [run.name]
    for site in SITES:  # its text and its state stay where they are
        assert list((short_folder / site / "runs" / run.name).glob("*.safetensors"))
