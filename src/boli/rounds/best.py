"""Model selection: which version is exported, decided by a majority of the sites.

Every few rounds each site judges the current version on its tuning text. A site's ratio is
its bits per byte under that version divided by its bits per byte under the base. Version A
is better than B if more than half of the sites judge it so, each comparing its own two
ratios. Comparing site by site, rather than comparing one average or median per version,
leaves nothing for a minority to move: where all honest sites agree on two versions, the
others cannot reverse the answer, whatever they claim and whether or not they answer; and
languages that differ in difficulty need no common scale.

A majority relation can have cycles, and a minority could use them to walk downhill in
steps that each please one honest site. So a version replaces the best one only if it is
better than every version that was ever the best.

The test part is never looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

CLEARLY = 0.001  # share of its bits by which an earlier version has to be better than the last
LARGEST_RATIO = 1e6  # also of a version that a site cannot judge at all
VERSIONS_KEPT = 32  # that were once the best: their ratios, not their entries
RESTORES = 2  # the best version, and back to the last one if it turns out worse

Vector = NDArray[np.float32]


class _Judgement(Protocol):
    @property
    def part(self) -> str: ...
    @property
    def bits(self) -> float: ...
    @property
    def bytes(self) -> int: ...


class JudgedVersion(BaseModel):
    """A version that may be exported."""

    model_config = ConfigDict(frozen=True)

    version: int
    ratios: dict[str, float] = {}  # by site: bits per byte under it ÷ under the base


def majority(ratios: Iterable[float], num_sites: int) -> float | None:
    """Return the smallest ratio that more than half of the sites stay within.

    A site without a ratio counts as one that judges badly. Returns None where so few have
    one that there is no such number.
    """
    ascending, needed = sorted(ratios), num_sites // 2 + 1
    return ascending[needed - 1] if len(ascending) >= needed else None


def per_byte(judgements: Sequence[_Judgement]) -> float:
    """Return bits per byte of the tuning text, all languages together; 0 where there is none."""
    tuning = [each for each in judgements if each.part == "tuning"]
    num_bytes = sum(each.bytes for each in tuning)
    bits = math.fsum(min(each.bits, 1e300) for each in tuning if each.bytes)
    sound = num_bytes > 0 and 0 < bits < math.inf and all(each.bits >= 0 for each in tuning)
    return bits / num_bytes if sound else 0.0


@dataclass(frozen=True)
class Selection:
    """What the coordinator knows of the versions that were judged: a part of its checkpoint."""

    base: Mapping[str, float] = field(default_factory=dict)  # by site, bits per byte; 0: no text
    open: JudgedVersion | None = None  # that sites judge now
    open_theta: Vector | None = None  # (d,); None: it is the current version
    kept: tuple[JudgedVersion, ...] = ()  # each was the best; the last one still is
    best_theta: Vector | None = None  # (d,) of the last one
    restored: Mapping[int, int] = field(default_factory=dict)  # new version to the earlier one

    def voters(self, active: Iterable[str]) -> list[str]:
        """Return the sites whose judgements count: the active ones that have tuning text."""
        return [site for site in active if self.base.get(site) != 0.0]

    def wants(self, site: str) -> bool:
        """Tell whether a site is still to judge the open version."""
        return self.open is not None and site not in self.open.ratios and self.base.get(site) != 0.0

    def hear(self, site: str, version: int, judgements: Sequence[_Judgement]) -> Selection:
        """Note what a site judged.

        Asynchronous sites often hold a newer version by the time they are asked. Their
        judgement counts for the open version as well: had a newer one been ruined since, the
        open one would be blamed for it and not kept, which errs on the safe side.
        """
        found = per_byte(judgements)
        if site not in self.base:
            return replace(self, base={**self.base, site: found}) if version == 0 else self
        if self.open is None or not self.wants(site) or version < self.open.version or not found:
            return self
        ratio = max(1 / LARGEST_RATIO, min(found / self.base[site], LARGEST_RATIO))
        judged = self.open.model_copy(update={"ratios": {**self.open.ratios, site: ratio}})
        return replace(self, open=judged)

    def score(self, judged: JudgedVersion, active: Collection[str]) -> float | None:
        """Return what more than half of the sites judge it at most, beside the base."""
        voters = self.voters(active)
        return majority((judged.ratios[s] for s in voters if s in judged.ratios), len(voters))

    def compare(
        self, one: JudgedVersion, other: JudgedVersion, active: Collection[str]
    ) -> float | None:
        """Return what more than half of the sites judge `one` at most, beside `other`.

        Below 1 they find it better. None: too few have judged both.
        """
        voters = self.voters(active)
        both = [s for s in voters if s in one.ratios and s in other.ratios]
        return majority((one.ratios[s] / other.ratios[s] for s in both), len(voters))

    def _is_best(self, active: Collection[str]) -> bool | None:
        """Tell whether the open version is better than all before; None: too few judged."""
        if self.open is None or self.score(self.open, active) is None:
            return None
        # One whose judges are mostly gone has nobody left to speak for it.
        rivals = [each for each in self.kept if self.score(each, active) is not None]
        found = [self.compare(self.open, each, active) for each in rivals]
        if any(ratio is not None and ratio >= 1 for ratio in found):
            return False
        return None if None in found else True

    def follow(
        self,
        theta: Vector,  # (d,) of the version before
        version: int,  # that was just made
        active: Collection[str],
        every_rounds: int,
        total: int,
    ) -> tuple[Selection, tuple[JudgedVersion, bool] | None]:
        """Take in that a version was made; returns also the judged one that is settled thereby.

        With it comes whether it is the best so far.
        """
        due = version % every_rounds == 0 or version >= total
        found, settled = self, None
        if self.open is not None:
            is_best = self._is_best(active)
            complete = all(not self.wants(site) for site in self.voters(active))
            if version >= total or (is_best is not None and (complete or due)):
                found, settled = self._settle(theta, bool(is_best)), (self.open, bool(is_best))
            elif self.open_theta is None:
                found = replace(self, open_theta=theta)
        if due and found.open is None:
            found = replace(found, open=JudgedVersion(version=version))
        return found, settled

    def _settle(self, theta: Vector, is_best: bool) -> Selection:
        assert self.open is not None
        closed = replace(self, open=None, open_theta=None)
        if not is_best:
            return closed
        kept = (*self.kept, self.open)[-VERSIONS_KEPT:]
        best_theta = theta if self.open_theta is None else self.open_theta
        return replace(closed, kept=kept, best_theta=best_theta)

    def better_than_last(self, active: Collection[str]) -> float | None:
        """Return how much better an earlier one is than the last version; None: it is not.

        More than half of the sites judge it at most so many times the last one.
        """
        if self.open is None or self.best_theta is None or len(self.restored) >= RESTORES:
            return None
        found = [self.compare(each, self.open, active) for each in self.kept]
        clear = [ratio for ratio in found if ratio is not None and ratio <= 1 - CLEARLY]
        return min(clear, default=None)

    def restore(self, theta: Vector, version: int) -> tuple[Selection, Vector]:
        """Put the best version in place of the last one, `theta` (d,), under a new number.

        The last one is kept in its stead: if the sites judge it better after all, it comes back.
        """
        assert self.open is not None
        assert self.best_theta is not None
        earlier = self.kept[-1].version
        swapped = replace(
            self,
            open=JudgedVersion(version=version),
            kept=(self.open,),
            best_theta=theta,
            restored={**self.restored, version: self.made(earlier)},
        )
        return swapped, self.best_theta

    def made(self, version: int) -> int:
        """Return the round that made a version: an earlier one for a version that was restored."""
        return self.restored.get(version, version)
