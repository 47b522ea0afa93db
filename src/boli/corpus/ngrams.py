"""Lines → hashed substrings: character n-grams, words, pairs of words and their endings.

Spelling is not standard in the languages that boli is for. So text is folded first: long and
short vowels, sibilants, nasals and nukta are made one where writers mix them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 20
LENGTHS = (2, 3, 4, 5)  # of character n-grams
_FACTOR = 0x9E3779B97F4A7C15
_SPACE = ord(" ")
_FOLDED = {  # what writers of Devanagari mix
    "ी": "ि",
    "ू": "ु",
    "ई": "इ",
    "ऊ": "उ",
    "ऐ": "अइ",
    "औ": "अउ",
    "ै": "अइ",
    "ौ": "अउ",
    "ऋ": "रि",
    "ृ": "रि",
    "श": "स",
    "ष": "स",
    "ण": "न",
    "ङ": "न",
    "ञ": "न",
    **dict.fromkeys("ँंः़ऽ\u200c\u200d", ""),
}


class _Folding(dict[int, str]):
    """What str.translate asks: letters and marks stay or are folded, all else is a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = unicodedata.category(character)[0] in "LM"
        self[code] = _FOLDED.get(character, character if kept else " ")
        return self[code]


_folding = _Folding()


def fold(line: str) -> str:
    """Return lower-case letters and marks, folded, with one space between words."""
    return " ".join(unicodedata.normalize("NFKD", line).lower().translate(_folding).split())


@dataclass(frozen=True)
class Features:
    """Buckets of substrings, each with the line that it is of; lines ascend."""

    buckets: NDArray[np.int32]  # (n,) in [0, BUCKETS)
    lines: NDArray[np.int64]  # (n,) in [0, num_lines)
    num_lines: int

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Substrings of each line, (num_lines,); at least 1, to divide by."""
        return np.bincount(self.lines, minlength=self.num_lines).clip(1)


@dataclass(frozen=True)
class Substrings:
    """Three views of the same lines."""

    characters: Features  # n-grams, over the edges of words too
    forms: Features  # words, pairs of words, endings, pairs of endings
    words: Features  # words alone, in the buckets that they have among the forms


def substrings(lines: Sequence[str]) -> Substrings:
    """Cut lines into hashed substrings; each is the difference of two prefix hashes."""
    texts = [f" {fold(line)} " for line in lines]
    sizes = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    line_of = np.repeat(np.arange(len(texts)), sizes)
    between = _prefix_hashes(codes)
    gap = codes == _SPACE

    parts = []
    for length in LENGTHS:
        start = np.arange(max(0, codes.size - length + 1))
        start = start[line_of[start] == line_of[start + length - 1]]
        parts.append((between(start, start + length), line_of[start]))
    characters = _features(parts, len(texts))

    first = np.flatnonzero(~gap & np.roll(gap, 1))  # every text begins and ends with a space
    after = np.flatnonzero(gap & ~np.roll(gap, 1))
    where = line_of[first]
    words = (between(first, after), where)
    endings = [
        (between(after[long] - size, after[long], size), where[long])
        for size in (2, 3)
        for long in (np.flatnonzero(after - first > size),)
    ]
    tail = between(np.maximum(first, after - 2), after, 4)
    same = np.flatnonzero(where[1:] == where[:-1])
    pairs = [
        (between(first[same], after[same + 1], 5), where[same]),
        (_mixed(tail[same] * np.uint64(3) + tail[same + 1]), where[same]),
    ]
    return Substrings(
        characters,
        _features([words, *endings, *pairs], len(texts)),
        _features([words], len(texts)),
    )


Between = Callable[..., NDArray[np.uint64]]


def _prefix_hashes(codes: NDArray[np.uint32]) -> Between:
    """Return a function (start, end, kind) → hash of the codes between them.

    The hash is polynomial, modulo 2^64. Its prefixes are sums with inverse powers, which exist
    because the factor is odd.
    """
    inverse = np.uint64(pow(_FACTOR, -1, 1 << 64))
    size = codes.size + 1
    powers = np.cumprod(np.r_[np.uint64(1), np.full(size - 1, np.uint64(_FACTOR))])
    back = np.cumprod(np.r_[np.uint64(1), np.full(size - 1, inverse)])
    sums = np.r_[np.uint64(0), np.cumsum((codes + np.uint64(1)) * back[:-1])]

    def between(
        start: NDArray[np.int64], end: NDArray[np.int64], kind: int = 0
    ) -> NDArray[np.uint64]:
        plain = (sums[end] - sums[start]) * powers[start]
        return _mixed(plain + np.uint64((kind * 0xD1B54A32D192ED03) % (1 << 64)))

    return between


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _features(
    parts: Sequence[tuple[NDArray[np.uint64], NDArray[np.int64]]], num_lines: int
) -> Features:
    hashes = np.concatenate([part[0] for part in parts])
    lines = np.concatenate([part[1] for part in parts])
    order = np.argsort(lines, kind="stable")
    buckets = (hashes & np.uint64(BUCKETS - 1)).astype(np.int32)
    return Features(buckets[order], lines[order], num_lines)
