"""Which version of which pool a text was copied from: so that every run can say what it read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from boli.durable import write_file
from boli.journal import CopyRead

PIN = "pool.json"
_COPY_READ = CopyRead.name.encode()


@dataclass(frozen=True)
class Pin:
    """What pool.json in a copy says."""

    pool: str  # id
    url: str
    version: int
    taken: str  # id of the copy, as the pool has noted it
    language: str = ""  # the copy holds only this one
    region: str = ""  # where the copy is
    rows: int = 0
    digest: str = ""  # of the keys of its rows


def read_pin(path: Path) -> Pin | None:
    """Return what a pool.json says; None where there is none, or it is not one of ours."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        pin = Pin(**{field.name: body[field.name] for field in fields(Pin) if field.name in body})
    except (OSError, ValueError, TypeError):
        return None
    return pin if isinstance(pin.taken, str) else None


def pins_of(texts: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the pins of the copies that files of text lie in, each once; also behind links."""
    found: dict[str, dict[str, Any]] = {}
    for place in (place for text in texts for place in dict.fromkeys([text, text.resolve()])):
        for folder in [place, *place.absolute().parents][:3]:  # COPY, COPY/FILE, COPY/records/FILE
            pin = read_pin(folder / PIN)
            if pin is not None:
                found[pin.taken] = asdict(pin)
                break
    return list(found.values())


def note_pins(path: Path, pins: Iterable[Mapping[str, Any]]) -> None:
    """Add pins to a run.json at a site, for `runs_with`; those of earlier texts stay.

    Raises:
        StorageError: the disk refuses.
    """
    new = {pin["taken"]: dict(pin) for pin in pins}
    before = {pin["taken"]: pin for pin in _noted(path)}
    if new.keys() - before.keys():
        noted = _read(path) | {"pools": list((before | new).values())}
        write_file(path, json.dumps(noted).encode(), private=True)


def runs_with(runs: Path, copies: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of runs that read one of these copies, with the version that it is of.

    What was read here is in run.json, and what sites elsewhere read, as they told, in the
    journal. The version is the pool's own word of a copy, which no site can set.
    """
    found: dict[str, int] = {}
    for path in sorted(runs.glob("*/run.json")):
        told = _told(path.with_name("journal.jsonl"))
        read = {pin["taken"] for pin in [*_noted(path), *told]} & copies.keys()
        if read:
            found[path.parent.name] = max(copies[taken] for taken in read)
    return found


def _read(path: Path) -> dict[str, Any]:
    """Return what a run.json says; nothing where the folder is no run."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return noted if isinstance(noted, dict) else {}
    except (OSError, ValueError):
        return {}


def _noted(path: Path) -> list[dict[str, Any]]:
    """Return the pins in a run.json."""
    try:
        return [pin for pin in _read(path).get("pools", []) if isinstance(pin["taken"], str)]
    except (KeyError, TypeError):
        return []


def _told(path: Path) -> list[dict[str, Any]]:
    """Return the copies that a journal names, also where it is torn or was altered elsewhere."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), path.open("rb") as journal:
        for line in journal:
            if _COPY_READ in line:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    body = json.loads(line)
                    if body["event"] == CopyRead.name and isinstance(body["taken"], str):
                        found.append(body)
    return found
