"""Which tokens a site's text has, as far as its updates show it.

A site leaves alone the rows of an embedding whose tokens its text never has. Averaged over all
sites, a token that one site of three has would move by a third of what that site found. So
a row is averaged over the sites that ever moved it: not only in this round, since a sparse update
leaves out rows that come later.

Source: Ding et al. 2021, federated submodel averaging, https://arxiv.org/abs/2109.07704.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.rounds.bounds import Weighed
from boli.rounds.sums import WEIGHT_GRID
from boli.rounds.update import ServerState, Sums


@dataclass(frozen=True)
class TokenRows:
    """Where a flat vector has a row for each token; nowhere, where no embedding is trained."""

    tables: tuple[tuple[int, int, int], ...] = ()  # offset, rows, columns

    def note(self, state: ServerState, site: str, entries: Entries) -> ServerState:
        """Return the state with the rows that a site's update moves."""
        if not self.tables:
            return state
        moved = np.packbits(np.concatenate([_moved(entries, *table) for table in self.tables]))
        before = state.moved_rows.get(site)
        moved = moved if before is None else moved | before
        return replace(state, moved_rows={**state.moved_rows, site: moved})

    def absent(self, state: ServerState, weighed: Iterable[Weighed]) -> Sums | None:
        """Return the (d,) weight of the updates whose sites never moved an entry's row.

        None where there are no such rows.
        """
        if not self.tables:
            return None
        count = sum(rows for _, rows, _ in self.tables)
        weights = np.zeros(count, np.int64)
        for one in weighed:
            moved = _unpacked(state.moved_rows, one.entry.site, count)
            weights += np.where(moved, 0, round(one.weight * WEIGHT_GRID))
        spread = np.zeros(state.theta.size, np.int64)
        start = 0
        for offset, rows, columns in self.tables:
            of_table = weights[start : start + rows]
            spread[offset : offset + rows * columns] = np.repeat(of_table, columns)
            start += rows
        return spread


def _moved(entries: Entries, offset: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """Return which rows of a table have an entry that is not zero, (rows,)."""
    stop = offset + rows * columns
    if entries.positions is None:
        table = entries.values[offset:stop].reshape(rows, columns)
        return np.asarray(table.any(axis=1), np.bool_)
    first, last = np.searchsorted(entries.positions, (offset, stop))
    moved = np.zeros(rows, np.bool_)
    moved[(entries.positions[first:last] - offset) // columns] = True
    return moved


def _unpacked(
    moved_rows: Mapping[str, NDArray[np.uint8]], site: str, count: int
) -> NDArray[np.bool_]:
    packed = moved_rows.get(site)
    if packed is None:
        return np.zeros(count, np.bool_)
    return np.unpackbits(packed, count=count).astype(np.bool_)
