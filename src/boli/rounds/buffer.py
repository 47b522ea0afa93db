"""Which updates make a round, and their weights.

Sums are integers (`sums`), so a synchronous round is bit-identical however its
updates arrive. Where the frames of a round are small they are kept until the round is
complete, and each update is bounded by what the others of that round add; otherwise
each is added as it comes, in O(d), and bounded by what was added before.

Source: Nguyen et al. 2022, FedBuff, Algorithm 1. https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from boli.codec.codec import (
    Codec,
    Decay,
    DenseCodec,
    Frame,
    at_density,
    decode_frame,
    encode_frame,
)
from boli.codec.entries import Entries
from boli.errors import CodecError
from boli.journal import Event, UpdateRejected
from boli.rounds.bounds import Reach, Weighed, contribution, unit_of, weigh
from boli.rounds.cohort import Cohorts
from boli.rounds.journaled import judged, update_accepted
from boli.rounds.outer import Averaging, OuterOptimizer
from boli.rounds.robust import Rule, Share, robust_mean
from boli.rounds.shares import Shares, noted
from boli.rounds.sums import LARGEST, WEIGHT_GRID, add_to, mean_of
from boli.rounds.suspicion import Suspicion, heading, new_seed, seen
from boli.rounds.token_rows import TokenRows
from boli.rounds.transport import Delivery
from boli.rounds.update import (
    Folded,
    Order,
    Release,
    ServerState,
    Spans,
    Sums,
    UpdateHeader,
    Vector,
    Verdict,
    norm_of,
)

REMEMBERED = 16  # accepted sequences per site
FASTEST = 1e6  # steps a second, that a site can claim


@dataclass(frozen=True)
class Rejection:
    """Why an update is not folded in."""

    reason: str
    detail: str
    keep: bool = False  # sound, only late: the site may send its content again


@dataclass(frozen=True)
class BufferedStrategy:
    """Step each time `buffer_size` updates are in (FedBuff).

    With buffer_size equal to the number of sites and max_staleness 0 this is
    synchronous federated averaging, so both modes share one loop.
    """

    buffer_size: int
    max_staleness: int  # rounds
    staleness_power: float
    token_power: float
    norm_multiple: float  # of what the lower-median site adds; inf: no bound
    reference_tokens: int  # of an ordinary update: its weight is 1
    max_tokens_per_step: int
    outer: OuterOptimizer
    spans: Mapping[str, Spans]  # by site
    uplink: Codec = field(default_factory=DenseCodec)  # of updates; no other is decoded
    downlink: Codec = field(default_factory=DenseCodec)
    downlink_decay: Decay = field(default_factory=Decay)  # of what versions do not carry yet
    cohorts: Cohorts | None = None  # where all members of a cohort share a support
    keeps_frames: bool = False  # until a round is complete
    reach: Reach | None = None  # of local steps
    robust: Rule = "none"  # others need `keeps_frames`
    trim_share: float = 0.2
    suspicion: Suspicion = field(default_factory=Suspicion)
    most_share: float | None = None  # of the updates in any ten versions, that are one site's
    averaging: Averaging = field(default_factory=Averaging)
    token_rows: TokenRows = field(default_factory=TokenRows)  # none for robust means

    @property
    def shares(self) -> Shares:
        """How many updates of one site a version may hold."""
        # Only who is waited for until all are there trains together.
        together = self.max_staleness == 0 and self.buffer_size == len(self.spans)
        return Shares(self.buffer_size, together, self.most_share)

    def begin(self, state: ServerState) -> ServerState:
        """Return the state with which a run begins, or goes on."""
        state = state if state.sketch_seed else replace(state, sketch_seed=new_seed())
        return state if self.cohorts is None else self.cohorts.begin(state)

    def fold(
        self, state: ServerState, deliveries: Sequence[Delivery]
    ) -> tuple[ServerState, list[Verdict], list[Event]]:
        """Add updates to the partial sum, each once; `state` is left untouched.

        Returns the next state, a verdict for every delivery, and what to journal.
        """
        if not deliveries:
            return state, [], []
        verdicts: list[Verdict] = []
        events: list[Event] = []
        sums: Sums | None = None  # a copy, once there is something to add
        for delivery in deliveries:
            outcome = self._outcome(state, delivery)
            if isinstance(outcome, Rejection):
                state, facts = _refuse(state, delivery, outcome)
                verdicts.append(_verdict(delivery, outcome))
            else:
                streams = delivery.update.header.local_steps and not self._keeps(state, delivery)
                if sums is None and streams:
                    there = state.partial_sum
                    sums = np.zeros(state.theta.size, np.int64) if there is None else there.copy()
                state, facts = self._add(state, delivery, outcome, sums if streams else None)
                verdicts.append(_verdict(delivery, None))
            events += facts
        state = state if sums is None else replace(state, partial_sum=sums)
        return state, verdicts, events

    def _keeps(self, state: ServerState, delivery: Delivery) -> bool:
        """Tell whether an update's frame waits: for the others, or for the version after this."""
        return self.keeps_frames or self.shares.is_in(state, delivery.site)

    def _outcome(self, state: ServerState, delivery: Delivery) -> Entries | Rejection:
        """Return the entries of a sound update, none where it only judged."""
        rejection = self._check(state, delivery)
        if rejection is not None:
            return rejection
        entries = self._decode(state, delivery)
        if isinstance(entries, Rejection):
            return entries
        weight = self._weight(delivery.update.header.tokens)
        peak = float(np.abs(entries.values).max(initial=0)) * weight
        if peak * (self.buffer_size + len(self.spans)) > LARGEST:
            return Rejection("too large", f"an entry of {peak:.3g}")
        return self._out_of_reach(state, delivery, entries) or entries

    def _out_of_reach(
        self, state: ServerState, delivery: Delivery, entries: Entries
    ) -> Rejection | None:
        """Return why no local steps can have made these entries."""
        _, furthest = self._limits(state, delivery)
        peak = float(np.abs(entries.values).max(initial=0))
        if peak <= furthest:
            return None
        steps = delivery.update.header.local_steps
        told = f"an entry of {peak:.3g}, where {steps} local steps reach {furthest:.3g}"
        return Rejection("too large", told)

    def _limits(self, state: ServerState, delivery: Delivery) -> tuple[float, float]:
        """Return the largest root mean square and entry that the claimed steps can make."""
        header, site = delivery.update.header, state.sites[delivery.site]
        if self.reach is None or site.outstanding is None or not header.local_steps:
            return math.inf, math.inf
        unit = unit_of(state.support)
        return self.reach.limits(site.outstanding, header, site.accepted, state.theta, unit)

    def _check(self, state: ServerState, delivery: Delivery) -> Rejection | None:
        """Return why an update cannot be folded in, from its header alone."""
        header = delivery.update.header
        if header.site != delivery.site or delivery.site not in state.sites:
            return Rejection("forged", f"says it is from {header.site!r}")
        site = state.sites[delivery.site]
        if header.sequence in site.accepted or header.sequence < min(site.accepted, default=0):
            return Rejection("duplicate", "")
        if header.sequence in site.refused:
            return Rejection("refused before", "")
        if site.benched:
            return Rejection("benched", "it gets no more orders", keep=True)
        order = site.outstanding
        if order is None or header.sequence != order.sequence or header.order != order.order:
            return Rejection("superseded", "not the order that is open", keep=True)
        return self._differs(state, header, order)

    def _differs(self, state: ServerState, header: UpdateHeader, order: Order) -> Rejection | None:
        if header.layout != state.layout or header.rank != order.rank:
            return Rejection("layout", f"layout {header.layout[:8]}, rank {header.rank}")
        # An answer may be to an earlier attempt, or from a newer version that overtook the order.
        if header.base_version > state.version:
            return Rejection("version", f"trained from version {header.base_version}")
        if bool(header.local_steps) != bool(order.local_steps):
            return Rejection("malformed", f"{header.local_steps} local steps")
        asked = max(order.at_most, order.local_steps)
        if header.local_steps > asked:
            return Rejection("malformed", f"{header.local_steps} local steps, not {asked}")
        most = header.local_steps * self.max_tokens_per_step
        if header.tokens > most or (header.local_steps and not header.tokens):
            told = f"{header.tokens} tokens, where {header.local_steps} local steps take {most}"
            return Rejection("tokens", told)
        staleness = state.version - header.base_version
        if header.local_steps and staleness > self.max_staleness:
            return Rejection("stale", f"{staleness} rounds behind", keep=True)
        if order.support is not None and header.base_version != order.base_version:
            return Rejection("stale", "a newer version overtook the order", keep=True)
        return None

    def _decode(self, state: ServerState, delivery: Delivery) -> Entries | Rejection:
        header, payload = delivery.update.header, delivery.update.payload
        if not header.local_steps:
            if payload:
                return Rejection("malformed", "a payload without local steps")
            return Entries(0, np.zeros(0, np.float32))
        length = _length(self.spans[delivery.site])
        try:
            frame = decode_frame(payload, header.layout, length, self._codec_of(state, delivery))
        except CodecError as error:
            return Rejection("malformed", error.problem)
        if frame.base_version != header.base_version or frame.rank != header.rank:
            return Rejection("malformed", "header and payload do not agree")
        return frame.entries

    def _codec_of(self, state: ServerState, delivery: Delivery) -> Codec:
        """Return the codec that made an honest update: what it would not make costs no work."""
        if self.cohorts is not None:
            return self.cohorts.agreed(state, self.spans[delivery.site])
        order = state.sites[delivery.site].outstanding
        density = 0.0 if order is None else order.density
        return at_density(self.uplink, density, delivery.update.header.base_version)

    def _frame(self, state: ServerState, site: str, payload: bytes) -> Frame:
        """Decode a frame that is kept: it was held against the codec when it came."""
        spans = self.spans[site]
        agreed = None if self.cohorts is None else self.cohorts.agreed(state, spans)
        return decode_frame(payload, state.layout, _length(spans), agreed)

    def _add(
        self, state: ServerState, delivery: Delivery, entries: Entries, sums: Sums | None
    ) -> tuple[ServerState, list[Event]]:
        """Keep an update's frame, or add it to the sums in place, and note it."""
        header, name = delivery.update.header, delivery.site
        entry = self._entry(state, delivery, entries)
        state, facts = _take_judgements(state, delivery)
        if header.local_steps:
            state = heading(state, name, entries, self.spans[name])
            state = self.token_rows.note(state, name, entries)
            (one,) = weigh(state, [entry], [], self.norm_multiple)
            if sums is None:
                frames = {**state.frames, entry.key: delivery.update.payload}
                state, one = replace(state, frames=frames), replace(one, scaled=1.0)
            else:
                add_to(sums, entries, self.spans[name], self._factor(state, one))
                bound = one.bound if math.isfinite(one.bound) else 0.0
                told = {"weight": one.weight, "bound": bound, "scaled": one.scaled}
                entry = entry.model_copy(update=told)
                state = replace(state, coverage=_covered(state, state.coverage, one))
            folded = (*state.folded, entry)
            state = replace(state, folded=folded, tokens=state.tokens + header.tokens)
            weight = entry.weight
            facts.append(update_accepted(delivery, entry.staleness, weight, entry.norm, one.scaled))
        return _after_acceptance(state, name, header), facts

    def _entry(self, state: ServerState, delivery: Delivery, entries: Entries) -> Folded:
        header, name = delivery.update.header, delivery.site
        order, size = state.sites[name].outstanding, _length(self.spans[name])
        typical, _ = self._limits(state, delivery)
        rate = 0.0
        if self.reach is not None and order is not None and header.local_steps:
            rate = self.reach.rates(order, header) / header.local_steps
        return Folded(
            site=name,
            sequence=header.sequence,
            staleness=state.version - header.base_version,
            norm=norm_of(entries.values),
            left=header.residual_norm / max(1, size) ** 0.5,
            base_version=header.base_version,
            size=size,
            weight=self._weight(header.tokens),
            rate=rate,
            reach=typical * math.sqrt(size) if math.isfinite(typical) else 0.0,
        )

    def _factor(self, state: ServerState, one: Weighed) -> float:
        """Return the factor on a vector in the sum of a version that is made now."""
        staleness = state.version - one.entry.base_version
        later: float = (1 + staleness) ** self.staleness_power
        return one.weight * one.scaled / later

    def _weight(self, tokens: int) -> float:
        share = (tokens / self.reference_tokens) ** self.token_power
        return max(1.0, float(np.rint(share * WEIGHT_GRID))) / WEIGHT_GRID

    def weighed(self, state: ServerState) -> list[Weighed]:
        """Return the updates of the next version, by site, with their weights and factors.

        Where frames are kept, each is bounded by what the sites of this very round add.
        """
        chosen = self.shares.chosen(state)
        kept = [entry for entry in chosen if entry.key in state.frames]
        found = {one.entry.key: one for one in weigh(state, kept, kept, self.norm_multiple)}
        return [
            found.get(entry.key)
            or Weighed(entry, entry.weight or 1.0, entry.scaled, entry.bound or math.inf)
            for entry in chosen
        ]

    def ready(self, state: ServerState, there: Collection[str] | None = None) -> bool:
        """Tell whether enough updates are in; a benched site is not waited for.

        `there` are the sites that an asynchronous round waits for; None: all.
        """
        chosen = self.shares.chosen(state)
        return bool(chosen) and len(chosen) >= self.shares.needed(state, there)

    def judge(self, state: ServerState) -> tuple[ServerState, list[Event]]:
        """Note what the next version's updates show of their sites, and suspend who has to be.

        A frame of a site that is suspended now goes into no version.
        """
        before = state
        state, events = self.suspicion.judge(state, self.weighed(state))
        gone = {name for name in before.active if state.sites[name].benched}
        dropped = {e.key for e in state.folded if e.site in gone and e.key in state.frames}
        if dropped:
            state = replace(
                state,
                folded=tuple(entry for entry in state.folded if entry.key not in dropped),
                frames={key: f for key, f in state.frames.items() if key not in dropped},
            )
        return state, events

    def step(self, state: ServerState) -> tuple[ServerState, Release, float]:
        """Make one version of the updates that wait.

        Returns the next state, the version to publish, and the norm of the step.
        """
        weighed = self.weighed(state)
        mean = self._mean(state, weighed)
        step, outer = self.outer.step(mean, state.outer, state.outer_round)
        carried = self.downlink_decay.of(state.unsent, state.version)
        step = step if carried is None else step + carried
        step = self.averaging.step(step, state.theta, state.average, state.version + 1)
        # The version is what sites can decode; what they cannot waits for the next one.
        step = step + np.float32(0)  # without negative zeros, which a sparse frame leaves out
        frame = encode_frame(self.downlink, step, state.layout, None, state.version)
        sent = decode_frame(frame, state.layout, step.size).vector
        left = step - sent
        theta = state.theta - sent
        support = None if self.cohorts is None else self.cohorts.following(state, theta)
        used = {one.entry.key for one in weighed}
        state = _remembered(state, weighed)
        state = replace(
            state,
            theta=theta,
            support=support,
            outer=outer,
            outer_round=state.outer_round + 1,
            version=state.version + 1,
            unsent=left if left.any() else None,
            average=self.averaging.mean(theta, state.average, state.version + 1),
            partial_sum=None,
            coverage={},
            folded=tuple(entry for entry in state.folded if entry.key not in used),
            frames={key: f for key, f in state.frames.items() if key not in used},
            center=mean if self.robust == "centered_clipping" else None,
            recent=noted(state.recent, [one.entry for one in weighed]),
        )
        release = Release(state.version, state.layout, theta, sent, frame)
        return state, release, norm_of(sent)

    def _mean(self, state: ServerState, weighed: Sequence[Weighed]) -> Vector:
        kept = [one for one in weighed if one.entry.key in state.frames]
        if self.robust != "none":
            shares = [
                Share(
                    one.weight,
                    self._factor(state, one) / one.weight,
                    self.spans[one.entry.site],
                    partial(self._vector, state, one.entry),
                )
                for one in kept
            ]
            length, center = state.theta.size, state.center
            multiple = self.norm_multiple
            return robust_mean(self.robust, shares, length, self.trim_share, center, multiple)
        there, coverage = state.partial_sum, dict(state.coverage)
        sums = np.zeros(state.theta.size, np.int64) if there is None else there.copy()
        for one in kept:
            entries = self._frame(state, one.entry.site, state.frames[one.entry.key]).entries
            add_to(sums, entries, self.spans[one.entry.site], self._factor(state, one))
            coverage = _covered(state, coverage, one)
        covered = [(self._spans_of(state, key), n) for key, n in coverage.items()]
        return mean_of(sums, covered, self.token_rows.absent(state, weighed))

    def _vector(self, state: ServerState, entry: Folded) -> Vector:
        return self._frame(state, entry.site, state.frames[entry.key]).vector

    def _spans_of(self, state: ServerState, key: str) -> Spans:
        rank = int(key) if key else None
        return next(self.spans[name] for name, site in state.sites.items() if site.rank == rank)


def _length(spans: Spans) -> int:
    return sum(stop - start for start, stop in spans)


def _covered(state: ServerState, coverage: Mapping[str, int], one: Weighed) -> dict[str, int]:
    """Return the coverage with one more update's weight."""
    rank = state.sites[one.entry.site].rank
    key = "" if rank is None else str(rank)
    return {**coverage, key: coverage.get(key, 0) + round(one.weight * WEIGHT_GRID)}


def _remembered(state: ServerState, weighed: Sequence[Weighed]) -> ServerState:
    """Note what the updates of a version add, to compare later ones with."""
    for one in weighed:
        if one.entry.size:
            added = contribution(one.entry, one.weight)
            state = state.with_site(one.entry.site, weight=one.weight, contribution=added)
    return state


def _verdict(delivery: Delivery, why: Rejection | None) -> Verdict:
    """Return what the site is told; a duplicate was accepted before."""
    header = delivery.update.header
    return Verdict(
        order=header.order,
        site=delivery.site,
        sequence=header.sequence,
        accepted=why is None or why.reason == "duplicate",
        reason="" if why is None else why.reason,
        keep=why is not None and why.keep,
    )


def _after_acceptance(state: ServerState, name: str, header: UpdateHeader) -> ServerState:
    site = state.sites[name]
    judged_last = not (header.local_steps or (site.outstanding and site.outstanding.first))
    speed = min(FASTEST, header.local_steps / max(header.train_seconds, 1 / FASTEST))
    speed = speed if header.train_seconds else 0.0
    return state.with_site(
        name,
        outstanding=None,
        accepted=(*site.accepted, header.sequence)[-REMEMBERED:],
        rejections=0,
        steps_per_second=speed or site.steps_per_second,
        finished=site.finished or judged_last,
    )


def _refuse(
    state: ServerState, delivery: Delivery, why: Rejection
) -> tuple[ServerState, list[Event]]:
    """Close the order, so that a new one is issued; a superseded update closes none."""
    if why.reason in ("duplicate", "refused before"):
        return state, []
    header = delivery.update.header
    facts: list[Event] = [UpdateRejected(header.order, delivery.site, why.reason, why.detail)]
    if delivery.site not in state.sites:
        return state, facts
    site = state.sites[delivery.site]
    if site.benched:
        return state, facts  # nothing that it sends costs a checkpoint
    if why.reason == "stale":
        # What was judged is true, however late.
        state, told = _take_judgements(state, delivery)
        facts += told
    returned = max(site.returned, header.sequence) if why.keep else site.returned
    if why.reason == "superseded":
        return state.with_site(delivery.site, returned=returned), facts
    state = state.with_site(
        delivery.site,
        outstanding=None,
        returned=returned,
        rejections=site.rejections + (0 if why.keep else 1),
        refused=site.refused if why.keep else (*site.refused, header.sequence)[-REMEMBERED:],
    )
    return state if why.keep else seen(state, delivery.site, "refused"), facts


def _take_judgements(state: ServerState, delivery: Delivery) -> tuple[ServerState, list[Event]]:
    """Note what an answer judged; of a wrong one nothing is believed, and it is asked again."""
    header, name = delivery.update.header, delivery.site
    order = state.sites[name].outstanding
    if order is None or not order.evaluate:
        return state, []
    version = 0 if order.first else header.base_version
    events = judged(order, header, version)
    state = replace(state, selection=state.selection.hear(name, version, header.judgements))
    return state.with_site(name, judged=version, judged_sequence=header.sequence), events
