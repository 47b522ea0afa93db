"""Whether a run's journal is as the coordinator wrote it: its chain, its head, its checkpoint.

The order of writing is journal, checkpoint, head (`Rounds._save`). So after a crash at any
moment the journal has at least the lines that the checkpoint knows of, and the newest
checkpoint knows of at least as many as it did when the head was written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boli.errors import CorruptFileError
from boli.journal import (
    RESTORE,
    Anchor,
    Head,
    RunFinished,
    RunStarted,
    anchors_of,
    entry_of,
    head_path,
    read_head,
    whole_lines,
)
from boli.rounds.checkpoint import Found
from boli.signature import fingerprint, is_signed_by, was_sealed


@dataclass(frozen=True)
class Verification:
    """What holds of a run's journal; `problem` says what does not, and is empty if all does."""

    num_lines: int = 0
    last: str = ""  # hash of the last line
    sealed: int = 0  # lines that the signed head covers
    version: int | None = None  # of the adapter, when it was sealed
    key: str = ""  # fingerprint of the key that signed; empty: not signed
    is_own_key: bool = False
    problem: str = ""
    hint: str = ""

    @property
    def unsealed(self) -> int:
        """Lines after the head: anybody who can write the file could have written them."""
        return self.num_lines - self.sealed

    def check(self) -> None:
        """Do nothing where all holds.

        Raises:
            CorruptFileError: something does not.
        """
        if self.problem:
            raise CorruptFileError(self.problem, self.hint)

    def facts(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "whole": not self.problem,
            "problem": self.problem or None,
            "lines": self.num_lines,
            "sealed": self.sealed,
            "last": self.last,
            "key": self.key or None,
            "own_key": self.is_own_key,
        }


@dataclass
class _Journal:
    """What a walk over the lines finds."""

    num_lines: int = 0
    last: str = ""
    run: str = ""  # that it is the journal of
    is_old: bool = True  # every line is of schema 1
    finished_at: int = -1  # number of the last line that says so; -1: none does


def verify(
    folder: Path,
    found: Found | None,  # what its checkpoints hold
    *,
    own: str = "",  # fingerprint of this machine's key
    signer: str = "",  # fingerprint of the key that must have signed; empty: any
    signature: bool = True,  # False: one that is missing or another machine's will do too
    checkpoint: bool = True,  # False: nobody has looked for one
) -> Verification:
    """Hold a run's journal against its head and its newest checkpoint; writes nothing."""
    path = folder / "journal.jsonl"
    walked = _Journal()
    head: Head | None = None
    try:
        head = read_head(path)
        _walk(folder, walked, head, found)
        if signature:
            _check_signature(folder, walked, head, signer, found)
        _check_run(folder, walked, head, found)
        if checkpoint:
            _check_saved(folder, head, found)
        if head is not None and head.num_lines == walked.finished_at < walked.num_lines:
            raise CorruptFileError(
                f"{path} goes on after line {walked.finished_at}, with which the run was over",
                RESTORE,
            )
    except CorruptFileError as error:
        return _told(walked, head, own, error.problem, error.hint)
    return _told(walked, head, own)


def _told(
    walked: _Journal, head: Head | None, own: str, problem: str = "", hint: str = ""
) -> Verification:
    key = _short(head.key) if head is not None else ""
    return Verification(
        num_lines=walked.num_lines,
        last=walked.last,
        sealed=min(head.num_lines, walked.num_lines) if head is not None else 0,
        version=head.version if head is not None else None,
        key=key,
        is_own_key=bool(key) and key == own,
        problem=problem,
        hint=hint,
    )


def _short(key: str) -> str:
    try:
        return fingerprint(key) if key else ""
    except ValueError:
        return ""


def _walk(folder: Path, walked: _Journal, head: Head | None, found: Found | None) -> None:
    path = folder / "journal.jsonl"
    anchors = anchors_of(path, head)
    if found is not None:
        state, _ = found
        by = f"the checkpoint of version {state.version}"
        anchors.append(Anchor(by, state.journal_seq, state.journal_hash))
    for number, line in enumerate(whole_lines(path, anchors), 1):
        walked.num_lines, walked.last = number, line.link
        walked.is_old = walked.is_old and line.body["v"] == 1
        entry = entry_of(line)
        if entry is not None and isinstance(entry.event, RunStarted):
            walked.run = entry.event.run
        elif entry is not None and isinstance(entry.event, RunFinished):
            walked.finished_at = number


def _check_signature(
    folder: Path,
    walked: _Journal,
    head: Head | None,
    signer: str,
    found: Found | None,
) -> None:
    path = head_path(folder / "journal.jsonl")
    adopt = (
        f"if you know that {folder} is as it should be: boli verify {folder} --adopt signs it with "
        "this machine's key"
    )
    if head is None:
        is_anchored = found is not None and bool(found[0].journal_hash)
        # An older version sealed nothing; but what this one has sealed is not of an older version.
        is_new = not walked.is_old or any(map(was_sealed, (walked.run, folder.resolve().name)))
        # Before run.json there is nothing yet that would have been sealed.
        if is_anchored or (is_new and (folder / "run.json").exists()):
            raise CorruptFileError(f"{path} is missing", f"restore it from a copy; {adopt}")
        return
    if not is_signed_by(head.key, head.message(), head.signature):
        raise CorruptFileError(f"{path} is not signed, or was changed since", adopt)
    if signer and fingerprint(head.key) != signer:
        raise CorruptFileError(
            f"{path} is signed by key {fingerprint(head.key)}, and not by {signer}",
            f"bring BOLI_HOME/keys/journal.key from where the run was; or {adopt}",
        )


def _check_run(folder: Path, walked: _Journal, head: Head | None, found: Found | None) -> None:
    """Check that all files are of one run; the folder itself may have another name by now."""
    prepared = folder / "run.json"
    try:
        run = str(json.loads(prepared.read_bytes())["run"]) if prepared.exists() else walked.run
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptFileError(f"{prepared} is not whole", "restore it from a copy") from None
    for what, other in (
        ("the checkpoint", found[0].run if found is not None else run),
        ("journal.jsonl", walked.run or run),
        ("journal.head", head.run if head is not None else run),
    ):
        if other != run:
            raise CorruptFileError(
                f"{what} in {folder} is of run {other}, and the folder is of run {run}",
                "put back the file of this run; or start a new run",
            )


def _check_saved(folder: Path, head: Head | None, found: Found | None) -> None:
    """Check that the newest checkpoint is not older than the one that the head knew."""
    if head is None or head.saved < 0:
        return
    restore = "put back the newest checkpoint; or start a new run"
    if found is None:
        raise CorruptFileError(f"{folder / 'checkpoints'} has no checkpoint any more", restore)
    state, corrupt = found
    least = head.before if corrupt else head.saved
    if state.journal_seq < least:
        raise CorruptFileError(
            f"the newest checkpoint, of version {state.version}, knows of {state.journal_seq} "
            f"lines of the journal; there was one that knew of {least}",
            restore,
        )
