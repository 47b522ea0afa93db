"""Means of a round's updates that a minority of them cannot move far.

All of them look at the whole round at once, so they do not depend on the order of
arrival. Memory stays O(d): vectors lie in a temporary file, and are looked at in
blocks of entries, all updates of a block together.

trimmed_mean  leaves out the smallest and the largest values of every entry
median        takes the middle value of every entry, whatever the weights
centered_clipping  clips each update's distance to the mean of the round before

Sources: Yin et al. 2018 (trimmed mean, median). https://arxiv.org/abs/1803.01498
Karimireddy, He & Jaggi 2021 (centered clipping). https://arxiv.org/abs/2012.10333
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from boli.rounds.bounds import lower_median, times
from boli.rounds.sums import BLOCK
from boli.rounds.update import Spans, Vector, norm_of, take

Rule = Literal["none", "trimmed_mean", "median", "centered_clipping"]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Share:
    """One update of a round."""

    weight: float
    factor: float  # on its vector: bounds and staleness
    spans: Spans
    vector: Callable[[], Vector]  # decodes it, (m,)


def robust_mean(
    rule: Rule,
    shares: Sequence[Share],  # in an order that does not depend on their arrival
    length: int,  # d
    trim_share: float,
    center: Vector | None,  # (d,) the mean of the round before
    multiple: float,  # of the lower-median distance to the center
) -> Vector:
    """Return the (d,) mean of a round by one of the rules; entries that nobody covers are 0."""
    if rule == "centered_clipping":
        return _centered(shares, length, center, multiple)
    weights = np.array([share.weight for share in shares])
    mean = np.zeros(length, np.float32)
    with tempfile.TemporaryFile() as file:
        shape = (len(shares), length)
        matrix: Matrix = np.memmap(file, np.float32, "w+", shape=shape)
        for row, share in zip(matrix, shares, strict=True):
            row[:] = np.nan  # not covered
            _put(row, share.spans, share.vector() * np.float32(share.factor))
        for start in range(0, length, BLOCK):
            block = matrix[:, start : start + BLOCK]
            mean[start : start + BLOCK] = _middle(rule, block, weights, trim_share)
    return mean


def _put(row: Vector, spans: Spans, vector: Vector) -> None:
    position = 0
    for start, stop in spans:
        row[start:stop] = vector[position : position + stop - start]
        position += stop - start


def _middle(rule: Rule, block: Matrix, weights: NDArray[np.float64], trim_share: float) -> Vector:
    """Return one value for each entry of an (n, entries) block; NaN is: not covered."""
    order = np.argsort(block, axis=0, kind="stable")  # what is not covered comes last
    values = np.take_along_axis(block, order, axis=0).astype(np.float64)
    count = np.sum(~np.isnan(block), axis=0)
    if rule == "median":
        trimmed, weighed = np.maximum(0, (count - 1) // 2), np.ones_like(values)
    else:
        trimmed = num_trimmed(count, trim_share)
        weighed = weights[order]
    rank = np.arange(len(weights))[:, None]
    kept = (rank >= trimmed) & (rank < count - trimmed)
    total = np.sum(np.where(kept, weighed, 0.0), axis=0)
    found = np.sum(np.where(kept, weighed * values, 0.0), axis=0) / np.where(total, total, 1.0)
    middle: Vector = found.astype(np.float32)
    return middle


def num_trimmed(count: NDArray[np.int64], trim_share: float) -> NDArray[np.int64]:
    """Return how many values are left out at each end: at least one where three are there."""
    wanted = np.ceil(trim_share * count - 1e-9).astype(np.int64)
    trimmed: NDArray[np.int64] = np.minimum(wanted, np.maximum(0, (count - 1) // 2))
    return trimmed


def _centered(
    shares: Sequence[Share], length: int, center: Vector | None, multiple: float
) -> Vector:
    """Return the center plus the weighted mean of the clipped distances to it."""
    center = np.zeros(length, np.float32) if center is None else center

    def distance(share: Share) -> Vector:
        there = take(center, share.spans)
        apart: Vector = share.vector() * np.float32(share.factor) - there
        return apart

    norms = [norm_of(distance(share)) for share in shares]
    typical = [n / math.sqrt(max(1, _size(s))) for n, s in zip(norms, shares, strict=True)]
    radius = times(multiple, lower_median(typical))
    total, weights = np.zeros(length), np.zeros(length)
    for share, norm in zip(shares, norms, strict=True):
        most = radius * math.sqrt(max(1, _size(share)))
        clipped = distance(share).astype(np.float64) * min(1.0, most / norm if norm else 1.0)
        position = 0
        for start, stop in share.spans:
            part = clipped[position : position + stop - start]
            total[start:stop] += share.weight * part
            weights[start:stop] += share.weight
            position += stop - start
    covered = weights > 0
    mean = np.where(covered, center + total / np.where(covered, weights, 1.0), 0.0)
    return mean.astype(np.float32)


def _size(share: Share) -> int:
    return sum(stop - start for start, stop in share.spans)
