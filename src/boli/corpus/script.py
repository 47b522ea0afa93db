"""Which script a text is written in, and the tables of the scripts.

Source: Unicode Standard Annex #24 (scripts); codes of ISO 15924. The ranges lie in
tables/SCRIPT.toml.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("Deva", "Beng", "Orya", "Knda", "Olck", "Arab", "Latn")
NO_SCRIPT = "Zyyy"

_ANY_LETTERS = re.compile(r"[^\W\d_]+")  # \w has letters, but no marks


@cache
def table(name: str) -> dict[str, Any]:
    """Return tables/NAME.toml as it stands; nobody may change what comes back."""
    path = files("boli.corpus").joinpath("tables", f"{name}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def in_ranges(ranges: Iterable[str]) -> list[str]:
    """Return every code point of ranges such as "0900-097F" as a character."""
    characters: list[str] = []
    for span in ranges:
        first, _, last = span.partition("-")
        characters += map(chr, range(int(first, 16), int(last or first, 16) + 1))
    return characters


def letters_of(script: str, categories: str = "LM") -> str:
    """Return the script's letters and marks, ready to stand between [ and ] in a pattern."""
    return ranges_of(
        character
        for character in in_ranges(table(script.lower())["blocks"])
        if unicodedata.category(character)[0] in categories
    )


def ranges_of(characters: Iterable[str]) -> str:
    r"""Return characters as ranges that can stand between [ and ], such as "\u0905-\u0939"."""
    spans: list[list[int]] = []
    for point in sorted(set(map(ord, characters))):
        if spans and spans[-1][1] == point - 1:
            spans[-1][1] = point
        else:
            spans.append([point, point])
    return "".join(f"\\U{first:08X}-\\U{last:08X}" for first, last in spans)


def script_of(text: str) -> str:
    """Return the ISO 15924 code of the script that most letters of the text are of.

    "Zyyy" where there are no letters, or where more of them are of scripts that have no
    table here than of any that has one. Marks, digits and signs are not counted; of
    scripts with equally many letters the first in SCRIPTS wins.
    """
    if text.isascii():
        return "Latn" if _ANY_LETTERS.search(text) else NO_SCRIPT
    total = _count(_ANY_LETTERS, text)
    best, most, others = NO_SCRIPT, 0, total
    for script in SCRIPTS:
        count = _count(_pattern(script), text)
        others -= count
        if count > most:
            best, most = script, count
        if 2 * count > total:
            return script
    return best if most >= others else NO_SCRIPT


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))


@cache
def _pattern(script: str) -> re.Pattern[str]:
    return re.compile(f"[{letters_of(script, 'L')}]+")
