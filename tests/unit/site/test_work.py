"""A site looks at what its base makes of its text before it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.plan import Plan
from boli.site.work import open_work


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
