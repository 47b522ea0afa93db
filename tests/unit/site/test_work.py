"""A site looks at what its base makes of its text, and judges versions on it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from boli.corpus.sources import read_split, share_of
from boli.errors import ModelError
from boli.evaluation.baselines import ppmd, six_gram
from boli.evaluation.paired import FEWEST_DOCUMENTS
from boli.plan import Plan
from boli.rounds.update import Order
from boli.site.node import Done
from boli.site.work import WORST_BITS, TrainingWork, open_work


@pytest.mark.parametrize("entry", [np.nan, 0.0])
def test_version_that_gives_no_number_is_judged_and_is_no_failure(
    tiny_plan: Callable[..., Plan], micro_base: Path, tmp_path: Path, entry: float
) -> None:
    plan = tiny_plan(tmp_path)
    work = open_work(plan, plan.site[0], str(micro_base))
    theta = np.full(work.layout.size, entry, np.float32)
    order = Order(
        order="run-arrah-1",
        site="arrah",
        sequence=1,
        base_version=1,
        layout=work.full_layout.digest,
        local_steps=0,
        evaluate=("tuning", "test"),
    )
    done = work.perform(order, theta, theta, lambda: 0, lambda *_: True)
    assert done is not None
    worst = [each.bits == WORST_BITS * each.bytes for each in done.judgements]
    assert worst == [bool(np.isnan(entry))] * 2
    assert len(done.mixed) == (0 if np.isnan(entry) else 1)


def test_ngrams_are_told_of_once_with_the_base_and_mixed_with_the_last_version(
    tiny_plan: Callable[..., Plan],
    micro_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = tiny_plan(tmp_path)
    site = plan.site[0]
    order = Order(
        order="run-arrah-1",
        site="arrah",
        sequence=1,
        base_version=0,
        layout="",
        local_steps=0,
        evaluate=("tuning", "test"),
        first=True,
    )
    last = order.model_copy(update={"first": False, "base_version": 3})
    training = last.model_copy(update={"evaluate": ("tuning",), "local_steps": 1})

    def perform(work: TrainingWork, order: Order) -> Done:
        done = work.perform(order, work.first, work.first, lambda: 1, lambda *_: True)
        assert done is not None
        return done

    monkeypatch.setattr("boli.site.work.MOST_COMPARED", 2)
    work = open_work(plan, site, str(micro_base))
    done = perform(work, order)
    assert done.mixed == done.differences == ()
    split = read_split(plan, site.text, site.language)[site.language]
    for judged, one in zip(done.judgements, done.six_gram, strict=True):
        assert (judged.language, judged.part, judged.bytes) == (one.language, one.part, one.bytes)
        lines = sorted(split.part(one.part), key=share_of)[: plan.evaluation.max_lines]
        assert one.bits == round(six_gram(split.train, lines).bits.sum())
    (compressed,) = done.ppmd
    assert (compressed.part, compressed.bytes) == ("test", done.six_gram[1].bytes)
    assert compressed.bits == ppmd(split.train, lines).bits.sum()
    assert perform(work, order).six_gram == done.six_gram
    assert perform(work, order).ppmd == done.ppmd
    assert perform(work, training).six_gram == perform(work, training).ppmd == ()
    assert perform(work, training).mixed == perform(work, training).differences == ()
    done = perform(work, last)
    assert done.six_gram == done.ppmd == ()
    # A plain file names no documents, so there is no interval.
    assert {(one.documents, one.low, one.high) for one in done.differences} == {(None,) * 3}
    (mixed,) = done.mixed
    (test,) = [one for one in done.judgements if one.part == "test"]
    assert (mixed.language, mixed.part, mixed.bytes) == (test.language, "test", test.bytes)
    assert 0 < mixed.bits < test.bits
    assert perform(work, last).mixed == done.mixed
    assert perform(work, last).mixed == perform(work, last).differences == ()  # a third version

    silent = tiny_plan(tmp_path, evaluation={"ngram": False})
    work = open_work(silent, site, str(micro_base))
    assert perform(work, order).six_gram == perform(work, order).ppmd == ()
    done = perform(work, last)
    assert done.mixed == ()
    assert [(one.a, one.b) for one in done.differences] == [("model", "base")]


def test_intervals_are_over_documents_and_of_few_none_is_told(
    tiny_plan: Callable[..., Plan],
    micro_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = [{"path": "bho.txt", "held_out_by": "documents"}]
    plan = tiny_plan(
        tmp_path,
        corpus={"held_out": {"test_percent": 30}},
        evaluation={"max_lines": 400},
        site=[{"name": "arrah", "language": "bho", "text": text}],
    )
    site, number = plan.site[0], len((tmp_path / "bho.txt").read_text().splitlines())
    order = Order(
        order="run-arrah-1",
        site="arrah",
        sequence=1,
        base_version=1,
        layout="",
        local_steps=0,
        evaluate=("tuning", "test"),
    )

    def told(documents: int) -> tuple[TrainingWork, Done]:
        names = [f"article {k % documents}\n" for k in range(number)]
        (tmp_path / "documents").write_text("".join(names), encoding="utf-8")
        work = open_work(plan, site, str(micro_base))
        theta = work.first + np.float32(0.02)
        done = work.perform(order, theta, theta, lambda: 0, lambda *_: True)
        assert done is not None
        return work, done

    work, done = told(120)  # it judged no base: the version comes to a node that was started anew
    found = {(one.a, one.b): one for one in done.differences}
    assert list(found) == [
        ("model", "base"), ("model", "six_gram"), ("model", "ppmd"), ("mixed", "six_gram"),
    ]  # fmt: skip
    (model,) = [one for one in done.judgements if one.part == "test"]
    first = order.model_copy(update={"first": True, "base_version": 0})
    again = work.perform(first, work.first, work.first, lambda: 0, lambda *_: True)
    assert again is not None
    base = next(one for one in again.judgements if one.part == "test")
    for one, rival in (
        (found["model", "base"], base.bits),
        (found["model", "six_gram"], again.six_gram[1].bits),
        (found["model", "ppmd"], again.ppmd[0].bits),
    ):
        assert one.low is not None
        assert one.high is not None
        assert one.low <= model.bits / rival - 1 <= one.high
        assert one.low == round(one.low, 4)
        assert FEWEST_DOCUMENTS <= (one.documents or 0) <= 120
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    _, done = told(9)  # of which few are in the test part
    assert done.ppmd == ()
    assert {(one.a, one.b) for one in done.differences} == set(found) - {("model", "ppmd")}
    for one in done.differences:
        assert 0 < (one.documents or 0) < FEWEST_DOCUMENTS
        assert (one.low, one.high) == (None, None)


def test_site_refuses_a_base_that_loses_its_text(
    micro_base: Path, tmp_path: Path, tiny_plan: Callable[..., Plan]
) -> None:
    plan = tiny_plan(tmp_path)
    site = plan.site[0]
    base = tmp_path / "base"
    shutil.copytree(micro_base, base)
    open_work(plan, site, str(base)).close()  # the tokenizer that it has loses nothing
    vocabulary = {name: number for number, name in enumerate(["<unk>", "</s>", *"abcdefgh"])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    hostile = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")
    hostile.save_pretrained(base)
    with pytest.raises(ModelError, match=rf"text of site {site.name} in") as error:
        open_work(plan, site, str(base))
    assert "loses" in error.value.problem
