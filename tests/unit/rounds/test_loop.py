"""What the loop measures of a site's line, and notes of what it reads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from quadratic import LAYOUT, Job

from boli.errors import SiteError
from boli.journal import CopyRead, Journal, read_journal
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.journaled import CopiesRead
from boli.rounds.refusals import LINES_BORNE
from boli.rounds.transport import Delivery, Failed, Joined
from boli.rounds.update import MOST_COPIES, Copy, Order, Update, UpdateHeader, copies_digest

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


def test_site_that_is_gone_or_silent_for_long_is_not_waited_for(tmp_path: Path) -> None:
    """An asynchronous round goes on without it; it says nothing of who else is there."""
    job, now = Job(rounds={"mode": "asynchronous", "patience_seconds": 60.0}), [100.0]
    journal = Journal(tmp_path / "journal.jsonl")
    rounds = job.loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
    rounds.clock = lambda: now[0]
    state, orders = rounds.schedule.issue(job.first_state())
    assert rounds._there(state) == set()
    rounds._present |= {order.site for order in orders}
    rounds._sent_at |= {order.site: now[0] for order in orders}
    assert rounds._there(state) == set(job.ranks)
    now[0] += 61.0
    assert rounds._there(state) == set()
    rounds._sent_at["gaya"] = now[0]
    assert rounds._there(state) == {"gaya"}
    state = state.with_site("arrah", outstanding=None)  # it waits for us
    assert rounds._there(state) == {"arrah", "gaya"}
    together = Job().loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
    assert together._there(state) is None
    journal.close()


def names(count: int, first: int = 0) -> list[Copy]:
    return [
        Copy(pool="a" * 32, version=number, taken=f"{number:032x}")
        for number in range(first, first + count)
    ]


def joined(copies: list[Copy]) -> Joined:
    return Joined("gaya", LAYOUT.describe(), {}, 0, copies=copies)


def test_orders_name_the_copies_that_the_journal_names(tmp_path: Path) -> None:
    """Those of the newest node, and only once they are noted."""
    path, sent = tmp_path / "journal.jsonl", list[Order]()

    class Noting:
        def send_order(self, order: Order) -> None:
            assert order.copies == copies_digest(named)
            noted = {e.event.taken for e in read_journal(path) if isinstance(e.event, CopyRead)}
            assert noted >= {copy.taken for copy in named}
            sent.append(order)

        def bytes_down(self, site: str) -> int:
            return 0

    with closing(Journal(path)) as journal:
        rounds = Job().loop(Noting(), CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
        state, _ = rounds.schedule.issue(Job().first_state())
        for named in (names(2), [], names(3, first=1)):
            state = rounds._turn(state, [joined(named)])
    assert [order.sequence for order in sent] == [1, 1, 1]
    assert len({order.copies for order in sent}) == 3


def test_a_site_cannot_name_copies_without_end(tmp_path: Path) -> None:
    """Neither at once nor by and by, nor when the coordinator was started again."""
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        rounds = Job().loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
        for copies in (names(2), names(2), names(60), names(1) * 500):
            assert isinstance(rounds._checked(joined(copies)), Joined)
            rounds._sort([joined(copies)])
        refused = rounds._checked(joined(names(MOST_COPIES - 59, first=60)))
        assert isinstance(refused, Failed)
        assert "names 101 copies" in refused.problem
        again = CopiesRead.of(journal)
        again.check(joined(names(MOST_COPIES)))
        with pytest.raises(SiteError, match="names 101 copies"):
            again.check(joined(names(1, first=100) + names(MOST_COPIES - 60, first=60)))
        again.tell(joined(names(60)), journal)
    told = [entry.event for entry in read_journal(path) if isinstance(entry.event, CopyRead)]
    assert [fact.version for fact in told] == list(range(60))


def test_a_site_cannot_name_more_copies_in_many_messages_at_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        rounds = Job().loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
        # All that is there at once is checked before any of it is noted.
        arrivals = [rounds._checked(joined(names(60, first=60 * turn))) for turn in range(9)]
        rounds._sort(arrivals)
    assert [type(arrival) for arrival in arrivals] == [Joined] + [Failed] * 8
    told = [entry.event for entry in read_journal(path) if isinstance(entry.event, CopyRead)]
    assert len(told) == 60


def test_a_site_that_comes_and_goes_all_the_time_is_still_noted(tmp_path: Path) -> None:
    """Its coming is only counted by then; its copies are not left out."""
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path)) as journal:
        rounds = Job().loop(None, CheckpointStore(tmp_path), journal)  # type: ignore[arg-type]
        rounds.clock = lambda: 0.0
        for _ in range(LINES_BORNE + 9):
            rounds._sort([joined([])])
        rounds._sort([joined(names(1))])
    events = [entry.event for entry in read_journal(path)]
    assert isinstance(events[-1], CopyRead)
    assert len(events) == LINES_BORNE + 1
