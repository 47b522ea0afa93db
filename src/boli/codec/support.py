"""A public support: the entries that all members of a cohort send, which nobody has to list.

Every member finds them by itself, from what all of them hold and a few numbers in
their order. Some are the entries that moved furthest since version 0. The others
are blocks that take turns, so that no entry waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Vector = NDArray[np.float32]
Positions = NDArray[np.int64]
BLOCK = 16  # neighboring entries that have their turn together
FURTHEST = 0.25  # share of the support that goes to the entries that moved furthest
LOWEST, HIGHEST = -100, 20  # exponents of a level
MOST = float(np.finfo(np.float32).max)


class Support(BaseModel):
    """What an order says of the support; a site of smaller rank has the part in its view."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, lt=2**64)  # of the order in which blocks have their turn
    start: int = Field(0, ge=0, le=2**53)  # place in that order of the first block
    blocks: int = Field(ge=0, le=2**53)  # that have their turn
    above: float = Field(0.0, ge=0, le=MOST)  # entries that moved further than this
    unit: int = Field(ge=LOWEST, le=HIGHEST)  # one level is 2 to the power of this

    def positions(
        self,
        moved: Vector,  # (m,) version minus version 0, of a view
        spans: Sequence[tuple[int, int]],  # of the view
        length: int,  # d, of the whole vector
    ) -> Positions:
        """Return the ascending positions in the view, (k,)."""
        order = _turns(self.seed, -(-length // BLOCK))
        turn = np.zeros(order.size, bool)
        places = np.arange(self.start, self.start + min(self.blocks, order.size))
        turn[order[places % max(1, order.size)]] = True
        in_turn = np.repeat(turn, BLOCK)
        chosen = np.abs(moved) > np.float32(self.above)
        position = 0
        for start, stop in spans:
            chosen[position : position + stop - start] |= in_turn[start:stop]
            position += stop - start
        return np.flatnonzero(chosen)

    @classmethod
    def following(
        cls,
        before: Support | None,  # of the version before; None at version 0
        moved: Vector,  # (d,)
        share: float,  # of the entries
        unit: int,
        seed: int,
    ) -> Support:
        """Return the support of the next cohort: at most `share` of all entries, and one block."""
        num_blocks = -(-moved.size // BLOCK)
        furthest = round(moved.size * share * FURTHEST)
        in_turn = round(num_blocks * share * (1 - FURTHEST))
        return cls(
            seed=seed,
            start=0 if before is None else (before.start + before.blocks) % max(1, num_blocks),
            blocks=min(num_blocks, max(1, in_turn)),
            above=_bound(np.abs(moved), furthest),
            unit=min(HIGHEST, max(LOWEST, unit)),
        )


def _bound(magnitudes: Vector, count: int) -> float:
    """Return what no more than `count` magnitudes are above."""
    place = magnitudes.size - 1 - count
    return float(np.partition(magnitudes, place)[place]) if place >= 0 else 0.0


@lru_cache(maxsize=2)
def _turns(seed: int, num_blocks: int) -> Positions:
    """Return all blocks in a seeded order; raw bits, which are the same in every NumPy."""
    keys = np.random.PCG64(seed).random_raw(num_blocks)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order
