"""THE MAIN LOOP: orders go out, updates come in, versions are made.

Synchronous and asynchronous training are this one loop; the strategy's buffer
size and staleness bound are all the difference. The order of the lines inside
`_turn` is the promise of the whole system: nothing is acknowledged, published
or asked for before the checkpoint that remembers it is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from boli.errors import LayoutError, SiteError
from boli.journal import (
    Event,
    Journal,
    OrderSent,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    UpdateRejected,
    VersionRestored,
)
from boli.rounds.buffer import BufferedStrategy
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.journaled import CopiesRead, round_stepped, version_judged
from boli.rounds.refusals import Refusals
from boli.rounds.schedule import Schedule
from boli.rounds.suspicion import seen
from boli.rounds.transport import (
    Arrival,
    Delivery,
    Failed,
    Joined,
    Left,
    Malformed,
    Measurement,
    Refused,
    Transport,
)
from boli.rounds.update import Order, Release, ServerState, Vector

REJECTIONS_BORNE = 3  # in a row, before a site is benched


@dataclass
class Rounds:
    """The collaborators of one run's loop; all progress is in the ServerState."""

    transport: Transport
    strategy: BufferedStrategy
    schedule: Schedule
    checkpoints: CheckpointStore
    journal: Journal
    check_site: Callable[[Joined], None]  # raises LayoutError or SiteError: it trains other things
    observe: Callable[[Measurement], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    deadline_seconds: float = 0.0  # 0: none
    patience_seconds: float = 3600.0  # with a site that does not judge the last version
    clock: Callable[[], float] = time.monotonic
    _present: set[str] = field(default_factory=set)  # sites whose node is there
    _sent_at: dict[str, float] = field(default_factory=dict)  # by site, of its open order
    _made_at: float | None = None  # when the last version was made, or taken up again
    _bytes_down: dict[str, int] = field(default_factory=dict)  # by site, at its last order
    _refusals: Refusals = field(default_factory=Refusals)
    _strange: set[str] = field(default_factory=set)  # sites that train other parameters
    _copies: CopiesRead = field(default_factory=CopiesRead)
    _started: float = 0.0

    def run(self, state: ServerState) -> ServerState:
        """Train until the schedule is finished, or until told to stop.

        Raises:
            CorruptFileError: the journal was altered.
            LayoutError: every site trains other parameters than the coordinator has.
            SiteError: every site is benched before the last version is made.
            StorageError: a checkpoint cannot be written; the last one is whole.
        """
        ranks = {name: site.rank for name, site in state.sites.items()}
        views = {name: (ranks[name], self.strategy.spans[name]) for name in ranks}
        self.transport.start(views, Release(state.version, state.layout, state.theta))
        state = self.strategy.begin(state)
        # Orders go out as sites join, also those that were open when a run was stopped.
        state, _ = self.schedule.issue(state, self._there(state))
        self._started = self.clock()
        self._copies = CopiesRead.of(self.journal)
        state = self._save(state)
        while not self.schedule.finished(state) and not self.should_stop():
            arrivals = self.transport.receive(timeout_seconds=0.5)
            state = self._turn(state, arrivals)
        self._tell_refusals(at_the_end=True)
        return state

    def _turn(self, state: ServerState, arrivals: Sequence[Arrival]) -> ServerState:
        """Take in what arrived; make rounds of it; ask for more."""
        before = state
        arrivals = [self._checked(arrival) for arrival in arrivals]
        joined, deliveries = self._sort(arrivals)
        state = self._welcome(state, joined)
        state = self._time_links(state, deliveries)
        state, verdicts, events = self.strategy.fold(state, deliveries)
        releases = []
        there = self._there(state)
        while state.version < self.schedule.total and self.strategy.ready(state, there):
            state, judged = self.strategy.judge(state)
            events += judged
            num_updates = len(self.strategy.weighed(state))
            if not num_updates:  # all of it was of a site that is suspended now
                continue
            theta = state.theta
            state, release, norm = self.strategy.step(state)
            seconds = self.clock() - self._started
            events.append(round_stepped(state, num_updates, norm, seconds))
            state = self._select(state, theta, events)
            releases.append(release)
        state = self._bench(self._hold_against(state, arrivals, events), events)
        state, restored = self._restore(before, state, events)
        releases += restored
        state, shrunk = self._hurry(state)
        state, orders = self.schedule.issue(state, there)
        state, reopened = self._reopen(state, joined, orders)
        for event in events:
            self._tell(event)
        self._tell_refusals()
        if state is not before:
            state = self._save(state)
        for release in releases:
            self.transport.publish(release)
        for verdict in verdicts:
            if verdict.reason in ("duplicate", "refused before"):  # a lost line, or a replay
                self._refusals.note(self.clock(), "sent again", verdict.site, 1, verdict.order)
            self.transport.answer(verdict)
        self._send([*reopened, *orders, *shrunk])
        return state

    def _select(self, state: ServerState, before: Vector, events: list[Event]) -> ServerState:
        """Note which version may be exported; `before` (d,) is the one that was left."""
        selection, settled = state.selection.follow(
            before, state.version, state.active, self.schedule.every_rounds, self.schedule.total
        )
        if settled is not None:
            events.append(version_judged(state, *settled))
        return replace(state, selection=selection)

    def _restore(
        self, before: ServerState, state: ServerState, events: list[Event]
    ) -> tuple[ServerState, list[Release]]:
        """Once all have judged the last version, make an earlier one of it that they find better.

        It has a number of its own, and is judged like any last version.
        """
        if self.schedule.finished(before) or not self.schedule.finished(state):
            return state, []
        selection = state.selection
        ratio = selection.better_than_last(state.active)
        if selection.open is not None:
            judged = selection.score(selection.open, state.active) is not None
            events.append(version_judged(state, selection.open, judged and ratio is None))
        if ratio is None:
            return state, []
        version, earlier = state.version + 1, selection.kept[-1].version
        selection, theta = selection.restore(state.theta, version)
        events.append(VersionRestored(version, selection.made(earlier), ratio))
        state = replace(state, version=version, theta=theta, selection=selection, unsent=None)
        for name in state.sites:
            state = state.with_site(name, finished=False)
        self._made_at = None
        return state, [Release(version, state.layout, theta)]

    def _there(self, state: ServerState) -> set[str] | None:
        """Return the sites that an asynchronous round waits for; None: all, when synchronous.

        Whoever is silent over an order for longer than the patience counts as away.
        """
        if self.schedule.synchronous:
            return None
        now = self.clock()
        return {
            name
            for name in self._present
            if state.sites[name].outstanding is None
            or now - self._sent_at.get(name, now) <= self.patience_seconds
        }

    def _tell(self, event: Event) -> None:
        """Journal an event, or count it: no site fills the disk by being wrong."""
        if self._refusals.takes(self.clock(), event):
            self.journal.append(event)

    def _tell_refusals(self, at_the_end: bool = False) -> None:
        for event in self._refusals.due(self.clock(), at_the_end):
            self.journal.append(event)

    def _checked(self, arrival: Arrival) -> Arrival:
        """Take a site that would train other things for one that cannot do its work."""
        if isinstance(arrival, Joined):
            self._strange.discard(arrival.site)
            try:
                self.check_site(arrival)
                self._copies.check(arrival)
            except (LayoutError, SiteError) as error:
                if isinstance(error, LayoutError):
                    self._strange.add(arrival.site)
                return Failed(arrival.site, error.problem[:500], error.hint)
        return arrival

    def _save(self, state: ServerState) -> ServerState:
        """Bring the journal, then the state, and then the journal's head to the disk.

        Each knows of no more than the one before: whatever a crash leaves fits together.
        """
        state = replace(state, journal_seq=self.journal.seq, journal_hash=self.journal.last)
        self.journal.sync()
        self.checkpoints.save(state)
        self.journal.seal(state.run, state.version, state.journal_seq)
        return state

    def _hold_against(
        self, state: ServerState, arrivals: Sequence[Arrival], events: list[Event]
    ) -> ServerState:
        """Count what is no update like one that is refused; bench a site that cannot go on."""
        for arrival in arrivals:
            if isinstance(arrival, Malformed) and arrival.site in state.active:
                counted = state.sites[arrival.site].rejections + 1
                state = state.with_site(arrival.site, outstanding=None, rejections=counted)
                state = seen(state, arrival.site, "refused")
            elif isinstance(arrival, Failed) and arrival.site in state.active:
                reason = f"{arrival.problem}; {arrival.hint}" if arrival.hint else arrival.problem
                state = state.with_site(arrival.site, benched=reason, outstanding=None)
                events.append(SiteBenched(arrival.site, reason))
        return state

    def _sort(self, arrivals: Sequence[Arrival]) -> tuple[list[str], list[Delivery]]:
        """Journal who came and went; return the names of those who came, and updates."""
        joined, deliveries = [], []
        for arrival in arrivals:
            match arrival:
                case Delivery():
                    deliveries.append(arrival)
                case Measurement():
                    self.observe(arrival)
                case Joined():
                    lines = {k: dict(v) for k, v in arrival.num_lines.items()}
                    self._tell(SiteJoined(arrival.site, lines, arrival.restarts))
                    self._copies.tell(arrival, self.journal)
                    joined.append(arrival.site)
                    self._present.add(arrival.site)
                case Left() | Failed():
                    self._present.discard(arrival.site)
                    self._sent_at.pop(arrival.site, None)
                    reason = arrival.reason if isinstance(arrival, Left) else arrival.problem
                    self._tell(SiteLeft(arrival.site, reason))
                case Malformed():
                    self._tell(UpdateRejected("", arrival.site, "malformed", arrival.detail))
                case Refused(kind, site, count, detail):
                    self._refusals.note(self.clock(), kind, site, count, detail)
        return joined, deliveries

    def _welcome(self, state: ServerState, joined: Sequence[str]) -> ServerState:
        """Ask a site again that could not do its work, and is back; not one that was wrong."""
        for name in joined:
            site = state.sites[name]
            if site.benched and not site.suspended and site.rejections < REJECTIONS_BORNE:
                state = state.with_site(name, benched="")
        return state

    def _time_links(self, state: ServerState, deliveries: Sequence[Delivery]) -> ServerState:
        """Note how long answers to open orders took besides the work, where orders heed it."""
        for name, header in ((d.site, d.update.header) for d in deliveries):
            site = state.sites.get(name)
            if site is None or site.outstanding is None or name not in self._sent_at:
                continue
            asked = site.outstanding.sequence, site.outstanding.attempt
            if self.schedule.speed_aware and (header.sequence, header.attempt) == asked:
                taken = self.clock() - self._sent_at[name] - header.work_seconds
                mean = (site.link_seconds + taken) / 2 if site.link_seconds else taken
                state = state.with_site(name, link_seconds=max(0.0, mean))
        return state

    def _reopen(
        self, state: ServerState, joined: Sequence[str], issued: Sequence[Order]
    ) -> tuple[ServerState, list[Order]]:
        """Send a site that came back what it was asked before."""
        reopened = []
        for name in sorted(set(joined) - {order.site for order in issued}):
            state, order = self.schedule.reopen(state, name)
            if order is not None:
                reopened.append(order)
        return state, reopened

    def _bench(self, state: ServerState, events: list[Event]) -> ServerState:
        """Give no more orders to a site that is wrong again and again, or silent at the end."""
        for name in state.active:
            reason = self._reason_to_bench(state, name)
            if reason:
                state = state.with_site(name, benched=reason, outstanding=None)
                events.append(SiteBenched(name, reason))
        state, suspended = self.strategy.suspicion.suspend(state)
        events += suspended
        if not state.active and state.version < self.schedule.total:
            for event in events:
                self._tell(event)
            reasons = "; ".join(f"{name}: {site.benched}" for name, site in state.sites.items())
            kind = LayoutError if self._strange >= set(state.sites) else SiteError
            raise kind(f"no site is left to train: {reasons}", "mend that and resume the run")
        return state

    def _reason_to_bench(self, state: ServerState, name: str) -> str:
        site = state.sites[name]
        if site.rejections >= REJECTIONS_BORNE:
            return f"{REJECTIONS_BORNE} updates in a row were refused"
        if state.version < self.schedule.total or site.finished:
            return ""
        self._made_at = self.clock() if self._made_at is None else self._made_at
        if self.clock() - self._made_at > self.patience_seconds:
            return f"it did not judge the last version within {self.patience_seconds:.0f} s"
        return ""

    def _hurry(self, state: ServerState) -> tuple[ServerState, list[Order]]:
        """Re-issue, with half the steps, what is open for longer than the deadline."""
        orders = []
        now = self.clock()
        for name in state.active if self.deadline_seconds else ():
            if now - self._sent_at.get(name, now) > self.deadline_seconds:
                state, order = self.schedule.shrink(state, name)
                if order is not None:
                    self._sent_at[name] = now
                    orders.append(order)
        return state, orders

    def _send(self, orders: Sequence[Order]) -> None:
        """Send orders to the nodes that are there; the others get theirs when they join."""
        for order in orders:
            if order.site not in self._present:
                continue
            self.transport.send_order(self._copies.addressed(order))
            now = self._sent_at[order.site] = self.clock()
            if self._refusals.is_spent(now, order.site):
                continue  # one more of very many that come to nothing
            total = self.transport.bytes_down(order.site)
            down = total - self._bytes_down.get(order.site, 0)
            self._bytes_down[order.site] = total
            self.journal.append(
                OrderSent(
                    order.order,
                    order.site,
                    order.base_version,
                    order.local_steps,
                    order.attempt,
                    down,
                )
            )
