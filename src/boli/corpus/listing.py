"""Which files there are below the folders that were given, and what they are called."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from boli.corpus.consent import MANIFEST
from boli.errors import CorpusError

MARKER = "preparation.json"  # in every folder that boli prepare writes


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read: where it is, and what it is called in records."""

    path: Path  # no folder of it is a link; a file that is itself one is listed, and never opened
    name: str
    root: Path  # of the folders and files that were given, with links resolved


def list_files(roots: Sequence[Path], leave_out: Path | None = None) -> list[SourceFile]:
    """Return all files below the roots, in the order of their names; hidden ones are left out.

    A root's own name comes first in the names of its files. `leave_out` is a folder that is not
    looked into: where the records are written. Nor are folders that were prepared before: their
    records would come back without what their sources said about them. Folders that cannot be
    read, and links, are returned as well: reading them tells why they give nothing.

    A root may be a link. Below it none is followed: what a link leads to is read where it lies,
    under the source.toml of that place, if it lies in a root; and if not, it was not named.

    Raises:
        CorpusError: a root is not there or was prepared before, none holds a file, or the name of
            a source.toml is misspelt.
    """
    found: dict[str, SourceFile] = {}
    titles: set[str] = set()
    for given in roots:
        root = given.resolve()
        if not root.exists():
            raise CorpusError(f"there is nothing at {given}", "give a file or a folder")
        for place in (root, *root.parents):
            if (place / MARKER).exists():
                raise CorpusError(
                    f"{given} is in {place}, which boli prepare wrote",
                    "give the folders that it was made of: they say what may leave",
                )
        if root.is_file() and root.name == MANIFEST:
            continue
        own = printable(root.name)
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
        if (folder / MARKER).exists():
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
            if name != MANIFEST and name.casefold() == MANIFEST:
                raise CorpusError(
                    f"{folder / name} is not called {MANIFEST}, so that nobody reads it",
                    "rename it: upper and lower case count",
                )
            if not name.startswith(".") and name != MANIFEST:
                yield folder / name
    yield from closed


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file of a source for reading: never a link, a device, or what a link leads to.

    What was opened is looked at again, so that nobody can put a link there in between. (A hard
    link is the file itself: it cannot be told from it.)

    Raises:
        OSError: it is not there, or is something else.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    try:
        there = os.fstat(descriptor)
        if not stat.S_ISREG(there.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        if why_elsewhere(path) or not os.path.samestat(there, path.lstat()):
            raise OSError(errno.ELOOP, "a link leads there", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def why_elsewhere(path: Path) -> str:
    """Return why a path is no longer a plain file in its own place; empty where it is."""
    try:
        mode = path.lstat().st_mode
        if os.path.realpath(path, strict=True) != str(path):
            return "it, or a folder above it, is a link now"
    except OSError:
        return "it is gone, or has moved"
    return "" if stat.S_ISREG(mode) else "it is no plain file any more"


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
        return path.lstat().st_size
    except OSError:
        return 0
