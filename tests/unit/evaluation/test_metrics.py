from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from boli.errors import ModelError
from boli.evaluation import metrics
from boli.evaluation.metrics import (
    Bits,
    _windows,
    bits_per_byte,
    check_tokenizer,
    line_bits,
)
from boli.model.base import micro_model
from boli.plan import MicroPlan

Lines = Callable[[str, int], list[str]]


@pytest.fixture(scope="module")
def base(micro_base: Path, load_tiny: Callable[..., Any]) -> Any:
    return load_tiny(micro_base)


def nats(model: Any, tokens: list[int], first: int = 1) -> float:
    """Return the code length of tokens[first:], each given all before it."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
    chosen = nn.functional.log_softmax(logits, 1).gather(1, torch.tensor(tokens)[1:, None])
    return -float(chosen[first - 1 :].sum())


def test_bits_equal_a_direct_computation(base: Any, made_up_lines: Lines) -> None:
    lines = [*made_up_lines("bho", 7), "क", "end."]
    end = base.tokenizer.eos_token_id
    expected = 0.0
    for line in lines:
        tokens = [end, *base.tokenizer(line, add_special_tokens=False)["input_ids"], end]
        assert len(tokens) <= 200
        expected += nats(base.model, tokens) / math.log(2)
    found = bits_per_byte(base.model, base.tokenizer, lines, 200)
    assert found.bits == pytest.approx(expected, rel=1e-5)
    assert found.bytes == sum(len(line.encode("utf-8")) + 1 for line in lines)
    assert found.per_byte == pytest.approx(expected / found.bytes, rel=1e-5)


def test_uniform_model_needs_the_logarithm_of_its_vocabulary(base: Any) -> None:
    class Uniform(nn.Linear):
        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 320))

    lines = ["गया", "पटना जाइब।"]
    tokens = sum(len(t) + 1 for t in base.tokenizer(lines)["input_ids"])
    found = bits_per_byte(Uniform(1, 1), base.tokenizer, lines, 64)
    assert found.bits == pytest.approx(tokens * math.log2(320), rel=1e-6)


@pytest.mark.parametrize("at_once", [1, 100, 999, 1 << 20])
def test_bits_do_not_depend_on_batching(
    base: Any, made_up_lines: Lines, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    lines = [*made_up_lines("mag", 9), " ".join(made_up_lines("mag", 12))]
    expected = sum(bits_per_byte(base.model, base.tokenizer, [line], 64).bits for line in lines)
    monkeypatch.setattr(metrics, "TOKENS_AT_ONCE", at_once)
    found = bits_per_byte(base.model, base.tokenizer, lines, 64)
    assert found.bits == pytest.approx(expected, rel=1e-5)
    turned = bits_per_byte(base.model, base.tokenizer, lines[::-1], 64)
    assert turned.bits == pytest.approx(expected, rel=1e-5)
    assert turned.bytes == found.bytes


def test_bits_of_each_line_are_its_own(base: Any, made_up_lines: Lines) -> None:
    lines = [*made_up_lines("mag", 5), " ".join(made_up_lines("mag", 12)), "", "क"]
    found = line_bits(base.model, base.tokenizer, lines, 64)
    for number, line in enumerate(lines):
        alone = bits_per_byte(base.model, base.tokenizer, [line], 64)
        assert found.bits[number] == pytest.approx(alone.bits, rel=1e-5)
        assert (found.bytes[number], found.lost[number]) == (alone.bytes, alone.lost_bytes)


def test_batches_stay_within_their_bound(
    base: Any, made_up_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "TOKENS_AT_ONCE", 150)
    shapes: list[tuple[int, int]] = []
    score = metrics._batch_nats

    def note(model: Any, windows: Any, end: int, device: Any) -> Any:
        shapes.append((len(windows), max(len(tokens) for tokens, _ in windows)))
        return score(model, windows, end, device)

    monkeypatch.setattr(metrics, "_batch_nats", note)
    bits_per_byte(base.model, base.tokenizer, made_up_lines("mag", 30), 64)
    assert all(rows == 1 or rows * length <= 150 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) >= 30
    assert max(rows for rows, _ in shapes) > 1


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 8, 9, 64])
@pytest.mark.parametrize("length", range(2, 30))
def test_windows_score_each_token_once_and_never_the_first(length: int, max_length: int) -> None:
    tokens = list(range(length))
    scored: list[int] = []
    for window, count in _windows(tokens, max_length):
        assert 2 <= len(window) <= max_length
        assert 0 < count < len(window)
        assert window == list(range(window[0], window[0] + len(window)))
        if window[0] > 0:  # what is scored has at least half a window before it
            assert len(window) - count >= max_length - max_length // 2
        scored += window[-count:]
    assert sorted(scored) == tokens[1:]


@pytest.mark.parametrize("max_length", [16, 17])
def test_long_line_is_scored_in_the_window_with_more_context(
    base: Any, made_up_lines: Lines, max_length: int
) -> None:
    line = " ".join(made_up_lines("mai", 4))
    end = base.tokenizer.eos_token_id
    tokens = [end, *base.tokenizer(line, add_special_tokens=False)["input_ids"], end]
    assert len(tokens) > 3 * max_length
    stride = max_length // 2
    expected = 0.0
    for place in range(1, len(tokens)):
        start = 0 if place < max_length else (place - max_length) // stride * stride + stride
        expected += nats(base.model, tokens[start : place + 1], place - start)
    found = bits_per_byte(base.model, base.tokenizer, [line], max_length)
    assert found.bits == pytest.approx(expected / math.log(2), rel=1e-4)


def test_scoring_leaves_no_gradient(base: Any) -> None:
    bits_per_byte(base.model, base.tokenizer, ["गया"], 64)
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_better_model_needs_fewer_bits(base: Any, made_up_lines: Lines) -> None:
    plan = MicroPlan(
        vocabulary_size=320, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48
    )
    lines = made_up_lines("hin", 20)
    fresh = bits_per_byte(micro_model(plan), base.tokenizer, lines, 64)
    assert bits_per_byte(base.model, base.tokenizer, lines, 64).bits < fresh.bits


def test_bits_per_byte_is_the_quotient() -> None:
    assert Bits(30.0, 12).per_byte == 2.5


# --- figures that could lie


class Constant(nn.Linear):
    """Gives all of its probability to one token, or to none in particular."""

    def __init__(self, vocabulary: int, token: int | None, bias: float = 30.0) -> None:
        super().__init__(1, 1)
        self.logits = torch.zeros(vocabulary)
        if token is not None:
            self.logits[token] = bias

    def forward(self, input_ids: Any, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def unknowing(alphabet: str = "abcdefgh") -> Any:
    """Return a tokenizer of ten pieces, one of them for all that it does not know."""
    vocabulary = {name: number for number, name in enumerate(["<unk>", "</s>", *alphabet])}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True)
    )
    inner.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", bos_token="</s>"
    )


def test_untrained_model_gains_nothing_from_tokens_that_say_nothing(made_up_lines: Lines) -> None:
    lines = [" ".join(made_up_lines("bho", 8)[n : n + 4]) for n in range(4)]
    tokenizer = unknowing()
    for model in (Constant(10, None), Constant(10, 0)):
        found = bits_per_byte(model, tokenizer, lines, 64)
        assert found.lost_bytes == found.bytes - len(lines)  # all but the ends of the lines
        assert 7.9 < found.per_byte < 8.3
        assert (found.bits - 8 * found.lost_bytes) / found.bytes < 0.4  # what it was before


def test_what_is_lost_is_counted_beside_what_is_predicted() -> None:
    found = bits_per_byte(Constant(10, None), unknowing(), ["abग"], 64)
    assert found.lost_bytes == 3
    assert found.bits == pytest.approx(4 * math.log2(10) + 3 * 8)
    assert found.lost_share == 3 / 6
    assert bits_per_byte(Constant(10, None), unknowing(), ["ab"], 64).lost_share == 0.0


def test_every_byte_of_a_line_beyond_the_window_counts(base: Any) -> None:
    line = "गया में आज " * 400
    found = bits_per_byte(Constant(320, None), base.tokenizer, [line], 16)
    tokens = len(base.tokenizer(line, add_special_tokens=False)["input_ids"])
    assert (found.bytes, found.lost_bytes) == (len(line.encode()) + 1, 0)
    assert found.bits == pytest.approx((tokens + 1) * math.log2(320), rel=1e-5)


def test_empty_lines_and_no_lines_are_judged_as_they_are(base: Any) -> None:
    found = bits_per_byte(Constant(320, None), base.tokenizer, ["", ""], 16)
    assert (found.bytes, found.bits) == (2, pytest.approx(2 * math.log2(320)))
    assert bits_per_byte(Constant(320, None), base.tokenizer, [], 16).bytes == 0


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), float("-inf")])
def test_model_that_gives_no_probabilities_is_an_error(base: Any, bias: float) -> None:
    end = base.tokenizer.eos_token_id
    with pytest.raises(ModelError, match="code length"):
        bits_per_byte(Constant(320, end, bias), base.tokenizer, ["गया"], 64)


def test_tokens_that_the_model_has_not_are_an_error(base: Any, made_up_lines: Lines) -> None:
    small = micro_model(
        MicroPlan(
            vocabulary_size=300, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48
        )
    )
    with pytest.raises(ModelError, match=r"token 3\d\d, and the model knows 300"):
        bits_per_byte(small, base.tokenizer, made_up_lines("hin", 100), 64)
    more = Constant(5000, None)  # that it has more only costs bits
    assert bits_per_byte(more, base.tokenizer, ["गया"], 64).per_byte > 4


def test_base_that_loses_a_percent_of_a_text_is_refused(base: Any, made_up_lines: Lines) -> None:
    assert check_tokenizer(base.tokenizer, made_up_lines("bho", 50), "site gaya in bho") == 0.0
    assert check_tokenizer(base.tokenizer, [], "site gaya in bho") == 0.0
    known = ["abcdefgh" * 50] * 10
    assert check_tokenizer(unknowing(), [*known, "क"], "x") == pytest.approx(3 / 4003)
    with pytest.raises(ModelError, match=r"loses 99\.\d% of the text of site gaya in bho") as error:
        check_tokenizer(unknowing(), ["a " * 3 + "गया" * 500], "site gaya in bho")
    assert "bytes" in error.value.hint
    assert "गया" not in error.value.problem


def test_of_a_long_text_lines_from_all_of_it_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "LINES_LOOKED_AT", 10)
    with pytest.raises(ModelError, match="loses"):
        check_tokenizer(unknowing(), ["abc"] * 90 + ["गया"] * 10, "x")
