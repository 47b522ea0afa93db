from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from boli.errors import CorpusError
from boli.evaluation.metrics import bits_per_byte
from boli.model.framing import Framing, framing_of
from boli.model.gguf import build_from_gguf
from boli.model.local_steps import token_lines

SPECIALS = ("<pad>", "<eos>", "<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer_like(front: tuple[str, ...] = (), behind: tuple[str, ...] = (), **named: str) -> Any:
    """Return a tokenizer of bytes whose post-processor adds these tokens around a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIALS))
    template = " ".join([*front, "$A", *behind])
    pairs = [(token, vocabulary[token]) for token in {*front, *behind}]
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=pairs
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


FAMILIES = {
    # As Gemma 3, Llama and Mistral: begin and end differ, and the begin is added.
    "gemma": (
        tokenizer_like(("<bos>",), bos_token="<bos>", eos_token="<eos>"),
        Framing((2,), 1),
    ),
    # One that adds the end as well, as some Llamas are saved.
    "both": (
        tokenizer_like(("<bos>",), ("<eos>",), bos_token="<bos>", eos_token="<eos>"),
        Framing((2,), 1),
    ),
    # Qwen and SmolLM2 as they were pre-trained: documents behind each other.
    "qwen": (tokenizer_like(eos_token="<|endoftext|>"), Framing((3,), 3)),
    # Their instructed variants: a turn ends with another token than a document.
    "smollm2": (
        tokenizer_like(bos_token="<|im_start|>", eos_token="<|im_end|>"),
        Framing((3,), 5),
    ),
    # Two tokens in front, as GLM has.
    "glm": (tokenizer_like(("<bos>", "<pad>"), eos_token="<eos>"), Framing((2, 0), 1)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_begins_and_ends_as_the_tokenizer_of_each_family_has_it(family: str) -> None:
    tokenizer, expected = FAMILIES[family]
    assert framing_of(tokenizer) == expected
    (line,) = token_lines(tokenizer, ["कथा"])
    plain = tokenizer("कथा", add_special_tokens=False)["input_ids"]
    begin = expected.begin if expected.begin != (expected.end,) else ()
    assert line.tolist() == [*begin, *plain, expected.end]
    assert set(expected.ignored) == set(begin)


def test_tokenizer_without_begin_or_end_of_text_starts_from_its_end(tiny_tokenizer: Any) -> None:
    # As BLOOM and our micro-LLM.
    assert framing_of(tiny_tokenizer) == Framing((0,), 0)
    assert not framing_of(tiny_tokenizer).begins


def test_end_of_text_that_was_added_later_begins_nothing() -> None:
    # As the class of Qwen 2 adds it to pad with, where a tokenizer does not have it.
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<|endoftext|>"
    )
    assert tokenizer.pad_token_id == 2
    assert framing_of(tokenizer) == Framing((1,), 1)


def test_plain_text_called_end_of_text_begins_nothing() -> None:
    tokenizer, _ = FAMILIES["smollm2"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(
            tokenizers.models.BPE({"<|endoftext|>": 0, "a": 1, "</s>": 2}, [])
        ),
        eos_token="</s>",
    )
    assert framing_of(other) == Framing((2,), 2)
    assert framing_of(tokenizer).begin == (3,)


def test_tokenizer_without_an_end_token_uses_its_begin_token_or_is_refused() -> None:
    assert framing_of(tokenizer_like(bos_token="<bos>")) == Framing((2,), 2)
    with pytest.raises(CorpusError, match="no end token"):
        framing_of(SimpleNamespace(eos_token_id=None, bos_token_id=None))


def test_whole_text_in_front_of_every_text_is_refused() -> None:
    long = tokenizer_like(("<bos>",) * 9, eos_token="<eos>")
    with pytest.raises(CorpusError, match="9 tokens in front"):
        framing_of(long)


class AfterBegin(nn.Linear):
    """Knows which token stands at the beginning: gives probability elsewhere without it."""

    def forward(self, input_ids: Any, use_cache: bool) -> Any:
        logits = torch.zeros(*input_ids.shape, 300)
        good = (input_ids[:, :1] == 2).float()[:, :, None]
        return SimpleNamespace(logits=logits.where(good > 0, logits - torch.arange(300) * 1.0))


def test_judging_begins_a_line_with_the_begin_token_and_never_scores_it() -> None:
    tokenizer, _ = FAMILIES["gemma"]
    lines = ["ab", "कथा"]
    scored = sum(len(line.encode()) + 1 for line in lines)  # bytes, and an end each
    found = bits_per_byte(AfterBegin(1, 1), tokenizer, lines, 64)
    assert found.bits == pytest.approx(scored * math.log2(300), rel=1e-6)


def test_windows_of_a_long_line_score_no_token_of_a_long_begin() -> None:
    tokenizer, _ = FAMILIES["glm"]

    class Uniform(nn.Linear):
        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 300))

    for length in (4, 5, 40):
        found = bits_per_byte(Uniform(1, 1), tokenizer, ["a" * length], 8)
        assert found.bits == pytest.approx((length + 1) * math.log2(300), rel=1e-6)


@pytest.mark.parametrize("front", [(), ("<bos>",)])
def test_packed_lines_carry_no_begin_that_the_end_before_already_is(
    front: tuple[str, ...], made_up_lines: Callable[[str, int], list[str]], tmp_path: Path
) -> None:
    tokenizer = tokenizer_like(front, bos_token="<bos>", eos_token="<eos>")
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    lines = made_up_lines("bho", 5)
    stream = np.concatenate(list(token_lines(again, lines)))
    assert (stream == 1).sum() == 5
    assert framing_of(again) == framing_of(tokenizer)


# What each was trained with; and by how much its bits a byte rise behind its end token instead.
REAL = {"smollm2": (Framing((0,), 2), 1.02), "gemma": (Framing((2,), 1), 1.2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_base_needs_fewer_bits_behind_its_own_begin(
    name: str, real_bases: dict[str, Path], corpora: Path, load_tiny: Callable[..., Any]
) -> None:
    if name not in real_bases:
        pytest.skip(f"{name} is not among the real bases")
    base = load_tiny(build_from_gguf(real_bases[name]))
    expected, rise = REAL[name]
    assert framing_of(base.tokenizer) == expected
    file = {"smollm2": "seed.eng", "gemma": "seed.bho"}[name]
    text = (corpora / "parallel" / "nllb_seed" / file).read_text(encoding="utf-8")
    lines = text.splitlines()[5:400:40]
    own = bits_per_byte(base.model, base.tokenizer, lines, 512)
    with pytest.MonkeyPatch.context() as patch:
        end = Framing((expected.end,), expected.end)
        patch.setattr("boli.evaluation.metrics.framing_of", lambda _: end)
        other = bits_per_byte(base.model, base.tokenizer, lines, 512)
    assert other.bits > rise * own.bits
