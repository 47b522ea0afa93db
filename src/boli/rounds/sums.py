"""Sums of updates as integers on a fixed-point grid.

Integer addition does not depend on order, so a sum is the same to the bit however
its updates arrive (docs/decisions/0002-integer-sums.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.rounds.update import Spans, Sums, Vector

GRID = 2.0**40  # one unit of the sums is 2^-40, far below float32's own rounding
LARGEST = 2.0**22  # of a whole sum; int64 ends at 2^23 on this grid
WEIGHT_GRID = 2.0**20
BLOCK = 1 << 16  # entries folded at a time, so that temporaries stay in the cache


def add_to(sums: Sums, entries: Entries, spans: Spans, factor: float) -> None:
    """Add factor · entries to the fixed-point sums, in place, in the order of the spans."""
    if entries.positions is None:
        _add_all(sums, entries.values, spans, factor)
    else:
        scaled = entries.values.astype(np.float64) * (factor * GRID)
        sums[places(entries.positions, spans)] += np.rint(scaled).astype(np.int64)


def places(positions: NDArray[np.int64], spans: Spans) -> NDArray[np.int64]:
    """Return where entries of a view lie in the flat vector."""
    if len(spans) == 1:
        return positions + spans[0][0]
    starts = np.array([start for start, _ in spans], np.int64)
    lengths = np.array([stop - start for start, stop in spans], np.int64)
    ends = np.cumsum(lengths)
    span = np.searchsorted(ends, positions, side="right")
    places: NDArray[np.int64] = positions + (starts - ends + lengths)[span]
    return places


def _add_all(sums: Sums, vector: Vector, spans: Spans, factor: float) -> None:
    position = 0
    for start, stop in spans:
        for block in range(start, stop, BLOCK):
            end = min(block + BLOCK, stop)
            part = vector[position : position + end - block].astype(np.float64)
            part *= factor * GRID
            sums[block:end] += np.rint(part, out=part).astype(np.int64)
            position += end - block


def mean_of(
    sums: Sums,
    coverage: Sequence[tuple[Spans, int]],
    absent: Sums | None = None,  # (d,) weight of covering sites that have no part in an entry
) -> Vector:
    """Divide each coordinate by the weight of the sites that covered it.

    `coverage` has the weight that was added on each set of spans, on its own grid.
    The weight is the one before staleness shrank it: a stale buffer takes a
    shorter step.
    """
    if len(coverage) == 1 and absent is None:
        ((spans, total),) = coverage
        weight = total / WEIGHT_GRID
        if next(iter(spans), (0, 0)) == (0, sums.size):
            return (sums / (GRID * weight)).astype(np.float32)
    covered = np.zeros(sums.size, np.int64)
    for spans, total in coverage:
        for start, stop in spans:
            covered[start:stop] += total
    if absent is not None:
        # Where nobody is known to have a part, as of updates from before that was noted, all count.
        known = covered - absent
        covered = np.where(known > 0, known, covered)
    weights = np.maximum(covered, 1) * (GRID / WEIGHT_GRID)
    return (sums / weights).astype(np.float32)
