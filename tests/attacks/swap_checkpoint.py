"""Whoever has a run's folder puts another run's checkpoint there, or an older one of the same run.

A run that is resumed from it would go on from another model, or give its sites work that was done.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import sealed_run
from attack import Outcome
from sealed_run import Writer

from boli.durable import read_tensors, write_tensors

PROMISE = (
    "A run goes on from no checkpoint of another run, and from none older than its head knows."
)


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("*.safetensors"))


def take_newest_away(run: Path) -> None:
    newest(run).unlink()


def put_older_in_its_place(run: Path) -> None:
    last = newest(run)
    last.unlink()
    shutil.copy(newest(run), last)


def take_all_away(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def claim_fewer_lines(run: Path) -> None:
    """Write the newest one anew, with a checksum that fits, as if it knew of two lines only."""
    arrays, facts = read_tensors(newest(run))
    write_tensors(newest(run), arrays, facts | {"journal_seq": 2, "journal_hash": ""})


def attack(folder: Path, *, fast: bool) -> Outcome:
    home = folder / "home"
    run = sealed_run.make(folder, home, fast=fast)
    # Of the same user and key, with as many lines: another run all the same.
    writer = Writer(folder / "other" / "other-1", home=home)
    state = writer.begin()
    while writer.journal.seq < len(sealed_run.lines_of(run)) - 1:
        state = writer.step(state)
    writer.stop(state)

    def take_that_of_another_run(copy: Path) -> None:
        shutil.copy(newest(writer.folder), newest(copy))

    def claim_to_be_of_this_run(copy: Path) -> None:
        """Write its model with all that this run's newest checkpoint says of itself."""
        arrays, _ = read_tensors(newest(writer.folder))
        _, facts = read_tensors(newest(copy))
        write_tensors(newest(copy), arrays, facts)

    def corrupt_newest_and_put_oldest_before(copy: Path) -> None:
        """Make the program fall back, to a checkpoint from long before."""
        last = newest(copy)
        last.write_bytes(b"nothing")
        older = max(p for p in (copy / "checkpoints").glob("*.safetensors") if p != last)
        arrays, facts = read_tensors(older)
        write_tensors(older, arrays, facts | {"journal_seq": 2, "journal_hash": ""})

    edits: dict[str, sealed_run.Edit] = {
        "another run's": take_that_of_another_run,
        "another run's under this run's name": claim_to_be_of_this_run,
        "the newest taken away": take_newest_away,
        "the older one in its place": put_older_in_its_place,
        "all taken away": take_all_away,
        "one that knows of fewer lines": claim_fewer_lines,
        "a corrupt one, and an old one before it": corrupt_newest_and_put_oldest_before,
    }
    return sealed_run.try_all(folder, run, home, edits, fast)
