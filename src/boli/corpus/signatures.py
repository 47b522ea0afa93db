"""Text → fingerprint: a hash of its normal form, and a signature that near duplicates share.

A signature is 256 numbers of 16 bits, little-endian: a sketch of the set of all runs of four
letters, marks and digits. The share of equal numbers in two signatures estimates the Jaccard
similarity of the two sets, with a standard error of at most 0.031.

Whoever holds a signature can test whether a text that they guess is in the set: it hides what
cannot be guessed, and nothing else. A seed of a pool's own makes signatures useless to those who
do not know it; only signatures of one seed can be compared.

The numbers depend on this file alone, not on a library or a machine: signatures lie in pools
for years. (Letters that a later Unicode adds are not seen by an older Python.)

Source: Dahlgaard, Knudsen, Thorup 2017, Fast Similarity Sketching, algorithm 1.
https://arxiv.org/abs/1704.04370. Of each number only 16 bits stay: Li, König 2010, b-bit minwise
hashing. https://arxiv.org/abs/0910.3349
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from boli.corpus.traits import CHARACTERS, PRECOMPOSED, VARIANT, traits_of

SLOTS = 256
SIGNATURE_BYTES = 2 * SLOTS
EXACT_BYTES = 16
SHINGLE = 4  # characters
SHORTEST = 20  # characters of a normal form that has a signature
THRESHOLD = 0.38  # of the similarity, from which two texts are near duplicates
LEAST_EQUAL = int(np.ceil(THRESHOLD * SLOTS))

_ROWS = 5  # slots of a band
_STRIDE = SLOTS // _ROWS
_PRIME = 47  # the greatest below _STRIDE
BANDS = 5 * _PRIME

_ROUNDS = 8  # in which shingles fall into slots; what then is empty asks all shingles
_TOGETHER = 1 << 16  # characters that are worked on at once, to stay in the processor's cache
_PAIRS = 1 << 20  # of an empty slot and a shingle
_EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_FACTORS = [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93]
_ROW_FACTORS = [(_FACTORS[row % 4] + 2 * row) >> 32 | 1 for row in range(_ROWS + 1)]  # odd
_AT_ONCE = 4096  # rows, to stay in the processor's cache
_NO_FORM = VARIANT | CHARACTERS | PRECOMPOSED
_STEP = 0xA0761D6478BD642F

Hashes = NDArray[np.uint64]
Matrix = NDArray[np.uint16]  # (n, SLOTS)


def signature_of(
    texts: Sequence[str],
    seed: int = 0,  # of 64 bits; 0 is the one that everybody may use
) -> list[bytes]:
    """Return the signature of each text: SIGNATURE_BYTES, or none where it is too short."""
    return [signature for _, signature in fingerprints(texts, seed)]


def fingerprints(
    texts: Sequence[str],
    seed: int = 0,
    traits: Sequence[int] | None = None,  # of the texts, where they are known (traits.py)
) -> list[tuple[bytes, bytes]]:
    """Return of each text EXACT_BYTES, equal where normal forms are, and its signature."""
    found: list[tuple[bytes, bytes]] = []
    traits = traits_of(texts).tolist() if traits is None else traits
    for part in _parts(texts):
        codes, ends = _normal_forms(part, traits[len(found) : len(found) + len(part)])
        starts = np.r_[0, ends[:-1]]
        long = np.flatnonzero(ends - starts >= SHORTEST)
        signatures = [b""] * len(part)
        for row, values in zip(
            long.tolist(), _sketch(codes, starts, ends, long, seed), strict=True
        ):
            signatures[row] = values.astype("<u2").tobytes()
        data = codes.astype("<u4", copy=False).tobytes()
        for text, start, end, signature in zip(
            part, starts.tolist(), ends.tolist(), signatures, strict=True
        ):
            # Texts without a letter have no normal form, but they are not all the same.
            form = data[4 * start : 4 * end] or b"\0" + text.encode("utf-8", "surrogatepass")
            found.append((hashlib.blake2b(form, digest_size=EXACT_BYTES).digest(), signature))
    return found


def signature_in_form(signature: bytes | None) -> bytes:
    """Return a signature of others as it can be compared: none where it is of another length."""
    return signature if signature and len(signature) == SIGNATURE_BYTES else b""


def matrix_of(signatures: Sequence[bytes]) -> Matrix:
    """Return signatures as rows of numbers; those of texts too short become rows of zeros."""
    none = bytes(SIGNATURE_BYTES)
    data = b"".join(signature or none for signature in signatures)
    return np.frombuffer(data, "<u2").reshape(-1, SLOTS).astype(np.uint16, copy=False)


def bands_of(matrix: Matrix) -> NDArray[np.uint32]:
    """Return the keys of each signature, (BANDS, n); texts are compared where one key is equal.

    A band hashes five slots. Any two bands have at most one slot in common (they are lines of a
    plane over a prime field), so 235 bands of 256 slots are nearly as good as bands of 1,175.
    Two texts of similarity s share a band with probability 1 - (1 - s^5)^235: 0.99 at 0.46, 0.85 at
    0.38, 0.002 at 0.1. No key is 0 but those of rows of zeros.
    """
    keys = np.empty((BANDS, len(matrix)), np.uint32)
    # A slot is in one row of all bands, and has that row's factor.
    rows = [slot // _STRIDE for slot in range(SLOTS)]
    factors = np.array([_ROW_FACTORS[row] for row in rows], np.uint32)[:, None]
    for start in range(0, len(matrix), _AT_ONCE):
        slots = np.ascontiguousarray(matrix[start : start + _AT_ONCE].T) * factors
        for band in range(BANDS):
            slope, first = divmod(band, _PRIME)
            mixed = keys[band, start : start + _AT_ONCE]
            mixed[:] = slots[first]
            for row in range(1, _ROWS):
                mixed += slots[row * _STRIDE + (first + row * slope) % _PRIME]
    np.maximum(keys, matrix.any(1), out=keys)
    return keys


def similarity(one: bytes, other: bytes) -> float:
    """Estimate the Jaccard similarity of two texts by their signatures; 0 where one has none."""
    if not one or not other:
        return 0.0
    equal = np.frombuffer(one, "<u2") == np.frombuffer(other, "<u2")
    return float(equal.mean())


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in order, as many at once as have about _TOGETHER characters."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= _TOGETHER:
            yield part
            part, size = [], 0
    if part:
        yield part


@cache
def _counts() -> NDArray[np.bool_]:
    """Return of each code point whether it is a letter, mark or digit."""
    category = unicodedata.category
    counts = np.zeros(0x110000, np.bool_)
    for first, last in ((0, 0x40000), (0xE0000, 0xE1000)):  # Unicode has assigned nothing between
        counts[first:last] = [category(chr(code))[0] in "LMN" for code in range(first, last)]
    return counts


def _normal_forms(
    texts: Sequence[str], traits: Sequence[int]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the code points of sources.normal_form of all texts, and where each one ends."""
    lower = [
        unicodedata.normalize("NFKC", text).lower() if trait & _NO_FORM else text
        for text, trait in zip(texts, traits, strict=True)
    ]
    ends = np.cumsum([len(text) for text in lower])
    codes = np.frombuffer("".join(lower).encode("utf-32-le", "surrogatepass"), "<u4")
    counts = _counts()[codes]
    return codes[counts].astype(np.uint32, copy=False), np.r_[0, np.cumsum(counts)][ends]


def _mixed(hashes: Hashes) -> Hashes:
    """Mix in place; the finalizer of SplitMix64."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


def _constant(seed: int, index: int) -> np.uint64:
    return np.uint64((seed * _FACTORS[1] + (index + 1) * _STEP) % (1 << 64))


def _sketch(
    codes: NDArray[np.uint32],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    long: NDArray[np.int64],  # (n,) texts that get a sketch
    seed: int,
) -> Matrix:
    if not long.size:
        return np.zeros((0, SLOTS), np.uint16)
    wide = codes.astype(np.uint64)
    last = codes.size - SHINGLE + 1
    hashes = wide[:last] * np.uint64(_FACTORS[0])
    for place in range(1, SHINGLE):
        hashes += wide[place : last + place] * np.uint64(_FACTORS[place])
    counts = ends[long] - starts[long] - (SHINGLE - 1)
    offsets = np.r_[0, np.cumsum(counts)]
    rows = np.repeat(np.arange(long.size), counts)
    hashes = _mixed(hashes[np.arange(rows.size) + np.repeat(starts[long] - offsets[:-1], counts)])
    slots = np.full(long.size * SLOTS, _EMPTY)
    _fall(hashes, rows, slots, seed)
    _ask_all(hashes, offsets, slots, seed)
    return (slots & np.uint64(0xFFFF)).astype(np.uint16).reshape(-1, SLOTS)


def _fall(hashes: Hashes, rows: NDArray[np.int64], slots: Hashes, seed: int) -> None:
    """Let shingles fall into slots, by rounds; the least of a slot's first round stays."""
    for number in range(_ROUNDS):
        values = _mixed(hashes ^ _constant(seed, number))
        where = (rows << 8) | (values >> np.uint64(56)).astype(np.int64)
        values &= np.uint64((1 << 56) - 1)
        if number:
            fresh = (slots == _EMPTY)[where]
            where, values = where[fresh], values[fresh]
        np.minimum.at(slots, where, values)
        unfilled = (slots == _EMPTY).reshape(-1, SLOTS).any(1)
        if not unfilled.any():
            return
        if not unfilled.all():
            stay = unfilled[rows]
            hashes, rows = hashes[stay], rows[stay]


def _ask_all(hashes: Hashes, offsets: NDArray[np.int64], slots: Hashes, seed: int) -> None:
    """Fill each slot that is still empty with the smallest of all shingles, hashed for it."""
    empty = np.flatnonzero(slots == _EMPTY)
    rows = empty // SLOTS
    sizes = (offsets[1:] - offsets[:-1])[rows]
    done = np.r_[0, np.cumsum(sizes)]
    first = 0
    while first < empty.size:
        after = max(first + 1, int(np.searchsorted(done, done[first] + _PAIRS, "right")) - 1)
        of, size = rows[first:after], sizes[first:after]
        begin = done[first:after] - done[first]
        index = np.arange(int(size.sum())) + np.repeat(offsets[of] - begin, size)
        salt = (empty[first:after] % SLOTS).astype(np.uint64) * np.uint64(_FACTORS[2])
        values = _mixed(hashes[index] ^ np.repeat(salt + _constant(seed, _ROUNDS), size))
        slots[empty[first:after]] = np.minimum.reduceat(values, begin)
        first = after
