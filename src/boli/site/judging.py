"""What a site tells of its test part beside a model: baselines, and which differences are noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from boli.corpus.sources import Split, judged_documents, judged_lines
from boli.evaluation.baselines import ppmd, six_gram
from boli.evaluation.metrics import bytes_of
from boli.evaluation.paired import FEWEST_DOCUMENTS, Comparison, compare
from boli.rounds.update import Difference, Judgement, Part

Floats = NDArray[np.float64]

ENDS_TOLD = 10_000  # steps of an interval's ends to 1: finer ones say more of the documents
# By "model", "mixed", "base", "six_gram" or "ppmd", bits of each test line; None: there is no row.
Rows = Mapping[str, Floats | None]


@dataclass
class Rivals:
    """What n-grams of a site's training lines need for each line that is judged.

    They are made once in the life of a node, and never written: the counts are text.
    """

    splits: Mapping[str, Split]  # by language
    max_lines: int  # of a part, that are judged
    _six_gram: dict[str, dict[str, Floats]] = field(default_factory=dict)  # by language and part
    _ppmd: dict[str, Floats | None] = field(default_factory=dict)  # by language, of the test part

    def lines(self, language: str, part: Part) -> list[str]:
        """Return the lines of a part that are judged."""
        return judged_lines(self.splits[language].part(part), self.max_lines)

    def six_gram(self, language: str, part: Part) -> Floats:
        """Return the bits of each line under a 6-gram."""
        if language not in self._six_gram:
            parts: tuple[Part, ...] = ("tuning", "test")
            lines = {part: self.lines(language, part) for part in parts}
            row = six_gram(self.splits[language].train, [*lines["tuning"], *lines["test"]])
            tuning, test = np.split(row.bits, [len(lines["tuning"])])
            self._six_gram[language] = {"tuning": tuning, "test": test}
        return self._six_gram[language][part]

    def ppmd(self, language: str) -> Floats | None:
        """Return the bits of each test line after PPMd has read the text; None: no pyppmd here."""
        if language not in self._ppmd:
            try:
                row = ppmd(self.splits[language].train, self.lines(language, "test"))
                self._ppmd[language] = row.bits
            except ImportError:
                self._ppmd[language] = None
        return self._ppmd[language]

    def judgement(self, language: str, part: Part, bits: Floats) -> Judgement:
        """Return two sums, which are all that is told of the lines of a part."""
        num_bytes = bytes_of(self.lines(language, part))
        # Finer figures would say more of the counts than of the text.
        told = max(1.0, float(round(bits.sum())))
        return Judgement(language=language, part=part, bits=told, bytes=num_bytes)

    def differences(self, language: str, rows: Rows) -> Iterator[Difference]:
        """Yield the intervals between rows of the test part, over its documents."""
        documents = judged_documents(self.splits[language], "test", self.max_lines)
        sizes = [len(line.encode()) + 1 for line in self.lines(language, "test")]
        pairs = [("model", row) for row in ("base", "six_gram", "ppmd")] + [("mixed", "six_gram")]
        for a, b in pairs:
            ours, theirs = rows.get(a), rows.get(b)
            if ours is None or theirs is None or theirs.sum() <= 0:
                continue  # a base that is sure of all it reads has nothing to be compared by
            # Of what is certain, rounding leaves a little less than no bits.
            found = compare(np.maximum(ours, 0), np.maximum(theirs, 0), sizes, documents)
            yield _told(language, a, b, found)


def _told(language: str, a: str, b: str, found: Comparison) -> Difference:
    """Return what leaves of a comparison: no ends that few documents make, and none too fine."""
    low, high, count = found.low, found.high, found.num_documents
    if low is None or high is None or (count or 0) < FEWEST_DOCUMENTS:
        return Difference(language=language, a=a, b=b, documents=count)
    return Difference(
        language=language,
        a=a,
        b=b,
        documents=count,
        low=math.floor(low * ENDS_TOLD) / ENDS_TOLD,
        high=math.ceil(high * ENDS_TOLD) / ENDS_TOLD,
    )
