"""What the loop measures of a site's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quadratic import LAYOUT, Job

from boli.journal import Journal
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.transport import Delivery
from boli.rounds.update import Order, Update, UpdateHeader

AWARE = {"mode": "asynchronous", "speed_aware": True}


def answer(order: Order, **values: Any) -> Delivery:
    header = UpdateHeader(
        order=order.order,
        site=order.site,
        sequence=order.sequence,
        base_version=0,
        layout=LAYOUT.digest,
        local_steps=4,
        tokens=32,
        **values,
    )
    return Delivery(order.site, Update(header, b""))


def test_what_an_answer_takes_besides_the_work_is_the_lines(tmp_path: Path) -> None:
    job, now = Job(rounds=AWARE), [100.0]
    journal = Journal(tmp_path / "journal.jsonl")
    rounds = job.loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
    rounds.clock = lambda: now[0]
    state, (order, *_) = rounds.schedule.issue(job.first_state())
    rounds._sent_at[order.site] = now[0]
    now[0] += 9.0

    def measured(**values: Any) -> float:
        found = rounds._time_links(state, [answer(order, **values)])
        return found.sites[order.site].link_seconds

    assert measured(work_seconds=6.0) == pytest.approx(3.0)
    assert measured(work_seconds=60.0) == 0.0  # its clock is its own
    assert measured(work_seconds=6.0, attempt=1) == 0.0  # to another attempt than the last sent
    state = state.with_site(order.site, link_seconds=5.0)
    assert measured(work_seconds=6.0) == pytest.approx(4.0)
    synchronous = Job().loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
    synchronous._sent_at[order.site] = 0.0
    assert synchronous._time_links(state, [answer(order)]) == state
    journal.close()
