"""Lines with their labels → an identifier (language.py), calibrated on what it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from boli.corpus.language import (
    SHRINK_CHARACTERS,
    SHRINK_FORMS,
    UNDETERMINED,
    Floats,
    Identifier,
    Scores,
    Settings,
    Table,
    Views,
    known_share,
    softmax,
)
from boli.corpus.ngrams import BUCKETS, Features, substrings
from boli.corpus.script import NO_SCRIPT, script_of
from boli.errors import CorpusError

FEWEST_LINES = 20  # of a label
SCRIPT_SHARE = 0.1  # of a label's lines, for a script to be one of its own
KNOWN_SHARE = 0.4  # of the words that are usually known, for a line not to be foreign
TEMPERATURES = np.geomspace(0.1, 20, 60)


def train(lines: Mapping[str, Sequence[str]]) -> Identifier:
    """Return an identifier for the languages that `lines` has; duplicates count once.

    Give a label's lines in the order of their documents: confidence is fitted to its second
    half by what was learnt of its first, so that the two should not share documents.

    Raises:
        CorpusError: fewer than two labels, "und" as a label, or too few lines of one.
    """
    if len(lines) < 2 or UNDETERMINED in lines:
        raise CorpusError(
            f"cannot tell these labels apart: {', '.join(sorted(lines)) or 'none'}",
            f"give lines of at least two languages, none of them called {UNDETERMINED}",
        )
    kept: dict[str, list[str]] = {}
    for name in sorted(lines):
        kept[name] = [line for line in dict.fromkeys(lines[name]) if script_of(line) != NO_SCRIPT]
        if len(kept[name]) < FEWEST_LINES:
            raise CorpusError(
                f"{name} has {len(kept[name])} different lines with letters",
                f"give at least {FEWEST_LINES}; some hundreds work better",
            )
    return _calibrated(kept, _counted(kept))


def _counted(lines: Mapping[str, Sequence[str]]) -> Identifier:
    """Count substrings and scripts; nothing is calibrated yet."""
    shape = (len(lines), BUCKETS)
    characters, forms = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    scripts = []
    for label, own in enumerate(lines.values()):
        cut = substrings(own)
        characters[label], forms[label] = _counts(cut.characters), _counts(cut.forms)
        names, numbers = np.unique([script_of(line) for line in own], return_counts=True)
        scripts.append(tuple(names[numbers >= SCRIPT_SHARE * len(own)].tolist()))
    settings = Settings(tuple(lines), tuple(scripts), 1.0, 1.0, 0.0)
    views = Views(Table(characters, SHRINK_CHARACTERS), Table(forms, SHRINK_FORMS))
    return Identifier(settings, views)


def _counts(features: Features) -> Floats:
    return np.bincount(features.buckets, minlength=BUCKETS).astype(np.float32)


def _calibrated(lines: Mapping[str, Sequence[str]], identifier: Identifier) -> Identifier:
    """Set temperatures and the least share of known words by half of the lines."""
    first = _counted({name: own[: len(own) // 2] for name, own in lines.items()})
    rest = [line for own in lines.values() for line in own[len(own) // 2 :]]
    sizes = [len(own) - len(own) // 2 for own in lines.values()]
    truth = np.repeat(np.arange(len(lines)), sizes)
    cut = substrings(rest)
    scores = first.scores(cut)
    adapted = first.adapted(rest, fewest=1, follow=1)
    settings = replace(
        identifier.settings,
        temperature=_temperature(scores, truth),
        adapted_temperature=_temperature(adapted.scores(cut), truth),
        least_known=KNOWN_SHARE
        * float(np.median(known_share(first.trained.forms, scores, cut.words))),
    )
    return replace(identifier, settings=settings)


def _temperature(scores: Scores, truth: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Return the temperature under which the truth is likeliest, each label weighing the same."""
    weights = 1 / np.bincount(truth)[truth]
    rows = np.arange(truth.size)
    losses = [
        -(weights * np.log(softmax(scores / warmth)[rows, truth] + 1e-12)).sum()
        for warmth in TEMPERATURES
    ]
    return float(TEMPERATURES[int(np.argmin(losses))])
