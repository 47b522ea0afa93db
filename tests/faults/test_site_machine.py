"""What may be wrong with a site's machine: a full disk, a clock that is off by a day."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from quadratic import Job
from strangers import Fort

from boli.journal import UpdateAccepted, read_journal

WRONG_CLOCK = Path(__file__).with_name("off_by_a_day.py")
JOB = Job(rounds={"total": 4}, step_seconds={"arrah": 0.02})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a site's state folder on a file system of 1 MB, which needs root."""
    folder = tmp_path / "sites" / "gaya"
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(os.urandom(1024))


@pytest.mark.root
def test_full_disk_at_a_site_is_said_and_heals(tmp_path: Path, small_disk: Path) -> None:
    job = Job(ranks={"arrah": None, "gaya": None}, rounds={"total": 4})
    fill(small_disk / "filler")
    with Fort(tmp_path, job, ("arrah", "gaya")) as fort:
        log = tmp_path / "gaya.log"
        deadline = time.monotonic() + 120
        while "cannot write" not in log.read_text():
            assert time.monotonic() < deadline, fort.story()
            time.sleep(0.1)
        assert fort.processes["gaya"].poll() is None, "it ended"
        assert not any(isinstance(e, UpdateAccepted) and e.site == "gaya" for e in fort.events())
        (small_disk / "filler").unlink()
        fort.finish()
        fort.check_bits()


@pytest.mark.parametrize("days", [-1, 1])
def test_clock_that_is_off_by_a_day_changes_nothing(
    tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the site is away for a moment, and what it sends is sent again."""
    monkeypatch.setenv("OFF_BY_SECONDS", str(days * 86400))
    started = time.time()
    with Fort(tmp_path, JOB, tuple(JOB.ranks), {"gaya": str(WRONG_CLOCK)}) as fort:
        fort.wait_for(lambda events: sum(isinstance(e, UpdateAccepted) for e in events) >= 3)
        fort.processes["gaya"].kill()
        fort.processes["gaya"].wait()
        fort.start_site("gaya")
        fort.finish()
        fort.check_bits()
    said = (tmp_path / "gaya.log").read_text().split()
    assert abs(float(said[2]) - time.time()) > 80_000, "its clock is right"
    entries = list(read_journal(tmp_path / "journal.jsonl"))
    assert all(started - 1 < entry.time < time.time() + 1 for entry in entries)
    orders = [entry.event.order for entry in entries if isinstance(entry.event, UpdateAccepted)]
    assert len(orders) == len(set(orders)) == 3 * 4
