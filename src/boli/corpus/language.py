"""Which language or dialect a line is in; trained on a few thousand lines, adapts to a new domain.

First the script of most letters: a label is only thought of where its training lines were in it.
Then log ratios of substrings (ngrams.py) against the mean of all labels, shrunk towards none, so
that a form which no label or every label has says nothing. A line of which the best label knows
too few words is in another language; one that two labels fit is unsure.

Adaptation looks at the unlabelled lines of a domain together. It begins with the lines that are
surest, a share of each label, counts their forms beside those of the training text, and goes
round until all lines that look like any label have taught. No label is given a quota: one that
is absent gets none.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.ngrams import BUCKETS, Features, Substrings, script_of, substrings
from boli.durable import read_tensors, write_tensors
from boli.errors import CorruptFileError

Floats = NDArray[np.float32]
Scores = NDArray[np.float64]

UNDETERMINED = "und"  # ISO 639-3
KIND, FORMAT = "boli language identifier", 1
FEWEST_TO_ADAPT = 50
CHUNK_LINES = 4096
SHRINK_CHARACTERS, SHRINK_FORMS = 30.0, 20.0  # imagined counts
CHARACTERS, FORMS = 0.3, 3.0  # what the two views weigh
SOURCE, TARGET = 0.3, 6.0  # the same, of what was trained and what was adapted
SOURCE_SHARE = 0.5  # of training text beside adapted text
TURNS = 10
KNOWN_COUNT = 3  # a label knows a word that it has seen so often


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
    characters: Table
    forms: Table
    target: Table | None = None  # forms, with those of a domain

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

    def adapted(self, lines: Sequence[str]) -> Identifier:
        """Return an identifier that has also learnt from unlabelled lines of one domain.

        Give all languages of the domain together. Lines in a script that no label has, or that
        no label knows enough words of, teach nothing; with fewer than FEWEST_TO_ADAPT others
        the identifier itself is returned.
        """
        lines = list(dict.fromkeys(lines))
        if not lines:
            return self
        cut = substrings(lines)
        possible = self._possible(lines)
        trained = replace(self, target=None).scores(cut)
        trained[~possible] = -np.inf
        teaches: NDArray[np.bool_] = np.any(possible, axis=1) & ~self._foreign(trained, cut)
        if teaches.sum() < FEWEST_TO_ADAPT:
            return self
        return replace(self, target=self._learnt(trained, cut.forms, teaches))

    def _learnt(self, trained: Scores, forms: Features, teaches: NDArray[np.bool_]) -> Table:
        """Go round: posteriors → counts of forms → posteriors."""
        used = teaches[forms.lines]
        buckets, local = np.unique(forms.buckets[used], return_inverse=True)
        lines = forms.lines[used]
        totals = self.forms.counts.sum(1, dtype=np.float64)
        # As if every label had equally much text: which of them a domain has is not known.
        factor = (local.size * SOURCE_SHARE / len(self.labels) / totals)[:, None]
        base = self.forms.counts[:, buckets] * factor
        shares = softmax(trained)
        counts = np.zeros_like(base)
        there = Features(forms.buckets[used], lines, forms.num_lines)
        for turn in range(TURNS):
            taught = shares * _surest(shares, teaches, (turn + 1) / (TURNS * 0.6))[:, None]
            for label in range(len(self.labels)):
                counts[label] = np.bincount(local, taught[lines, label], buckets.size)
            rows = totals * factor[:, 0] + counts.sum(1)
            weights = _log_ratios(base + counts, rows, SHRINK_FORMS)
            shares = softmax(SOURCE * trained + TARGET * _scores(local, there, weights))
        full = self.forms.counts * factor
        full[:, buckets] += counts
        return Table(full.astype(np.float32), SHRINK_FORMS)

    def scores(self, cut: Substrings) -> Scores:  # (lines, labels)
        """Return log odds before any temperature, whatever the script."""
        scores = CHARACTERS * self.characters.scores(cut.characters)
        scores += FORMS * self.forms.scores(cut.forms)
        if self.target is not None:
            scores = SOURCE * scores + TARGET * self.target.scores(cut.forms)
        return scores

    def _possible(self, lines: Sequence[str]) -> NDArray[np.bool_]:  # (lines, labels)
        return np.array(
            [[script in own for own in self.settings.scripts] for script in map(script_of, lines)],
            bool,
        ).reshape(len(lines), len(self.labels))

    def _foreign(self, scores: Scores, cut: Substrings) -> NDArray[np.bool_]:  # (lines,)
        return known_share(self.forms, scores, cut.words) < self.settings.least_known

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

    def save(self, path: Path) -> None:
        """Write the identifier as one checksummed safetensors file, whole or not at all.

        Raises:
            StorageError: the disk is full or refuses.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for name, table in self._tables().items():
            buckets = np.flatnonzero(table.counts.any(0)).astype(np.int32)
            arrays[f"{name}.buckets"] = buckets
            arrays[f"{name}.counts"] = table.counts[:, buckets]
        facts = {
            "kind": KIND,
            "format": FORMAT,
            "labels": self.labels,
            "scripts": self.settings.scripts,
            "temperature": self.settings.temperature,
            "adapted_temperature": self.settings.adapted_temperature,
            "least_known": self.settings.least_known,
        }
        write_tensors(path, arrays, facts)

    def _tables(self) -> dict[str, Table]:
        tables = {"characters": self.characters, "forms": self.forms}
        return tables if self.target is None else tables | {"target": self.target}


def load_identifier(path: Path) -> Identifier:
    """Return what `Identifier.save` wrote; everything in the file is checked.

    Raises:
        CorruptFileError: the file is missing, torn, altered, or no identifier.
    """
    arrays, facts = read_tensors(path)
    try:
        if facts["kind"] != KIND or facts["format"] != FORMAT:
            raise ValueError(f"kind {facts['kind']!r}, format {facts['format']!r}")
        settings = _checked_settings(facts)
        names = {"characters": SHRINK_CHARACTERS, "forms": SHRINK_FORMS, "target": SHRINK_FORMS}
        parts = {name.split(".")[0] for name in arrays}
        if not {"characters", "forms"} <= parts <= names.keys() or len(arrays) != 2 * len(parts):
            raise ValueError(f"it has {', '.join(sorted(arrays))}")
        tables = {part: _checked_table(arrays, part, settings, names[part]) for part in parts}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a language identifier of this version: {error}",
            "make it again with boli language train",
        ) from error
    return Identifier(settings, tables["characters"], tables["forms"], tables.get("target"))


def _checked_settings(facts: Mapping[str, Any]) -> Settings:
    labels, scripts = tuple(facts["labels"]), tuple(tuple(own) for own in facts["scripts"])
    numbers = [facts[name] for name in ("temperature", "adapted_temperature", "least_known")]
    if len(labels) < 2 or list(labels) != sorted(set(labels)) or len(scripts) != len(labels):
        raise ValueError(f"labels {labels} with scripts {scripts}")
    if not all(isinstance(text, str) and text for own in (labels, *scripts) for text in own):
        raise ValueError(f"labels {labels} with scripts {scripts}")
    if not all(isinstance(number, float) and 0 <= number < 1e6 for number in numbers):
        raise ValueError(f"temperatures and known share {numbers}")
    if not (numbers[0] and numbers[1]):
        raise ValueError("a temperature of 0")
    return Settings(labels, scripts, *numbers)


def _checked_table(
    arrays: Mapping[str, NDArray[Any]], name: str, settings: Settings, shrink: float
) -> Table:
    buckets, counts = arrays[f"{name}.buckets"], arrays[f"{name}.counts"]
    if buckets.dtype != np.int32 or buckets.ndim != 1 or not buckets.size:
        raise ValueError(f"{name} has buckets {buckets.dtype}{list(buckets.shape)}")
    if buckets[0] < 0 or buckets[-1] >= BUCKETS or (np.diff(buckets) <= 0).any():
        raise ValueError(f"{name} has buckets outside [0, {BUCKETS}) or out of order")
    if counts.dtype != np.float32 or counts.shape != (len(settings.labels), buckets.size):
        raise ValueError(f"{name} has counts {counts.dtype}{list(counts.shape)}")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts.sum(1) <= 0).any():
        raise ValueError(f"{name} has counts that are no counts")
    full = np.zeros((len(settings.labels), BUCKETS), np.float32)
    full[:, buckets] = counts
    return Table(full, shrink)


def known_share(forms: Table, scores: Scores, words: Features) -> Scores:  # (lines,)
    """Return the share of each line's words that its best label has seen KNOWN_COUNT times."""
    best = scores.argmax(1)
    known = forms.counts[best[words.lines], words.buckets] >= KNOWN_COUNT
    share: Scores = np.bincount(words.lines, known, words.num_lines) / words.lengths
    return share


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
    """Pick of the lines that teach a fraction of each label's, by the lead of the best label."""
    ordered = np.sort(shares, 1)
    lead, best = ordered[:, -1] - ordered[:, -2], shares.argmax(1)
    picked = np.zeros(len(shares), bool)
    for label in range(shares.shape[1]):
        own = np.flatnonzero(teaches & (best == label))
        number = max(1, int(own.size * min(1.0, fraction)))
        picked[own[np.argsort(-lead[own], kind="stable")[:number]]] = True
    return picked
