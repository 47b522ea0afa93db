"""A site looks at what its base makes of its text, and judges versions on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.plan import Plan
from boli.rounds.update import Order
from boli.site.work import WORST_BITS, open_work


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
