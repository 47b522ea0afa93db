"""What is said of each site: who is there, who was, and who only knocked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boli.cli.tables import show_sites
from boli.durable import locked
from boli.engine.identities import Guest
from boli.evaluation.presence import last_seen
from boli.journal import (
    AttemptsRefused,
    Event,
    Journal,
    RunResumed,
    SiteBenched,
    SiteJoined,
    SiteLeft,
)
from boli.run import Run

JOINED = SiteJoined("gaya", {}, 0)
KNOCKS = AttemptsRefused("revoked key", "arrah", 40, 10.0, "203.0.113.9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plan.json").write_text("{}")
    return tmp_path


def tell(folder: Path, *events: Event) -> Path:
    journal = Journal(folder / "journal.jsonl")
    for event in events:
        journal.append(event)
    journal.close()
    return journal.path


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Return the lines of boli sites, by their first word."""
    guests = {name: Guest(public="key", invited=0.0) for name in ("arrah", "gaya")}
    show_sites(guests, [Run(folder)])
    return {
        words[0]: words for line in capsys.readouterr().out.splitlines() if (words := line.split())
    }


def test_site_that_is_only_refused_was_never_seen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(folder, "run"):
        assert "arrah" not in last_seen(tell(folder, JOINED, KNOCKS))
        lines = shown(folder, capsys)
    assert lines["arrah"][2:5] == ["never", "seen", "–"]
    assert lines["gaya"][2] == "there"
    assert "no" not in lines


def test_site_that_was_refused_after_it_left_stays_gone(folder: Path) -> None:
    left = SiteLeft("arrah", "its key was revoked")
    journal = tell(folder, SiteJoined("arrah", {}, 0), left, KNOCKS)
    assert last_seen(journal)["arrah"].state == "gone: its key was revoked"


def test_site_that_was_benched_before_it_came_has_no_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(folder, SiteBenched("arrah", "silent"))
    lines = shown(folder, capsys)
    assert lines["arrah"][2:4] == ["benched", "–"]
    assert lines["arrah:"] == ["arrah:", "benched:", "silent"]


def test_site_was_there_when_the_coordinator_ended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tell(folder, JOINED)
    with locked(folder, "run"):
        assert last_seen(journal)["gaya"].state == "there"
    assert last_seen(journal)["gaya"].state == "there at the end"
    assert shown(folder, capsys)["no"][:3] == ["no", "coordinator", "runs"]


def test_site_is_not_back_until_it_says_so(folder: Path) -> None:
    with locked(folder, "run"):
        journal = tell(folder, JOINED, RunResumed(3, [], 9))
        assert last_seen(journal)["gaya"].state == "not back yet"
        tell(folder, JOINED)
        assert last_seen(journal)["gaya"].state == "there"


def test_run_that_moved_last_is_shown_not_the_one_begun_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run(tmp_path / name) for name in ("newer", "older")]
    for run in runs:
        run.folder.mkdir()
        tell(run.folder, JOINED)
    os.utime(runs[0].folder / "journal.jsonl", (1.0, 1.0))
    show_sites({"gaya": Guest(public="key", invited=0.0)}, runs)
    assert capsys.readouterr().out.startswith("run older")
