"""Clean a text line by line, so that a document is not lost for one bad line.

Source: written for this project.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from boli.corpus.residue import (
    LONGEST_BUTTON,
    boilerplate_share,
    is_menu,
    markup_share,
    may_be_marked,
    may_be_menu,
)
from boli.corpus.shape import Shape, shape_of

_MENU_LINES, _MENU_WORDS = 5, 3  # a run of so many lines, each of at most so many words
_MENU_MEAN = 2.2  # words a line; verse in short lines has more
_ENDS = ("।", "॥", "᱾", "᱿", "|", ".", "?", "!", "…", ",", ";", '"', "”", "’", "'", "—", "-")
_MOST_BOILERPLATE, _MOST_MARKUP = 0.5, 0.3  # share of a line
_LONG_LINE = 300  # code points: no menu and no button
_REPEATED_WORDS = 4  # a line of so many words needs to be there once
_LETTERS_FOR_SCRIPT = 20
_LEAST_OWN = 0.3  # of a line's letters
_AROUND = " \t.,;:!?।॥᱾()-–—•*\"'0123456789०१२३४५६७८९"  # does not make a line another


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A text without its bad lines, and how many went for which reason."""

    text: str
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """Why nothing is left; empty where something is."""
        return (
            "" if self.text or not self.dropped else max(self.dropped, key=self.dropped.__getitem__)
        )


def clean_lines(text: str, *, script: str = "", shape: Shape | None = None) -> Cleaned:
    """Drop lines that are boilerplate, markup, menus, drawn or repeated; keep the others.

    With a script (ISO 15924) lines of twenty letters or more go too where few are of it. A text
    of one line is left to `judge`. Reasons are those of `judge`. Doing it again may drop more:
    two runs of short lines can meet. `shape` is what `shape_of` says, where that is known already.
    """
    if "\n" not in text:
        return Cleaned(text)
    lines = text.split("\n")
    mixed = False
    if script:
        shape = shape or shape_of(text)
        mixed = shape.num_letters - shape.letters.get(script, 0) >= _LETTERS_FOR_SCRIPT
    marked, barred = may_be_marked(text), may_be_menu(text)
    reasons = [_reason(line, script if mixed else "", marked, barred) for line in lines]
    _mark_repeated(lines, reasons)
    _mark_menus(lines, reasons)
    if not any(reasons):
        return Cleaned(text)
    kept = "\n".join(line for line, reason in zip(lines, reasons, strict=True) if not reason)
    kept = re.sub("\n{3,}", "\n\n", kept).strip("\n")
    return Cleaned(kept, dict(Counter(filter(None, reasons))))


def drop_menus(lines: Sequence[str]) -> list[str]:
    """Return the lines without runs of short ones that are no sentences."""
    reasons = [""] * len(lines)
    _mark_menus(lines, reasons)
    return [line for line, reason in zip(lines, reasons, strict=True) if not reason]


def _reason(line: str, script: str, marked: bool, barred: bool) -> str:
    """Return why a line is dropped whatever stands beside it, or nothing."""
    if not line or line.isspace():
        return ""
    if len(line) <= LONGEST_BUTTON and boilerplate_share(line) > _MOST_BOILERPLATE:
        return "boilerplate"
    if barred and len(line) < _LONG_LINE and is_menu(line):
        return "list or table"
    if marked and markup_share(line) > _MOST_MARKUP:
        return "markup"
    if not any(map(str.isalnum, line)):
        return "too many digits or signs"
    if script and len(line) >= _LETTERS_FOR_SCRIPT:  # looking takes long, where lines are many
        shape = shape_of(line)
        if shape.num_letters >= _LETTERS_FOR_SCRIPT:
            own = shape.letters.get(script, 0)
            return "wrong script" if own < _LEAST_OWN * shape.num_letters else ""
    return ""


def _mark_repeated(lines: Sequence[str], reasons: list[str]) -> None:
    seen: set[str] = set()
    for place, line in enumerate(lines):
        if reasons[place] or line.count(" ") < _REPEATED_WORDS - 1:
            continue
        form = line.strip(_AROUND)
        if form in seen:
            reasons[place] = "repeated lines"
        seen.add(form)


def _mark_menus(lines: Sequence[str], reasons: list[str]) -> None:
    """Mark runs of lines of few words without the end of a sentence; empty lines may be within."""
    if len(lines) < _MENU_LINES:
        return
    run: list[int] = []
    num_words = 0
    for place, line in enumerate([*lines, "a line of words that ends a run."]):
        words = line.split(None, _MENU_WORDS)
        if not words:
            continue
        if len(words) <= _MENU_WORDS and not words[-1].endswith(_ENDS):
            run.append(place)
            num_words += len(words)
            continue
        if len(run) >= _MENU_LINES and num_words <= _MENU_MEAN * len(run):
            for member in run:
                reasons[member] = reasons[member] or "list or table"
        run, num_words = [], 0
