"""boli prepare under kills, on a full disk, with hostile files: nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

Lines = Callable[[str, int], list[str]]

# Small parts, so that kills fall between and into many of them.
COMMAND = """
import sys
from pathlib import Path
from boli.corpus.pipeline import Preparation
from boli.corpus.survey import Request
if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    Preparation(Request((source,), out, "bho", workers=2, part_documents=200)).run()
"""


@pytest.fixture(scope="module")
def source(made_up_lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    lines = made_up_lines("bho", 1500)
    for number in range(6):
        part = [f"{line} {number % 5}" for line in lines]  # one file repeats another
        (folder / f"{number}.txt").write_text("\n".join(part), encoding="utf-8")
    return folder


def start(source: Path, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", COMMAND, str(source), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def outcome(out: Path) -> tuple[list[str], list[str]]:
    records, dropped = (pq.read_table(out / name).to_pylist() for name in ("records", "dropped"))
    return list(map(str, records)), sorted(map(str, dropped))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    process = start(source, out)
    assert process.communicate()[1] == b""
    return out


def parts(out: Path) -> int:
    """Return how many parts are on the disk for good."""
    found = list((out / "work").glob("*/progress.json"))
    return json.loads(found[0].read_text())["parts"] if found else 0


def kill_when(source: Path, out: Path, seen: Callable[[], bool], delay: float) -> bool:
    """Prepare, and kill it some time after something was seen; False: it came through."""
    process = start(source, out)
    while process.poll() is None and not seen():
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    error = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return process.returncode != 0


def killed(source: Path, out: Path, seed: int) -> int:
    """Prepare with kills in between until it comes through; return the number of kills."""
    drawn, kills = random.Random(seed), 0
    for _ in range(4):
        enough = parts(out) + drawn.randint(1, 4)
        kills += kill_when(source, out, lambda: parts(out) >= enough, drawn.random() / 20)  # noqa: B023
    kills += kill_when(source, out, (out / "work" / "signatures").exists, drawn.random() / 20)
    kills += kill_when(source, out, (out / "records.new").exists, drawn.random() / 20)
    assert start(source, out).communicate()[1] == b""
    return kills


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kills_cost_nothing(source: Path, whole: Path, tmp_path: Path, seed: int) -> None:
    kills = killed(source, tmp_path / "out", seed)
    assert kills >= 3
    assert outcome(tmp_path / "out") == outcome(whole)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_part_that_is_lost_would_be_seen(source: Path, whole: Path, tmp_path: Path) -> None:
    """The control: what the test above compares does tell."""
    out = tmp_path / "out"
    assert kill_when(source, out, lambda: parts(out) >= 4, 0)
    (progress,) = (out / "work").glob("*/progress.json")
    state = json.loads(progress.read_text())
    progress.write_text(json.dumps(state | {"parts": state["parts"] - 1}))
    assert start(source, out).communicate()[1] == b""
    assert outcome(out) != outcome(whole)


def test_a_full_disk_ends_it_with_an_error_and_it_goes_on(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def little() -> None:  # no file may grow beyond that: what a quota or a full disk does
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))

    process = start(source, out, preexec_fn=little)
    error = process.communicate()[1].decode()
    assert process.returncode != 0
    assert "StorageError" in error
    assert not (out / "report.json").exists()
    assert start(source, out).communicate()[1] == b""
    assert outcome(out) == outcome(whole)


def test_two_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    first = start(source, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("work/*/lock")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = start(source, tmp_path / "out")
    assert "in use by process" in second.communicate()[1].decode()
    assert first.communicate()[1] == b""


def endless(path: Path) -> None:
    """Write a gzip file of 20 kB that unpacks to 20 MB, over and over: 40 GB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = packer.compress(b"\0" * (1 << 20)) + packer.flush()
    path.write_bytes(piece * 2000)


def test_hostile_files_are_told_and_the_rest_goes_on(made_up_lines: Lines, tmp_path: Path) -> None:
    source, out = tmp_path / "archive", tmp_path / "out"
    source.mkdir()
    lines = made_up_lines("bho", 40)
    (source / "a.txt").write_text("\n".join(lines[:20]), encoding="utf-8")
    with (source / "b.txt").open("wb") as file:  # a line of 2 GB
        block = ("क" * (1 << 18)).encode()
        for _ in range(2 << 30 >> 20):
            file.write(block + block[: (1 << 20) - len(block)])
        file.write(b"\n" + lines[21].encode())
    (source / "c.txt").write_bytes(random.Random(1).randbytes(1 << 20))
    endless(source / "d.txt.gz")
    mixed = lines[22].encode() + "\nà la carte\n".encode("cp1252") + lines[23].encode()
    (source / "e.txt").write_bytes(mixed)
    (source / "f.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVEfmt " + os.urandom(500))
    (source / "g.parquet").write_bytes(b"PAR1" + os.urandom(500) + b"PAR1")
    (source / "h.html").write_bytes(b"<div>" * 200_000 + lines[24].encode())
    (source / "i.jsonl").write_text('{"text": ' + "[" * 200_000)
    (source / "z.txt").write_text("\n".join(lines[25:]), encoding="utf-8")
    process = start(source, out)
    peak = peak_bytes(process)
    assert process.communicate()[1] == b""
    kept, dropped = (pq.read_table(out / name).to_pylist() for name in ("records", "dropped"))
    texts = {row["text"] for row in kept}
    for line in (*lines[:20], *lines[21:24], *lines[25:]):
        assert line in texts or any(line == row["excerpt"] for row in dropped)
    reasons = {row["source"].split("/")[1].split("#")[0]: row["reason"] for row in dropped}
    assert {name: reasons[name] for name in ("b.txt", "c.txt", "d.txt.gz", "e.txt", "f.wav")} == {
        "b.txt": "too long",
        "c.txt": "binary data",
        "d.txt.gz": "binary data",
        "e.txt": "broken encoding",
        "f.wav": "recording",  # damaged ones: tests/unit/corpus/test_cleaning.py
    }
    assert reasons["g.parquet"] == reasons["i.jsonl"] == "unreadable"
    assert peak < 900 << 20  # of the main process and two workers together


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the most memory of a process and its children together, until it ends."""
    import psutil

    peak, own = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [own, *own.children()]
            peak = max(peak, sum(each.memory_info().rss for each in family))
        except psutil.Error:
            pass
        time.sleep(0.05)
    return peak
