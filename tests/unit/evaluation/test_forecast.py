"""What `boli check` says of a plan whose base loses text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.plan import Plan
from boli.preparation import check_text
from boli.run import check


@pytest.fixture
def plan(micro_base: Path, tmp_path: Path, tiny_plan: Callable[..., Plan]) -> Plan:
    """Return a plan on a base whose tokenizer a test may replace."""
    base = tmp_path / "base"
    base.mkdir()
    for path in micro_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    return tiny_plan(tmp_path, model={"base": {"path": str(base), "micro": None}})


def write_tokenizer(plan: Plan, alphabet: str) -> None:
    names = dict.fromkeys(["<unk>", "</s>", *alphabet])
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", bos_token="</s>"
    )
    assert plan.model.base.path is not None
    fast.save_pretrained(plan.model.base.path)


def test_base_that_loses_text_of_a_site_is_refused(plan: Plan) -> None:
    assert not [note for note in check(plan).notes if "alphabet" in note]
    write_tokenizer(plan, "abc")
    with pytest.raises(ModelError, match=r"loses \d+\.\d% of the text of site \w+ in \w+"):
        check(plan)


def test_what_little_is_lost_is_said(plan: Plan) -> None:
    texts = [
        line
        for split in check_text(plan).values()
        for part in split.values()
        for line in (*part.train, *part.tuning, *part.test)
    ]
    letters: Any = sorted(set("".join(texts)))
    write_tokenizer(plan, letters)
    assert not [note for note in check(plan).notes if "alphabet" in note]
    source = next(iter(plan.site)).text[0]
    assert source.path is not None
    path = plan.resolve(source.path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\n", "ॐ\n", 1), encoding="utf-8")
    (note,) = (note for note in check(plan).notes if "alphabet" in note)
    assert "0.0" in note
    assert "8 bits" in note
