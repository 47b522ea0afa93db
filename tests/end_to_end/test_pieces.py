"""A plan whose tokenizer is made of its sites' words, from the command to the adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

import boli
from boli.cli.main import app
from boli.corpus.pieces import read_pieces
from boli.journal import PiecesTaken, read_journal
from boli.run import Run

WITH_SITES = {"base": {"micro": {"tokenizer": "sites"}}}


def test_words_of_the_sites_are_in_the_tokenizer_also_after_a_stop(
    tiny_plan_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = tiny_plan_file(tmp_path, model=WITH_SITES, rounds={"total": 1})
    plan, runs = boli.load_plan(path), tmp_path / "runs"
    sent = [runs / "*" / "pieces" / site for site in ("arrah", "gaya")]

    def is_there(number: int) -> bool:
        return sum(bool(list(runs.glob(str(one.relative_to(runs))))) for one in sent) >= number

    stopped = boli.train(plan, runs=runs, should_stop=lambda: is_there(1))
    assert not stopped.finished
    assert not (stopped.folder / "run.json").exists()
    run = boli.train(resume=stopped.id, runs=runs)
    assert run.finished
    taken = [e.event for e in read_journal(run.folder / "journal.jsonl")]
    assert [e.site for e in taken if isinstance(e, PiecesTaken)] == ["arrah", "gaya"]
    words = {word.strip() for site in sent for word in pieces_of(run, site.name) if len(word) > 3}
    assert words
    vocabulary = set(json.loads((run.adapter / "tokenizer.json").read_text())["model"]["vocab"])
    assert len(vocabulary) == 320
    # What people see beforehand is what left; and none of it is in what others read.
    told = (run.folder / "journal.jsonl").read_text() + (run.folder / "run.json").read_text()
    assert not any(word in told or json.dumps(word)[1:-1] in told for word in words)
    shown = CliRunner().invoke(app, ["pieces", str(path), "--site", "gaya"])
    assert shown.exit_code == 0, shown.output
    written = (run.folder / "sites" / "gaya" / "pieces" / "pieces-10-3.tsv").read_text()
    assert shown.stdout == written
    assert "the plan asks for them" in shown.stderr


def test_vocabulary_of_a_real_base_is_cut_to_what_the_sites_sent(
    tiny_plan_file: Callable[..., Path], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = {
        "path": str(family_folder("llama")),
        "micro": None,
        "text": [],
        "vocabulary": {"cut": "sites"},
    }
    plan = tiny_plan_file(tmp_path, model={"base": base}, rounds={"total": 1})
    run = boli.train(boli.load_plan(plan), runs=tmp_path / "runs")
    assert run.finished
    events = [e.event for e in read_journal(run.folder / "journal.jsonl")]
    assert [e.site for e in events if isinstance(e, PiecesTaken)] == ["arrah", "gaya"]
    origin = Path(json.loads((run.folder / "run.json").read_text())["base"])
    about = json.loads((origin / "boli.json").read_text())
    assert about["vocabulary"]["pieces"] < about["vocabulary"]["of"] == 320


def pieces_of(run: Run, site: str) -> dict[str, int]:
    return read_pieces((run.folder / "pieces" / site).read_bytes(), 20_000, site)
