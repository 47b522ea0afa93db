"""What the journal says of a round, and of what the sites read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from boli.errors import SiteError
from boli.journal import (
    CopyRead,
    DifferenceJudged,
    Evaluated,
    Event,
    Journal,
    MixedEvaluated,
    PpmdEvaluated,
    RoundStepped,
    SixGramEvaluated,
    UpdateAccepted,
    VersionExported,
    VersionJudged,
    read_journal,
)
from boli.rounds.best import JudgedVersion
from boli.rounds.transport import Delivery, Joined
from boli.rounds.update import (
    MOST_COPIES,
    Copy,
    Difference,
    Judgement,
    Order,
    ServerState,
    UpdateHeader,
    copies_digest,
)

# Rows of a report, of which a site may tell the difference.
COMPARED = {("model", "base"), ("model", "six_gram"), ("model", "ppmd"), ("mixed", "six_gram")}


def update_accepted(
    delivery: Delivery, staleness: int, weight: float, norm: float, scaled: float
) -> Event:
    """Return the journal's line on an update that is folded in."""
    header = delivery.update.header
    return UpdateAccepted(
        order=header.order,
        site=delivery.site,
        base_version=header.base_version,
        staleness=staleness,
        local_steps=header.local_steps,
        tokens=header.tokens,
        weight=weight,
        loss=header.loss,
        norm=norm,
        scaled=scaled,
        train_seconds=header.train_seconds,
        evaluate_seconds=header.evaluate_seconds,
        work_seconds=header.work_seconds,
        idle_seconds=header.idle_seconds,
        bytes_up=delivery.update.num_bytes,
        residual_norm=header.residual_norm,
    )


def judged(order: Order, header: UpdateHeader, version: int) -> list[Event]:
    """Return the journal's lines on what an answer judged.

    What else is told of held-out text is believed only of the lines that were judged, as far as
    their size shows it, and where it was due: a 6-gram and PPMd with the base, a mixture and
    differences with the last version.
    """
    site, events = header.site, list[Event]()
    for one in header.judgements:
        events.append(Evaluated(site, one.language, one.part, version, one.bits, one.bytes))
    there = {(one.language, one.part, one.bytes) for one in header.judgements}

    def beside(others: Iterable[Judgement]) -> Iterable[Judgement]:
        found = {(one.language, one.part, one.bytes): one for one in others}
        return (one for key, one in found.items() if key in there and one.bits > 0)

    if order.first:
        for one in beside(header.six_gram):
            events.append(SixGramEvaluated(site, one.language, one.part, one.bits, one.bytes))
        for one in beside(header.ppmd):
            events.append(PpmdEvaluated(site, one.language, one.part, one.bits, one.bytes))
    elif not order.local_steps:
        for one in beside(header.mixed):
            numbers = version, one.bits, one.bytes
            events.append(MixedEvaluated(site, one.language, one.part, *numbers))
        for each in _differences(header):
            events.append(DifferenceJudged(site, version=version, **each.model_dump()))
    return events


def _differences(header: UpdateHeader) -> Iterable[Difference]:
    """Return the differences that can be: of a test part that was judged, between known rows."""
    tested = {one.language: one.bytes for one in header.judgements if one.part == "test"}
    found = {(one.language, one.a, one.b): one for one in header.differences}
    for one in found.values():
        if one.low is None or one.high is None:
            sound = one.low is one.high
        else:
            sound = one.documents is not None and one.low <= one.high
        if one.documents is not None:
            sound &= 0 < one.documents <= tested.get(one.language, 0)
        if sound and one.language in tested and (one.a, one.b) in COMPARED:
            yield one


def round_stepped(state: ServerState, num_updates: int, norm: float, seconds: float) -> Event:
    """Return the journal's line on a step."""
    return RoundStepped(state.version, num_updates, state.tokens, norm, seconds)


def version_judged(state: ServerState, judged: JudgedVersion, kept: bool) -> Event:
    """Return the journal's line on a version whose judgement is complete."""
    score = state.selection.score(judged, state.active)
    ratios = {site: float(f"{ratio:.6g}") for site, ratio in sorted(judged.ratios.items())}
    return VersionJudged(judged.version, ratios, score, kept)


def version_exported(state: ServerState, last: int) -> VersionExported:
    """Return the journal's line on the version that becomes the adapter: the current one."""
    selection, active = state.selection, state.active
    judged = selection.open or JudgedVersion(version=state.version)
    voters = selection.voters(active)
    return VersionExported(
        state.version,
        selection.made(state.version),
        last,
        selection.score(judged, active),
        sum(site in judged.ratios for site in voters),
        len(voters),
    )


@dataclass
class CopiesRead:
    """Which copies of pools each site has read: each is journaled once, whoever restarts when."""

    _told: dict[str, set[str]] = field(default_factory=dict)  # by site, ids of copies
    _named: dict[str, set[str]] = field(default_factory=dict)  # and of those about to be told
    _now: dict[str, str] = field(default_factory=dict)  # by site, digest of those it reads now

    @classmethod
    def of(cls, journal: Journal) -> CopiesRead:
        """Return what a journal tells already.

        Raises:
            CorruptFileError: it was altered.
        """
        found = cls()
        for entry in read_journal(journal.path) if journal.path.exists() else ():
            if isinstance(entry.event, CopyRead):
                found._told.setdefault(entry.event.site, set()).add(entry.event.taken)
        return found

    def check(self, joined: Joined) -> None:
        """Refuse a site that names ever more copies: each takes a line of the journal.

        Raises:
            SiteError: there would be too many. None is left out instead: an erase asks for all.
        """
        named = self._named.get(joined.site, set()) | self._told.get(joined.site, set())
        named |= {copy.taken for copy in joined.copies}
        if len(named) > MOST_COPIES:
            raise SiteError(
                f"site {joined.site} names {len(named)} copies of pools in this run",
                f"a run notes {MOST_COPIES} of a site; take the text as fewer copies",
            )
        self._named[joined.site] = named

    def tell(self, joined: Joined, journal: Journal) -> None:
        """Journal what is new, on the disk before the site is asked to train on it."""
        told = self._told.setdefault(joined.site, set())
        new: dict[str, Copy] = {c.taken: c for c in joined.copies if c.taken not in told}
        for copy in new.values():
            journal.append(CopyRead(joined.site, **copy.model_dump()))
        if new:
            journal.sync()
            told.update(new)
        self._now[joined.site] = copies_digest(joined.copies)

    def addressed(self, order: Order) -> Order:
        """Return an order that only who reads what was told obeys.

        It may wait in a stream longer than the node it was for lives. The next node, with other
        text, must not train before the journal names that.
        """
        return order.model_copy(update={"copies": self._now.get(order.site, "")})
