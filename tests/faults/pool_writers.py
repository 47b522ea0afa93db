"""Eight writers that share with a pool, and one that kills them: run as a process of its own.

python pool_writers.py JOB.json: it forks the writers, so that none has to load anything first;
prints what it did as JSON. Nothing of deltalake runs before a fork: its threads would be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import pyarrow.compute
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet  # noqa: F401

import boli.pool.share
from boli.corpus.record import read_records
from boli.pool.egress_log import EgressLog
from boli.pool.erase import erase
from boli.pool.table import open_pool, rows_of

ROWS_AT_ONCE = 3


@dataclass
class Writer:
    """One process that is started again whenever it is killed."""

    work: dict[str, Any]
    process: int = 0
    ends: float = 0.0  # when it is to be killed
    done: bool = False


def careless(url: str, folder: Path, site: str) -> None:
    """Append without looking, as a first attempt at a pool would: the negative control."""
    pool = open_pool(url)
    for records in read_records(folder, ROWS_AT_ONCE):
        deltalake.write_deltalake(pool.records, rows_of(site, records), mode="append")


def carry_out(job: dict[str, Any], work: dict[str, Any]) -> None:
    """Do a writer's work, from the start."""
    boli.pool.share.ROWS_AT_ONCE = ROWS_AT_ONCE
    log = EgressLog(Path(job["home"]))
    if "erase" in work:
        for record in work["erase"]:
            erase(open_pool(job["url"]), log, record=record, site=work["site"], take_over=True)
    elif job.get("careless"):
        careless(job["url"], Path(work["folder"]), work["site"])
    else:
        boli.pool.share.share(Path(work["folder"]), open_pool(job["url"]), work["site"], log)


def start(job: dict[str, Any], writer: Writer, latest: float, rng: random.Random) -> None:
    """Fork a writer, and draw when it is to be killed."""
    writer.process = os.fork()
    if not writer.process:
        status = 1
        with contextlib.suppress(KeyboardInterrupt):
            try:
                carry_out(job, writer.work)
                status = 0
            except BaseException as error:
                told = f"{writer.work['site']}: {type(error).__name__}: {error}\n"
                sys.stderr.write(told)
                sys.stderr.flush()
        os._exit(status)
    writer.ends = time.monotonic() + rng.uniform(0.01, latest)


def main() -> None:
    """Start the writers, kill them so many times, and let them finish."""
    job = json.loads(Path(sys.argv[1]).read_text())
    rng, kills, failures, begun = random.Random(job["seed"]), 0, 0, time.monotonic()
    writers = [Writer(work) for work in job["writers"]]
    while not all(writer.done for writer in writers):
        for writer in writers:
            if writer.done:
                continue
            if not writer.process:
                start(job, writer, job["latest"], rng)
            ended, status = os.waitpid(writer.process, os.WNOHANG)
            if ended:
                writer.process = 0
                failures += bool(os.WIFEXITED(status) and os.WEXITSTATUS(status))
                # One that is through goes again while there are kills left: that adds nothing.
                writer.done = status == 0 and kills >= job["kills"]
            elif kills < job["kills"] and time.monotonic() > writer.ends:
                writer.ends = float("inf")
                os.kill(writer.process, signal.SIGKILL)
                kills += 1
        time.sleep(0.002)
    seconds = round(time.monotonic() - begun, 1)
    json.dump({"kills": kills, "failures": failures, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
