"""Near duplicates across sites: signatures are compared, texts stay where they are.

Own signatures are sorted by band once; those of others stream past, in batches of any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from boli.corpus.signatures import BANDS, LEAST_EQUAL, Matrix, bands_of, matrix_of

_OTHERS = 4096  # looked up at once, however they come
_MOST_UNLIKE = 32  # others of one band, in _OTHERS, that an own signature is compared with
_COMPARED = 8192  # pairs at once

Key = TypeVar("Key")


def similar(own: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    """Return for each own signature the place of another that is similar, or -1.

    Of several that are similar it is one of the first 4,096 among which there is any. Texts too
    short for a signature are like none: compare their normal forms.
    """
    found = SignatureIndex[int](own)
    found.look_up(enumerate(others))
    return [-1 if key is None else key for key in found.keys]


class SignatureIndex(Generic[Key]):
    """Own signatures, each with the key of a similar one among those seen so far.

    Takes about 2.5 kB for each own signature, and nothing for those of others: where there
    are very many own ones, look them up in parts.
    """

    def __init__(
        self,
        own: Sequence[bytes],  # as signature_of returns them, with one seed
    ) -> None:
        self.keys: list[Key | None] = [None] * len(own)
        matrix = matrix_of(own)
        self._rows = np.flatnonzero(matrix.any(1))  # of those that have a signature
        self._own: Matrix = matrix[self._rows]
        self._open = np.ones(self._rows.size, bool)  # nothing similar seen yet
        # Each band's keys in order, with the number of the own signature in the low half.
        self._sorted = bands_of(self._own).astype(np.uint64) << np.uint64(32)
        self._sorted |= np.arange(self._rows.size, dtype=np.uint64)
        self._sorted.sort(axis=1)

    def look_up(self, others: Iterable[tuple[Key, bytes]]) -> None:
        """Compare with signatures of others, each with its key; may be called again for more."""
        for keys, signatures in _batches(others):
            if not self._open.any():
                return
            matrix = matrix_of(signatures)
            present = np.flatnonzero(matrix.any(1))
            self._compare([keys[row] for row in present.tolist()], matrix[present])

    def _compare(self, keys: list[Key], others: Matrix) -> None:
        bands = bands_of(others)
        for band in range(BANDS):
            own, first, count, order = self._candidates(self._sorted[band], bands[band])
            for step in range(min(_MOST_UNLIKE, int(count.max(initial=0)))):
                left = self._open[own] & (step < count)
                own, first, count = own[left], first[left], count[left]
                other = order[first + step]
                for row in np.flatnonzero(self._alike(own, others, other)).tolist():
                    self._open[own[row]] = False
                    self.keys[self._rows[own[row]]] = keys[other[row]]

    def _candidates(
        self,
        packed: NDArray[np.uint64],  # (n,) of a band, as in _sorted
        keys: NDArray[np.uint32],  # (m,) of others, in that band
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return own signatures, and where others of their key begin in an order, and how many."""
        wide = keys.astype(np.uint64) << np.uint64(32)
        wide |= np.arange(keys.size, dtype=np.uint64)
        wide.sort()  # searching for ascending keys is much faster
        ascending = wide >> np.uint64(32)
        nearest = packed[
            np.searchsorted(packed, ascending << np.uint64(32)).clip(0, packed.size - 1)
        ]
        hits = nearest >> np.uint64(32) == ascending  # few: all else is left out early
        order = (wide[hits] & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        distinct, first, count = np.unique(ascending[hits], return_index=True, return_counts=True)
        wide = distinct << np.uint64(32)
        start = np.searchsorted(packed, wide)
        size = np.searchsorted(packed, wide + np.uint64(0xFFFF_FFFF), "right") - start
        ends = np.cumsum(size)
        places = np.arange(int(size.sum())) + np.repeat(start - (ends - size), size)
        own = (packed[places] & np.uint64(0xFFFF_FFFF)).astype(np.int64)
        return own, np.repeat(first, size), np.repeat(count, size), order

    def _alike(
        self, own: NDArray[np.int64], others: Matrix, other: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        like = np.empty(own.size, bool)
        for start in range(0, own.size, _COMPARED):
            part = slice(start, start + _COMPARED)
            equal = self._own[own[part]] == others[other[part]]
            like[part] = np.count_nonzero(equal, axis=1) >= LEAST_EQUAL
        return like


def _batches(others: Iterable[tuple[Key, bytes]]) -> Iterator[tuple[list[Key], list[bytes]]]:
    """Yield keys and signatures, _OTHERS at once, so that what is found depends on no batch."""
    left = iter(others)
    while batch := list(islice(left, _OTHERS)):
        yield [key for key, _ in batch], [signature for _, signature in batch]
