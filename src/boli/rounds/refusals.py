"""What is refused, told in a number of lines that whoever is refused cannot set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from boli.journal import (
    AttemptsRefused,
    Event,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    UpdateRejected,
)

LINES_BORNE = 60  # of one site at once
LINE_SECONDS = 10.0  # until a site may cause a further one
FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0  # between two counts of the same


@dataclass
class _Count:
    since: float
    due: float
    pause: float = FIRST_SECONDS
    count: int = 0
    detail: str = ""


@dataclass
class _Allowance:
    at: float
    lines: float = LINES_BORNE


@dataclass
class Refusals:
    """Counts what is refused; each kind and site is told at once, and then ever less often."""

    _counts: dict[tuple[str, str], _Count] = field(default_factory=dict)
    _allowances: dict[str, _Allowance] = field(default_factory=dict)  # by site

    def note(
        self,
        now: float,  # seconds, of any clock
        kind: str,
        site: str,
        count: int,
        detail: str,
    ) -> None:
        """Count what was refused."""
        found = self._counts.setdefault((kind, site), _Count(now, now))
        found.count += count
        found.detail = detail

    def takes(self, now: float, event: Event) -> bool:
        """Tell whether an event may have a line of its own; otherwise it is counted.

        Sites can come, go and be wrong as often as they like, but not for a line each time.
        """
        match event:
            case UpdateRejected(site=site, reason=reason):
                detail = reason
            case SiteLeft(site=site, reason=reason) | SiteBenched(site=site, reason=reason):
                detail = reason[:100]
            case SiteJoined(site=site):
                detail = ""
            case _:
                return True
        if self.is_spent(now, site):
            self.note(now, event.name, site, 1, detail)
            return False
        self._allowances[site].lines -= 1
        return True

    def is_spent(self, now: float, site: str) -> bool:
        """Tell whether a site has caused too many lines lately."""
        found = self._allowances.setdefault(site, _Allowance(now))
        found.lines = min(LINES_BORNE, found.lines + (now - found.at) / LINE_SECONDS)
        found.at = now
        return found.lines < 1

    def due(self, now: float, at_the_end: bool = False) -> Iterator[AttemptsRefused]:
        """Yield what is to be told by now, or all there is."""
        for (kind, site), found in list(self._counts.items()):
            if now < found.due and not at_the_end:
                continue
            if not found.count:
                del self._counts[kind, site]  # quiet for a whole pause
                continue
            seconds = round(now - found.since, 1)
            yield AttemptsRefused(kind, site, found.count, seconds, found.detail)
            pause = min(LONGEST_SECONDS, 2 * found.pause)
            self._counts[kind, site] = _Count(now, now + found.pause, pause)
