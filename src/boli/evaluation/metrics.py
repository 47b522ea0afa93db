"""Bits per byte: how many bits a model needs for a byte of text; comparable across tokenizers.

It stays comparable where a tokenizer loses text: a byte that its tokens do not give back counts
as 8 bits, as if it were sent as it is, beside what the model needs for the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boli.corpus.round_trip import BITS_A_BYTE, lost_bytes
from boli.errors import DivergedError, ModelError
from boli.model.framing import framing_of
from boli.model.local_steps import token_losses

TOKENS_AT_ONCE = 4096
LONGEST_WINDOW = 2048  # tokens; logits of a longer one may not fit into memory
MOST_LOST = 0.01  # of a site's bytes, that the tokens of its base may not give back
LINES_LOOKED_AT = 2000  # of a text, to find out


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


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, lines: Sequence[str], max_length: int) -> Bits:
    """Score each line by itself, as the tokenizer begins and ends a text; the end is scored too.

    A line longer than the model can read is cut into windows that overlap by
    half; every token is scored once, in the window that gives it more context.

    Raises:
        DivergedError: the model gives no finite probabilities.
        ModelError: the tokenizer has tokens that the model has not.
    """
    framing = framing_of(tokenizer)
    windows: list[tuple[list[int], int]] = []  # tokens, and how many at the end are scored
    rows = _tokens(tokenizer, lines)
    _check_vocabulary(model, max((max(row, default=0) for row in rows), default=0))
    for tokens in rows:
        framed = framing.scored(tokens)
        windows += _windows(framed, min(max_length, LONGEST_WINDOW), len(framing.begin))
    windows.sort(key=lambda window: len(window[0]))
    model.eval()
    device = next(model.parameters()).device
    total, start = 0.0, 0
    while start < len(windows):
        stop = start + 1
        while stop < len(windows) and len(windows[stop][0]) * (stop - start + 1) <= TOKENS_AT_ONCE:
            stop += 1
        total += _batch_nats(model, windows[start:stop], framing.end, device)
        start = stop
    if not math.isfinite(total):
        raise DivergedError(
            f"the model gives a code length of {total} for {len(lines)} lines",
            "it diverged, or its weights are damaged: judge an earlier version",
        )
    num_bytes = bytes_of(lines)
    lost = sum(lost_bytes(tokenizer, lines, rows))
    return Bits(total / math.log(2) + BITS_A_BYTE * lost, num_bytes, lost)


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
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None)
    if size is not None and largest >= size:
        raise ModelError(
            f"the tokenizer has token {largest}, and the model knows {size} tokens",
            "use the tokenizer that belongs to the model",
        )


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
) -> float:
    length = max(len(tokens) for tokens, _ in windows)
    tokens = np.full((len(windows), length), end, np.int64)
    scored = np.zeros((len(windows), length - 1), bool)
    for row, (window, count) in enumerate(windows):
        tokens[row, : len(window)] = window
        scored[row, len(window) - 1 - count : len(window) - 1] = True
    # Padding is on the right of a causal model: what is scored never sees it.
    inputs: Tensor = torch.from_numpy(tokens).to(device)
    losses = token_losses(model, inputs).double()
    return float(losses[torch.from_numpy(scored).to(device)].sum())
