"""Is A better than B on the same lines, or is that noise? Paired, and by document.

Lines of one article share names, topic and translator, so that intervals over lines are too
narrow. Here documents are drawn anew, each with all of its lines, for A and B alike; the figure
is a ratio of sums, as bits per byte are. Where nothing says which lines belong together there is
no interval: one over lines would be too narrow. Intervals are percentiles. With few documents any
bootstrap is too narrow, by about what Student's t is wider than the normal curve, so the level is
widened alike: of intervals over 9 made-up articles without a difference 94 % hold zero.

Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap,
    https://arxiv.org/abs/1411.5279 (the expanded percentile interval)
Source: Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation,
    https://aclanthology.org/W04-3250 (the paired bootstrap for figures of a test set)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boli.corpus.sources import share_of
from boli.errors import CorpusError
from boli.evaluation.units import SPACE

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST_DOCUMENTS = 6  # of five, all favor the same side in one of 16 cases, whatever is true
ENOUGH_DOCUMENTS = 30  # with fewer in a test part, train and judge by folds
AT_ONCE = 1 << 22  # counts that are held in memory


@dataclass(frozen=True)
class Comparison:
    """What A needs beside B on the same lines, with the interval of its change."""

    a: float  # ratio of sums, such as bits per byte
    b: float
    change: float  # a / b − 1; below zero A needs less
    low: float | None  # of the change, at LEVEL; None: it is not known, and neither is `high`
    high: float | None
    num_documents: int | None  # None: nothing says which lines belong together; 0: it was not told
    num_lines: int | None = None  # None: it was not told
    smaller_is_better: bool = True

    @property
    def better(self) -> str | None:
        """Return "A" or "B" where the difference is more than noise, or None."""
        if (self.num_documents or 0) < FEWEST_DOCUMENTS or self.low is None or self.high is None:
            return None
        if self.low <= 0 <= self.high:
            return None
        return "A" if (self.change < 0) == self.smaller_is_better else "B"

    def sentence(self, a: str = "A", b: str = "B", unit: str = "document") -> str:
        """Say which is better and whether that is noise; name the unit in the singular."""
        if self.low is None or self.high is None:
            return f"{a} stands at {_signed(self)} beside {b}; {self.unknown(unit)}"
        number = self.num_documents or 0
        counted = f"{number} {unit}{'' if number == 1 else 's'}"
        if self.better is None:
            return (
                f"no difference between {a} and {b} that {counted} could show: {_signed(self)} "
                f"({_span(self.low, self.high)})"
            )
        first, second = (a, b) if self.better == "A" else (b, a)
        edges = [self.low, self.high]
        value = self.change
        if self.better == "B":  # what B gains on A, not what A loses to B
            value, edges = _turned(value), [_turned(edge) for edge in edges]
        low, high = sorted(abs(edge) for edge in edges)
        return (
            f"{first} is better than {second} by {100 * abs(value):.1f}{SPACE}% "
            f"({100 * low:.1f} to {100 * high:.1f}{SPACE}%; {counted}), not noise"
        )

    def unknown(self, unit: str = "document") -> str:
        """Say why there is no interval."""
        if self.num_documents is None:
            why = f"nothing says which lines belong to one {unit}"
        elif 0 < self.num_documents < FEWEST_DOCUMENTS:
            one = self.num_documents == 1
            why = f"{self.num_documents} {unit}{' is' if one else 's are'} too few to tell"
        else:
            why = "no interval was told"
        return f"whether that is noise is not known: {why}"


def compare(
    a: ArrayLike,  # (n,) of each line, such as bits
    b: ArrayLike,  # (n,) of the same lines
    sizes: ArrayLike,  # (n,) what both are divided by, such as bytes
    documents: Sequence[str] | None,  # (n,) of each line; None: not known, so there is no interval
    *,
    smaller_is_better: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two code lengths of the same lines by a paired bootstrap over documents.

    Raises:
        CorpusError: the lines do not belong together, or there are none.
    """
    values = np.stack([np.asarray(each, np.float64) for each in _checked(a, b, sizes, documents)])
    total = values.sum(1)
    if total[1] <= 0 or total[2] <= 0:
        raise CorpusError(
            f"cannot compare: B has {total[1]:g} and the lines {total[2]:g} in all",
            "compare lines that both score above zero",
        )
    low = high = count = None
    if documents is not None:
        names = np.unique(np.array(documents), return_inverse=True)[1]
        sums = np.stack([np.bincount(names, row) for row in values[:2]], 1).astype(float)
        count = len(sums)
        low, high = _interval(sums, resamples, seed)
    return Comparison(
        float(total[0] / total[2]),
        float(total[1] / total[2]),
        float(total[0] / total[1] - 1),
        low,
        high,
        count,
        values.shape[1],
        smaller_is_better,
    )


def together(parts: Sequence[Comparison], weights: Sequence[float] | None = None) -> Comparison:
    """Return the comparison of a mean over texts of which only intervals are known.

    `weights` are the bytes of each text where these are one text; without them each text counts
    alike. The ends are weighed means of the parts' ends: as wide as if all parts went wrong
    together, since nothing tells whether they are the same articles in several languages. One
    part without an interval leaves none.

    Raises:
        CorpusError: there are no parts.
    """
    if not parts:
        raise CorpusError("nothing can be compared: no part is given", "give at least one")
    sizes = np.ones(len(parts)) if weights is None else np.asarray(weights, np.float64)
    a, b = (np.array([getattr(part, side) for part in parts]) * sizes for side in "ab")
    low = high = None
    without = [part for part in parts if part.low is None]
    if without:
        count = without[0].num_documents  # so that it says why
    else:
        count = sum(part.num_documents or 0 for part in parts)
        ends = np.array([(part.low, part.high) for part in parts], np.float64)
        low, high = (ends.T @ (b / b.sum())).tolist()
    total = sizes.sum()
    return Comparison(
        float(a.sum() / total),
        float(b.sum() / total),
        float(a.sum() / b.sum() - 1),
        low,
        high,
        count,
        smaller_is_better=parts[0].smaller_is_better,
    )


def _checked(
    a: ArrayLike, b: ArrayLike, sizes: ArrayLike, documents: Sequence[str] | None
) -> tuple[Floats, Floats, Floats]:
    rows = [np.atleast_1d(np.asarray(each, np.float64)) for each in (a, b, sizes)]
    lengths = [row.size for row in rows] + ([] if documents is None else [len(documents)])
    if len(set(lengths)) != 1 or not lengths[0]:
        raise CorpusError(
            "a paired comparison needs the same lines in the same order, and has "
            + ", ".join(map(str, lengths))
            + " of A, B, sizes"
            + ("" if documents is None else " and documents"),
            "judge A and B on one file",
        )
    if not all(np.isfinite(row).all() and (row >= 0).all() for row in rows):
        raise CorpusError(
            "a line has a figure that is below zero or not finite",
            "judge it again: a model that diverged cannot be compared",
        )
    return rows[0], rows[1], rows[2]


def _interval(sums: Floats, resamples: int, seed: int) -> tuple[float, float]:
    """Return the interval of a / b − 1; `sums` is (documents, 2)."""
    count = len(sums)
    if count < 2:
        observed = float(_change(sums)[0])
        return observed, observed
    drawn = _drawn(sums, resamples, np.random.default_rng(seed))
    reach = math.sqrt(count / (count - 1)) * _student(1 - (1 - LEVEL) / 2, count - 1)
    share = NormalDist().cdf(-reach)
    low, high = np.quantile(drawn, [share, 1 - share]).tolist()
    return low, high


def _drawn(sums: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return the change under each of many draws of as many documents, with replacement."""
    count = len(sums)
    found, step = [], max(1, AT_ONCE // count)
    for start in range(0, resamples, step):
        picked = rng.integers(0, count, (min(step, resamples - start), count))
        found.append(_change(np.stack([sums[:, side][picked].sum(1) for side in (0, 1)], 1)))
    return np.concatenate(found)


def _change(totals: Floats) -> Floats:  # (n, 2) → (n,)
    changes: Floats = totals[:, 0] / np.maximum(totals[:, 1], np.finfo(float).tiny) - 1
    return changes


def _student(share: float, freedom: int) -> float:
    """Return the quantile of Student's t, by the integral of cos^(freedom − 1)."""
    if freedom > 1000:
        return NormalDist().inv_cdf(share)
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.r_[0.0, np.cumsum((density[1:] + density[:-1]) / 2)]
    angle = np.interp(2 * share - 1, mass / mass[-1], angles)
    return float(math.sqrt(freedom) * math.tan(float(angle)))


def _turned(change: float) -> float:
    return 1 / (1 + change) - 1 if change > -1 else math.inf


def _signed(found: Comparison) -> str:
    return f"{100 * found.change:+.1f}{SPACE}%".replace("-", "−")


def _span(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}{SPACE}%".replace("-", "−")


def folds(documents: Sequence[str], count: int) -> NDArray[np.int64]:  # (n,) in [0, count)
    """Return the fold of each line by a hash of its document, the same at every site.

    Train `count` times, each time on the lines of all folds but one, judge the lines of that one,
    and hand the lines of all folds to `compare` together.

    Raises:
        CorpusError: a fold would be empty.
    """
    if count < 2:
        raise CorpusError(f"{count} folds are no folds", "ask for at least two")
    found = np.array([int(share_of(name) * count / 100) for name in documents], np.int64)
    empty = sorted(set(range(count)) - set(found.tolist()))
    if empty:
        raise CorpusError(
            f"of {count} folds {len(empty)} would be empty: there are "
            f"{len(set(documents))} documents",
            "ask for fewer folds",
        )
    return found


def folds_sentence(documents: Sequence[str], count: int = 1, unit: str = "article") -> str:
    """Say over how many documents a figure is, and whether they are too few without folds."""
    number = len(set(documents))
    if count > 1:
        return (
            f"Trained {count} times, each time without the {unit}s that are then judged: all "
            f"{number} {unit}s are judged once."
        )
    if number < ENOUGH_DOCUMENTS:
        return (
            f"The test part has {number} {unit}s, fewer than {ENOUGH_DOCUMENTS}: small "
            f"differences cannot be told from noise; train and judge by folds."
        )
    return f"The test part has {number} {unit}s."
