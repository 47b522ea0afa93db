"""Unpack gigabytes from one small archive, member by member, each below its own limit.

A limit for each member of a zip is none for the archive: with a hundred members of 60 MB each it
unpacked 1,009 times its size. Members may even share the same packed bytes. A site that prepares
the archive is busy for hours, and its disk fills with what is dropped.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from attack import Outcome, boli

from boli.corpus.starter import starter_lines

PROMISE = (
    "an archive unpacks to at most 64 MB, or 200 times its size, over all of its members; what is "
    "not read is in the report with a reason, and what came before it is kept."
)
MOST_UNPACKED = 64 << 20


def attack(folder: Path, *, fast: bool) -> Outcome:
    members, size = (12, 16 << 20) if fast else (100, 60 << 20)
    hostile, packed = prepared(folder / "hostile", members, size)
    honest, _ = prepared(folder / "honest", members, 5 << 20)
    most = max(MOST_UNPACKED, 200 * packed) // size
    return Outcome(
        refused=hostile["read"] <= most and hostile["unreadable"] >= members - most - 1,
        observed=(
            f"of {members} members of {size >> 20} MB in {packed} bytes {hostile['read']} were "
            f"unpacked, and {hostile['unreadable']} are in the report as unreadable"
        ),
        control=(
            f"of {members} members of 5 MB all {honest['read']} are unpacked"
            if honest["read"] == members and 5 * members <= 64
            else f"of {members} members of 5 MB {honest['read']} are unpacked, up to the same bound"
        ),
        figures={
            "packed_bytes": packed,
            "would_unpack_to": members * size,
            "unpacked_bytes": hostile["read"] * size,
        },
    )


def prepared(folder: Path, members: int, size: int) -> tuple[dict[str, Any], int]:
    """Prepare an archive; tell how many members were read to their end, and how many were not."""
    source, out = folder / "source", folder / "out"
    source.mkdir(parents=True)
    path = source / "archive.zip"
    lines = starter_lines("bho", members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, line in enumerate(lines):  # a sentence, and a line that is too long for one
            archive.writestr(f"{number:03}.txt", f"{line}\n".encode() + bytes([97]) * size)
    ran = boli("prepare", source, "--language", "bho", "--out", out, "--workers", "1",
               home=folder / "home")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    dropped = json.loads((out / "report.json").read_text(encoding="utf-8"))["dropped"]
    found = {"read": dropped.get("too long", 0), "unreadable": dropped.get("unreadable", 0)}
    return found, path.stat().st_size
