"""Bits per byte: how many bits a model needs for a byte of text; comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from boli.model.local_steps import end_token

TOKENS_AT_ONCE = 4096
LONGEST_WINDOW = 2048  # tokens; logits of a longer one may not fit into memory


@dataclass(frozen=True)
class Bits:
    """Code length of some text under a model."""

    bits: float
    bytes: int  # UTF-8, with one for the end of each line

    @property
    def per_byte(self) -> float:
        """Bits per byte; smaller is better."""
        return self.bits / self.bytes


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, lines: Sequence[str], max_length: int) -> Bits:
    """Score each line by itself, from the end token to the next end token.

    A line longer than the model can read is cut into windows that overlap by
    half; every token is scored once, in the window that gives it more context.
    """
    end = end_token(tokenizer)
    windows: list[tuple[list[int], int]] = []  # tokens, and how many at the end are scored
    for tokens in tokenizer(list(lines), add_special_tokens=False)["input_ids"]:
        windows += _windows([end, *tokens, end], min(max_length, LONGEST_WINDOW))
    windows.sort(key=lambda window: len(window[0]))
    model.eval()
    device = next(model.parameters()).device
    total, start = 0.0, 0
    while start < len(windows):
        stop = start + 1
        while stop < len(windows) and len(windows[stop][0]) * (stop - start + 1) <= TOKENS_AT_ONCE:
            stop += 1
        total += _batch_nats(model, windows[start:stop], end, device)
        start = stop
    num_bytes = sum(len(line.encode()) + 1 for line in lines)
    return Bits(total / math.log(2), num_bytes)


def _windows(tokens: list[int], max_length: int) -> list[tuple[list[int], int]]:
    if len(tokens) <= max_length:
        return [(tokens, len(tokens) - 1)]
    stride = max_length // 2
    windows = [(tokens[:max_length], max_length - 1)]
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
    logits = model(input_ids=inputs[:, :-1], use_cache=False).logits.float()
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), inputs[:, 1:], reduction="none"
    ).double()
    return float(losses[torch.from_numpy(scored).to(device)].sum())
