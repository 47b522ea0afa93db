"""Next word and keystrokes saved: what a keyboard with suggestions would spare a writer.

The protocol. A word is what stands between spaces; one of । , . begins a word of its own. Three
suggestions are shown before every key, also before the first of a word: the likeliest words that
begin with what was typed of it. Without suggestions a word costs a key for each code point and
one for the space or line end behind it. A word that is shown is picked at once: one key, which
brings that space. A suggestion for the whole word is the only help. Hits are of the suggestions
before the first key. What was typed so far in the line is known, and nothing else.

Source: Trnka & McCoy 2008, Evaluating Word Prediction: Framing Keystroke Savings,
    https://aclanthology.org/P08-2066
Source: Chen & Goodman 1999, An empirical study of smoothing techniques for language modeling,
    https://doi.org/10.1006/csla.1999.0128 (interpolated modified Kneser-Ney)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from boli.errors import CorpusError

Counts = NDArray[np.int64]
Candidates = list[tuple[str, float]]  # words and their probabilities, likeliest first

SUGGESTIONS = 3
SIGNS = "।,."  # each begins a word
WORD = re.compile(rf"[{SIGNS}]?[^\s{SIGNS}]+|[{SIGNS}]")
ORDER = 3
DISCOUNTS = (0.75, 1.1, 1.4)  # of counts 1, 2, and 3 or more
UNKNOWN_WORDS = 30_000  # imagined words, over which the lowest order spreads its mass
BEGIN, UNKNOWN = -1, -2  # in a context; no word has these numbers
LAST = "\U0010ffff"
CANDIDATES = 50  # that each part of a mixture gives


class Predictor(Protocol):
    """What suggests words."""

    def candidates(self, before: str, prefix: str, most: int) -> Candidates:
        """Return the likeliest words after a text that begin with a prefix.

        `before` is what stands in the line, without the space behind it. Probabilities are those
        of the words after it, whatever was typed of them, so that predictors can be mixed.
        """
        ...


@dataclass(frozen=True)
class KeystrokeScore:
    """Keys and hits of each line, and what they come to."""

    keys: Counts  # (lines,) without suggestions
    typed: Counts  # (lines,) with them
    words: Counts  # (lines,)
    first: Counts  # (lines,) words that were the first suggestion before any key
    shown: Counts  # (lines,) words that were among the suggestions before any key

    @property
    def saved(self) -> float:
        """Share of the keys that suggestions spare."""
        return 1 - float(self.typed.sum() / self.keys.sum())

    @property
    def hit_at_1(self) -> float:
        """Share of words that were the first suggestion before any key."""
        return float(self.first.sum() / self.words.sum())

    @property
    def hit_at_3(self) -> float:
        """Share of words that were among the suggestions before any key."""
        return float(self.shown.sum() / self.words.sum())


def type_lines(predictor: Predictor, lines: Sequence[str]) -> KeystrokeScore:
    """Type lines with a predictor's suggestions, and count keys.

    Raises:
        CorpusError: no line has a word.
    """
    rows = [_type_line(predictor, line) for line in lines]
    if not any(row[2] for row in rows):
        raise CorpusError(f"{len(rows)} lines hold no word to type", "give lines of text")
    return KeystrokeScore(*np.array(rows, np.int64).T)


def _type_line(predictor: Predictor, line: str) -> tuple[int, int, int, int, int]:
    keys = typed = words = first = shown = 0
    for match in WORD.finditer(line):
        word, before = match.group(), line[: match.start()].rstrip()
        alone = len(word) + 1
        keys, words = keys + alone, words + 1
        for place in range(len(word)):
            found = predictor.candidates(before, word[:place], SUGGESTIONS)
            names = [name for name, _ in found[:SUGGESTIONS]]
            if word in names:
                if not place:
                    shown, first = shown + 1, first + (names[0] == word)
                typed += place + 1
                break
        else:
            typed += alone
    return keys, typed, words, first, shown


def words_of(text: str) -> list[str]:
    """Return the words of a text, as the protocol counts them."""
    return WORD.findall(text)


@dataclass
class _Context:
    """What followed a context, with the mass that its discounts leave to shorter ones."""

    words: NDArray[np.int64]  # (n,)
    shares: NDArray[np.float64]  # (n,) discounted
    left: float


@dataclass
class WordNgram:
    """Interpolated Kneser-Ney over words, from `train_ngram`; its counts are text, so keep them."""

    words: list[str]  # sorted
    order: int
    contexts: dict[tuple[int, ...], _Context]
    _numbers: dict[str, int] = field(init=False)
    _last: tuple[tuple[int, ...], NDArray[np.float64]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def candidates(self, before: str, prefix: str, most: int) -> Candidates:
        """Return the likeliest words, see `Predictor`."""
        known = [self._numbers.get(word, UNKNOWN) for word in words_of(before)]
        history = tuple([BEGIN, *known][-(self.order - 1) :]) if self.order > 1 else ()
        if self._last is None or self._last[0] != history:
            self._last = history, self._shares(history)
        start = bisect_left(self.words, prefix)
        end = bisect_left(self.words, prefix + LAST) if prefix else len(self.words)
        shares = self._last[1][start:end]
        best = np.arange(shares.size)
        if shares.size > most:
            best = np.argpartition(-shares, most)[:most]
        best = best[np.argsort(-shares[best], kind="stable")]
        return [(self.words[start + place], float(shares[place])) for place in best.tolist()]

    def _shares(self, history: tuple[int, ...]) -> NDArray[np.float64]:  # (words,)
        shares = np.full(len(self.words), 1 / (UNKNOWN_WORDS + len(self.words)))
        for size in range(len(history) + 1):
            context = self.contexts.get(history[len(history) - size :])
            if context is None:
                break
            shares *= context.left
            shares[context.words] += context.shares
        return shares


def train_ngram(lines: Iterable[str], order: int = ORDER) -> WordNgram:
    """Count the words of lines.

    Raises:
        CorpusError: no line has a word.
    """
    rows = [words_of(line) for line in lines]
    words = sorted({word for row in rows for word in row})
    numbers = {word: number for number, word in enumerate(words)}
    counts: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    for own in rows:
        row = [BEGIN, *(numbers[word] for word in own)]
        for place in range(1, len(row)):
            # A shorter context counts a word once for each longer one: how many it continues.
            for start in range(max(0, place - order + 1), place + 1):
                followers = counts[tuple(row[start:place])]
                followers[row[place]] = followers.get(row[place], 0) + 1
                if followers[row[place]] > 1:
                    break
    if not words:
        raise CorpusError("the training text holds no word", "give lines of text")
    contexts = {key: _discounted(followers) for key, followers in counts.items()}
    return WordNgram(words, order, contexts)


def _discounted(followers: dict[int, int]) -> _Context:
    words = np.fromiter(followers, np.int64, len(followers))
    counts = np.fromiter(followers.values(), np.float64, len(followers))
    cut = np.array((0.0, *DISCOUNTS))[np.minimum(counts, 3).astype(np.int64)]
    total = counts.sum()
    return _Context(words, (counts - cut) / total, float(cut.sum() / total))


@dataclass(frozen=True)
class Mixture:
    """Predictors whose probabilities are added with weights that sum to 1."""

    parts: Sequence[Predictor]
    weights: Sequence[float]

    def candidates(self, before: str, prefix: str, most: int) -> Candidates:
        """Return the likeliest words, see `Predictor`; of each part the best CANDIDATES count."""
        sums: dict[str, float] = defaultdict(float)
        for part, weight in zip(self.parts, self.weights, strict=True):
            for word, share in part.candidates(before, prefix, CANDIDATES):
                sums[word] += weight * share
        return sorted(sums.items(), key=lambda item: -item[1])[:most]
