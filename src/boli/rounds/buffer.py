"""Which updates make a round, and their weights.

Sums are integers (`sums`), so a synchronous round is bit-identical however its
updates arrive, and memory stays O(d) because each update is added as it comes.

Source: Nguyen et al. 2022, FedBuff, Algorithm 1. https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from boli.codec.codec import (
    Codec,
    Decay,
    DenseCodec,
    at_density,
    decode_frame,
    encode_frame,
)
from boli.codec.entries import Entries
from boli.errors import CodecError
from boli.journal import Evaluated, Event, UpdateRejected
from boli.rounds.cohort import Cohorts
from boli.rounds.journaled import update_accepted
from boli.rounds.outer import OuterOptimizer
from boli.rounds.sums import LARGEST, WEIGHT_GRID, add_to, mean_of
from boli.rounds.transport import Delivery
from boli.rounds.update import (
    Folded,
    Order,
    Release,
    ServerState,
    Spans,
    Sums,
    UpdateHeader,
    Verdict,
    norm_of,
)

NORMS_KEPT = 64
NORMS_NEEDED = 6  # before a median means anything
REMEMBERED = 16  # accepted sequences per site


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
    norm_multiple: float
    reference_tokens: int  # of an ordinary update: its weight is 1
    max_tokens_per_step: int
    outer: OuterOptimizer
    spans: Mapping[str, Spans]  # by site
    uplink: Codec = field(default_factory=DenseCodec)  # of updates; no other is decoded
    downlink: Codec = field(default_factory=DenseCodec)
    downlink_decay: Decay = field(default_factory=Decay)  # of what versions do not carry yet
    cohorts: Cohorts | None = None  # where all members of a cohort share a support

    def begin(self, state: ServerState) -> ServerState:
        """Return the state with which a run begins, or goes on."""
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
                if sums is None and delivery.update.header.local_steps:
                    there = state.partial_sum
                    sums = np.zeros(state.theta.size, np.int64) if there is None else there.copy()
                state, facts = self._add(state, delivery, outcome, sums)
                verdicts.append(_verdict(delivery, None))
            events += facts
        state = state if sums is None else replace(state, partial_sum=sums)
        return state, verdicts, events

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
        return entries

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
        most = asked * self.max_tokens_per_step
        if header.tokens > most or (header.local_steps and not header.tokens):
            return Rejection("tokens", f"{header.tokens} tokens where at most {most} were asked")
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
        spans = self.spans[delivery.site]
        length = sum(stop - start for start, stop in spans)
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

    def _add(
        self, state: ServerState, delivery: Delivery, entries: Entries, sums: Sums | None
    ) -> tuple[ServerState, list[Event]]:
        """Add one update to the sums, in place, and note it."""
        header, name = delivery.update.header, delivery.site
        state, facts = _take_judgements(state, delivery)
        if sums is not None and header.local_steps:
            staleness = state.version - header.base_version
            norm = norm_of(entries.values)
            weight, scaled = self._weight(header.tokens), self._scale(state, norm)
            add_to(
                sums,
                entries,
                self.spans[name],
                weight * scaled / (1 + staleness) ** self.staleness_power,
            )
            coverage = dict(state.coverage)
            key = "" if header.rank is None else str(header.rank)
            coverage[key] = coverage.get(key, 0) + round(weight * WEIGHT_GRID)
            entry = Folded(
                site=name,
                sequence=header.sequence,
                staleness=staleness,
                norm=norm,
                left=header.residual_norm / max(1, entries.length) ** 0.5,
            )
            state = replace(
                state,
                coverage=coverage,
                folded=(*state.folded, entry),
                tokens=state.tokens + header.tokens,
            )
            facts.append(update_accepted(delivery, staleness, weight, norm, scaled))
        return _after_acceptance(state, name, header), facts

    def _weight(self, tokens: int) -> float:
        share = (tokens / self.reference_tokens) ** self.token_power
        return max(1.0, float(np.rint(share * WEIGHT_GRID))) / WEIGHT_GRID

    def _scale(self, state: ServerState, norm: float) -> float:
        """Return the factor that brings a norm below its bound.

        The bound comes from whole rounds only, so that it does not depend on the
        order in which this round's updates arrive.
        """
        if len(state.norms) < NORMS_NEEDED:
            return 1.0
        bound = self.norm_multiple * float(np.median(state.norms))
        return bound / norm if norm > bound > 0 else 1.0

    def ready(self, state: ServerState) -> bool:
        """Tell whether enough updates are in; a benched site is not waited for."""
        needed = self.buffer_size
        if needed <= len(state.sites):
            needed = min(needed, len(state.active))
        return len(state.folded) >= max(1, needed)

    def step(self, state: ServerState) -> tuple[ServerState, Release, float]:
        """Make one round of the partial sum.

        Returns the next state, the version to publish, and the norm of the step.
        """
        assert state.partial_sum is not None
        coverage = [(self._spans_of(state, key), total) for key, total in state.coverage.items()]
        mean = mean_of(state.partial_sum, coverage)
        step, outer = self.outer.step(mean, state.outer, state.outer_round)
        carried = self.downlink_decay.of(state.unsent, state.version)
        step = step if carried is None else step + carried
        # The version is what sites can decode; what they cannot waits for the next one.
        step = step + np.float32(0)  # without negative zeros, which a sparse frame leaves out
        frame = encode_frame(self.downlink, step, state.layout, None, state.version)
        sent = decode_frame(frame, state.layout, step.size).vector
        left = step - sent
        theta = state.theta - sent
        norms = (*state.norms, *sorted(folded.norm for folded in state.folded))[-NORMS_KEPT:]
        support = None if self.cohorts is None else self.cohorts.following(state, theta)
        state = replace(
            state,
            theta=theta,
            support=support,
            outer=outer,
            outer_round=state.outer_round + 1,
            version=state.version + 1,
            unsent=left if left.any() else None,
            partial_sum=None,
            coverage={},
            folded=(),
            norms=norms,
        )
        release = Release(state.version, state.layout, theta, sent, frame)
        return state, release, norm_of(sent)

    def _spans_of(self, state: ServerState, key: str) -> Spans:
        rank = int(key) if key else None
        return next(self.spans[name] for name, site in state.sites.items() if site.rank == rank)


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
    speed = header.local_steps / header.train_seconds if header.train_seconds > 0 else 0.0
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
    return state, facts


def _take_judgements(state: ServerState, delivery: Delivery) -> tuple[ServerState, list[Event]]:
    """Note what an answer judged; of a wrong one nothing is believed, and it is asked again."""
    header, name = delivery.update.header, delivery.site
    order = state.sites[name].outstanding
    if order is None or not order.evaluate:
        return state, []
    version = 0 if order.first else header.base_version
    events: list[Event] = [
        Evaluated(
            site=name,
            language=judgement.language,
            part=judgement.part,
            version=version,
            bits=judgement.bits,
            bytes=judgement.bytes,
        )
        for judgement in header.judgements
    ]
    state = replace(state, selection=state.selection.hear(name, version, header.judgements))
    return state.with_site(name, judged=version, judged_sequence=header.sequence), events
