"""Power cuts under a whole run: no torn state is ever loaded, nothing that was told is lost.

The run's folder lies on a disk that forgets what was not flushed (`power_cut.py`). Cuts build
on each other: each one resumes what the cut before it left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mortal
import power_cut
import pytest
import whole
from fate import JOBS, Flaw, Script

Cut = Callable[..., Iterator[power_cut.Cut]]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(power_cut.why_not()), reason=str(power_cut.why_not())),
]


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Return a function that cuts the power of a run and yields what each check said."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def cut_(name: str, flaw: Flaw = "", **settings: Any) -> Iterator[power_cut.Cut]:
        endless = replace(JOBS[name], rounds={"total": 1_000_000})
        script = tmp_path / "script.json"
        Script(endless, flaw=flaw).write(script)
        program = [sys.executable, mortal.__file__, str(script), "{dir}"]
        yield from power_cut.cuts(program, [sys.executable, whole.__file__, "{dir}"], **settings)

    return cut_


AT_WORK = {"between": (0.0, 0.5), "after_ack": True}  # from the first new version on: it goes on
AT_ANY_TIME = {"between": (0.0, 3.0)}  # also while it starts


def check_cuts(rounds: Iterator[power_cut.Cut], num: int) -> None:
    said = list(rounds)
    assert len(said) == num
    assert all(done.ok for done in said), "\n".join(map(str, said))


def test_power_cuts_leave_whole_state(cut: Cut) -> None:
    check_cuts(cut("sparse", number=4, seed=1, **AT_WORK), 4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("seed", [100, 101])
@pytest.mark.parametrize("when", [AT_WORK, AT_ANY_TIME], ids=["at work", "at any time"])
def test_200_power_cuts_leave_whole_state(
    name: str, seed: int, when: dict[str, Any], cut: Cut
) -> None:
    check_cuts(cut(name, number=25, seed=seed, **when), 25)


# Controls: the same cuts under writers that leave an fsync out


def test_control_files_without_fsync_are_caught(cut: Cut) -> None:
    said = cut("sparse", "no fsync of files", number=5, seed=1, **AT_WORK)
    assert not all(done.ok for done in said)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("flaw", ["no fsync of folders", "no fsync of the journal"])
def test_control_what_else_goes_without_fsync_is_caught(flaw: Flaw, cut: Cut) -> None:
    said = cut("sparse", flaw, number=100, seed=1, **AT_WORK)
    assert not all(done.ok for done in said)
