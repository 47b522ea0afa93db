"""Exact and near duplicates within a site, in two passes and little memory.

The first pass appends the fingerprint of each record to a SignatureFile. The second finds which
rows repeat an earlier one: bands of the signatures go to a scratch file, are sorted one band at a
time, and rows that share a band are compared by their whole signatures, read from the file.

The rule, whatever the batches: each row that is dropped names an earlier row that is kept and that
it is truly similar to (or has the normal form of); no two rows that are kept share a band and are
similar. So of a chain A ~ B ~ C with A unlike C, B goes and C stays.

Source: Leskovec, Rajaraman, Ullman 2020, Mining of Massive Datasets, 3.4 (banding).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from boli.corpus.signatures import (
    BANDS,
    EXACT_BYTES,
    LEAST_EQUAL,
    SIGNATURE_BYTES,
    bands_of,
)
from boli.errors import CorpusError, CorruptFileError, StorageError

ROW_BYTES = EXACT_BYTES + SIGNATURE_BYTES
KEPT = -1
_BLOCK = 8192  # rows whose keys lie together in the scratch file
_KEYS = 1 + BANDS  # the first is of the normal form
_LOW = 0xFFFF  # bits of a key
_COMPARED = 8192  # pairs at once
_GAP = 8  # rows that are read in vain rather than seeking past them
_SPAN = 4096  # rows read at once
_MOST_UNLIKE = 32  # rows of one band, unlike each other, that a row is compared with

Rows = NDArray[np.int64]


class Duplicates(NamedTuple):
    """Which rows repeat an earlier one."""

    kept_of: NDArray[np.int32]  # (rows,) the row that is kept in its place, or KEPT
    exact: NDArray[np.bool_]  # (rows,) whether some earlier row has its very normal form


class SignatureFile:
    """The fingerprints of records in their order, on disk; opened to append.

    To go on after a crash, open it with the number of rows that are known to be right: what lies
    behind them is cut off.

    Raises:
        CorruptFileError: the file holds fewer rows than that.
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path, keep_rows: int = 0) -> None:
        self.path = path
        self.num_rows = keep_rows
        try:
            self._file = path.open("ab")
            size = self._file.tell()
            if size >= keep_rows * ROW_BYTES:
                self._file.truncate(keep_rows * ROW_BYTES)
                return
            self._file.close()
        except OSError as error:
            raise _unwritable(path, error) from None
        raise CorruptFileError(
            f"{path} holds {size // ROW_BYTES} signatures, not {keep_rows}", "prepare again"
        )

    def append(
        self,
        prints: Sequence[tuple[bytes, bytes]],  # as fingerprints returns them
    ) -> None:
        """Append rows; they are in the file for others once it is closed.

        Raises:
            StorageError: the file cannot be written.
        """
        none = bytes(SIGNATURE_BYTES)
        try:
            self._file.write(b"".join(exact + (signature or none) for exact, signature in prints))
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.num_rows += len(prints)

    def flush(self) -> None:
        """Hand what was appended to the disk, so that it survives a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write {path}: {error.strerror}", "make room, or choose another folder"
    )


def near_duplicates(
    path: Path,  # of a SignatureFile that is closed
    scratch: Path | None = None,  # folder with room for about 950 bytes a row; None: beside it
    memory_bytes: int = 64 << 20,  # beside what is returned; the result does not depend on it
) -> Duplicates:
    """Find which rows repeat an earlier one, exactly or nearly.

    Raises:
        CorpusError: there are no signatures there, or more than 2^31.
        CorruptFileError: the file ends within a row.
        StorageError: the scratch file cannot be written.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}", "prepare again") from None
    with file:
        num_rows, rest = divmod(path.stat().st_size, ROW_BYTES)
        if rest:
            raise CorruptFileError(f"{path} ends within a signature", "prepare again")
        if num_rows >= 1 << 31:
            raise CorpusError(f"{path} holds {num_rows} signatures", "prepare fewer at once")
        found = Duplicates(np.full(num_rows, KEPT, np.int32), np.zeros(num_rows, bool))
        try:
            with tempfile.TemporaryFile(dir=scratch or path.parent, buffering=0) as keys:
                _write_keys(file, keys, num_rows)
                _Grouping(file, keys, found, memory_bytes).run()
        except OSError as error:
            raise _unwritable(scratch or path.parent, error) from None
    return found


def _write_keys(file: BinaryIO, keys: BinaryIO, num_rows: int) -> None:
    """Write the keys of all rows: block by block, in each one key of all rows after another."""
    for first in range(0, num_rows, _BLOCK):
        rows = _read(file, first, min(_BLOCK, num_rows - first))
        block = np.zeros((_KEYS, _BLOCK), np.uint32)
        block[0, : len(rows)] = rows[:, :4].copy().view("<u4")[:, 0] | 1
        signatures = rows[:, EXACT_BYTES:].copy().view("<u2").astype(np.uint16, copy=False)
        block[1:, : len(rows)] = bands_of(signatures)
        keys.write(block.data)


def _read(file: BinaryIO, first: int, count: int) -> NDArray[np.uint8]:
    """Return rows that lie one after another, (count, ROW_BYTES)."""
    file.seek(first * ROW_BYTES)
    return np.frombuffer(file.read(count * ROW_BYTES), np.uint8).reshape(count, ROW_BYTES)


def _read_each(
    file: BinaryIO,
    rows: Rows,  # (n,) ascending
) -> NDArray[np.uint8]:  # (n, ROW_BYTES)
    """Return any rows; those near each other are read at once."""
    found = np.empty((rows.size, ROW_BYTES), np.uint8)
    breaks = (np.diff(rows) > _GAP) | (np.diff(rows // _SPAN) > 0)
    bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), rows.size]
    firsts = rows[bounds[:-1]].tolist()
    view = memoryview(found.data).cast("B")
    for start, end, first in zip(bounds[:-1], bounds[1:], firsts, strict=True):
        if end == start + 1:
            file.seek(first * ROW_BYTES)
            file.readinto(view[start * ROW_BYTES : end * ROW_BYTES])  # type: ignore[attr-defined]
        else:
            span = _read(file, first, int(rows[end - 1]) - first + 1)
            found[start:end] = span[rows[start:end] - first]
    return found


def _shared(keys: NDArray[np.uint32] | Rows) -> NDArray[np.bool_]:
    """Return of each of ascending keys whether it is there twice."""
    shared = np.zeros(keys.size, bool)
    same = keys[1:] == keys[:-1]
    shared[1:] = same
    shared[:-1] |= same
    return shared


class _Grouping:
    """The second pass: waves over all bands, until no row that was dropped lacks a kept one."""

    def __init__(
        self, file: BinaryIO, keys: BinaryIO, found: Duplicates, memory_bytes: int
    ) -> None:
        self.file, self.keys = file, keys
        self.kept_of, self.exact = found
        self.fresh = np.ones(self.kept_of.size, bool)  # not yet compared as a row that is kept
        size = self.kept_of.size * ROW_BYTES
        self.rows = _read(file, 0, self.kept_of.size) if 2 * size <= memory_bytes else None
        # A row of a part needs its key and number, and as much again for each step over it.
        self.parts = -(-self.kept_of.size * 32 // memory_bytes) or 1

    def run(self) -> None:
        while self.fresh.any():
            for band in range(_KEYS):
                wanted = self._wanted(band)
                for part in range(self.parts):
                    self._compare(*self._buckets(band, part, wanted))
                if band == 0 and self.fresh.all():
                    self.exact[:] = self.kept_of != KEPT
            self._revive()

    def _buckets(self, band: int, part: int, wanted: NDArray[np.bool_]) -> tuple[Rows, Rows]:
        """Return keys that kept rows share, and those rows, in order of key and row."""
        found = [np.zeros(0, np.uint64)]
        for first, keys in self._keys(band):
            kept = self.kept_of[first : first + _BLOCK] == KEPT
            here = np.flatnonzero(kept & (keys != 0) & wanted[keys & _LOW])
            if self.parts > 1:
                here = here[keys[here] % self.parts == part]
            numbers = (here + first).astype(np.uint64)
            found.append((keys[here].astype(np.uint64) << np.uint64(32)) | numbers)
        packed = np.concatenate(found)
        del found
        packed.sort()
        members = packed[_shared((packed >> np.uint64(32)).astype(np.uint32))].astype(np.int64)
        return (members >> 32) & 0xFFFF_FFFF, members & 0xFFFF_FFFF

    def _keys(self, band: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Yield the keys of all rows, block by block, each with the number of its first row."""
        for first in range(0, self.kept_of.size, _BLOCK):
            self.keys.seek(4 * (first // _BLOCK * _KEYS + band) * _BLOCK)
            keys = np.frombuffer(self.keys.read(4 * _BLOCK), np.uint32)
            yield first, keys[: self.kept_of.size - first]

    def _wanted(self, band: int) -> NDArray[np.bool_]:  # (_LOW + 1,)
        """Return which keys fresh rows have, by their last bits: others bring nothing new."""
        if self.fresh.all():
            return np.ones(_LOW + 1, bool)
        wanted = np.zeros(_LOW + 1, bool)
        for first, keys in self._keys(band):
            wanted[keys[self.fresh[first : first + _BLOCK]] & _LOW] = True
        return wanted

    def _compare(self, keys: Rows, rows: Rows) -> None:
        """Drop each row that is like an earlier one of its key that stays.

        All keys at once: their first rows stay, and those like them go; then the next ones that
        are left. So thousands of copies of one template are compared with one row, not with each
        other.
        """
        for _ in range(_MOST_UNLIKE):
            if not rows.size:
                return
            starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
            sizes = np.diff(np.r_[starts, rows.size])
            news = np.repeat(np.logical_or.reduceat(self.fresh[rows], starts), sizes)
            stays = np.repeat(rows[starts], sizes)
            others = np.ones(rows.size, bool)
            others[starts] = False
            others &= news  # two rows that stayed in an earlier wave are unlike
            keys, rows, stays = keys[others], rows[others], stays[others]
            like = self.fresh[rows] | self.fresh[stays]
            like[like] = self._alike(rows[like], stays[like])
            self.kept_of[rows[like]] = stays[like]
            keys, rows = keys[~like], rows[~like]
            again = _shared(keys)
            keys, rows = keys[again], rows[again]

    def _alike(self, rows: Rows, others: Rows) -> NDArray[np.bool_]:
        """Return for each pair whether normal forms are equal or signatures similar."""
        like = np.empty(rows.size, bool)
        for first in range(0, rows.size, _COMPARED):
            part = slice(first, first + _COMPARED)
            needed, where = np.unique(np.r_[rows[part], others[part]], return_inverse=True)
            data = _read_each(self.file, needed) if self.rows is None else self.rows[needed]
            one, other = np.split(where, 2)
            exact, numbers = data[:, :EXACT_BYTES], data[:, EXACT_BYTES:].copy().view(np.uint16)
            equal = np.count_nonzero(numbers[one] == numbers[other], axis=1) >= LEAST_EQUAL
            # Signatures of texts too short for one are zeros, and must not count as equal.
            equal &= np.any(numbers, axis=1)[one]
            like[part] = equal | np.all(exact[one] == exact[other], axis=1)
        return like

    def _revive(self) -> None:
        """Point rows at the one that is kept in the end; keep those that are not like it.

        The next wave compares these. The first of them settles in it for good, so that waves
        come to an end.
        """
        self.fresh[:] = False
        for first in range(0, self.kept_of.size, 1 << 17):
            part = self.kept_of[first : first + (1 << 17)]
            dropped = np.flatnonzero(part != KEPT)
            targets = part[dropped].astype(np.int64)
            lost = self.kept_of[targets] != KEPT
            rows, targets = dropped[lost] + first, targets[lost]
            while (further := self.kept_of[targets] != KEPT).any():
                targets[further] = self.kept_of[targets[further]]
            like = self._alike(rows, targets)
            self.kept_of[rows[like]] = targets[like]
            self.fresh[rows[~like]] = True
        self.kept_of[self.fresh] = KEPT
