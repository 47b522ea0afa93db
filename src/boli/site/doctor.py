"""What a site's people can look at before they join: the machine, the disk, the text."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from boli.corpus.sources import read_split
from boli.durable import write_file
from boli.errors import BoliError, StorageError
from boli.evaluation.units import duration, size
from boli.plan import available_cores
from boli.site.kit import Kit, SiteFolder

PROBE_BYTES = 4_000_000  # written, to see how fast the disk is
SPARE_BYTES = 200 << 20  # of disk, besides the base
LOAD_BYTES = 800 << 20  # of memory: what Python and torch need, besides the base
SLOW_WRITE_SECONDS = 4.0  # of the probe: 1 MB/s

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found; `advice` says what to do, and is empty where all is well."""

    check: str
    level: Level
    value: str
    advice: str = ""


def look_at_machine(base_bytes: int = 0) -> Finding:
    """Tell cores, memory and the version of torch."""
    try:
        torch = f"torch {importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:
        return Finding("machine", "problem", "torch is not installed", "pip install boli")
    total, free = _memory()
    value = f"{available_cores()} cores, {size(total)} of memory, {size(free)} free, {torch}"
    if 0 < free < LOAD_BYTES + 2 * base_bytes:
        needed = size(LOAD_BYTES + 2 * base_bytes)
        return Finding("machine", "warning", value, f"end other programs: about {needed} is needed")
    return Finding("machine", "ok", value)


def _memory() -> tuple[int, int]:
    """Return the bytes of memory there are, and those that are free; 0 where that is not told."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        told = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(told.get("MemAvailable", "0 kB").split()[0]) * 1024
    return total, free


def look_at_disk(state: Path, base_bytes: int = 0) -> Finding:
    """Write where the state will lie, and tell how long that took and what is free.

    `base_bytes` is what has to be fetched yet.
    """
    probe = state / "doctor-probe"
    started = time.monotonic()
    try:
        write_file(probe, bytes(PROBE_BYTES))  # with fsync of file and folder
        taken = time.monotonic() - started
        probe.unlink()
    except StorageError as error:
        return Finding("disk", "problem", error.problem, error.hint)
    free = shutil.disk_usage(state).free
    value = f"{state}: {size(free)} free, {size(PROBE_BYTES)} written in {duration(taken)}"
    needed = base_bytes + SPARE_BYTES
    if free < needed:
        advice = f"free some space, or choose another folder with --state: {size(needed)} is needed"
        return Finding("disk", "problem" if free < base_bytes else "warning", value, advice)
    if taken > SLOW_WRITE_SECONDS:
        return Finding("disk", "warning", value, "a slow disk delays each answer; try another")
    return Finding("disk", "ok", value)


def look_at_text(folder: SiteFolder, kit: Kit) -> Iterator[Finding]:
    """Read the site's text as the plan wants it."""
    try:
        plan, section = folder.plan_here(kit)
        splits = read_split(plan, section.text, section.language)
    except BoliError as error:
        yield Finding("text", "problem", error.problem, error.hint)
        return
    for language, split in splits.items():
        counts = ", ".join(f"{number:,} {part}" for part, number in split.counts.items())
        yield Finding("text", "ok", f"{language}: {counts} lines")


def look_at_folder(data: Path) -> Finding:
    """Tell what lies in the data folder, where no plan says what should."""
    if not data.is_dir():
        advice = "give the folder with the site's text: --data"
        return Finding("text", "problem", f"{data} is not a folder", advice)
    if not os.access(data, os.R_OK | os.X_OK):
        return Finding("text", "problem", f"{data} may not be read", "let this user read it")
    count = sum(1 for path in data.iterdir() if path.is_file())
    return Finding("text", "ok", f"{data}: {count} {'file' if count == 1 else 'files'}")
