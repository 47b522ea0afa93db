"""A site that is away for long, over the real server: what it missed does not hold it up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from over_nats import OverNats
from quadratic import Job, Tap, counted_once
from test_transport import carry_through, release, take_down

from boli.journal import Event, RoundStepped, SiteJoined, SiteLeft, UpdateAccepted
from boli.rounds.transport import Joined, Left
from boli.rounds.update import ServerState

MISSED = 40  # rounds, as in days: far more than it may be behind
ALL = 1 << 30  # orders


class Absence:
    """Ends gaya after its first update, and lets it back when it has missed so many rounds.

    From the moment that it joins again until its work counts, the others' next orders wait: how
    quick its processes are is not what a test should depend on.
    """

    def __init__(self, job: Job, engine: OverNats) -> None:
        self.job, self.engine = job, engine
        self.is_away = False
        self.left_at = self.useful_at = -1  # versions
        self.answered = 0  # verdicts by the time that it joined again
        self.bytes_down: list[int] = []  # when it was let back, and when its work counted

    def follow(self, _: int, tap: Tap) -> None:
        """Take in what arrived."""
        self.tap, arrival = tap, tap.arrivals[-1]
        if arrival.site != "gaya":
            return
        if not self.engine.off and not self.bytes_down and self._accepted(0):
            self.engine.off.add("gaya")
            self.engine.kill("gaya")
        self.is_away |= bool(self.engine.off) and isinstance(arrival, Left)
        if self.bytes_down and not self.answered and isinstance(arrival, Joined):
            self.answered = len(tap.verdicts)
            self.job.limit(0)

    def _accepted(self, start: int) -> bool:
        """Tell whether an update of gaya's counted, by the verdicts from one on."""
        since = (verdict for verdict in self.tap.verdicts[start:] if verdict.site == "gaya")
        return any(verdict.accepted and verdict.reason != "duplicate" for verdict in since)

    def is_over(self, state: ServerState) -> bool:
        """Tell whether it was useful again, and some rounds were made since."""
        if self.is_away and self.left_at < 0:
            self.left_at = state.version
        if self.is_away and not self.bytes_down and state.version >= self.left_at + MISSED:
            self.bytes_down.append(self.tap.bytes_down("gaya"))
            self.engine.off.clear()
        if self.answered and self.useful_at < 0 and self._accepted(self.answered):
            self.bytes_down.append(self.tap.bytes_down("gaya"))
            self.useful_at = state.version
            self.job.limit(ALL)
        return self.useful_at >= 0 and state.version > self.useful_at + 10


def test_site_that_was_away_for_long_is_useful_in_its_first_round(tmp_path: Path) -> None:
    """It is sent one snapshot instead of all that it missed, and its old update counts no more."""
    job = Job(
        ranks={"arrah": None, "darbhanga": None, "gaya": 2},
        rounds={
            "mode": "asynchronous",
            "buffer_size": 2,
            "max_staleness": 1,
            "total": 10_000,
            "norm_multiple": 1e9,
        },
        step_seconds={"arrah": 0.03, "darbhanga": 0.03, "gaya": 0.01},
        limits=dict.fromkeys(("arrah", "darbhanga"), str(tmp_path / "limit")),
    )
    engine = OverNats(job, tmp_path / "engine")
    absence = Absence(job, engine)
    try:
        outcome = carry_through(
            engine,
            tmp_path,
            job,
            after_arrival=absence.follow,
            should_stop=absence.is_over,
        )
    finally:
        job.limit(ALL)
        take_down(engine)
    events = outcome.events
    mine = [i for i, event in enumerate(events) if getattr(event, "site", "") == "gaya"]
    left = next(i for i in mine if isinstance(events[i], SiteLeft))
    back = next(i for i in mine if i > left and isinstance(events[i], SiteJoined))
    useful = next(i for i in mine if i > back and isinstance(events[i], UpdateAccepted))
    assert any(isinstance(events[i], SiteJoined) for i in mine if i < left)
    assert num_rounds(events[left:back]) >= MISSED
    assert num_rounds(events[back:useful]) <= 1
    # Its update is on the version of that day, not on the one that it left with.
    assert events[useful].staleness <= 1
    let_back, useful_again = absence.bytes_down
    snapshot_bytes = len(release(1).snapshot_frame(*job.views["gaya"]))  # one; and a few orders
    assert useful_again - let_back < MISSED // 4 * snapshot_bytes
    assert counted_once(job, outcome.ledger.history, outcome.tap).tobytes() == (
        outcome.state.theta.tobytes()
    )


def num_rounds(events: Sequence[Event]) -> int:
    return sum(isinstance(event, RoundStepped) for event in events)
