"""Which script a text is written in, and the tables of the scripts.

Source: Unicode Standard Annex #24 (scripts); codes of ISO 15924. The ranges lie in
tables/SCRIPT.toml.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("Deva", "Beng", "Orya", "Knda", "Olck", "Arab", "Latn")
NO_SCRIPT, UNKNOWN_SCRIPT = "Zyyy", "Zzzz"
_NAMED = {  # first word of a character's Unicode name → ISO 15924
    "DEVANAGARI": "Deva",
    "LATIN": "Latn",
    "FULLWIDTH": "Latn",
    "BENGALI": "Beng",
    "ORIYA": "Orya",
    "KANNADA": "Knda",
    "OL": "Olck",
    "ARABIC": "Arab",
    "GUJARATI": "Gujr",
    "GURMUKHI": "Guru",
    "TAMIL": "Taml",
    "TELUGU": "Telu",
    "MALAYALAM": "Mlym",
    "SINHALA": "Sinh",
    "TIBETAN": "Tibt",
    "MEETEI": "Mtei",
    "WARANG": "Wara",
    "MYANMAR": "Mymr",
    "THAI": "Thai",
    "CYRILLIC": "Cyrl",
    "GREEK": "Grek",
    "HEBREW": "Hebr",
    "CJK": "Hani",
    "HIRAGANA": "Hira",
    "KATAKANA": "Kana",
    "HANGUL": "Hang",
}
KNOWN_SCRIPTS = frozenset(_NAMED.values())


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


def replaced_characters(variant: str | None = None) -> dict[str, str]:
    """Return what `normalize` writes for single characters, most of them nothing.

    `variant` chooses between letters of the Perso-Arabic script; None: those of all variants.
    """
    common = table("common")
    characters = dict.fromkeys(in_ranges(common["removed"]), "")
    characters |= dict.fromkeys(in_ranges(common["spaces"]), " ")
    characters |= dict.fromkeys(in_ranges(common["line_ends"]), "\n")
    characters |= dict.fromkeys(in_ranges(common["broken"]), "\ufffd")
    for script in SCRIPTS:
        rules = table(script.lower())
        for shape in in_ranges(rules.get("shapes", ())):
            letters = unicodedata.normalize("NFKC", shape)
            if letters != shape and unicodedata.category(shape)[0] != "C":
                characters[shape] = letters.lstrip(" ")
        characters |= rules.get("characters", {})
        for name, letters in rules.get("variants", {}).items():
            if variant in (None, name):
                characters |= letters
    return characters


@cache
def precomposed_letters() -> dict[str, str]:
    """Return letters such as U+095C that NFC writes as two code points, and which those are."""
    blocks = [block for script in SCRIPTS for block in table(script.lower())["blocks"]]
    return {
        letter: parts
        for letter in in_ranges(blocks)
        if len(parts := unicodedata.normalize("NFC", letter)) > 1
    }


def script_of(text: str) -> str:
    """Return the ISO 15924 code of the script that most letters of the text are of.

    "Zyyy" where there are no letters, "Zzzz" where most are of a script that is not known
    here. Marks, digits and signs are not counted; of scripts with equally many letters the one
    that comes first in the text wins.
    """
    found: dict[str, int] = {}
    for character, count in Counter(text).items():  # in the order in which they come first
        script = script_of_letter(character)
        if script:
            found[script] = found.get(script, 0) + count
    return max(found, key=found.__getitem__) if found else NO_SCRIPT


@lru_cache(1 << 16)
def script_of_letter(character: str) -> str:
    """Return a letter's script; empty for what is no letter."""
    if unicodedata.category(character)[0] != "L":
        return ""
    return _NAMED.get(unicodedata.name(character, "?").split()[0], UNKNOWN_SCRIPT)
