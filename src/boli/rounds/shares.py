"""How many of the updates in a version, and in any ten versions, may be one site's.

A site that answers faster than the others fills no version alone: a version holds
updates of several sites, one each, and further ones wait for the next version.
Whoever is away is not waited for, and is no part of the count; a site that is there
but silent for long counts as away, too. Only the engine says who is there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from boli.rounds.update import Folded, ServerState

WINDOW = 10  # versions
FAIR = 1.5  # times an equal share, that one site may have of the updates in a window
AHEAD = 1  # updates that a site may have waiting for the version after the next
LEAST = 1.1  # times an equal share: a plan that allows less would stand still


@dataclass(frozen=True)
class Shares:
    """Settings; what was done is in the state."""

    buffer_size: int
    synchronous: bool
    most: float | None = None  # share of the updates; None: 1.5 times an equal share

    def chosen(self, state: ServerState) -> list[Folded]:
        """Return the updates of the next version, by site: those that came first."""
        most, found = self._a_version(state), []
        counts: Counter[str] = Counter()
        for entry in state.folded:
            if entry.key not in state.frames or counts[entry.site] < most:
                counts[entry.site] += 1
                found.append(entry)
        return sorted(found, key=lambda entry: (entry.site, entry.sequence))

    def needed(self, state: ServerState, there: Collection[str] | None) -> int:
        """Return how many updates make the next version; None: everybody is there."""
        active = set(state.active)
        if self.synchronous:
            return max(1, min(self.buffer_size, len(active)))
        a_version = self._a_version(state)
        free = {n for n in active if there is None or n in there} - self._over(state, there)
        able = (free | {entry.site for entry in state.folded}) & active
        # More than one site may have: nobody makes a version alone, while there are others.
        least = min(self.buffer_size, a_version + (len(active) > 1))
        return max(1, least, min(self.buffer_size, len(able) * a_version))

    def may_train(self, state: ServerState, name: str, there: Collection[str] | None) -> bool:
        """Tell whether a site may have a further order before the next version is made."""
        mine = _count(state, name)
        if self.synchronous:
            return not mine
        if mine >= self._a_version(state) + AHEAD:
            return False
        return name not in self._over(state, there)

    def is_in(self, state: ServerState, name: str) -> bool:
        """Tell whether the next version holds all that it may of a site."""
        return _count(state, name) >= self._a_version(state)

    def _a_version(self, state: ServerState) -> int:
        """Return how many updates of one site a version may hold."""
        if self.synchronous:
            return 1
        if self.most is None:
            return math.ceil(self.buffer_size / len(state.sites))
        return max(1, int(self.most * self.buffer_size + 1e-9))

    def _over(self, state: ServerState, there: Collection[str] | None) -> set[str]:
        """Return the sites that have their share of the last versions, and of this one."""
        present = [name for name in state.active if there is None or name in there]
        equal = 1 / max(1, len(present))
        share = FAIR * equal if self.most is None else max(self.most, LEAST * equal)
        if share >= 1:
            return set()
        last = state.recent[-(WINDOW - 1) :]
        counts = Counter(name for names in last for name in names)
        counts.update(entry.site for entry in state.folded)
        size = min(self.buffer_size, len(present) * self._a_version(state))
        # Of all that there is, no more than most sites can be over: somebody always goes on.
        most = math.ceil(share * max(WINDOW * size, counts.total()) - 1e-9)
        return {name for name, count in counts.items() if count >= most}


def _count(state: ServerState, name: str) -> int:
    return sum(entry.site == name for entry in state.folded)


def noted(
    recent: Sequence[tuple[str, ...]], chosen: Sequence[Folded]
) -> tuple[tuple[str, ...], ...]:
    """Return who is in each of the last versions, with one more."""
    return (*recent, tuple(entry.site for entry in chosen))[-(WINDOW - 1) :]
