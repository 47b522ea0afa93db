"""Which sites work against the others: what is seen of each update, and who is suspended.

Of every update a random sketch is added to a sketch of where its site is heading,
in which older updates fade. The seed of the sketches is drawn by the coordinator
and never leaves it. A site's direction is the median of its cosines to each of the
other sites: as long as most sites are honest, a minority of liars moves neither its
own direction up nor an honest site's direction down.

A direction counts against a site in the first rounds only, where honest sites come
from the same base and go the same way. Later an honest site whose language is unlike
the others' pulls against them as much as a liar does, and nothing here can tell the
two apart; it is told, and nobody is suspended for it.

Source: Charikar, Chen & Farach-Colton 2002, count sketch.
https://doi.org/10.1007/3-540-45465-9_59
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.journal import Event, SiteBenched, UpdateWeighed
from boli.rounds.bounds import Weighed, lower_median
from boli.rounds.sums import BLOCK, places
from boli.rounds.update import ServerState, SiteProgress, Spans, Vector

BUCKETS = 2048  # of a sketch: a cosine is right to about 1 / √2048 = 0.022
FADING = 0.8  # of a site's sketch, at each of its updates
EARLY = 4  # updates of a site on average, while directions count
AGREED = 0.12  # where half of the others have directions above it
OPPOSED = 0.6  # times what half of the others agree, turned round: no honest site's direction
FAR = 4.0  # bounds: a norm above so many is no honest site's
SEEN = 6  # updates that a site is judged by
OFFENCES = 3  # among them, that suspend it
WORDS = {
    "direction": "pointed against the other sites'",
    "norm": f"were more than {FAR:.0f} times too large",
    "refused": "were refused",
}


def new_seed() -> int:
    """Draw the seed of a run's sketches."""
    return secrets.randbits(62) | 1


def sketch_of(entries: Entries, spans: Spans, seed: int) -> Vector:
    """Return the (BUCKETS,) sketch of an update."""
    sketch = np.zeros(BUCKETS)
    positions = entries.positions
    for start in range(0, entries.values.size, BLOCK):
        stop = min(start + BLOCK, entries.values.size)
        there = np.arange(start, stop) if positions is None else positions[start:stop]
        mixed = _mixed(places(there, spans).astype(np.uint64), seed)
        bucket = (mixed >> np.uint64(1)).astype(np.int64) % BUCKETS
        signed = np.where(mixed & np.uint64(1), 1.0, -1.0) * entries.values[start:stop]
        sketch += np.bincount(bucket, signed, BUCKETS)
    return sketch.astype(np.float32)


def _mixed(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return pseudo-random bits of keys: the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = (keys + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def heading(state: ServerState, site: str, entries: Entries, spans: Spans) -> ServerState:
    """Return the state in which a site's sketch holds one more update."""
    sketch = sketch_of(entries, spans, state.sketch_seed)
    before = state.headings.get(site)
    after = sketch if before is None else np.float32(FADING) * before + sketch
    return replace(state, headings={**state.headings, site: after})


def directions(headings: Mapping[str, Vector]) -> dict[str, float]:
    """Return each site's median cosine to the others; the upper one, in favor of the site."""
    names = sorted(headings)
    if len(names) < 2:
        return {}
    matrix = np.stack([headings[name] for name in names]).astype(np.float64)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    units = matrix / np.where(norms > 0, norms, 1.0)
    cosines = units @ units.T
    found = {}
    for row, name in enumerate(names):
        others = np.sort(np.delete(cosines[row], row))
        found[name] = round(float(others[others.size // 2]), 4)
    return found


@dataclass(frozen=True)
class Suspicion:
    """Settings; what was seen is in the state."""

    suspends: bool = True
    early: int = EARLY  # versions in which directions count

    def judge(
        self, state: ServerState, weighed: Sequence[Weighed]
    ) -> tuple[ServerState, list[Event]]:
        """Note what the updates of a round show of their sites; suspend who offends repeatedly."""
        there = {name: state.headings[name] for name in state.active if name in state.headings}
        found = directions(there)
        events: list[Event] = []
        for one in sorted(weighed, key=lambda w: (w.entry.site, w.entry.sequence)):
            entry = one.entry
            offence = _offence(one, found if state.version < self.early else {})
            events.append(
                UpdateWeighed(
                    site=entry.site,
                    sequence=entry.sequence,
                    version=state.version + 1,
                    weight=one.weight,
                    norm=entry.norm,
                    bound=one.bound if np.isfinite(one.bound) else 0.0,
                    scaled=one.scaled,
                    direction=found.get(entry.site),
                    offence=offence,
                )
            )
            state = seen(state, entry.site, offence)
        state, benched = self.suspend(state)
        return state, [*events, *benched]

    def suspend(self, state: ServerState) -> tuple[ServerState, list[Event]]:
        """Give no more orders to sites whose last updates were offences, but to a minority only."""
        events: list[Event] = []
        if not self.suspends:
            return state, events
        due = sorted(
            (name for name in state.active if _offences(state.sites[name]) >= OFFENCES),
            key=lambda name: (-_offences(state.sites[name]), name),
        )
        most = (len(state.sites) - 1) // 2
        for name in due:
            if sum(site.suspended for site in state.sites.values()) >= most:
                break
            reason = _reason(state.sites[name])
            headings = {n: sketch for n, sketch in state.headings.items() if n != name}
            state = replace(state, headings=headings).with_site(
                name, benched=reason, suspended=True, outstanding=None
            )
            events.append(SiteBenched(name, reason))
        return state, events


def _offence(one: Weighed, found: Mapping[str, float]) -> str:
    if one.entry.norm > FAR * one.bound:
        return "norm"
    site = one.entry.site
    others = [cosine for name, cosine in found.items() if name != site]
    if site not in found or len(others) < 2:
        return ""
    agreed = lower_median(others)
    opposed = agreed >= AGREED and found[site] <= -OPPOSED * agreed
    return "direction" if opposed else ""


def seen(state: ServerState, name: str, offence: str) -> ServerState:
    """Return the state in which a site's last updates include one more."""
    site = state.sites[name]
    return state.with_site(name, seen=(*site.seen, offence)[-SEEN:])


def _offences(site: SiteProgress) -> int:
    return sum(map(bool, site.seen))


def _reason(site: SiteProgress) -> str:
    counts = Counter(filter(None, site.seen))
    told = ", ".join(f"{counts[kind]} {WORDS[kind]}" for kind in WORDS if counts[kind])
    return f"of its last {len(site.seen)} updates {told}"


def forgive(state: ServerState, name: str) -> ServerState:
    """Return a copy in which a site begins anew, whatever was seen of it."""
    headings = {n: sketch for n, sketch in state.headings.items() if n != name}
    return replace(state, headings=headings).with_site(
        name, benched="", suspended=False, seen=(), rejections=0, outstanding=None
    )


def early_versions(num_sites: int, buffer_size: int) -> int:
    """Return how many versions it takes until each site has sent EARLY updates."""
    return math.ceil(EARLY * num_sites / buffer_size)
