"""How surprising texts are to a small language model, in bits per byte: fewer is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boli.corpus.round_trip import BITS_A_BYTE, lost_bytes
from boli.errors import ModelError
from boli.pretrained import load_model, load_part

MOST_TOKENS = 512  # of a text: its beginning is judged
TOKENS_AT_ONCE = 8192


class Scorer:
    """A causal language model from a folder, on one core. No code of the folder runs."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        limit = getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS
        self.most_tokens = min(MOST_TOKENS, limit)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return bits per byte of each text; infinite where it has no token to judge."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [[self._start(), *row[: self.most_tokens - 1]] for row in rows]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        scores = [math.inf] * len(rows)
        first = 0
        while first < len(order):
            last = first + 1
            while last < len(order) and len(rows[order[last]]) * (last - first + 1) <= (
                TOKENS_AT_ONCE
            ):
                last += 1
            batch = [rows[row] for row in order[first:last]]
            for row, nats in zip(order[first:last], self._nats(batch), strict=True):
                scores[row] = self._bits_per_byte(nats, texts[row], rows[row][1:])
            first = last
        return scores

    def _bits_per_byte(self, nats: float, text: str, tokens: list[int]) -> float:
        """Return the score of a text's first tokens; a byte that they lose counts as 8 bits."""
        if not tokens:
            return math.inf
        if len(tokens) == self.most_tokens - 1:  # about the part of the text that they are of
            text = text[: len(self.tokenizer.decode(tokens))]
        (lost,) = lost_bytes(self.tokenizer, [text], [tokens])
        size = len(text.encode())
        return (nats / math.log(2) + BITS_A_BYTE * lost) / size if size else math.inf

    def _start(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    def _nats(self, rows: Sequence[list[int]]) -> list[float]:
        """Return how surprising each row is behind its first token."""
        import torch

        longest = max(map(len, rows))
        tokens = torch.zeros((len(rows), longest), dtype=torch.int64)
        told = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            told[number, 1 : len(row)] = True
        if longest < 2:
            return [0.0] * len(rows)
        with torch.no_grad():
            # Padding is on the right of a causal model: what is judged never sees it.
            logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], reduction="none"
        )
        sums: list[float] = (losses * told[:, 1:]).sum(1).tolist()
        return sums


def open_scorer(folder: Path) -> Scorer:
    """Load a model and its tokenizer, as transformers save them.

    Raises:
        ModelError: the folder holds none, or it cannot be loaded.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"there is no language model at {folder}", "give a folder as transformers saves them"
        )
    import torch
    import transformers

    torch.set_num_threads(1)  # each worker has a core
    try:
        tokenizer = load_part(transformers.AutoTokenizer, folder)
        model = load_model(transformers.AutoModelForCausalLM, folder)
    except ModelError:
        raise
    except Exception as error:  # they have no common kind
        raise ModelError(
            f"cannot load {folder}: {error}", "give a causal language model with safetensors"
        ) from None
    return Scorer(model.eval(), tokenizer)
