"""Who is asked for how much: which sites get an order now, and how many local steps.

Source: Liu et al. 2024, dynamic local updates. https://arxiv.org/abs/2401.09135
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from boli.rounds.shares import Shares
from boli.rounds.update import Order, Part, ServerState, SiteProgress

LINK_SHARE = 0.25  # of a round's time, above which a line is spared


@dataclass(frozen=True)
class Schedule:
    """Hands out work until the last version is made, and then has it judged."""

    total: int  # rounds
    local_steps: int  # H, for a site of median speed
    synchronous: bool
    speed_aware: bool
    every_rounds: int  # between versions whose tuning part is judged
    densities: tuple[float, float] = (0.0, 0.0)  # bounds of what the codec sends
    min_local_steps: int = 1  # of any order that trains
    shares: Shares | None = None  # of each site; None: one update a version when synchronous

    def issue(
        self,
        state: ServerState,
        there: Collection[str] | None = None,  # sites that others may be compared to; None: all
    ) -> tuple[ServerState, list[Order]]:
        """Give every idle site its next order; `state` is left untouched.

        Once the last version is made, an open training order is superseded: what
        it would bring could not be folded in any more.
        """
        orders = []
        for name in state.active:
            site = state.sites[name]
            if state.version >= self.total:
                open_training = site.outstanding is not None and site.outstanding.local_steps > 0
                wanted = not site.finished and (site.outstanding is None or open_training)
            else:
                wanted = site.outstanding is None and self._may_train(state, name, there)
            if wanted:
                order = self._order(state, name, site)
                orders.append(order)
                state = state.with_site(
                    name, outstanding=order, sequence=order.sequence, density=order.density
                )
        return state, orders

    def _may_train(self, state: ServerState, name: str, there: Collection[str] | None) -> bool:
        if self.shares is not None:
            return self.shares.may_train(state, name, there)
        return not self.synchronous or all(entry.site != name for entry in state.folded)

    def shrink(self, state: ServerState, name: str) -> tuple[ServerState, Order | None]:
        """Ask a site that is late for half of what was asked; None where nothing is open."""
        order = state.sites[name].outstanding
        if order is None or order.local_steps <= self.min_local_steps:
            return state, None
        steps = max(self.min_local_steps, order.local_steps // 2)
        order = order.model_copy(update={"attempt": order.attempt + 1, "local_steps": steps})
        return state.with_site(name, outstanding=order), order

    def reopen(self, state: ServerState, name: str) -> tuple[ServerState, Order | None]:
        """Return the open order of a site that came back, on the version that it can get now."""
        order = state.sites[name].outstanding
        if order is None or order.base_version == state.version:
            return state, order
        if order.support is not None:  # an answer on that support would be read on another one
            order = self._order(state, name, state.sites[name])
            return state.with_site(name, outstanding=order, sequence=order.sequence), order
        order = order.model_copy(
            update={
                "attempt": order.attempt + 1,
                "base_version": state.version,
                "position": min(1.0, state.version / self.total),
            }
        )
        return state.with_site(name, outstanding=order), order

    def finished(self, state: ServerState) -> bool:
        """Tell whether the last version is made and judged by every active site."""
        return state.version >= self.total and all(
            state.sites[name].finished for name in state.active
        )

    def _order(self, state: ServerState, name: str, site: SiteProgress) -> Order:
        sequence = site.sequence + 1
        steps = self._steps(state, site) if state.version < self.total else 0
        return Order(
            order=f"{state.run}-{name}-{sequence}",
            site=name,
            sequence=sequence,
            base_version=state.version,
            layout=state.layout,
            rank=site.rank,
            local_steps=steps,
            at_most=steps,
            density=self._density(state, site) if steps else 0.0,
            position=min(1.0, state.version / self.total),
            position_step=1.0 / (self.total * max(1, steps)),
            evaluate=self._parts(state, name, site),
            first=site.judged < 0,
            returned=site.returned,
            support=state.support if steps else None,
        )

    def _parts(self, state: ServerState, name: str, site: SiteProgress) -> tuple[Part, ...]:
        if site.judged < 0 or state.version >= self.total:
            return ("tuning", "test")
        # Counted in the site's own orders, so that a slow site does not mostly judge.
        trained = site.sequence + 1 - site.judged_sequence
        due = self.synchronous or trained >= (self.every_rounds + 1) // 2
        return ("tuning",) if due and state.selection.wants(name) else ()

    def _steps(self, state: ServerState, site: SiteProgress) -> int:
        """Let work and way take all sites about the same time: H steps at the median, clamped."""
        seconds = self._ordinary_seconds(state)
        if not self.speed_aware or not seconds or site.steps_per_second <= 0:
            return self.local_steps
        steps = site.steps_per_second * (seconds - site.link_seconds)
        clipped = round(float(np.clip(steps, self.local_steps / 8, self.local_steps * 4)))
        return max(self.min_local_steps, clipped)

    def _ordinary_seconds(self, state: ServerState) -> float:
        """Return the median of what H steps take a site, its line included; 0: nothing measured."""
        sites = [state.sites[name] for name in state.active]
        times = [
            self.local_steps / site.steps_per_second + site.link_seconds
            for site in sites
            if site.steps_per_second > 0
        ]
        return float(np.median(times)) if times else 0.0

    def _density(self, state: ServerState, site: SiteProgress) -> float:
        """Send less over a line that takes more than its share of the time; 0: as the plan says."""
        least, most = self.densities
        seconds = self._ordinary_seconds(state)
        if not self.speed_aware or least >= most or not seconds or not site.link_seconds:
            return 0.0
        change = float(np.clip(LINK_SHARE * seconds / site.link_seconds, 0.5, 2.0))
        density = float(np.clip((site.density or most) * change, least, most))
        return 0.0 if density == most else float(f"{density:.3g}")
