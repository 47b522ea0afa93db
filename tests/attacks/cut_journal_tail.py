"""Whoever has a run's folder takes the last facts out of its journal, or changes the last one.

They have no key. They may also put back an older head that they kept, or take the head away.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import sealed_run
from attack import Outcome
from sealed_run import lines_of, write_lines

PROMISE = "A journal that is cut below what its head or its checkpoint knows of is refused."


def cut(num_lines: int) -> sealed_run.Edit:
    return lambda run: write_lines(run, lines_of(run)[:-num_lines])


def alter_last_line(run: Path) -> None:
    *lines, last = lines_of(run)
    write_lines(run, [*lines, last.replace(b'"version": ', b'"version": 1', 1)])


def tear_last_line(run: Path) -> None:
    *lines, last = lines_of(run)
    write_lines(run, [*lines, last[:-20]])


def cut_to_the_checkpoint_before(run: Path) -> None:
    """Take the newest checkpoint away too, so that the older one and the journal fit."""
    newest = max((run / "checkpoints").glob("*.safetensors"))
    newest.unlink()
    write_lines(run, lines_of(run)[:-2])


def cut_and_take_the_head_away(run: Path) -> None:
    (run / "journal.head").unlink()
    write_lines(run, lines_of(run)[:-1])


def attack(folder: Path, *, fast: bool) -> Outcome:
    home = folder / "home"
    run = sealed_run.make(folder, home, fast=fast)
    # An older head is what the attacker kept of a copy of the whole folder, when it was shorter.
    shorter = folder / "shorter"
    shutil.copytree(run, shorter)
    writer = sealed_run.Writer(shorter, run.name, home)
    write_lines(shorter, lines_of(shorter)[:2])
    (shorter / "journal.head").unlink()
    writer.journal.seal(run.name, 0, -1)
    writer.journal.close()

    def put_back_an_older_head(copy: Path) -> None:
        for name in ("journal.jsonl", "journal.head"):
            shutil.copy(shorter / name, copy / name)

    edits: dict[str, sealed_run.Edit] = {
        "the last line cut": cut(1),
        "five lines cut": cut(5),
        "the last line altered": alter_last_line,
        "the last line torn": tear_last_line,
        "the newest checkpoint cut as well": cut_to_the_checkpoint_before,
        "the head taken away": cut_and_take_the_head_away,
        "an older head put back": put_back_an_older_head,
    }
    return sealed_run.try_all(folder, run, home, edits, fast)
