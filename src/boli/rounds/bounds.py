"""How much one update may move a version: what local steps reach, and what other sites add.

Two bounds, both on norms. The first holds from version 0 on: no entry can have moved
further than the learning rates of the steps allow. The second compares sites: an
update adds to a round at most `multiple` times what the lower-median site adds, and
weighs at most `multiple` times what the lower-median site weighs. Each site has one
vote in these medians, its last update, so neither a minority of sites nor many
updates of one site move them.

Source: Kingma & Ba 2015, section 2.1, on how far a step of Adam can reach.
https://arxiv.org/abs/1412.6980. A step of Muon is an orthogonal matrix times its rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from boli.codec.support import Support
from boli.plan import LocalStepsPlan, Plan
from boli.rounds.sums import WEIGHT_GRID
from boli.rounds.update import Folded, Order, ServerState, UpdateHeader, Vector

NUM_RATES = 64  # positions at which an order's learning rates are looked at
GIVEN_BACK = 10  # orders whose content an update may carry because it was given back
MARGIN = 1.01  # for rounding
LARGEST_SINGULAR = 1.3  # value of what Muon's iteration gives for an orthogonal matrix
MULTIPLE = 1.5  # below the n - 1 others from 3 sites on; honest sites differ by up to 1.4
MULTIPLE_OF_TWO = 1.25  # one of two sites can always hold the other back, but not much more


def lower_median(values: Iterable[float]) -> float:
    """Return the lower median: fewer than half of the values are below it."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def times(multiple: float, value: float) -> float:
    """Return a bound: infinity times nothing is no bound either."""
    return math.inf if math.isinf(multiple) else multiple * value


@lru_cache
def furthest_step(beta1: float, beta2: float) -> float:
    """Return the most by which one step of Adam moves an entry, in learning rates.

    By Cauchy and Schwarz over all gradients so far, with the bias corrections.
    """
    steps = np.arange(1, 10_001, dtype=np.float64)
    sums = np.cumsum((beta1**2 / beta2) ** (steps - 1)) if beta2 else np.ones_like(steps)
    first = (1 - beta1) / (1 - beta1**steps)
    second = np.sqrt((1 - beta2**steps) / (1 - beta2))
    return float(np.max(first * second * np.sqrt(sums)))


def muon_steps(shapes: Iterable[Sequence[int]]) -> tuple[float, float]:
    """Return what one step of Muon moves at most, in its learning rates.

    That is the root mean square of a segment, and one entry. Embeddings are taken for
    matrices too: that loosens the second bound, and spares it from knowing the model.
    """
    matrices = [shape for shape in shapes if len(shape) == 2]
    if not matrices:
        return 0.0, 0.0
    typical = LARGEST_SINGULAR / math.sqrt(min(columns for _, columns in matrices))
    tallest = max(rows / columns for rows, columns in matrices)
    return typical, LARGEST_SINGULAR * math.sqrt(max(1.0, tallest))


@dataclass(frozen=True)
class Reach:
    """How far local steps can move a site's vector."""

    steps: LocalStepsPlan
    total: int  # rounds
    most_steps: int  # of one order
    orders: int  # whose work one update may carry: codecs leave some for later
    rounding: float  # by how much a codec may round an entry up
    multiple: float  # of what the steps can reach; inf: no bound
    muon: tuple[float, float] = (0.0, 0.0)  # one step: root mean square, entry, in its rates

    def rates(self, order: Order, header: UpdateHeader) -> float:
        """Return the sum of the learning rates of the steps that an update claims."""
        number = header.local_steps
        looked_at = np.arange(min(number, NUM_RATES)) * max(1.0, number / NUM_RATES)
        step = order.position_step or 1.0 / (self.total * max(1, order.at_most))
        # The answer may be to an earlier attempt, which began earlier in the run.
        starts = {order.position, min(order.position, header.base_version / self.total)}
        return number * max(
            float(np.mean([self.steps.rate_at(start + k * step) for k in looked_at]))
            for start in starts
        )

    def limits(
        self,
        order: Order,
        header: UpdateHeader,
        accepted: Sequence[int],  # the site's last sequences
        theta: Vector,  # (d,)
        unit: float,  # of a public support's grid; 0: none
    ) -> tuple[float, float]:
        """Return the largest root mean square of an honest update, and its largest entry."""
        if math.isinf(self.multiple):
            return math.inf, math.inf
        plan = self.steps
        # What was given back to the site, or left by its codec, travels with this update.
        since = header.sequence - max(accepted, default=0)
        carried = min(header.sequence, self.orders) if self.orders > 1 else min(since, GIVEN_BACK)
        reach = self.rates(order, header)
        reach += max(0, carried - 1) * self.most_steps * plan.learning_rate
        faster = plan.muon_learning_rate / plan.learning_rate if plan.optimizer == "muon" else 0.0
        typical = max(1.0, (1 - plan.beta1) / math.sqrt(1 - plan.beta2), faster * self.muon[0])
        furthest = max(furthest_step(plan.beta1, plan.beta2), faster * self.muon[1])
        decayed = 0.0
        if plan.weight_decay:
            largest = float(np.abs(theta).max(initial=0)) + furthest * reach
            decayed = plan.weight_decay * max(1.0, faster) * reach * largest
        scale = self.multiple * MARGIN
        entry = (furthest * reach + decayed) * self.rounding * scale + unit
        return (typical * reach + decayed) * scale + unit, entry


def reach_of(plan: Plan, shapes: Iterable[Sequence[int]] = ()) -> Reach:
    """Return how far a plan's local steps can reach in segments of these shapes."""
    rounds, codec = plan.rounds, plan.codec
    leaves_some = codec.name != "dense"
    # What is sent of an entry is at most twice the entry; fp16 and its like round a little.
    return Reach(
        plan.model.local_steps,
        rounds.total,
        rounds.local_steps * (4 if rounds.speed_aware else 1),
        math.ceil(1 / min(codec.density, codec.least_density or 1.0)) if leaves_some else 1,
        2.0 if leaves_some else 1.0,
        rounds.step_multiple,
        muon_steps(shapes),
    )


def unit_of(support: Support | None) -> float:
    """Return one level of a public support: what is below it may be rounded up to it."""
    return 0.0 if support is None else 2.0**support.unit


def multiple_of(plan: Plan) -> float:
    """Return how many times what the lower-median site adds one update may add."""
    if plan.rounds.norm_multiple is not None:
        return plan.rounds.norm_multiple
    return MULTIPLE if len(plan.site) > 2 else MULTIPLE_OF_TWO


@dataclass(frozen=True)
class Weighed:
    """An update with the weight that it has in a round, and the factor on its vector."""

    entry: Folded
    weight: float  # before staleness
    scaled: float  # at most 1
    bound: float  # of its norm; inf: none


def contribution(entry: Folded, weight: float) -> float:
    """Return what an update adds to a round, by entry of its view and learning rate."""
    norm = min(entry.norm, entry.reach) if entry.reach else entry.norm
    return weight * norm / _work(entry)


def _work(entry: Folded) -> float:
    return math.sqrt(max(1, entry.size)) * (entry.rate or 1.0)


def weigh(
    state: ServerState,
    entries: Sequence[Folded],  # to be weighed
    known: Sequence[Folded],  # of this round, that vote beside the sites' last updates
    multiple: float,
) -> list[Weighed]:
    """Return the weights and factors of updates; independent of their order."""
    weights = {n: s.weight for n, s in state.sites.items() if s.weight and not s.benched}
    weights |= _by_site(known, [entry.weight for entry in known])
    alone = len(weights) < 2
    heaviest = math.inf if alone else times(multiple, lower_median(weights.values()))
    capped = {id(e): _on_grid(min(e.weight, heaviest)) for e in (*entries, *known)}
    added = {n: s.contribution for n, s in state.sites.items() if s.weight and not s.benched}
    added |= _by_site(known, [contribution(entry, capped[id(entry)]) for entry in known])
    most = math.inf if alone else times(multiple, lower_median(added.values()))
    found = []
    for entry in entries:
        weight = capped[id(entry)]
        bound = min(entry.reach or math.inf, most * _work(entry) / weight)
        scaled = bound / entry.norm if entry.norm > bound else 1.0
        found.append(Weighed(entry, weight, scaled, bound))
    return found


def _by_site(entries: Sequence[Folded], values: Sequence[float]) -> Mapping[str, float]:
    """Return one value a site, the largest of its own."""
    found: dict[str, float] = {}
    for entry, value in zip(entries, values, strict=True):
        found[entry.site] = max(value, found.get(entry.site, 0.0))
    return found


def _on_grid(weight: float) -> float:
    return max(1.0, float(np.rint(weight * WEIGHT_GRID))) / WEIGHT_GRID
