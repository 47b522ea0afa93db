"""How good an adapter is on files of text, next to its base alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Score:
    """Bits per byte of one text file under an adapter and under its base alone."""

    path: Path
    num_lines: int
    num_bytes: int
    base: float
    adapted: float
    lost_share: float = 0.0  # of the bytes, that the base's tokens do not give back: 8 bits each


def evaluate(adapter: str | Path, text: Sequence[str | Path]) -> list[Score]:
    """Judge an adapter in PEFT's format on text files, one sentence a line.

    Raises:
        ModelError: the adapter or its base cannot be loaded.
        CorpusError: a text is missing, empty or not UTF-8.
    """
    from boli.corpus.sources import read_lines
    from boli.evaluation.metrics import bits_per_byte
    from boli.model.export import load_adapter

    texts = [(Path(path), read_lines(Path(path))) for path in text]
    base = load_adapter(Path(adapter))
    scores = []
    for path, lines in texts:
        with base.without_adapter():
            before = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
        after = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
        score = Score(
            path, len(lines), after.bytes, before.per_byte, after.per_byte, after.lost_share
        )
        scores.append(score)
    return scores
