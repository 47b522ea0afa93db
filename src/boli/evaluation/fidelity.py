"""Does a text stay in its language, or does it drift into a neighbor's? Learned from lines.

A model that was taught Bhojpuri may answer in Hindi with Bhojpuri nouns. What gives that away is
grammar: function words, and the endings of verbs and nouns. So *markers* are learned for every
pair of languages: words and word endings that one has far more often than the other. A word of a
topic is none: a marker has to be frequent in two domains of its language. A line passes as a
language where markers and the identifier of `corpus.language` together prefer it to *every* other
language that was learned: Maithili is no Hindi, and no Bhojpuri either.

Source: Monroe, Colaresi & Quinn 2008, Fightin' Words: Lexical Feature Selection and Evaluation,
    https://doi.org/10.1093/pan/mpn018 (log odds with a prior, here of rates by domain)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boli.corpus import language_training
from boli.corpus.language import Identifier
from boli.corpus.ngrams import fold, substrings
from boli.errors import CorpusError

Floats = NDArray[np.float64]
Domains = Mapping[str, Sequence[Sequence[str]]]  # language → domains → lines

PER = 100_000  # rates are of so many words and endings
SHRINK = 2.0  # imagined rate of every marker in every language
LEAST_RATE = 2.0  # in two domains of the language that a marker stands for
LEAST_COUNT = 20  # of a marker in all text
LEAST_ODDS, MOST_ODDS = 0.7, 4.0  # natural logarithm; below, a form is no marker
ENDING = 0.5  # what an ending weighs beside a word
ENDING_SIGN = "~"
IDENTIFIER = 0.5  # what the identifier's log odds weigh beside the sum of the markers
LEAN = 0.5  # margin by which a neighbor has to lead: dialects in new domains have few markers
WINDOW, STRIDE = 8, 2  # words
WEAK = -4.0  # margin at which a window speaks another language, and not only says little
FEWEST_LINES = 20  # of a domain


@dataclass(frozen=True)
class Fidelity:
    """Markers of each pair of languages, and an identifier; never changes."""

    identifier: Identifier
    markers: tuple[str, ...]  # folded words, and endings behind ENDING_SIGN; sorted
    weights: NDArray[np.float32]  # (languages, languages, markers), log odds of first to second

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that are told apart, sorted."""
        return self.identifier.labels

    def passes(self, lines: Sequence[str], language: str) -> NDArray[np.bool_]:  # (lines,)
        """Tell which lines no neighbor leads in by LEAN; one without letters passes nowhere.

        Raises:
            CorpusError: the language was not learned.
        """
        spoken = np.array([bool(fold(line)) for line in lines], bool)
        close = self.margins(lines, language).min(1) > -LEAN
        return np.asarray(close & spoken, bool)

    def margins(self, lines: Sequence[str], language: str) -> Floats:  # (lines, neighbors)
        """Return by how much each line is rather in a language than in each neighbor.

        Raises:
            CorpusError: the language was not learned.
        """
        found = self.marker_margins(lines, language)
        scores = self.identifier.scores(substrings(lines)) / self.identifier.settings.temperature
        own = self._index(language)
        rest = np.delete(scores, own, 1)
        margins: Floats = found + IDENTIFIER * (scores[:, [own]] - rest)
        return margins

    def marker_margins(self, lines: Sequence[str], language: str) -> Floats:  # (lines, neighbors)
        """Return the same by markers alone, which do not see content words.

        Raises:
            CorpusError: the language was not learned.
        """
        own, (found, where) = self._index(language), self._find(lines)
        rows = [
            np.bincount(where, self.weights[own, other][found], len(lines))
            for other in range(len(self.languages))
            if other != own
        ]
        return np.stack(rows, 1)

    def best(self, lines: Sequence[str]) -> list[str]:
        """Return the language of each line that loses to no other, or loses by least."""
        least = np.stack([self.margins(lines, name).min(1) for name in self.languages], 1)
        return [self.languages[number] for number in least.argmax(1)]

    def neighbors(self, language: str) -> list[str]:
        """Return the other languages, in the order of the columns of `margins`."""
        return [name for name in self.languages if name != language]

    def strongest(self, language: str, neighbor: str, most: int = 40) -> list[tuple[str, float]]:
        """Return the strongest markers of a language against a neighbor, and their log odds.

        Raises:
            CorpusError: one of them was not learned.
        """
        row = self.weights[self._index(language), self._index(neighbor)]
        order = [int(number) for number in np.argsort(-row, kind="stable")[:most]]
        return [(self.markers[number], float(row[number])) for number in order if row[number] > 0]

    def _index(self, language: str) -> int:
        if language not in self.languages:
            raise CorpusError(
                f"{language} was not learned; there are {', '.join(self.languages)}",
                "train again with text of it: boli fidelity train",
            )
        return self.languages.index(language)

    def _find(self, lines: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the markers that lines hold, and the line of each."""
        numbers = {name: number for number, name in enumerate(self.markers)}
        found, where = [], []
        for line, text in enumerate(lines):
            own = [numbers[form] for form in forms_of(text) if form in numbers]
            found += own
            where += [line] * len(own)
        return np.array(found, np.int64), np.array(where, np.int64)


@dataclass(frozen=True)
class FidelityScore:
    """How well lines stay in their language."""

    language: str
    num_lines: int
    sentence_pass: float  # share of lines that pass against every neighbor
    marker_pass: float  # own markers of all markers, against the neighbor where that is least
    window_pass: float  # share of lines none of whose windows of 8 words is another language's
    drifts_to: str  # the neighbor that most lines which do not pass come nearest to; "": none
    weakest: str  # the 8 words that are least in the language
    weakest_neighbor: str

    @property
    def passed(self) -> int:
        """Number of lines that pass."""
        return round(self.sentence_pass * self.num_lines)


def judge(fidelity: Fidelity, lines: Sequence[str], language: str) -> FidelityScore:
    """Judge lines that should all be in one language.

    Raises:
        CorpusError: the language was not learned, or there are no lines.
    """
    if not lines:
        raise CorpusError("there is no line to judge", "give one sentence a line")
    neighbors = fidelity.neighbors(language)
    margins = fidelity.margins(lines, language)
    failed = ~fidelity.passes(lines, language)
    led = margins[margins.min(1) <= -LEAN]
    nearest = Counter(led.argmin(1).tolist()).most_common(1)
    spans = [windows_of(line) for line in lines]
    flat = [window for own in spans for window in own]
    found = fidelity.marker_margins(flat, language)
    owners = np.repeat(np.arange(len(lines)), [len(own) for own in spans])
    worst = np.full(len(lines), np.inf)
    np.minimum.at(worst, owners, found.min(1))
    least = int(found.min(1).argmin())
    return FidelityScore(
        language,
        len(lines),
        float(1 - failed.mean()),
        float(marker_shares(fidelity, lines, language).min()),
        float((worst > WEAK).mean()),
        neighbors[nearest[0][0]] if nearest else "",
        flat[least],
        neighbors[int(found[least].argmin())],
    )


def marker_shares(fidelity: Fidelity, lines: Sequence[str], language: str) -> Floats:
    """Return own markers ÷ markers of either side, (neighbors,); words alone, no endings."""
    found, _ = fidelity._find(lines)
    words = np.array([not fidelity.markers[number].startswith(ENDING_SIGN) for number in found])
    found = found[words.astype(bool)]
    own = fidelity._index(language)
    shares = []
    for name in fidelity.neighbors(language):
        weights = fidelity.weights[own, fidelity._index(name)][found]
        both = int((weights != 0).sum())
        shares.append((weights > 0).sum() / both if both else 0.0)
    return np.array(shares)


def windows_of(line: str) -> list[str]:
    """Return the windows of a line: 8 words, every second one; a shorter line whole."""
    words = line.split()
    starts = range(0, max(1, len(words) - WINDOW + 1), STRIDE)
    return [" ".join(words[start : start + WINDOW]) for start in starts]


def forms_of(line: str) -> list[str]:
    """Return a line's folded words, and the last two and three letters of each."""
    words = fold(line).split()
    return words + [
        ENDING_SIGN + word[-size:] for word in words for size in (2, 3) if len(word) > size
    ]


def learn(text: Domains) -> Fidelity:
    """Learn markers and an identifier from domains of each language, such as news and stories.

    Where a language has one domain, its halves stand for two: give lines in the order of their
    documents. Give every language that a text could drift into.

    Raises:
        CorpusError: fewer than two languages, or too few lines of one.
    """
    domains = {name: _halved(name, text[name]) for name in sorted(text)}
    lines = {name: [line for own in parts for line in own] for name, parts in domains.items()}
    identifier = language_training.train(lines)
    counts = {name: [_counted(own) for own in parts] for name, parts in domains.items()}
    total: Counter[str] = Counter()
    for own in counts.values():
        for count in own:
            total.update(count)
    forms = sorted(form for form, count in total.items() if count >= LEAST_COUNT)
    rates = {name: _rates(own, forms) for name, own in counts.items()}
    languages = identifier.labels
    weights = np.zeros((len(languages), len(languages), len(forms)), np.float32)
    scale = np.array([ENDING if form.startswith(ENDING_SIGN) else 1.0 for form in forms])
    for row, first in enumerate(languages):
        for column, second in enumerate(languages):
            if row < column:
                odds = scale * _odds(rates[first], rates[second])
                weights[row, column], weights[column, row] = odds, -odds
    used = np.asarray(weights.any((0, 1)), bool)
    if not used.any():
        raise CorpusError(
            f"the text of {', '.join(languages)} has no word that tells one from another",
            "give more lines, or look whether they are in the languages that they are said to be",
        )
    markers = tuple(form for form, kept in zip(forms, used, strict=True) if kept)
    return Fidelity(identifier, markers, weights[:, :, used])


def _halved(name: str, parts: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    for own in parts:
        if len(own) < FEWEST_LINES:
            raise CorpusError(
                f"a domain of {name} has {len(own)} lines",
                f"give at least {FEWEST_LINES}; some hundreds work better",
            )
    if len(parts) > 1:
        return list(parts)
    half = len(parts[0]) // 2
    return [parts[0][:half], parts[0][half:]]


def _counted(lines: Iterable[str]) -> Counter[str]:
    return Counter(form for line in lines for form in forms_of(line))


def _rates(counts: Sequence[Counter[str]], forms: Sequence[str]) -> Floats:  # (domains, forms)
    rows = [[PER * count[form] / max(1, count.total()) for form in forms] for count in counts]
    return np.array(rows)


def _odds(first: Floats, second: Floats) -> Floats:  # (forms,)
    """Return log odds of two languages' mean rates; 0 where a form is no marker."""
    odds = np.log((first.mean(0) + SHRINK) / (second.mean(0) + SHRINK))
    # The second largest: frequent in two domains, whatever a topic does in a third.
    known = np.where(odds > 0, np.sort(first, 0)[-2], np.sort(second, 0)[-2])
    marks = (np.abs(odds) >= LEAST_ODDS) & (known >= LEAST_RATE)
    kept: Floats = np.where(marks, odds, 0.0).clip(-MOST_ODDS, MOST_ODDS)
    return kept
