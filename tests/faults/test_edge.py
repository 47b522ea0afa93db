"""Surviving the edge: delay, loss, cuts, kills, clocks, full disks; the same bits come out.

Sites are in network namespaces of their own, behind lines that `thin_line.py` makes. Each run
is synchronous, so that an update that is lost or counted twice shows in the bits.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import thin_line
from edge import Edge
from quadratic import Job

from boli.journal import SiteLeft, UpdateAccepted

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(thin_line.why_not()), reason=str(thin_line.why_not())),
]

JOB = Job(rounds={"total": 3})
GOOD: dict[str, Any] = {"up_bps": 5e6, "down_bps": 20e6, "delay_s": 0.04}
RURAL: dict[str, Any] = {
    "up_bps": 0.5e6,
    "down_bps": 2e6,
    "delay_s": 0.075,
    "queue_bytes": 64_000,
}
BULKY = 40_000  # columns: an update is 640 kB


def on(line: dict[str, Any], job: Job = JOB) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(job.ranks, line)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        pytest.param(GOOD | {"loss": 0.3}, 120, id="30 percent lost"),
        pytest.param(GOOD | {"loss": 0.5}, 600, id="50 percent lost", marks=pytest.mark.slow),
        pytest.param(GOOD | {"delay_s": 5.0}, 400, id="5 s each way", marks=pytest.mark.slow),
        pytest.param(GOOD | {"delay_s": 1.0}, 120, id="1 s each way", marks=pytest.mark.slow),
    ],
)
def test_bad_line_takes_time_and_nothing_else(
    tmp_path: Path, line: dict[str, Any], seconds: float
) -> None:
    with Edge(tmp_path, JOB, on(line)) as edge:
        edge.wait(seconds)


@pytest.mark.slow
def test_cut_in_the_middle_of_every_upload_costs_little_and_heals_at_once(tmp_path: Path) -> None:
    """The update is there within 5 s of what is left of it, and 1.1 times the payload travels."""
    job = Job(ranks={"arrah": None}, rounds={"total": 3})
    rate = RURAL["up_bps"] / 8
    with Edge(tmp_path, job, on(RURAL, job), BULKY) as edge:
        link, late, starts = edge.links["arrah"], [], []

        def uploaded() -> int:
            return int(link.stats()["up"]["delivered_bytes"])

        accepted, begun, healed_at, left = 0, uploaded(), 0.0, 0.0

        def cut(_: float) -> None:
            nonlocal accepted, begun, healed_at, left
            sent = uploaded() - begun
            if not healed_at and sent > 0.4 * 16 * BULKY:
                link.down()
                time.sleep(8.0)
                left = max(0.0, 16 * BULKY - sent) / rate
                link.up()
                healed_at = time.monotonic()
            done = sum(isinstance(event, UpdateAccepted) for event in edge.events())
            if done > accepted:
                assert healed_at, "no cut in this upload"
                late.append(time.monotonic() - healed_at - left)
                starts.append((uploaded() - begun) / (16 * BULKY))
                accepted, begun, healed_at = done, uploaded(), 0.0

        edge.wait(180, cut)
        assert len(late) == 3
        assert max(late) < 5, late
        assert max(starts) < 1.1 * 1.06, starts  # headers of the packets come on top


@pytest.mark.parametrize(
    ("rounds", "least"), [(10, 2), pytest.param(25, 6, marks=pytest.mark.slow)]
)
def test_coordinator_server_and_sites_are_killed_at_random(
    tmp_path: Path, rounds: int, least: int
) -> None:
    job = Job(rounds={"total": rounds}, step_seconds=dict.fromkeys(JOB.ranks, 0.05))
    draw = random.Random(7)
    with Edge(tmp_path, job, on(GOOD, job)) as edge:
        kills: list[str] = []
        due = 2.5

        def kill(passed: float) -> None:
            nonlocal due
            if passed > due and len(kills) < 12:
                kills.append(draw.choice(["coordinator", "server", *job.ranks]))
                edge.kill_server() if kills[-1] == "server" else edge.kill(kills[-1])
                due = passed + draw.uniform(0.3, 1.5)

        edge.wait(200, kill)
        assert len(kills) >= least


@pytest.mark.slow
def test_nine_sites_of_ten_are_gone_for_a_while(tmp_path: Path) -> None:
    names = [f"village-{number}" for number in range(20)]
    job = Job(ranks=dict.fromkeys(names), rounds={"total": 4})
    with Edge(tmp_path, job, on(GOOD, job)) as edge:
        gone = set(names[2:])

        def leave(passed: float) -> None:
            accepted = sum(isinstance(event, UpdateAccepted) for event in edge.events())
            if accepted >= 20 and not edge.off and passed < 100:
                edge.off |= gone
                for name in gone:
                    edge.kill(name)
            elif edge.off and sum(isinstance(e, SiteLeft) for e in edge.events()) >= len(gone):
                time.sleep(3.0)
                edge.off.clear()

        edge.wait(240, leave)
        assert sum(isinstance(event, SiteLeft) for event in edge.events()) >= len(gone)


@pytest.mark.slow
def test_long_cut_of_a_line_heals_within_seconds(tmp_path: Path) -> None:
    """30 minutes, scaled to 40 s: what counts is that nobody waits for TCP's own schedule."""
    job = Job(ranks={"arrah": None, "gaya": None}, rounds={"total": 6})
    with Edge(tmp_path, job, on(GOOD, job)) as edge:
        link, healed = edge.links["gaya"], []

        def cut(passed: float) -> None:
            rounds = sum(isinstance(event, UpdateAccepted) for event in edge.events())
            if rounds >= 4 and not healed:
                link.down()
                time.sleep(40.0)
                link.up()
                healed.append(time.monotonic())
                before = rounds
                while sum(isinstance(e, UpdateAccepted) for e in edge.events()) <= before:
                    assert time.monotonic() - healed[0] < 15
                    time.sleep(0.05)
                healed.append(time.monotonic())

        edge.wait(150, cut)
        assert len(healed) == 2
