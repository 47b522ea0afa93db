"""Bits per byte: how many bits a model needs for a byte of text; comparable across tokenizers.

It stays comparable where a tokenizer loses text: a byte that its tokens do not give back counts
as 8 bits, as if it were sent as it is, beside what the model needs for the tokens.

An n-gram expert may be mixed in, token by token (`boli.model.ngram`): the bits are then those
of the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boli.corpus.round_trip import BITS_A_BYTE, lost_bytes
from boli.errors import DivergedError, ModelError
from boli.model.framing import Framing, framing_of
from boli.model.local_steps import token_losses
from boli.model.ngram import TOKEN_ORDER, Expert, NGram, counted_lines

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOKENS_AT_ONCE = 4096
LONGEST_WINDOW = 2048  # tokens; logits of a longer one may not fit into memory
MOST_LOST = 0.01  # of a site's bytes, that the tokens of its base may not give back
LINES_LOOKED_AT = 2000  # of a text, to find out
LINES_AT_ONCE = 1000  # that are made tokens together, where all are counted


@dataclass(frozen=True)
class Bits:
    """Code length of some text under a model."""

    bits: float
    bytes: int  # UTF-8, with one for the end of each line
    lost_bytes: int = 0  # of them, that the tokens do not give back: 8 of the bits each

    @property
    def per_byte(self) -> float:
        """Bits per byte; smaller is better."""
        return self.bits / self.bytes

    @property
    def lost_share(self) -> float:
        """Share of the bytes that the tokens do not give back."""
        return self.lost_bytes / max(1, self.bytes)


@dataclass(frozen=True)
class LineBits:
    """Code length of each of some lines, for who resamples them or sums them by document."""

    bits: Floats  # (lines,) the end of each included
    bytes: Integers  # (lines,) UTF-8, with one for its end
    lost_bytes: Integers  # (lines,) of them, that the tokens do not give back

    @property
    def total(self) -> Bits:
        """Code length of all lines together."""
        return Bits(float(self.bits.sum()), int(self.bytes.sum()), int(self.lost_bytes.sum()))


@dataclass(frozen=True)
class Scored:
    """What a model says of lines, token by token: bits under it, alone or with an expert."""

    rows: list[list[int]]  # tokens of each line, with what it begins and ends with
    logs: Floats  # (n,) of every token but the first of each row, one row behind the other
    bytes: Integers  # (lines,) UTF-8, with one for the end
    lost_bytes: Integers  # (lines,)

    def line_bits(self, expert: Expert | None = None) -> LineBits:
        """Return the bits of each line.

        Raises:
            ModelError: the expert is of another vocabulary.
        """
        logs = self.logs if expert is None else expert.mix(self.rows, self.logs)
        starts = np.cumsum([0, *(len(row) - 1 for row in self.rows[:-1])])
        nats = np.add.reduceat(-logs, starts) if self.rows else np.zeros(0)
        bits = nats / math.log(2) + BITS_A_BYTE * self.lost_bytes
        return LineBits(bits, self.bytes, self.lost_bytes)


def bits_per_byte(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    max_length: int,  # tokens
    expert: Expert | None = None,
) -> Bits:
    """Score lines as `score_lines` does, and add them up.

    Raises:
        DivergedError: the model gives no finite probabilities.
        ModelError: the tokenizer has tokens that the model has not.
    """
    return line_bits(model, tokenizer, lines, max_length, expert).total


def line_bits(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    max_length: int,  # tokens
    expert: Expert | None = None,
) -> LineBits:
    """Return the bits of each line under a model, or under it and an n-gram expert together.

    Raises:
        DivergedError: the model gives no finite probabilities.
        ModelError: the tokenizer has tokens that the model has not.
    """
    return score_lines(model, tokenizer, lines, max_length).line_bits(expert)


def score_lines(model: Any, tokenizer: Any, lines: Sequence[str], max_length: int) -> Scored:
    """Score each line by itself, as the tokenizer begins and ends a text; the end is scored too.

    A line longer than the model can read is cut into windows that overlap by
    half; every token is scored once, in the window that gives it more context.

    Raises:
        DivergedError: the model gives no finite probabilities.
        ModelError: the tokenizer has tokens that the model has not.
    """
    tokens = _tokens(tokenizer, lines)
    framing = framing_of(tokenizer)
    logs = _token_logs(model, framing, tokens, max_length)
    lost = np.array(lost_bytes(tokenizer, lines, tokens), np.int64)
    sizes = np.array([len(line.encode()) + 1 for line in lines], np.int64)
    return Scored(_framed(framing, tokens), logs, sizes, lost)


def fit_expert(
    model: Any,
    tokenizer: Any,
    train: Sequence[str],  # that the n-grams are counted in
    tuning: Scored,  # by this model, that their weights are fitted on: neither is ever judged
) -> Expert:
    """Return an n-gram expert of the training lines, with the weights that this model needs.

    It holds what the lines say, and stays where they are.

    Raises:
        CorpusError: there are no training lines.
        ModelError: the tokenizer has tokens that the model has not.
    """
    framing = framing_of(tokenizer)
    lines, counted = counted_lines(train), list[NDArray[np.int32]]()
    for start in range(0, len(lines), LINES_AT_ONCE):  # as lists all would take 10 times as much
        rows = _framed(framing, _tokens(tokenizer, lines[start : start + LINES_AT_ONCE]))
        counted += [np.array(row, np.int32) for row in rows]
    num_symbols = _num_embeddings(model) or len(tokenizer)
    ngrams = NGram.train(counted, TOKEN_ORDER, num_symbols)
    return Expert.fit(ngrams, tuning.rows, tuning.logs)


def _framed(framing: Framing, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the tokens of lines with the one before the first that is scored, and with the end."""
    return [framing.scored(row)[len(framing.begin) - 1 :] for row in rows]


@torch.no_grad()
def _token_logs(
    model: Any, framing: Framing, rows: Sequence[Sequence[int]], max_length: int
) -> Floats:  # (n,) of every token and of the end, one row behind the other
    """Return the log-probability of each token, in nats."""
    _check_vocabulary(model, max((max(row, default=0) for row in rows), default=0))
    windows: list[tuple[list[int], int]] = []  # tokens, and how many at the end are scored
    for row in rows:
        framed = framing.scored(row)
        windows += _windows(framed, min(max_length, LONGEST_WINDOW), len(framing.begin))
    places = np.cumsum([0, *(count for _, count in windows)])  # of the first one that is scored
    order = sorted(range(len(windows)), key=lambda number: len(windows[number][0]))
    logs = np.zeros(int(places[-1]))
    model.eval()
    device = next(model.parameters()).device
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (
            len(windows[order[stop]][0]) * (stop - start + 1) <= TOKENS_AT_ONCE
        ):
            stop += 1
        batch = order[start:stop]
        nats = _batch_nats(model, [windows[number] for number in batch], framing.end, device)
        scored = [np.arange(places[number], places[number + 1]) for number in batch]
        logs[np.concatenate(scored)] = -nats
        start = stop
    if not np.isfinite(logs).all():
        raise DivergedError(
            f"the model gives a code length of {-logs.sum()} for {len(rows)} lines",
            "it diverged, or its weights are damaged: judge an earlier version",
        )
    return logs


def bytes_of(lines: Sequence[str]) -> int:
    """Return the UTF-8 bytes of lines, their ends included."""
    return sum(len(line.encode()) + 1 for line in lines)


def check_tokenizer(tokenizer: Any, lines: Sequence[str], whose: str) -> float:
    """Return the share of the bytes that the tokens of a text do not give back.

    Some lines are looked at, evenly along the text. `whose` says in an error whose text it is.

    Raises:
        ModelError: it is more than 1 %: what is lost cannot be learned, and a model would be
            judged on what is left.
    """
    lines = lines[:: max(1, -(-len(lines) // LINES_LOOKED_AT))]
    size = sum(len(line.encode()) for line in lines)
    share = sum(lost_bytes(tokenizer, lines, _tokens(tokenizer, lines))) / max(1, size)
    if share > MOST_LOST:
        raise ModelError(
            f"the tokenizer of the base loses {share:.1%} of the text of {whose}: its tokens do "
            f"not give these bytes back; at most {MOST_LOST:.0%} may be lost",
            "choose a base whose tokenizer works on bytes, or falls back to them, and neither "
            "changes case nor normalizes",
            code="model.loses",
        )
    return share


def _tokens(tokenizer: Any, lines: Sequence[str]) -> list[list[int]]:
    rows: list[list[int]] = []
    if lines:
        rows = tokenizer(list(lines), add_special_tokens=False)["input_ids"]
    return rows


def _check_vocabulary(model: Any, largest: int) -> None:
    size = _num_embeddings(model)
    if size is not None and largest >= size:
        raise ModelError(
            f"the tokenizer has token {largest}, and the model knows {size} tokens",
            "use the tokenizer that belongs to the model",
        )


def _num_embeddings(model: Any) -> int | None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None)
    return None if size is None else int(size)


def _windows(
    tokens: list[int],
    max_length: int,
    given: int = 1,  # tokens at the beginning that are not scored
) -> list[tuple[list[int], int]]:
    if len(tokens) <= max_length:
        return [(tokens, len(tokens) - given)]
    stride = max_length // 2
    windows = [(tokens[:max_length], max_length - given)]
    for start in range(stride, len(tokens) - stride, stride):
        window = tokens[start : start + max_length]
        scored = len(window) - (max_length - stride)
        if scored > 0:
            windows.append((window, scored))
    return windows


def _batch_nats(
    model: Any, windows: Sequence[tuple[list[int], int]], end: int, device: torch.device
) -> Floats:  # (n,) nats of the tokens that are scored, one window behind the other
    length = max(len(tokens) for tokens, _ in windows)
    tokens = np.full((len(windows), length), end, np.int64)
    scored = np.zeros((len(windows), length - 1), bool)
    for row, (window, count) in enumerate(windows):
        tokens[row, : len(window)] = window
        scored[row, len(window) - 1 - count : len(window) - 1] = True
    # Padding is on the right of a causal model: what is scored never sees it.
    inputs: Tensor = torch.from_numpy(tokens).to(device)
    losses = token_losses(model, inputs).double()
    nats: Floats = losses[torch.from_numpy(scored).to(device)].cpu().numpy()
    return nats
