"""Which files there are below the folders that were given, and what they are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from boli.corpus.consent import MANIFEST
from boli.errors import CorpusError

MARKER = "preparation.json"  # in every folder that boli prepare writes


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read: where it is, and what it is called in records."""

    path: Path
    name: str
    root: Path  # of the folders and files that were given


def list_files(roots: Sequence[Path], leave_out: Path | None = None) -> list[SourceFile]:
    """Return all files below the roots, in the order of their names; hidden ones are left out.

    A root's own name comes first in the names of its files. `leave_out` is a folder that is not
    looked into: where the records are written. Nor are folders that were prepared before: their
    records would come back without what their sources said about them. Folders that cannot be
    read, and links to folders, are returned as well: reading them tells why they give nothing.

    Raises:
        CorpusError: a root is not there, or none holds a file.
    """
    found: dict[str, SourceFile] = {}
    titles: set[str] = set()
    for root in roots:
        if not root.exists():
            raise CorpusError(f"there is nothing at {root}", "give a file or a folder")
        if root.is_file() and root.name == MANIFEST:
            continue
        own = printable(root.resolve().name)
        title, number = own, 2
        while title in titles:
            title, number = f"{own}-{number}", number + 1
        titles.add(title)
        for path in [root] if root.is_file() else _below(root, leave_out):
            below = path.relative_to(root).as_posix()
            name = title if below == "." else f"{title}/{printable(below)}"
            found[name] = SourceFile(path, name, root)
    if not found:
        raise CorpusError(
            f"there is no file in {', '.join(map(str, roots))}", "put text or recordings there"
        )
    return [found[name] for name in sorted(found)]


def _below(root: Path, leave_out: Path | None) -> Iterator[Path]:
    closed: list[Path] = []
    for place, folders, names in os.walk(root, onerror=lambda error: closed.append(_of(error))):
        folder = Path(place)
        if (folder / MARKER).exists() and folder != root:
            folders.clear()
            continue
        hidden = {name for name in folders if name.startswith(".")}
        links = {name for name in folders if (folder / name).is_symlink()}
        out = {
            name
            for name in folders
            if leave_out is not None and (folder / name).resolve() == leave_out.resolve()
        }
        folders[:] = sorted(set(folders) - hidden - links - out)
        yield from (folder / name for name in sorted(links - hidden - out))
        for name in sorted(names):
            if not name.startswith(".") and name != MANIFEST:
                yield folder / name
    yield from closed


def _of(error: OSError) -> Path:
    return Path(os.fsdecode(error.filename))


def printable(name: str) -> str:
    """Return a file name as text of one line, also where it is not UTF-8; never two as one."""
    text = re.sub(r"[%\\]", lambda match: f"%{ord(match[0]):02X}", name)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f#]", lambda match: f"%{ord(match[0]):02X}", text)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 where it cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
