"""The tool that cuts the power: careful writers lose nothing, careless ones are caught."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import power_cut
import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(power_cut.why_not()), reason=str(power_cut.why_not())),
]

# Replaces a file by the next number again and again, and claims each; what is left out is named.
WRITER = """
import os, sys
folder, leave_out = sys.argv[1:3]
path = os.path.join(folder, "number")
number = int(open(path).read()) if os.path.exists(path) else 0
while True:
    number += 1
    with open(path + ".new", "w") as file:
        file.write(str(number).zfill(4000))
        file.flush()
        if leave_out != "file":
            os.fsync(file.fileno())
    os.replace(path + ".new", path)
    if leave_out != "folder":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    print("ACK", number, flush=True)
"""
CHECK = """
import os, sys
text = open(os.path.join(sys.argv[1], "number")).read()
assert len(text) == 4000, f"torn: {len(text)} characters"
assert int(text) >= int(os.environ["ACKED"]), f"lost: {int(text)} of {os.environ['ACKED']}"
print(int(text))
"""


def cuts(leave_out: str, number: int) -> Iterator[power_cut.Cut]:
    program = [sys.executable, "-c", WRITER, "{dir}", leave_out]
    check = [sys.executable, "-c", CHECK, "{dir}"]
    settings: dict[str, Any] = {
        "number": number,
        "seed": 1,
        "between": (0.0, 0.2),
        "after_ack": True,
    }
    return power_cut.cuts(program, check, size_mb=16, **settings)


def test_careful_writer_loses_nothing() -> None:
    said = list(cuts("nothing", 5))
    assert all(cut.ok for cut in said), said
    numbers = [int(cut.acknowledged) for cut in said]
    assert numbers == sorted(numbers)  # each goes on from what the cut before left
    assert numbers[0] < numbers[-1]


@pytest.mark.parametrize("leave_out", ["file", "folder"])
def test_control_careless_writer_is_caught(leave_out: str) -> None:
    assert not all(cut.ok for cut in cuts(leave_out, 20))


def test_every_process_of_the_program_ends_at_the_cut() -> None:
    """Also those that left its session."""
    marker = f"4321.{os.getpid()}"  # seconds that nobody else sleeps
    writer = f"""
import subprocess, sys, time
subprocess.Popen(["sleep", "{marker}"], start_new_session=True)
print("ACK 1", flush=True)
time.sleep(600)
"""
    program = [sys.executable, "-c", writer]
    said = power_cut.cuts(program, ["true"], number=1, seed=1, between=(0.0, 0.1), after_ack=True)
    assert [cut.ok for cut in said] == [True]
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(marker.encode() in line for line in running)


def test_nothing_is_mounted_afterwards() -> None:
    assert all(cut.ok for cut in cuts("nothing", 1))
    assert "boli-power-cut" not in Path("/proc/self/mountinfo").read_text()
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    assert "boli-power-cut" not in loops.stdout


def test_program_that_ends_by_itself_has_failed() -> None:
    program = [sys.executable, "-c", "raise SystemExit(3)"]
    (cut,) = power_cut.cuts(program, ["true"], number=1, seed=1, between=(5.0, 5.0))
    assert not cut.ok
    assert "exit status 3" in cut.note
