"""Files, packed or not, as streams of UTF-8 bytes that cannot grow without bound."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from boli.corpus.consent import MANIFEST
from boli.corpus.listing import open_plain

HEAD_BYTES = 1 << 16  # looked at before a file is read
BLOCK_BYTES = 1 << 20
# Text packs 3 to 20 times, a template a hundred times; what packs denser is made to fill disks.
MOST_UNPACKED_BYTES, MOST_TIMES_SMALLER = 64 << 20, 200
MOST_MEMBERS = 100_000
LARGEST_DIRECTORY_BYTES = 16 << 20  # of a zip: what lists its members is read as a whole

PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# What a damaged or hostile file makes the readers of the standard library raise.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # an encrypted zip
    NotImplementedError,  # a way of packing that is not known
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class TooLargeError(ValueError):
    """A packed file holds more than text can."""


@dataclass
class _Budget:
    """What a packed file may still unpack to; all members of an archive draw on one."""

    left_bytes: int

    def take(self, num_bytes: int) -> None:
        """Draw on it.

        Raises:
            TooLargeError: nothing is left.
        """
        self.left_bytes -= num_bytes
        if self.left_bytes < 0:
            raise TooLargeError("it unpacks to more than any text does")


class Stream(io.RawIOBase):
    """What is left of a file, of which the head was read; UTF-16 becomes UTF-8."""

    def __init__(self, file: IO[bytes], budget: _Budget | None) -> None:
        self._file = file
        self._budget = budget
        self.head = self._take(HEAD_BYTES)
        bom = next((bom for bom in _BOMS if self.head.startswith(bom)), b"")
        encoding = _BOMS.get(bom, "utf-8")
        self.head = self.head[len(bom) :]
        self._decoder = None
        if encoding != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
            self.head = self._recode(self.head)
        # Old Macs end lines so.
        self._carriage = b"\r" in self.head and b"\n" not in self.head
        self.head = self._lines(self.head)
        self._ready = self.head

    def readable(self) -> bool:
        """Say that this is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end."""
        view = memoryview(buffer)
        while not self._ready:
            block = self._take(BLOCK_BYTES)
            self._ready = self._lines(self._recode(block))
            if not block:
                break
        piece = self._ready[: len(view)]
        view[: len(piece)] = piece
        self._ready = self._ready[len(piece) :]
        return len(piece)

    def _take(self, num_bytes: int) -> bytes:
        block = self._file.read(num_bytes)
        if self._budget is not None:
            self._budget.take(len(block))
        return block

    def _recode(self, block: bytes) -> bytes:
        if self._decoder is None:
            return block
        return self._decoder.decode(block, final=not block).encode("utf-8", "replace")

    def _lines(self, block: bytes) -> bytes:
        return block.replace(b"\r", b"\n") if self._carriage else block

    @property
    def binary(self) -> bool:
        """Whether the head is no text."""
        return b"\0" in self.head


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """Open a file, unpacked where its name says that it is packed.

    Raises:
        OSError and others of DAMAGED: the file is not there or not whole.
    """
    packed = PACKED.get(path.suffix.lower())
    with open_plain(path) as plain:
        if packed is None:
            yield Stream(plain, None)
            return
        with packed(plain, "rb") as file:
            yield Stream(file, _Budget(_limit(os.fstat(plain.fileno()).st_size)))


@contextmanager
def opened_zip(
    path: Path,
) -> Iterator[Iterator[tuple[str, Callable[[], AbstractContextManager[Stream]]]]]:
    """Open a zip file; gives the name of each file in it, and what opens that file.

    What all of them unpack to is bounded by the size of the archive, also where members share
    the same packed bytes: the one that goes beyond it raises, and so does each after it.

    Raises:
        OSError and others of DAMAGED: the file is not whole, or holds too many.
    """
    with (
        open_plain(path) as plain,
        _Archive(plain.fileno(), closefd=False) as file,
        zipfile.ZipFile(file) as archive,
    ):
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MOST_MEMBERS:
            raise TooLargeError(f"it holds {len(entries)} files, and {MOST_MEMBERS} are the most")
        if any(PurePosixPath(one.filename).name.casefold() == MANIFEST for one in entries):
            raise ValueError(f"it holds a {MANIFEST} of its own, which would not count: unpack it")
        budget = _Budget(_limit(os.fstat(plain.fileno()).st_size))
        yield ((entry.filename, partial(_member, archive, entry, budget)) for entry in entries)


class _Archive(io.FileIO):
    """A zip file of which nobody reads more at once than a directory may have."""

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes.

        Raises:
            TooLargeError: more are wanted at once.
        """
        size = -1 if size is None else size
        whole = not 0 <= size <= LARGEST_DIRECTORY_BYTES
        data = super().read(LARGEST_DIRECTORY_BYTES + 1 if whole else size) or b""
        if len(data) > LARGEST_DIRECTORY_BYTES:
            raise TooLargeError(f"its directory is above {LARGEST_DIRECTORY_BYTES} bytes")
        return data


@contextmanager
def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: _Budget) -> Iterator[Stream]:
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ValueError("it is a link")
    budget.take(0)
    with archive.open(entry) as file:
        yield Stream(file, budget)


def _limit(packed_bytes: int) -> int:
    return max(MOST_UNPACKED_BYTES, MOST_TIMES_SMALLER * packed_bytes)
