"""What a text is made of: letters by script, digits, signs, words and their lengths, broken signs.

A few passes of numpy over the code points, whatever the script: a mark belongs to the word of its
letter, which `\\w` of the standard library does not know.

Source: Unicode Standard 15.0, chapter 4 (general categories); vowel signs and viramas of
tables/SCRIPT.toml.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boli.corpus.script import (
    SCRIPTS,
    UNKNOWN_SCRIPT,
    in_ranges,
    script_of,
    script_of_letter,
    table,
)

# What a code point is; from LETTER on, a letter of the script _names()[kind - LETTER].
SIGN, SPACE, LINE_END, DIGIT, BROKEN, JOINER, LATIN_1, MARK, VOWEL_SIGN, VIRAMA, LETTER = range(11)
_FIRST_OF_WORD: Final = MARK  # marks, signs of vowels, viramas and letters make words
_POINTS: Final = 0x20000  # planes 0 and 1; what lies behind counts as a letter of no known script
_MOST_KINDS: Final = 64


class Shape(NamedTuple):
    """Counts of one text, in code points where nothing else is said."""

    length: int
    spaces: int  # with line ends
    digits: int
    signs: int  # punctuation, symbols, emoji
    broken: int  # U+FFFD, private use, controls, halves of surrogate pairs
    latin_1: int  # signs and letters of U+0080-00FF
    loose: int  # marks without a letter before them, and two vowel signs in a row
    letters: dict[str, int]  # by script, ISO 15924
    num_letters: int  # of all scripts, marks not counted
    words: tuple[int, ...]  # letters and marks of each word


EMPTY: Final = Shape(0, 0, 0, 0, 0, 0, 0, {}, 0, ())


def shape_of(text: str) -> Shape:
    """Count what the text is made of."""
    return shapes_of([text])[0]


def shapes_of(texts: Sequence[str]) -> list[Shape]:
    """Count what each text is made of; many at once take half the time."""
    if not texts:
        return []
    kinds, names = _kinds()
    # A line end before each text, so that no word and no mark has to do with the text before.
    data = "\n".join(["", *texts]).encode("utf-32-le", "surrogatepass")
    found = kinds[np.minimum(np.frombuffer(data, "<u4"), _POINTS)]
    lengths = np.array([len(text) for text in texts])
    starts = np.r_[0, np.cumsum(lengths[:-1] + 1)]
    rows = np.repeat(np.arange(len(texts)) * _MOST_KINDS, lengths + 1)
    counts = np.bincount(rows + found, minlength=len(texts) * _MOST_KINDS).reshape(-1, _MOST_KINDS)
    counts[:, LINE_END] -= 1
    pairs = found[1:] + _MOST_KINDS * found[:-1].astype(np.uint16)
    loose = np.add.reduceat(np.r_[_bad_pairs()[pairs], False], starts, dtype=np.int64)
    edges = np.flatnonzero(np.diff(_in_words(found), prepend=np.int8(0), append=np.int8(0)))
    words = (edges[1::2] - edges[::2]).tolist()
    ends = np.searchsorted(edges[::2], starts + lengths, "right").tolist()
    of_scripts = counts[:, LETTER : LETTER + len(names)]
    used = np.flatnonzero(of_scripts.any(0)).tolist()
    letters = [(names[i], of_scripts[:, i].tolist()) for i in used]
    firsts = [0, *ends[:-1]]
    columns = zip(
        lengths.tolist(),
        counts[:, :LETTER].tolist(),
        of_scripts.sum(1).tolist(),
        loose.tolist(),
        firsts,
        ends,
        strict=True,
    )
    return [
        Shape(
            length=length,
            spaces=count[SPACE] + count[LINE_END],
            digits=count[DIGIT],
            signs=count[SIGN] + count[LATIN_1],
            broken=count[BROKEN],
            latin_1=count[LATIN_1],
            loose=num_loose,
            letters={name: of_each[row] for name, of_each in letters if of_each[row]},
            num_letters=num_letters,
            words=tuple(words[first:end]),
        )
        for row, (length, count, num_letters, num_loose, first, end) in enumerate(columns)
    ]


def _in_words(found: NDArray[np.uint8]) -> NDArray[np.int8]:
    inside: NDArray[np.bool_] = (found >= _FIRST_OF_WORD) | (found == JOINER)
    return inside.astype(np.int8)


def main_script(text: str, shape: Shape) -> str:
    """Return what `script_of` does, from what was counted."""
    counts = sorted(shape.letters.values())
    is_tie = len(counts) > 1 and counts[-1] == counts[-2]  # the one that comes first wins
    if not counts or is_tie or UNKNOWN_SCRIPT in shape.letters:  # letters of plane 2 are there
        return script_of(text)
    return max(shape.letters, key=shape.letters.__getitem__)


@cache
def _bad_pairs() -> NDArray[np.bool_]:  # (_MOST_KINDS * before + here,)
    before, here = np.meshgrid(np.arange(_MOST_KINDS), np.arange(_MOST_KINDS), indexing="ij")
    is_mark = (here >= MARK) & (here < LETTER)
    alone = is_mark & (before < MARK) & (before != JOINER) & (before != SIGN)
    second = ((here == VOWEL_SIGN) | (here == VIRAMA)) & (
        (before == VOWEL_SIGN) | (before == VIRAMA)
    )
    bad: NDArray[np.bool_] = (alone | second).ravel()
    return bad


@cache
def _kinds() -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return the kind of each code point, and the scripts that letters are of."""
    kinds = np.zeros(_POINTS + 1, np.uint8)
    names: dict[str, int] = {}
    for point in range(_POINTS):
        character = chr(point)
        kinds[point] = _kind(character)
        if kinds[point] == LETTER:
            kinds[point] += names.setdefault(script_of_letter(character), len(names))
    kinds[_POINTS] = LETTER + names.setdefault(UNKNOWN_SCRIPT, len(names))
    for script in SCRIPTS:
        rules = table(script.lower())
        for sign in in_ranges(rules.get("vowel_signs", ())):
            kinds[ord(sign)] = VOWEL_SIGN
        if "virama" in rules:
            kinds[ord(rules["virama"])] = VIRAMA
    return kinds, tuple(names)


def _kind(character: str) -> int:
    category = unicodedata.category(character)
    if character == "\n":
        return LINE_END
    if character in "\u200c\u200d":
        return JOINER
    if character == "\ufffd" or (category in ("Cc", "Co", "Cs") and character not in "\t\r"):
        return BROKEN
    if "\x80" <= character <= "\xff" and character not in "\xa0«»°·×":
        return LATIN_1 if category[0] != "L" else LETTER
    kinds = {"L": LETTER, "M": MARK, "Z": SPACE}
    if category in ("Nd", "Nl"):
        return DIGIT
    return SPACE if character in "\t\r" else kinds.get(category[0], SIGN)
