"""The numbers of a preparation: counts and names of kinds, no text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

STEPS = (
    "reading",
    "markup",
    "normalizing",
    "lines",
    "personal data",
    "language",
    "score",
    "quality",
    "fingerprints",
)


@dataclass
class Facts:
    """What a report tells, added up over batches: numbers and names of kinds only."""

    documents: int = 0
    characters: int = 0  # as found
    kept_characters: int = 0  # of records that are no duplicates, known in the end
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason → documents
    lines: Counter[str] = field(default_factory=Counter)  # reason → lines taken out
    personal: Counter[str] = field(default_factory=Counter)  # kind → replaced
    languages: Counter[str] = field(default_factory=Counter)  # label → documents
    scripts: Counter[str] = field(default_factory=Counter)
    nanoseconds: Counter[str] = field(default_factory=Counter)  # step → time of all workers

    def add(self, other: Facts) -> None:
        """Add another batch's numbers."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> str:
        """Return the numbers as JSON, always in the same order."""
        return json.dumps(vars(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Read what `to_json` wrote."""
        facts = cls()
        for name, value in json.loads(text).items():
            setattr(facts, name, Counter(value) if isinstance(value, dict) else value)
        return facts
