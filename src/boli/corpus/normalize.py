"""One way to write what looks and means the same: Unicode and script rules.

The canonical form is NFC, so what others do with NFC later changes nothing: a nukta letter
is two code points (ड़ = ड + ़) except for ऩ ऱ ऴ, which NFC writes as one. On top of it come
rules that NFC has not: signs in the wrong order, vowel letters put together from parts,
joiners without a meaning, pipes for dandas, invisible characters and spaces. Digits,
quotation marks, ॲ, ଵ, and joiners that change how a word looks stay as they were written.

Source: Unicode Standard Annex #15 (normalization forms), the Unicode Standard 15.0 chapters
9, 12 and 13, and DoNotEmit.txt of its database. The rules lie in tables/*.toml.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from boli.corpus.script import (
    SCRIPTS,
    in_ranges,
    letters_of,
    precomposed_letters,
    ranges_of,
    replaced_characters,
    table,
)
from boli.corpus.traits import CHARACTERS, NORMAL, PRECOMPOSED, SEQUENCES, SPACES, traits_of

_MOST_MARKS = 30  # of UAX #15, section 13 (Stream-Safe Text Format)
_JOINERS = re.compile("[\u200c\u200d]+")
_TWO_DANDAS = re.compile("(?<!।)।।(?!।)")
_MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|[<>=]|\$\d")


@dataclass(frozen=True)
class _Rules:
    """The tables of all scripts, compiled for one language."""

    characters: dict[str, str]
    suspect: re.Pattern[str]  # any of these characters
    many_marks: re.Pattern[str]  # more than a letter can carry
    sequences: dict[str, str]
    sequence: re.Pattern[str]  # any of those sequences
    misplaced: re.Pattern[str]  # a nukta behind a sign, or a vowel sign behind a bindu
    signs: re.Pattern[str]  # a run of such signs
    places: dict[str, int]  # in which they stand in a run
    doubled: re.Pattern[str]  # two of a sign that a letter carries once
    patterns: tuple[tuple[str, re.Pattern[str], str], ...]  # each with a character it needs
    viramas: frozenset[str]
    cursive: frozenset[str]  # letters and marks of the Perso-Arabic script
    emoji: frozenset[str]
    dandas: tuple[_Danda, ...]


@dataclass(frozen=True)
class _Danda:
    """Where a pipe stands for a danda, in scripts that share one."""

    single: str
    double: str
    attached: re.Pattern[str]
    spaced: re.Pattern[str]
    twice: re.Pattern[str]
    verse: re.Pattern[str]


def normalize(text: str, language: str = "") -> str:
    """Return the text in its canonical form; doing it again changes nothing.

    `language` (ISO 639-3) chooses between letters that look alike in the Perso-Arabic script:
    for Urdu ك becomes ک. Without it, and for languages that use both, they stay. Line ends
    become \\n, at most one line in a row is empty, and spaces at the ends of lines go. Of marks
    that one letter carries, those behind the thirtieth go. A text that has letters keeps them.
    """
    stages = _stages(language if language in table("arab")["languages"] else "")
    while True:
        before = text
        for _, stage in stages:
            text = stage(text)
        if text == before:
            return text


def ascii_digits(text: str) -> str:
    """Return the text with every decimal digit of any script as 0-9, same length.

    For matching and counting: `normalize` keeps digits as they were written.
    """
    return text if text.isascii() else text.translate(_digits())


def normalize_all(
    texts: Sequence[str],
    language: str = "",
    traits: NDArray[np.uint8] | None = None,  # (n,) of the texts, where they are known
) -> tuple[list[str], NDArray[np.uint8]]:
    """Return what `normalize` makes of each text, in a fraction of the time, and its traits.

    A stage is left out for a text that has nothing which the stage could change. Of MARKUP the
    traits tell what was there before spaces and empty lines went.
    """
    stages = _stages(language if language in table("arab")["languages"] else "")
    changed = list(texts)
    traits = traits_of(texts) if traits is None else traits.copy()
    going = np.ones(len(texts), np.bool_)
    while (traits[going] & NORMAL).any():
        again = np.zeros_like(going)
        for trait, stage in stages:
            touched = []
            for place in np.flatnonzero(going & ((traits & trait) > 0)).tolist():
                text = stage(changed[place])
                if text != changed[place]:
                    changed[place] = text
                    touched.append(place)
            if trait == SPACES:  # nothing but blanks has other neighbors now
                traits[touched] &= ~np.uint8(SPACES)
            else:
                traits[touched] = traits_of([changed[place] for place in touched])
            again[touched] = True
        going = again
    return changed, traits


@cache
def _stages(language: str) -> tuple[tuple[int, Callable[[str], str]], ...]:
    """Return the stages in their order, each with the trait of texts that it may change.

    One can make work for those before it.
    """
    rules = _rules(language)
    return (
        (PRECOMPOSED, _apart),
        (CHARACTERS, partial(_characters, rules=rules)),
        (SEQUENCES, partial(_sequences, rules=rules)),
        (SPACES, _spaces),
    )


def _apart(text: str) -> str:
    """Write letters as two code points where NFC does; it would look at all others too."""
    for letter, parts in precomposed_letters().items():
        if letter in text:
            text = text.replace(letter, parts)
    return text


def _characters(text: str, rules: _Rules) -> str:
    if text.isascii() and text.isprintable():
        return text
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    text = rules.suspect.sub(lambda match: rules.characters[match[0]], text)
    # Sorting a run of marks takes the square of its length.
    text = rules.many_marks.sub(r"\1", text)
    return unicodedata.normalize("NFC", text)


def _sequences(text: str, rules: _Rules) -> str:
    if text.isascii():
        return text
    if "\u200c" in text or "\u200d" in text:
        text = _JOINERS.sub(lambda match: _joiner(match, rules), text)
    text = rules.sequence.sub(lambda match: rules.sequences[match[0]], text)
    if rules.misplaced.search(text):
        # All of a run at once: swapping neighbors would take a pass for each sign.
        text = rules.signs.sub(
            lambda match: "".join(sorted(match[0], key=rules.places.__getitem__)), text
        )
    if rules.doubled.search(text):
        text = rules.doubled.sub(r"\1", text)
    for needed, pattern, replacement in rules.patterns:
        if needed in text:
            text = pattern.sub(replacement, text)
    if "|" in text:
        text = "\n".join(_pipes(line, rules.dandas) for line in text.split("\n"))
    if "।।" in text:
        text = _TWO_DANDAS.sub("॥", text)
    return text


def _spaces(text: str) -> str:
    while "  " in text:  # of a long run, each pass takes half
        text = text.replace("  ", " ")
    if "\n" in text:
        text = text.replace(" \n", "\n").replace("\n ", "\n")
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip(" \n")


def _joiner(match: re.Match[str], rules: _Rules) -> str:
    """Keep the first joiner of a run where it changes the shape of a letter beside it."""
    text, joiner = match.string, match[0][0]
    before = text[match.start() - 1] if match.start() else ""
    after = text[match.end()] if match.end() < len(text) else ""
    if before in rules.viramas:
        return joiner
    if after in rules.viramas and unicodedata.category(before or " ") == "Lo":
        return joiner  # র‍্য and ರ‍್ಕ: the letter ra keeps its full form
    if joiner == "\u200c":
        return joiner if before in rules.cursive and after in rules.cursive else ""
    if before in rules.cursive or after in rules.cursive:
        return joiner
    return joiner if before in rules.emoji and after in rules.emoji else ""


def _pipes(line: str, dandas: tuple[_Danda, ...]) -> str:
    """Turn pipes into dandas, unless the line may be a table, a menu or wiki markup."""
    if "|" not in line or line.lstrip().startswith("|") or _MARKUP.search(line):
        return line
    for danda in dandas:
        line = danda.verse.sub(rf"{danda.double}\1{danda.double}", line)
        line = danda.twice.sub(danda.double, line)
        line = danda.attached.sub(danda.single, line)
        spaced = len(danda.spaced.findall(line))
        # A sentence ends here, so the others end sentences too: but cells of a table are short.
        ends = line.rstrip(" \"'”’").endswith(("|", danda.single))
        if ends and spaced and (spaced == 1 or len(line.split()) >= 4 * spaced):
            line = danda.spaced.sub(danda.single, line)
    return line


@cache
def _digits() -> dict[int, str]:
    return {
        point: str(unicodedata.decimal(chr(point)))
        for point in range(0x80, 0x20000)
        if unicodedata.category(chr(point)) == "Nd"
    }


@cache
def _rules(language: str) -> _Rules:
    common, scripts = table("common"), [table(script.lower()) for script in SCRIPTS]
    indic = [script for script in scripts if "virama" in script]
    characters = replaced_characters(table("arab")["languages"].get(language, ""))
    sequences = {old: new for script in scripts for old, new in script.get("sequences", {}).items()}
    nuktas = "".join(script["nukta"] for script in indic)
    viramas = "".join(script["virama"] for script in indic)
    bindus = "".join(script["bindu"] for script in indic)
    marks = ranges_of(filter(unicodedata.combining, map(chr, range(0x300, 0x10000))))
    vowel_signs = [sign for script in indic for sign in in_ranges(script["vowel_signs"])]
    signs = ranges_of(vowel_signs)
    return _Rules(
        characters=characters,
        suspect=re.compile(f"[{ranges_of(characters)}]"),
        many_marks=re.compile(f"([{marks}]{{{_MOST_MARKS}}})[{marks}]+"),
        sequences=sequences,
        sequence=re.compile("|".join(sorted(sequences, key=len, reverse=True))),
        # The lookbehinds come last, so that the search runs over one character class.
        misplaced=re.compile(
            f"[{nuktas}](?<=[{signs}{bindus}].)|[{signs}](?<=[{bindus}].)", re.DOTALL
        ),
        signs=re.compile(f"[{nuktas}{signs}{bindus}]{{2,}}"),
        places=dict.fromkeys(nuktas, 0) | dict.fromkeys(vowel_signs, 1) | dict.fromkeys(bindus, 2),
        doubled=re.compile(f"([{nuktas}{viramas}{bindus}])\\1+"),
        patterns=tuple(
            (
                pattern["needs"],
                re.compile(
                    pattern["find"].replace("{letters}", letters_of(script["script"])),
                    re.MULTILINE,
                ),
                pattern["replace"],
            )
            for script in scripts
            for pattern in script.get("patterns", ())
        ),
        viramas=frozenset(viramas),
        cursive=frozenset(
            character
            for character in in_ranges(table("arab")["blocks"])
            if unicodedata.category(character)[0] in "LM"
        ),
        emoji=frozenset(in_ranges(common["emoji"])),
        dandas=_dandas(),
    )


def _dandas() -> tuple[_Danda, ...]:
    shared: dict[tuple[str, str], str] = {}  # danda and double danda → letters
    for script in SCRIPTS:
        if "danda" in table(script.lower()):
            single, double = table(script.lower())["danda"]
            letters = shared.get((single, double), "")
            shared[single, double] = letters + letters_of(script)
    return tuple(
        _Danda(
            single,
            double,
            attached=re.compile(f"(?<=[{letters}])\\|(?=[ \"'”’)]|$)"),
            spaced=re.compile(f"(?:(?<=[{letters}] )|(?<=[{letters}]))\\|(?= |$)"),
            twice=re.compile(f"(?:(?<=[{letters}\\d] )|(?<=[{letters}\\d]))\\|\\|(?= |$)"),
            verse=re.compile(r"\|\|( ?\d+ ?)\|\|"),
        )
        for (single, double), letters in shared.items()
    )
