"""Text as patterns for personal data read it: ASCII digits, letters and signs, same length.

A folded text has as many code points as the text, so that a span of one is a span of the other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from boli.corpus.script import ranges_of, table

# Letters and marks of the scripts that words are looked for in; not danda, digits or ॰.
LETTERS = "A-Za-z\u0600-\u0659\u066e-\u06d3\u0900-\u0963\u0971-\u0dff\u1c5a-\u1c7d"
# What people put between the groups of a number.
GAP = r"(?: ?[-.\u200b] ?| {1,2})"

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"
_UNSEEN = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_CLAIMED = "\0"
_FIRST_FAR = "\U00010000"
_FAR = re.compile("[\U00010000-\U0001ffff]")


@dataclass(frozen=True, slots=True)
class Span:
    """Where personal data stands in a text; the first code point is 0, `end` is not part of it.

    `value` is what makes two spans the same person's: it is personal data itself, and is left
    out of repr() so that it does not get into a log.
    """

    start: int
    end: int
    kind: str
    value: str = field(repr=False)


class Folded:
    """A folded text from which spans are claimed one kind after the other.

    What is claimed is blotted out, so that no later pattern can run into it.
    """

    def __init__(self, text: str) -> None:
        if not text.isascii():
            folds, near, far = _folds()
            text = near.sub(lambda match: folds[match[0]], text)
            if _FAR.search(text):
                text = far.sub(lambda match: folds[match[0]], text)
        self.text = text.replace(_CLAIMED, "\u200b")
        self.spans: list[Span] = []
        self._taken = bytearray(len(text))

    def claim(self, found: Iterable[Span]) -> None:
        """Take the spans that overlap none before them."""
        taken = []
        for span in found:
            if self._taken.find(1, span.start, span.end) < 0:
                self._taken[span.start : span.end] = b"\1" * (span.end - span.start)
                taken.append(span)
        if not taken:
            return
        parts, end = [], 0
        for span in sorted(taken, key=lambda span: span.start):
            parts += [self.text[end : span.start], _CLAIMED * (span.end - span.start)]
            end = span.end
        self.text = "".join((*parts, self.text[end:]))
        self.spans += taken


def words(group: str, name: str) -> str:
    """Return a list of tables/personal.toml as alternatives of a pattern, longest first."""
    found: list[str] = lists()[group][name]
    return "|".join(re.escape(word) for word in sorted(found, key=len, reverse=True))


def cue(group: str, name: str = "cues") -> str:
    """Return a pattern for one of the words of a list, as a whole word."""
    return f"(?<![{LETTERS}])(?:{words(group, name)})(?![{LETTERS}])"


@cache
def lists() -> dict[str, Any]:
    """Return tables/personal.toml."""
    return table("personal")


@cache
def _folds() -> tuple[dict[str, str], re.Pattern[str], re.Pattern[str]]:
    folds = {chr(point): chr(point - 0xFEE0) for point in range(0xFF01, 0xFF5F)}
    folds |= dict.fromkeys(_DASHES, "-")
    folds |= dict.fromkeys(_UNSEEN, "\u200b")
    for character in map(chr, range(0x80, 0x20000)):
        category = unicodedata.category(character)
        if category == "Nd":
            folds[character] = str(unicodedata.decimal(character))
        elif category == "Zs":
            folds[character] = " "
    # Apart, because a class that reaches above U+FFFF is five times slower.
    near = re.compile(f"[{ranges_of(filter(lambda old: old < _FIRST_FAR, folds))}]")
    return folds, near, re.compile(f"[{ranges_of(filter(lambda old: old >= _FIRST_FAR, folds))}]")
