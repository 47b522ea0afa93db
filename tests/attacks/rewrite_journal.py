"""Whoever has a run's folder writes its journal anew, with hashes that fit, from some line on.

They have no key of the coordinator, but one of their own, and the journals of other runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sealed_run
from attack import Outcome
from sealed_run import Writer, lines_of, rechained, write_lines

from boli.journal import V1_DIGITS, Head, _line_hash, whole_lines

PROMISE = "A journal that was written anew without the coordinator's key is refused."


def bodies_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(run)]


def change(which: Callable[[list[dict[str, Any]]], object]) -> sealed_run.Edit:
    def edit(run: Path) -> None:
        bodies = bodies_of(run)
        which(bodies)
        write_lines(run, rechained(bodies))

    return edit


def say_another_version(bodies: list[dict[str, Any]]) -> None:
    bodies[-1]["version"] = 999


def forge_head(run: Path, signature: str, key: str) -> None:
    """Write the head that would cover the journal as it is now."""
    *_, last = whole_lines(run / "journal.jsonl")
    head = Head(**json.loads((run / "journal.head").read_bytes()))
    forged = asdict(head) | {"num_lines": last.body["seq"] + 1, "hash": last.link}
    forged |= {"signature": signature or head.signature, "key": key or head.key}
    (run / "journal.head").write_text(json.dumps(forged))


def rewrite_and_keep_signature(run: Path) -> None:
    change(say_another_version)(run)
    forge_head(run, "", "")


def rewrite_without_signature(run: Path) -> None:
    change(say_another_version)(run)
    forge_head(run, "0", "0")


def attack(folder: Path, *, fast: bool) -> Outcome:
    home = folder / "home"
    run = sealed_run.make(folder, home, fast=fast)
    other = sealed_run.make(folder / "other", folder / "other-home", fast=True)

    def rewrite_with_own_key(copy: Path) -> None:
        change(say_another_version)(copy)
        shutil.rmtree(copy / "checkpoints")  # they would tell
        (copy / "journal.head").unlink()
        writer = Writer(copy, run.name, folder / "other-home")
        writer.journal.seal(run.name, 5, -1)
        writer.journal.close()

    def take_journal_of_another_run(copy: Path) -> None:
        for name in ("journal.jsonl", "journal.head"):
            shutil.copy(other / name, copy / name)

    def splice(copy: Path) -> None:
        write_lines(copy, rechained([*bodies_of(copy)[:2], *bodies_of(other)[2:]]))

    def pass_off_as_old(copy: Path) -> None:
        """Write it as versions of boli did that had no heads and short hashes."""
        lines, last = [], "0" * V1_DIGITS
        for number, body in enumerate(bodies_of(copy)):
            body = body | {"v": 1, "seq": number, "prev": last}
            del body["hash"]
            last = body["hash"] = _line_hash(body)[:V1_DIGITS]
            lines.append(json.dumps(body).encode() + b"\n")
        write_lines(copy, lines)
        shutil.rmtree(copy / "checkpoints")
        (copy / "journal.head").unlink()

    edits: dict[str, sealed_run.Edit] = {
        "the last line": change(say_another_version),
        "a line taken out": change(lambda bodies: bodies.pop(2)),
        "two lines swapped": change(lambda bodies: bodies.insert(2, bodies.pop(3))),
        "lines of another run": splice,
        "the whole of another run": take_journal_of_another_run,
        "a new head with the old signature": rewrite_and_keep_signature,
        "a new head without one": rewrite_without_signature,
        "a new head by another key": rewrite_with_own_key,
        "a journal of an older version": pass_off_as_old,
    }
    return sealed_run.try_all(folder, run, home, edits, fast)
