"""Counts of pieces of words, with which sites make one tokenizer and keep their text.

A word leaves a site only if many lines of several documents hold it. A word that too few hold
is broken into its longest parts that enough others share; what is in no such part is dropped.
Counts are of lines, and rounded. Nothing that `pii.find` knows, and of numbers only single
digits, is in a piece. What leaves says which words are frequent at a site, in no order.

Source: the pre-tokenizer keeps vowel signs with their letters, as in Qwen 3.5. Support by lines
and documents is the k-anonymity of Sweeney 2002, https://doi.org/10.1142/S0218488502001648, of
strings, and no differential privacy; parts are searched level by level as in Agrawal & Srikant
1994, Apriori.
"""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from boli.corpus.pii import find
from boli.errors import CorpusError

PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_PIECE = 40  # code points
LONGEST_PART = 8  # letters with their signs, of a word that is broken up
MOST_LINES = 100_000  # of a site that are counted, evenly along its text
LARGEST_BYTES = 512 << 10  # of a site's pieces, as they travel
LARGEST_TEXT_BYTES = 4 << 20  # of the same, unpacked
LARGEST_COUNT = 1 << 24  # far above MOST_LINES
ROUNDS = 8  # of breaking words up, until what is used has support


@dataclass(frozen=True)
class Floors:
    """What a piece needs to leave a site, and how many may."""

    least_lines: int = 10  # that hold it
    least_documents: int = 3
    most_pieces: int = 20_000

    def stricter(self, other: Floors) -> Floors:
        """Return the stricter of two, floor by floor."""
        return Floors(
            max(self.least_lines, other.least_lines),
            max(self.least_documents, other.least_documents),
            min(self.most_pieces, other.most_pieces),
        )


@cache
def _pattern(name: str) -> Any:
    import regex

    shapes = {"word": PRE_TOKENIZER, "unit": r" ?\X"}
    return regex.compile(shapes[name])


def words_of(line: str) -> list[str]:
    """Return the words of a line as the tokenizer sees them: a space belongs to what follows."""
    return [str(word) for word in _pattern("word").findall(line)]


def is_piece(piece: str) -> bool:
    """Tell whether a string may be a piece: (part of) one word, without control characters."""
    if not 0 < len(piece) <= LONGEST_PIECE or not piece.strip():
        return False
    if any(unicodedata.category(character) in UNWANTED for character in piece):
        return False
    return _pattern("word").fullmatch(piece) is not None


UNWANTED = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})  # in a piece; ZWJ (Cf) may be


def rounded(count: int) -> int:
    """Return a count on a grid with two steps an octave, so that it says nothing of one line."""
    return 0 if count < 1 else round(2 ** (round(2 * math.log2(count)) / 2))


def count_pieces(
    lines: Sequence[tuple[str, str, str]],  # text, its document, and its block of lines
    floors: Floors,
) -> dict[str, int]:
    """Return the pieces that may leave, with rounded numbers of lines, by falling number."""
    stride = max(1, -(-len(lines) // MOST_LINES))
    held = [
        (frozenset(_words_without_personal_data(text)), document, block)
        for text, document, block in lines[::stride]
    ]
    whole = _supported(held, floors)
    found = dict(whole)
    tail = [(words - whole.keys(), document, block) for words, document, block in held]
    for part, count in _parts_of(tail, floors).items():
        found[part] = found.get(part, 0) + count
    ranked = sorted((-rounded(count), piece) for piece, count in found.items() if is_piece(piece))
    return {piece: -count for count, piece in ranked[: floors.most_pieces]}


def _words_without_personal_data(text: str) -> Iterator[str]:
    start = 0
    for span in find(text):
        yield from words_of(text[start : span.start])
        start = span.end
    yield from words_of(text[start:])


def _supported(
    lines: Iterable[tuple[Iterable[str], str, str]],  # distinct strings, document, block
    floors: Floors,
) -> dict[str, int]:
    """Return the strings that enough lines, documents and blocks hold, with numbers of lines."""
    counts: dict[str, int] = {}
    places: dict[str, tuple[set[str], set[str]]] = {}
    for strings, document, block in lines:
        for string in strings:
            counts[string] = counts.get(string, 0) + 1
            found = places.get(string)
            if found is None:
                places[string] = {document}, {block}
            elif min(map(len, found)) < floors.least_documents:
                found[0].add(document)
                found[1].add(block)
    return {
        string: count
        for string, count in counts.items()
        if count >= floors.least_lines and min(map(len, places[string])) >= floors.least_documents
    }


Lines = list[tuple[frozenset[str], str, str]]


def _parts_of(tail: Lines, floors: Floors) -> dict[str, int]:
    """Return the parts into which words without support are broken, with numbers of lines.

    Each part has support by the words that are broken into it: not by words that leave whole,
    and not by words in which it lies within a longer part.
    """
    units = {
        word: _units(word) for words, *_ in tail for word in words if len(word) <= 4 * LONGEST_PIECE
    }
    known = _shared_parts(tail, units, floors)
    parts: dict[str, list[str]] = {}
    for _ in range(ROUNDS):
        parts = {word: _broken(found, known) for word, found in units.items()}
        used = _supported(_lines_of(tail, parts), floors)
        lacking = {part for found in parts.values() for part in found} - used.keys()
        if not lacking:
            return used
        known -= lacking
    parts = {word: [part for part in found if part in known] for word, found in parts.items()}
    return _supported(_lines_of(tail, parts), floors)


def _lines_of(
    tail: Lines, parts: Mapping[str, Sequence[str]]
) -> Iterator[tuple[set[str], str, str]]:
    for words, document, block in tail:
        yield {part for word in words for part in parts.get(word, ())}, document, block


def _units(word: str) -> list[str]:
    """Return a word's letters with their signs, a space before the first one included."""
    return [str(unit) for unit in _pattern("unit").findall(word)]


def _shared_parts(tail: Lines, units: Mapping[str, Sequence[str]], floors: Floors) -> set[str]:
    """Return every run of units, up to the longest, that has support among these words.

    A run can have support only if both runs that are one shorter have it.
    """
    known: set[str] = set()
    starts = {word: list(range(len(found))) for word, found in units.items()}
    for length in range(1, LONGEST_PART + 1):
        runs = {
            word: {i: "".join(units[word][i : i + length]) for i in places}
            for word, places in starts.items()
            if places
        }
        listed = {word: list(found.values()) for word, found in runs.items()}
        fresh = _supported(_lines_of(tail, listed), floors).keys()
        if not fresh:
            break
        known |= fresh
        starts = {
            word: [i for i, j in pairwise(found) if j == i + 1 and {found[i], found[j]} <= fresh]
            for word, found in runs.items()
        }
    return known


def _broken(units: Sequence[str], known: set[str]) -> list[str]:
    """Return the longest known parts of a word from its beginning on; what is in none is left."""
    parts, start = [], 0
    while start < len(units):
        for stop in range(min(len(units), start + LONGEST_PART), start, -1):
            part = "".join(units[start:stop])
            if part in known:
                parts.append(part)
                break
        else:
            stop = start + 1
        start = stop
    return parts


def as_text(pieces: Mapping[str, int]) -> str:
    """Return pieces for people to read, and as they travel: count, tab, piece; sorted by piece."""
    return "".join(f"{count}\t{piece}\n" for piece, count in sorted(pieces.items()))


def pack_pieces(pieces: Mapping[str, int]) -> bytes:
    """Return pieces as they travel; the rarest are left out where all would be too many bytes."""
    ranked = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    while True:
        text = as_text(dict(ranked)).encode()
        packed = zlib.compress(text, 9)
        if len(packed) <= LARGEST_BYTES and len(text) <= LARGEST_TEXT_BYTES:
            return packed
        room = min(LARGEST_BYTES / len(packed), LARGEST_TEXT_BYTES / len(text))
        ranked = ranked[: int(0.98 * room * len(ranked))]


def read_pieces(data: bytes, most_pieces: int, whose: str) -> dict[str, int]:
    """Read what a site sent, and trust none of it.

    Raises:
        CorpusError: it is too large, no text, not sorted, or has a piece or a count that no site
            sends.
    """
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(data[: LARGEST_BYTES + 1], LARGEST_TEXT_BYTES)
        lines = text.decode().split("\n")
    except (zlib.error, UnicodeDecodeError) as error:
        raise _unsound(whose, f"they are {type(error).__name__}") from None
    if len(data) > LARGEST_BYTES or not reader.eof or reader.unused_data:
        raise _unsound(whose, f"they are cut, or more than {LARGEST_BYTES} bytes")
    if len(lines) > most_pieces + 1:
        raise _unsound(whose, f"they are {len(lines) - 1}, and at most {most_pieces} are asked for")
    if not text or lines.pop():
        raise _unsound(whose, "there are none, or the last line has no end")
    pieces: dict[str, int] = {}
    before = ""
    for number, line in enumerate(lines, 1):
        said, _, piece = line.partition("\t")
        if not is_piece(piece) or not (number == 1 or piece > before):
            raise _unsound(whose, f"line {number} has no piece of a word, or one out of turn")
        is_count = said.isascii() and said.isdigit() and len(said) < 9
        if not is_count or not 0 < int(said) <= LARGEST_COUNT or rounded(int(said)) != int(said):
            raise _unsound(whose, f"line {number} has no rounded count of lines")
        pieces[piece] = int(said)
        before = piece
    return pieces


def _unsound(whose: str, problem: str) -> CorpusError:
    return CorpusError(
        f"the pieces of {whose} cannot be used: {problem}",
        "update boli at the site",
        "pieces.unsound",
    )
