"""A document on its way from what was found to a record, or to a reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from boli.corpus.pii_fold import Span
from boli.corpus.shape import EMPTY, Shape, shapes_of
from boli.corpus.traits import traits_of

if TYPE_CHECKING:
    from boli.corpus.language import Answer


@dataclass(slots=True)
class Draft:
    """A document on its way."""

    source: str
    found: str  # the text as it was found
    text: str
    root: int  # which of the sources it is of
    answer: Answer | None = None
    score: float | None = None  # bits per byte
    script: str = ""
    bare: str = ""  # without personal data and addresses, whose letters say nothing of the rest
    shape: Shape = EMPTY  # of what is bare
    traits: int = 0  # of the text that was looked at last
    looked_at: str | None = None  # the text that `traits` are of, that very object
    personal: dict[str, int] = field(default_factory=dict)
    reason: str = ""  # why it is dropped
    detail: str = ""

    def drop(self, reason: str, detail: str = "") -> None:
        """Give the document up."""
        self.reason, self.detail = reason, detail


def traits_now(drafts: Sequence[Draft]) -> list[int]:
    """Return the traits of each text; only those are looked at that were changed meanwhile."""
    changed = [draft for draft in drafts if draft.looked_at is not draft.text]
    for draft, traits in zip(changed, traits_of([d.text for d in changed]).tolist(), strict=True):
        draft.looked_at, draft.traits = draft.text, traits
    return [draft.traits for draft in drafts]


def look(drafts: Sequence[Draft], texts: Sequence[str]) -> None:
    """Count what is left of each draft without personal data."""
    for draft, text, shape in zip(drafts, texts, shapes_of(texts), strict=True):
        draft.bare, draft.shape = text, shape


def without(text: str, spans: Sequence[Span]) -> str:
    """Return the text with a space for each span."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], " "]
        end = span.end
    return "".join((*parts, text[end:])) if spans else text
