"""Made-up sentences in four languages, built from hand-written patterns and word lists.

The language lies in starter_text/LANGUAGE.toml, not here: lists of words
("slots"), and sentence patterns with gaps. A gap `{veg}` takes a word of that
list, `{veg.2}` a different one. `{veg|a|b}` prints the form that agrees with
the word that stands for veg: the first for the list's first group (say,
masculine), the second for the next.

Source: written for this project. Nothing was copied from any text.
"""

from __future__ import annotations

import difflib
import random
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from boli.errors import CorpusError

_GAP = re.compile(r"\{([a-z_]+)(\.[2-9])?((?:\|[^{}|]*)*)\}")


class _Word(NamedTuple):
    """One entry of a slot; `group` counts the slot's groups from 0."""

    slot: str
    text: str
    group: int


class _Gap(NamedTuple):
    """One {…} of a pattern: which of its draws it prints, and in which forms."""

    draw: int
    forms: tuple[str, ...]  # one per group of the slot; empty prints the word itself


@dataclass(frozen=True)
class _Pattern:
    """A sentence with gaps; `fill` turns each number below `size` into one sentence."""

    parts: tuple[str | _Gap, ...]
    draws: tuple[tuple[_Word, ...], ...]  # the slot that each draw takes its word from

    @property
    def size(self) -> int:
        """Number of ways to fill the gaps."""
        size = 1
        for place, words in enumerate(self.draws):
            size *= len(words) - self.draws[:place].count(words)
        return size

    def fill(self, number: int) -> str:
        """Return one sentence; different numbers draw different words."""
        drawn: list[_Word] = []
        for words in self.draws:
            left = [word for word in words if word not in drawn]
            number, place = divmod(number, len(left))
            drawn.append(left[place])
        return "".join(
            part if isinstance(part, str) else _print(part, drawn) for part in self.parts
        )


class _Deck:
    """Deal the numbers below `left` in random order, each once, without listing them."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.moved: dict[int, int] = {}

    def deal(self, rng: random.Random) -> int:
        """Return one number; only while `left` is above 0."""
        place = rng.randrange(self.left)
        self.left -= 1
        number = self.moved.get(place, place)
        self.moved[place] = self.moved.pop(self.left, self.left)
        return number


def starter_languages() -> tuple[str, ...]:
    """Return the ISO 639-3 codes of the languages that have starter text."""
    names = (file.name for file in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def starter_capacity(language: str) -> int:
    """Return how many different sentences there are in this language.

    Raises:
        CorpusError: the language has no starter text, or its file is not well formed.
    """
    return sum(pattern.size for pattern in _patterns(language))


def starter_lines(language: str, count: int, seed: int = 0) -> list[str]:
    """Return `count` different made-up sentences, the same ones for the same seed.

    A shorter request is the beginning of a longer one. Every pattern is used
    about equally often, so a held-out line has near relatives among the others:
    this is text to try things out with, not to measure a language by.

    Raises:
        CorpusError: the language has no starter text, `count` is below 0, or
            there are not so many sentences.
    """
    patterns = _patterns(language)
    capacity = starter_capacity(language)
    if not 0 <= count <= capacity:
        raise CorpusError(
            f"cannot make {count} different sentences of starter text in {language!r}",
            hint=f"ask for 0 to {capacity}",
        )
    rng = random.Random(f"{language} {seed}")
    decks = [(pattern, _Deck(pattern.size)) for pattern in patterns]
    lines: list[str] = []
    while len(lines) < count:
        choice = rng.randrange(len(decks))
        pattern, deck = decks[choice]
        lines.append(pattern.fill(deck.deal(rng)))
        if not deck.left:
            del decks[choice]
    return lines


def _folder() -> Traversable:
    return files("boli.corpus").joinpath("starter_text")


@cache
def _patterns(language: str) -> tuple[_Pattern, ...]:
    languages = starter_languages()
    if language not in languages:
        near = difflib.get_close_matches(language, languages, n=1, cutoff=0.0)
        raise CorpusError(
            f"no starter text for language {language!r}",
            hint=f"there is {', '.join(languages)}; did you mean {near[0]!r}?",
        )
    data = tomllib.loads(_folder().joinpath(f"{language}.toml").read_text(encoding="utf-8"))
    slots = {name: _read_slot(name, words) for name, words in data["slots"].items()}
    return tuple(
        _read_pattern(f"{language}.toml, {topic}.{name}", text, slots)
        for topic, sentences in data["sentences"].items()
        for name, text in sentences.items()
    )


def _read_slot(name: str, words: list[str] | dict[str, list[str]]) -> tuple[_Word, ...]:
    groups = list(words.values()) if isinstance(words, dict) else [words]
    return tuple(_Word(name, text, group) for group, texts in enumerate(groups) for text in texts)


def _read_pattern(where: str, text: str, slots: dict[str, tuple[_Word, ...]]) -> _Pattern:
    parts: list[str | _Gap] = []
    names: dict[str, int] = {}  # "veg.2" → its draw
    draws: list[tuple[_Word, ...]] = []
    end = 0
    for match in _GAP.finditer(text):
        slot, copy, forms = match[1], match[2] or "", tuple(match[3].split("|")[1:])
        if slot not in slots:
            raise CorpusError(
                f"{where}: there is no list called {slot!r}",
                hint="add it under [slots], or correct the name between the braces",
            )
        num_groups = slots[slot][-1].group + 1
        if forms and len(forms) != num_groups:
            raise CorpusError(
                f"{where}: {match[0]} has {len(forms)} forms, but {slot!r} has {num_groups} groups",
                hint="give one form for each group of the list, in the same order",
            )
        if slot + copy not in names:
            names[slot + copy] = len(draws)
            draws.append(slots[slot])
        parts += [text[end : match.start()], _Gap(names[slot + copy], forms)]
        end = match.end()
    return _Pattern((*parts, text[end:]), tuple(draws))


def _print(gap: _Gap, drawn: list[_Word]) -> str:
    word = drawn[gap.draw]
    return gap.forms[word.group] if gap.forms else word.text
