"""Which language or dialect a line is in; trained on a few thousand lines, adapts to a new domain.

First the script of most letters: a label is only thought of where its training lines were in it.
Then log ratios of substrings (ngrams.py) against the mean of all labels, shrunk towards none, so
that a form which no label or every label has says nothing. A line of which the best label knows
too few words is in another language; one that two labels fit is unsure.

Adaptation looks at the unlabelled lines of a domain together. It begins with the lines that are
surest, a share of each label, counts their forms beside those of the training text, and goes
round until all lines that are clearly of one label have taught. No label is given a quota: one
that is absent gets none. What came of that counts the domain's n-grams, once. Few lines are
followed with care: the training text counts far more beside them.

Source: Jauhiainen, Jauhiainen & Lindén 2018, Iterative Language Model Adaptation for Indo-Aryan
    Language Identification, https://aclanthology.org/W18-3907 (surest lines first, again and
    again); the same 2019, Language Model Adaptation for Language and Dialect Identification of
    Text (HeLI 2.0), https://arxiv.org/abs/1903.10915
Source: Nigam, McCallum, Thrun & Mitchell 2000, Text Classification from Labeled and Unlabeled
    Documents using EM, https://doi.org/10.1023/A:1007692713085 (soft counts)
Source: Guo, Pleiss, Sun & Weinberger 2017, On Calibration of Modern Neural Networks,
    https://arxiv.org/abs/1706.04599 (one temperature)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.ngrams import BUCKETS, Features, Substrings, substrings
from boli.corpus.script import script_of

Floats = NDArray[np.float32]
Scores = NDArray[np.float64]

UNDETERMINED = "und"  # ISO 639-3
FEWEST_TO_ADAPT = 40  # lines
FEWEST_TO_FOLLOW = 500  # lines; followed with as few as 200, it was as often for the worse
CHUNK_LINES = 4096
SHRINK_CHARACTERS, SHRINK_FORMS = 30.0, 20.0  # imagined counts
CHARACTERS, FORMS = 0.3, 3.0  # what the two views weigh
SOURCE = 0.3  # what trained scores weigh beside adapted ones
TARGET_SHRINK_CHARACTERS = 5.0
TARGET_CHARACTERS, TARGET_FORMS = 6.0, 6.0
TURNS = 10
LEAST_LEAD = 0.4  # of the best label's probability, for a line to teach
KNOWN_COUNT = 3  # a label knows a word that it has seen so often


@dataclass(frozen=True)
class Pace:
    """What the text of a domain counts beside the training text, evenly over labels."""

    characters: float  # what an n-gram of the domain counts
    forms: float
    trained_characters: float  # what all n-grams of the training text count together
    trained_forms: float
    fewest_lines: int  # in which a form or n-gram must be, to teach
    level: bool  # whether a label with many lines is held back


def _follow(characters: int, forms: int) -> Pace:
    """Let a domain of many lines speak: the training text counts in proportion to it."""
    return Pace(1.0, 1.0, 2.0 * characters, 0.5 * forms, 1, level=False)


# The amounts are fixed, so that the fewer lines there are, the less they change.
WITH_CARE = Pace(0.125, 16.0, 25e3, 1.6e6, 5, level=True)


@dataclass(frozen=True)
class Answer:
    """What a line is in, with a probability; "und" with a reason where that is not said."""

    label: str
    confidence: float  # of the best label, also where it is not named
    best: str | None  # None: no label is written in this script
    reason: str  # "", "no letters", "script", "other language" or "unsure"


@dataclass(frozen=True)
class Table:
    """How often each label has each bucket, and what seeing one says."""

    counts: Floats  # (labels, BUCKETS)
    shrink: float

    @cached_property
    def weights(self) -> Floats:
        """Log ratio to the mean of all labels, (labels, BUCKETS)."""
        return _log_ratios(self.counts, self.counts.sum(1, dtype=np.float64), self.shrink)

    def scores(self, features: Features) -> Scores:  # (lines, labels)
        """Sum what a line's substrings say, over the root of their number."""
        return _scores(features.buckets, features, self.weights)


@dataclass(frozen=True)
class Views:
    """The two views of a line. Characters know the domain, forms carry over into the next."""

    characters: Table
    forms: Table


@dataclass(frozen=True)
class Settings:
    """What training found out about the labels."""

    labels: tuple[str, ...]
    scripts: tuple[tuple[str, ...], ...]  # of each label
    temperature: float  # of trained scores
    adapted_temperature: float
    least_known: float  # share of a line's words


@dataclass(frozen=True)
class Identifier:
    """Tables and settings; never changes. `adapted` returns another."""

    settings: Settings
    trained: Views
    target: Views | None = None  # with the text of a domain

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return self.settings.labels

    def identify(self, lines: Sequence[str]) -> list[Answer]:
        """Return an answer for each line."""
        answers: list[Answer] = []
        for start in range(0, len(lines), CHUNK_LINES):
            chunk = lines[start : start + CHUNK_LINES]
            cut = substrings(chunk)
            answers += self._answers(self.scores(cut), cut, self._possible(chunk))
        return answers

    def identify_record(self, text: str) -> tuple[Answer, list[Answer]]:
        """Return the answer for a text as a whole, and one for each of its lines."""
        lines = text.split("\n")
        whole, *each = self.identify([" ".join(lines), *lines])
        return whole, each

    def adapted(
        self,
        lines: Sequence[str],
        fewest: int = FEWEST_TO_ADAPT,
        follow: int = FEWEST_TO_FOLLOW,
    ) -> Identifier:
        """Return an identifier that has also learnt from unlabelled lines of one domain.

        Give all languages of the domain together. Lines in a script that no label has, or that
        no label knows enough words of, teach nothing. With fewer than `fewest` others the
        identifier itself is returned, with fewer than `follow` it changes with care.
        """
        lines = list(dict.fromkeys(lines))
        if not lines:
            return self
        cut = substrings(lines)
        possible = self._possible(lines)
        trained = replace(self, target=None).scores(cut)
        trained[~possible] = -np.inf
        teaches: NDArray[np.bool_] = np.any(possible, axis=1) & ~self._foreign(trained, cut)
        if teaches.sum() < fewest:
            return self
        pace = WITH_CARE
        if teaches.sum() >= follow:
            num_forms = int(cut.forms.lengths[teaches].sum())
            pace = _follow(cut.characters.buckets.size, num_forms)
        shares, forms = self._learnt_forms(trained, cut.forms, teaches, pace)
        shares[~teaches] = 0
        characters = self._learnt_characters(shares, cut.characters, pace)
        return replace(self, target=Views(characters, forms))

    def _learnt_forms(
        self, trained: Scores, forms: Features, teaches: NDArray[np.bool_], pace: Pace
    ) -> tuple[Scores, Table]:
        """Go round: posteriors → counts of forms → posteriors; return the last of both."""
        used = teaches[forms.lines]
        buckets, local = np.unique(forms.buckets[used], return_inverse=True)
        there = Features(forms.buckets[used], forms.lines[used], forms.num_lines)
        base, totals = _lessened(self.trained.forms, pace.trained_forms)
        seen = base[:, buckets]
        weight = pace.forms * _common(replace(there, buckets=local.astype(np.int32)), pace)
        shares, counts = softmax(trained), np.zeros_like(seen)
        for turn in range(TURNS):
            taught = shares * _surest(shares, teaches, (turn + 1) / (TURNS * 0.6))[:, None]
            for label in range(len(self.labels)):
                counts[label] = np.bincount(local, taught[there.lines, label], buckets.size)
            counts *= weight
            if pace.level:
                counts *= _level(counts.sum(1))[:, None]
            weights = _log_ratios(seen + counts, totals + counts.sum(1), SHRINK_FORMS)
            shares = softmax(SOURCE * trained + TARGET_FORMS * _scores(local, there, weights))
        base[:, buckets] += counts
        return shares, Table(base, SHRINK_FORMS)

    def _learnt_characters(self, shares: Scores, characters: Features, pace: Pace) -> Table:
        """Count n-grams by the posteriors that the forms came to."""
        counts, _ = _lessened(self.trained.characters, pace.trained_characters)
        weight = pace.characters * _common(characters, pace)[characters.buckets]
        for label in range(len(self.labels)):
            taught = shares[characters.lines, label] * weight
            counts[label] += np.bincount(characters.buckets, taught, BUCKETS).astype(np.float32)
        return Table(counts, TARGET_SHRINK_CHARACTERS)

    def scores(self, cut: Substrings) -> Scores:  # (lines, labels)
        """Return log odds before any temperature, whatever the script."""
        scores = CHARACTERS * self.trained.characters.scores(cut.characters)
        scores += FORMS * self.trained.forms.scores(cut.forms)
        if self.target is not None:
            scores *= SOURCE
            scores += TARGET_CHARACTERS * self.target.characters.scores(cut.characters)
            scores += TARGET_FORMS * self.target.forms.scores(cut.forms)
        return scores

    def _possible(self, lines: Sequence[str]) -> NDArray[np.bool_]:  # (lines, labels)
        return np.array(
            [[script in own for own in self.settings.scripts] for script in map(script_of, lines)],
            bool,
        ).reshape(len(lines), len(self.labels))

    def _foreign(self, scores: Scores, cut: Substrings) -> NDArray[np.bool_]:  # (lines,)
        return known_share(self.trained.forms, scores, cut.words) < self.settings.least_known

    def _answers(
        self, scores: Scores, cut: Substrings, possible: NDArray[np.bool_]
    ) -> list[Answer]:
        scores = np.where(possible, scores, -np.inf)
        foreign = self._foreign(scores, cut)
        warmth = self.settings.temperature
        if self.target is not None:
            warmth = self.settings.adapted_temperature
        shares = softmax(scores / warmth)
        best = shares.argmax(1)
        num_words = np.bincount(cut.words.lines, minlength=cut.words.num_lines)
        answers = []
        for line, label in enumerate(best.tolist()):
            if not possible[line].any():
                reason = "script" if num_words[line] else "no letters"
                answers.append(Answer(UNDETERMINED, 0.0, None, reason))
                continue
            share, name = float(shares[line, label]), self.labels[label]
            reason = "other language" if foreign[line] else "unsure" if share < 0.5 else ""
            answers.append(Answer(UNDETERMINED if reason else name, share, name, reason))
        return answers


def known_share(forms: Table, scores: Scores, words: Features) -> Scores:  # (lines,)
    """Return the share of each line's words that its best label has seen KNOWN_COUNT times."""
    best = scores.argmax(1)
    known = forms.counts[best[words.lines], words.buckets] >= KNOWN_COUNT
    share: Scores = np.bincount(words.lines, known, words.num_lines) / words.lengths
    return share


def _lessened(table: Table, amount: float) -> tuple[Floats, Scores]:
    """Return counts that sum to an amount, evenly over labels, and the sum of each row.

    Evenly, because how much of each label a domain has is not known.
    """
    totals = table.counts.sum(1, dtype=np.float64)
    factor = amount / totals.size / totals
    return (table.counts * factor[:, None]).astype(np.float32), totals * factor


def _common(features: Features, pace: Pace) -> NDArray[np.bool_]:  # (buckets,)
    """Return which buckets are in enough lines to teach.

    Others are of topics: they would draw a line to the label of its translation beside it.
    """
    if pace.fewest_lines <= 1:
        return np.ones(features.buckets.max(initial=0) + 1, bool)
    pairs = np.unique(features.lines * BUCKETS + features.buckets)
    common: NDArray[np.bool_] = np.bincount(pairs % BUCKETS) >= pace.fewest_lines
    return common


def _level(totals: Floats) -> Floats:  # (labels,)
    """Return what each label's counts are multiplied by for nearly the same total of each.

    Else the label of most lines would take the words of the domain that all its languages share.
    It is no quota of lines: beside the training text, few lines make no label likelier.
    """
    mean = totals.mean()
    part = 0.1 * mean  # so that a label of hardly any lines stays below the others
    factors: Floats = (mean + part) / np.maximum(totals + part, np.finfo(np.float32).tiny)
    return factors


def _log_ratios(counts: Floats, totals: Scores, shrink: float) -> Floats:
    """Return log of a label's share of each column to the mean of all labels' shares."""
    even = counts * (totals.mean() / totals)[:, None].astype(np.float32)
    ratios: Floats = np.log((even + shrink) / (even.mean(0) + shrink)).astype(np.float32)
    return ratios


def _scores(buckets: NDArray[Any], features: Features, weights: Floats) -> Scores:
    sums = [np.bincount(features.lines, row[buckets], features.num_lines) for row in weights]
    return np.stack(sums, 1) / np.sqrt(features.lengths)[:, None]


def softmax(scores: Scores) -> Scores:
    """Return probabilities, (lines, labels); a line without a possible label has none."""
    highest = scores.max(1, keepdims=True)
    shares = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    shares /= np.maximum(shares.sum(1, keepdims=True), np.finfo(float).tiny)
    return shares


def _surest(shares: Scores, teaches: NDArray[np.bool_], fraction: float) -> NDArray[np.bool_]:
    """Pick a fraction of each label's lines, by the lead of the best label.

    Lines without a clear lead never teach: where a label is absent, those called so are such.
    """
    ordered = np.sort(shares, 1)
    lead, best = ordered[:, -1] - ordered[:, -2], shares.argmax(1)
    picked = np.zeros(len(shares), bool)
    for label in range(shares.shape[1]):
        own = np.flatnonzero(teaches & (best == label) & (lead > LEAST_LEAD))
        number = math.ceil(own.size * min(1.0, fraction))
        picked[own[np.argsort(-lead[own], kind="stable")[:number]]] = True
    return picked
