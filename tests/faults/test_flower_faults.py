"""Kills in a real Flower federation: nothing is lost, and nothing counted twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import SITES, Federation, check_same_as_local, settings_of, wait_for, write_app

from boli.journal import SiteLeft, read_journal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 4
SLOWDOWN = 100.0  # of gaya, so that there is a middle of an order


class Trial:
    """One run whose second round is disturbed."""

    def __init__(self, tiny_plan_file: Callable[..., Path], home: Path, text: Path) -> None:
        sites = [
            {"name": "arrah", "language": "bho", "text": ["bho.txt"]},
            {"name": "gaya", "language": "mag", "text": ["mag.txt"], "slowdown": SLOWDOWN},
        ]
        self.plan = tiny_plan_file(text, site=sites, rounds={"local_steps": 6})
        self.home, self.text = home, text
        self.federation = Federation(home / "flower")
        self.run = write_app(self.plan, home, f"rounds.total={ROUNDS}", "engine.threads_per_site=1")
        self.federation.start_superlink()
        for site in SITES:
            self.start(site)
        self.federation.submit(home / "app")
        self.wait(lambda: self.lines("order_sent") >= 4)
        time.sleep(4.0)  # until the node has it

    def start(self, site: str) -> None:
        self.federation.start_supernode(site, settings_of(site, self.home, self.text))

    def lines(self, name: str) -> int:
        path = self.run / "journal.jsonl"
        return path.read_text().count(f'"{name}"') if path.exists() else 0

    def wait(self, is_there: Callable[[], bool]) -> None:
        wait_for(self.run, is_there, self.federation, 400)

    def kill(self, *words: str) -> None:
        pids = self.federation.pids(*words)
        assert pids, f"no process {words}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def finish(self) -> list[str]:
        """Wait for the end and check it; returns why sites left."""
        self.wait(lambda: (self.run / "report.html").exists())
        check_same_as_local(self.plan, self.run, self.home, ROUNDS)
        events = [entry.event for entry in read_journal(self.run / "journal.jsonl")]
        return [event.reason for event in events if isinstance(event, SiteLeft)]


@pytest.fixture
def trial(
    tiny_plan_file: Callable[..., Path], short_folder: Path, tmp_path: Path
) -> Iterator[Trial]:
    one = Trial(tiny_plan_file, short_folder, tmp_path)
    yield one
    one.federation.close()


def test_node_killed_in_the_middle_of_an_order(trial: Trial) -> None:
    trial.kill("boli.engine.flower_node", trial.run.name, "gaya")
    assert any("the node ended" in reason for reason in trial.finish())


def test_supernode_killed_and_started_again_and_its_node_goes_on(trial: Trial) -> None:
    (node,) = trial.federation.pids("boli.engine.flower_node", trial.run.name, "gaya")
    trial.federation.kill("gaya")
    time.sleep(1.0)
    trial.start("gaya")
    trial.wait(lambda: trial.lines("round_stepped") >= 3)
    assert trial.federation.pids("boli.engine.flower_node", trial.run.name, "gaya") == [node]
    assert trial.finish()


def test_server_app_killed_and_submitted_again(trial: Trial) -> None:
    trial.kill("flwr-serverapp")
    trial.federation.submit(trial.home / "app")
    trial.finish()
    assert trial.lines("run_resumed") == 1


def test_superlink_killed_and_everything_submitted_again(trial: Trial) -> None:
    trial.federation.kill("superlink")
    time.sleep(2.0)
    trial.federation.start_superlink()
    trial.federation.submit(trial.home / "app")
    trial.finish()
    assert trial.lines("run_resumed") == 1
