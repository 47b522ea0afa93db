"""A site that is away for long, over the real server: what it missed does not hold it up."""

from __future__ import annotations

from pathlib import Path

from over_nats import OverNats
from quadratic import Job, counted_once
from test_transport import Tap, carry_through, take_down

from boli.journal import RoundStepped, SiteJoined, UpdateAccepted
from boli.rounds.update import ServerState

MISSED = 40  # rounds, as in days: far more than it may be behind


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
    )
    engine = OverNats(job, tmp_path / "engine")
    left_at: list[int] = []
    back_at: list[int] = []

    def leave(count: int, tap: Tap) -> None:
        if not left_at and any(v.site == "gaya" and v.accepted for v in tap.verdicts):
            left_at.append(count)
            engine.off.add("gaya")
            engine.kill("gaya")

    def should_stop(state: ServerState) -> bool:
        if left_at and not back_at and state.version >= MISSED:
            back_at.append(state.version)
            engine.off.clear()
        return bool(back_at) and state.version > back_at[0] + 10

    try:
        outcome = carry_through(engine, tmp_path, job, after_arrival=leave, should_stop=should_stop)
    finally:
        take_down(engine)
    events = outcome.events
    came = max(i for i, e in enumerate(events) if isinstance(e, SiteJoined) and e.site == "gaya")
    since = events[came:]
    useful = next(
        i for i, e in enumerate(since) if isinstance(e, UpdateAccepted) and e.site == "gaya"
    )
    assert sum(isinstance(event, RoundStepped) for event in since[:useful]) <= 1
    # Its update is on the version of that day, not on the one that it left with.
    assert since[useful].staleness <= 1
    assert counted_once(job, outcome.ledger.history, outcome.tap).tobytes() == (
        outcome.state.theta.tobytes()
    )
