"""What the members of a cohort agree on before they encode: entries, and the size of a level.

All of it follows from versions and from one figure that every site tells in the
open, so it is the same where nothing is known of updates but their sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from boli.codec.codec import codec_for
from boli.codec.public import PublicCodec
from boli.codec.support import Support
from boli.plan import Plan
from boli.rounds.update import ServerState, Spans, Vector, take

SPREAD = {2: 1.5, 4: 6.0, 8: 6.0}  # the grid reaches so many times a typical entry, by bits


@dataclass(frozen=True)
class Cohorts:
    """Makes the support of every version's cohort."""

    codec: PublicCodec
    seed: int
    typical: float  # size of an entry: a guess, until sites tell what they have left
    _read_with: dict[Spans, tuple[Vector, Support, PublicCodec]] = field(
        default_factory=dict, compare=False
    )  # by view, the codec of the last version asked for: it takes longer to make than to use

    def begin(self, state: ServerState) -> ServerState:
        """Return version 0 with its support; any other state has one already."""
        if state.support is not None:
            return state
        moved = np.zeros_like(state.theta)
        support = Support.following(
            None, moved, self.codec.share(0), self._unit(self.typical), self.seed
        )
        return replace(state, first=state.theta, support=support)

    def following(
        self,
        state: ServerState,  # whose cohort is complete
        theta: Vector,  # (d,) of the version that follows
    ) -> Support:
        """Return the support of the next version's cohort.

        The level follows the lower median of what sites say to have left: what waits
        is like what the next cohort sends, and no single site can blow the level up.
        """
        assert state.support is not None
        assert state.first is not None
        left = sorted(folded.left for folded in state.folded)
        typical = left[(len(left) - 1) // 2]
        unit = self._unit(typical) if typical > 0 else state.support.unit - 1
        share = self.codec.share(state.version + 1)
        return Support.following(state.support, theta - state.first, share, unit, self.seed)

    def agreed(self, state: ServerState, spans: Spans) -> PublicCodec:
        """Return the codec with which the updates of a view are read."""
        assert state.support is not None
        assert state.first is not None
        theta, support, codec = self._read_with.get(spans, (None, None, self.codec))
        if theta is not state.theta or support is not state.support:
            moved = take(state.theta, spans) - take(state.first, spans)
            codec = self.codec.on(state.support, moved, spans, state.theta.size)
            self._read_with[spans] = state.theta, state.support, codec
        return codec

    def _unit(self, typical: float) -> int:
        """Return the exponent of a level that suits entries of that size."""
        return round(math.log2(SPREAD[self.codec.value_bits] * typical / self.codec.most))


def cohorts_for(plan: Plan) -> Cohorts | None:
    """Return what makes a plan's supports; None where its codec shares none."""
    codec = codec_for(plan.codec)
    if not isinstance(codec, PublicCodec):
        return None
    # AdamW moves an entry by about its rate at each step, not always in the same direction.
    typical = plan.model.local_steps.learning_rate * math.sqrt(plan.rounds.local_steps)
    return Cohorts(codec, plan.rounds.seed % 2**53, typical)
