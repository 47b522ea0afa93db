"""Labels told beside labels that are true: F1, confusion, calibration; numpy is all it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True)
class LabelScore:
    """How one label was found."""

    lines: int
    precision: float  # 0 where it was never told
    recall: float
    f1: float


def label_scores(truth: Sequence[str], told: Sequence[str]) -> dict[str, LabelScore]:
    """Return the scores of every label that is true of a line."""
    scores = {}
    for label in sorted(set(truth)):
        lines = sum(name == label for name in truth)
        times = sum(name == label for name in told)
        right = sum(a == b == label for a, b in zip(truth, told, strict=True))
        scores[label] = LabelScore(
            lines, right / times if times else 0.0, right / lines, 2 * right / (lines + times)
        )
    return scores


def macro_f1(truth: Sequence[str], told: Sequence[str]) -> float:
    """Return the mean F1 of the labels that are true of a line."""
    scores = label_scores(truth, told)
    return sum(score.f1 for score in scores.values()) / len(scores)


def confusion(truth: Sequence[str], told: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how often each true label was told as each label."""
    names = sorted({*truth, *told})
    table = {true: dict.fromkeys(names, 0) for true in sorted(set(truth))}
    for true, name in zip(truth, told, strict=True):
        table[true][name] += 1
    return table


def calibration_error(
    confidence: NDArray[np.float64],  # (n,) in [0, 1]
    right: NDArray[np.bool_],  # (n,)
) -> float:
    """Return the expected calibration error over ten bins of equal width.

    Source: Naeini, Cooper & Hauskrecht 2015, Obtaining Well Calibrated Probabilities Using
        Bayesian Binning, https://doi.org/10.1609/aaai.v29i1.9602
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / max(1, confidence.size))
