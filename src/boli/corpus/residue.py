"""How much of a text is boilerplate, markup, or text in a broken encoding.

Each function returns a share or a count, and looks closely only where the text has something
that it cannot do without.

Source: written for this project; the patterns lie in tables/quality.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from boli.corpus.normalize import normalize
from boli.corpus.script import letters_of, table
from boli.corpus.shape import Shape

_MARKUP_SIGNS = "<$%\\&=;{}[]"
# What the pattern in the table finds has one of these, a declaration's ":" and ";", or the others.
_SURE_SIGNS = ("<", "$", "&", '="', "{{", "}}", "[[", "]]", "{|", "|}", "'''")
_CODE = re.compile("function|var|const|let|return|document|window", re.I)
_FORMAT = re.compile(r"%(?:\d\$)?[sd]", re.I)
_SELECTOR = re.compile(r"[#.][A-Za-z\u0130\u0131\u017f\u212a][\w-]* ?\{")
# With what stands for i, s and k where case is ignored.
_LATIN = re.compile("[A-Za-z\u0130\u0131\u017f\u212a]")
_LATIN_WORD = re.compile(r"[A-Za-z]{2,}")
_VOWEL = re.compile("[aeiouyAEIOUY]")
_FEWEST_LATIN = 5  # words
_AROUND = ".,;:!?।॥()[]-–—\"'“”‘’"  # stands at a word, and is none of it
LONGEST_BUTTON = 120  # code points: what is longer is not mostly phrases of a page
_MENU_PARTS = re.compile("[|»›•·→>«‹]+")
_MENU_SIGNS = "|»›•·→>«‹"


def boilerplate_share(text: str) -> float:
    """Return the share of the text that is phrases such as "और पढ़ें", 0 to 1."""
    if not (_has_any(text, _phrase_words()) or _LATIN.search(text)):
        return 0.0
    found = sum(len(phrase) for phrase in _boilerplate().findall(text))
    return found / len(text) if found else 0.0


def may_be_marked(text: str) -> bool:
    """Say whether `markup_share` has to look closely."""
    if not _has_any(text, _MARKUP_SIGNS):
        return False
    if _has_any(text, _SURE_SIGNS) or (";" in text and ":" in text):
        return True
    return bool(_LATIN.search(text)) and (
        ("%" in text and bool(_FORMAT.search(text)))
        or ("{" in text and bool(_SELECTOR.search(text)))
        or bool(_CODE.search(text))
    )


def markup_share(text: str) -> float:
    """Return the share of the text that is tags, style rules, code or templates, 0 to 1."""
    if not may_be_marked(text):
        return 0.0
    return sum(match.end() - match.start() for match in _residue().finditer(text)) / len(text)


def mojibake_share(text: str) -> float:
    """Return the share of the text that is UTF-8 read as Latin-1 or Windows-1252, 0 to 1."""
    found = len(_mojibake().findall(text))
    return min(1.0, 3 * found / len(text)) if found >= 3 else 0.0


def legacy_share(text: str) -> float:
    """Return the share of Latin words that only a font makes Devanagari, such as "vkSj".

    Words without a vowel count too: English, romanised Hindi and Santali have few of them. 0
    where there are fewer than five Latin words.
    """
    latin = _LATIN_WORD.findall(text)
    if len(latin) < _FEWEST_LATIN:
        return 0.0
    known = _legacy()
    strange = sum(word in known or not (_VOWEL.search(word) or word.isupper()) for word in latin)
    return strange / len(latin)


def may_be_menu(text: str) -> bool:
    """Say whether `is_menu` has to look closely at a line of the text."""
    return _has_any(text, _MENU_SIGNS)


def is_menu(line: str) -> bool:
    """Say whether a line is short parts with bars or arrows between."""
    if not may_be_menu(line):
        return False
    parts = [part for part in _MENU_PARTS.split(line) if part.strip()]
    return len(parts) >= 4 and sum(len(part.split()) <= 3 for part in parts) > 0.8 * len(parts)


def words_not_in(language: str, words: Sequence[str]) -> int:
    """Return how many of the words a wide language has not, though its neighbors have."""
    foreign = _not_in(language)
    return sum(word.strip(_AROUND) in foreign for word in words) if foreign else 0


def is_loose(shape: Shape, share: float) -> bool:
    """Say whether marks stand where no letter carries them more often than `share` of letters."""
    return shape.loose >= 3 and shape.loose > share * shape.num_letters


def _has_any(text: str, signs: Iterable[str]) -> bool:
    """Say whether one of a few signs is in the text: faster than a class of a pattern."""
    for sign in signs:  # noqa: SIM110 - any() takes thrice as long
        if sign in text:
            return True
    return False


@cache
def _not_in(language: str) -> frozenset[str]:
    return frozenset(map(normalize, table("quality")["language"]["not_in"].get(language, ())))


@cache
def _phrase_words() -> tuple[str, ...]:
    """Return words of which each phrase without a Latin letter has one."""
    return tuple(map(normalize, table("quality")["phrases"]["words"]))


@cache
def _boilerplate() -> re.Pattern[str]:
    letters = "".join(letters_of(script) for script in ("Deva", "Beng", "Orya", "Knda", "Olck"))
    phrases = [normalize(p) for own in table("quality")["boilerplate"].values() for p in own]
    phrases.sort(key=len, reverse=True)
    return re.compile(rf"(?<![\w{letters}])(?:{'|'.join(phrases)})(?![\w{letters}])", re.I | re.M)


@cache
def _residue() -> re.Pattern[str]:
    return re.compile(table("quality")["markup"]["residue"], re.I)


@cache
def _mojibake() -> re.Pattern[str]:
    return re.compile(table("quality")["broken"]["mojibake"])


@cache
def _legacy() -> frozenset[str]:
    return frozenset(table("quality")["broken"]["legacy"])
