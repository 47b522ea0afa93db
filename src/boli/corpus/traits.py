"""What a text may need, told by its characters and by which of them stand side by side.

A text without a trait is not changed by the step that the trait is named for; one that has it may
or may not be. All texts of a batch are looked at together, which costs less than one search by one
regular expression in each.

Source: written for this project. What composes and in which order marks stand: Unicode Standard
Annex #15; the tables of the scripts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boli.corpus.markup import SUSPECT_SIGNS
from boli.corpus.pii_fold import lists
from boli.corpus.script import (
    SCRIPTS,
    in_ranges,
    precomposed_letters,
    replaced_characters,
    table,
)

MARKUP: Final = 1  # strip_markup may change the text
PRECOMPOSED: Final = 2  # the four stages of normalize may
CHARACTERS: Final = 4
SEQUENCES: Final = 8
SPACES: Final = 16
NORMAL: Final = PRECOMPOSED | CHARACTERS | SEQUENCES | SPACES
VARIANT: Final = 32  # NFKC may, where NFC does not, or small letters for capitals
ADDRESS: Final = 64  # personal data but for numbers may be in it
CAPITAL: Final = 128  # A-Z, without which a few digits are no number of a person

_POINTS: Final = 0x20000  # planes 0 and 1
_FAR: Final = _POINTS  # for all that lies behind
_END: Final = _POINTS + 1  # stands between texts
_INDIC: Final = range(0x0900, 0x0E00)
_MANY_MARKS: Final = 8  # in a row; normalize cuts longer runs only, and few texts have one


class _Rule(NamedTuple):
    """A character of `second` has a trait, or has it behind one of `first`."""

    trait: int
    first: frozenset[int] | None
    second: frozenset[int]


def traits_of(texts: Sequence[str]) -> NDArray[np.uint8]:  # (n,)
    """Return the traits of each text."""
    if not texts:
        return np.zeros(0, np.uint8)
    classes, pairs, marks = _tables()
    joined = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    points = np.empty(joined.size + 2, np.uint32)
    points[0] = points[-1] = _END
    np.minimum(joined, _FAR, out=points[1:-1])
    ends = np.cumsum([len(text) + 1 for text in texts])
    points[ends] = _END
    found = classes[points]
    here = found[1:].astype(np.uint16)
    here += found[:-1].astype(np.uint16) << 8
    # Each text with the pairs that its first and last character make with the ends.
    of_texts = np.bitwise_or.reduceat(pairs[here], np.r_[0, ends[:-1]])
    for run, trait in (
        (_runs(marks[found], _MANY_MARKS), CHARACTERS),
        (_runs(found == classes[ord("\n")], 3), SPACES),
    ):
        of_texts[np.searchsorted(ends, np.flatnonzero(run))] |= trait
    return of_texts


def _runs(there: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Return where so many stand in a row, at the place of the first."""
    have = 1
    while have < length:
        step = min(have, length - have)
        there = there[:-step] & there[step:]
        have += step
    return there


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the class of each code point, the traits of two classes in a row, and of marks.

    Code points are of one class where no rule tells them apart.
    """
    rules = list(_rules())
    marks = frozenset(p for p in range(0x300, 0x10000) if unicodedata.combining(chr(p)))
    member: dict[int, list[int]] = {}
    sets = [*(rule.first for rule in rules), *(rule.second for rule in rules), marks, {10}]
    for number, points in enumerate(sets):
        for point in points or ():
            member.setdefault(point, []).append(number)
    numbers: dict[tuple[int, ...], int] = {(): 0}
    classes = np.zeros(_END + 1, np.uint8)
    for point, of in member.items():
        classes[point] = numbers.setdefault(tuple(of), len(numbers))
    if len(numbers) > 256:
        raise AssertionError(f"{len(numbers)} classes of code points do not fit into a byte")
    pairs = np.zeros((256, 256), np.uint8)
    inside = np.zeros((len(sets), 256), np.bool_)
    for sets_of, number in numbers.items():
        inside[list(sets_of), number] = True
    for place, rule in enumerate(rules):
        first = inside[place] if rule.first is not None else np.ones(256, np.bool_)
        pairs[np.ix_(first, inside[len(rules) + place])] |= rule.trait
    return classes, pairs.ravel(), inside[2 * len(rules)]


def _rules() -> Iterable[_Rule]:
    yield from _of_markup()
    yield from _of_characters()
    yield from _of_sequences()
    yield from _of_spaces()
    yield from _of_personal_data()


def _points(text: Iterable[str]) -> frozenset[int]:
    return frozenset(map(ord, text))


def _pair(trait: int, first: Iterable[str], second: Iterable[str]) -> _Rule:
    return _Rule(trait, _points(first), _points(second))


def _of_markup() -> Iterable[_Rule]:
    """Yield what `_SUSPECT` of markup.py looks for, and line ends, at which texts are wrapped."""
    yield _Rule(MARKUP, None, _points(SUSPECT_SIGNS) | frozenset(range(0x2500, 0x2580)))
    for first, second in ("''", "()", "//", "__", "nb", "fu", "/*"):
        yield _pair(MARKUP, first, second)
    yield _pair(MARKUP, "-=_*~", "-=_*~")
    yield _Rule(MARKUP, frozenset({10, _END}), _points("#*="))
    yield _pair(MARKUP, " ", "=")


def _of_characters() -> Iterable[_Rule]:
    changed, variant, holding = set[int](), set[int](), set[int]()
    orders = {7: set[int](), 9: set[int](), 0: set[int]()}  # of marks
    for point, character in enumerate(map(chr, range(_POINTS))):
        if unicodedata.normalize("NFC", character) != character:
            changed.add(point)
        elif unicodedata.normalize("NFKC", character.lower()) != character:
            variant.add(point)
        order = unicodedata.combining(character)
        if order:
            orders[order if order in orders else 0].add(point)
        elif unicodedata.combining(unicodedata.normalize("NFD", character)[-1]):
            holding.add(point)
    precomposed = _points(precomposed_letters())
    replaced = {min(point, _FAR) for point in _points(replaced_characters())}
    yield _Rule(PRECOMPOSED, None, precomposed)
    yield _Rule(CHARACTERS, None, frozenset(changed - precomposed | replaced | {_FAR}))
    yield _Rule(VARIANT, None, frozenset(variant))
    # Marks that may stand in the wrong order: but a nukta (7) does not before a virama (9).
    nuktas, viramas, others = (frozenset(orders[order]) for order in (7, 9, 0))
    marks = nuktas | viramas | others
    yield _Rule(CHARACTERS, marks, others | nuktas)
    yield _Rule(CHARACTERS, others | viramas, viramas)
    # A letter that holds a mark may have to let it go, for another to stand before it.
    yield _Rule(CHARACTERS, frozenset(holding), marks)
    yield from _composing(viramas)


def _composing(viramas: frozenset[int]) -> Iterable[_Rule]:
    """Yield which two code points NFC writes as one: one by one in the scripts of India."""
    indic: dict[int, set[int]] = {}
    firsts, seconds = set(range(0x1100, 0x1113)), {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    firsts.update(range(0xAC00, 0xD7A4, 28))
    for point in range(_POINTS):
        parts = unicodedata.decomposition(chr(point)).split()
        if len(parts) != 2 or parts[0].startswith("<"):
            continue
        first, second = (int(part, 16) for part in parts)
        if second in _INDIC:
            indic.setdefault(second, set()).add(first)
        else:
            firsts.add(first)
            seconds.add(second)
    for second, before in indic.items():
        composed = {
            p for p in before if len(unicodedata.normalize("NFC", chr(p) + chr(second))) < 2
        }
        if composed:
            yield _Rule(CHARACTERS, frozenset(composed), frozenset({second}))
    yield _Rule(CHARACTERS, frozenset(firsts), frozenset(seconds))
    # The virama of Sinhala makes another vowel sign, also with a nukta between.
    nuktas = frozenset(p for p in _INDIC if unicodedata.combining(chr(p)) == 7)
    yield _Rule(CHARACTERS, nuktas, viramas & (indic.keys() | seconds))


def _of_sequences() -> Iterable[_Rule]:
    scripts = [table(script.lower()) for script in SCRIPTS]
    needed = {pattern["needs"] for script in scripts for pattern in script.get("patterns", ())}
    yield _Rule(SEQUENCES, None, _points({"\u200c", "\u200d", "|", *needed}))
    before: dict[str, set[str]] = {}
    for script in scripts:
        for sequence in script.get("sequences", ()):
            before.setdefault(sequence[-1], set()).add(sequence[-2])
    for last, others in before.items():
        yield _pair(SEQUENCES, others, last)
    indic = [script for script in scripts if "virama" in script]
    nuktas, viramas, bindus = (
        "".join(script[name] for script in indic) for name in ("nukta", "virama", "bindu")
    )
    signs = "".join(sign for script in indic for sign in in_ranges(script["vowel_signs"]))
    yield _pair(SEQUENCES, signs + bindus, nuktas)
    yield _pair(SEQUENCES, bindus, signs)
    for twice in (nuktas, viramas, bindus, "।"):
        yield _pair(SEQUENCES, twice, twice)


def _of_spaces() -> Iterable[_Rule]:
    blank = frozenset({ord(" "), 10})
    yield _pair(SPACES, " ", " \n")
    yield _pair(SPACES, "\n", " ")
    yield _Rule(SPACES, frozenset({_END}), blank)
    yield _Rule(SPACES, blank, frozenset({_END}))


def _of_personal_data() -> Iterable[_Rule]:
    """Yield what e-mail, UPI and web addresses cannot do without, once pii_fold.py folded it."""
    latin = {chr(point) for point in range(0x80) if chr(point).isalpha()}
    yield _Rule(ADDRESS, None, _points("@") | frozenset(range(0xFF01, 0xFF5F)))
    yield _pair(ADDRESS, ".", latin)
    yield _pair(ADDRESS, "/:", "/")
    yield _pair(ADDRESS, "wW", "wW")
    for word in lists()["email"]["at"]:
        yield _pair(ADDRESS, {word[0], word[0].upper()}, {word[1], word[1].upper()})
    capitals = _points(sign for sign in latin if sign.isupper())
    yield _Rule(CAPITAL, None, capitals | {0xFEE0 + point for point in capitals})  # full width
