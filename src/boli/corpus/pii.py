"""Find personal data and put placeholders in its place.

Found are, where two overlap in this order: URL with a scheme (SECRET_URL where it holds a
secret), EMAIL, UPI, URL without a scheme, IFSC, ACCOUNT behind a word such as खाता, AADHAAR,
PAN, VEHICLE, PHONE, ACCOUNT near an IFSC, NAME. Digits are matched in every script. Not found
are plain names (unless a name finder is given), postal addresses, local numbers without an area
code, and numbers in words.

Source: written for this project; what each shape rests on is said in pii_addresses.py and
pii_numbers.py, and the words and lists lie in tables/personal.toml.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from boli.corpus.pii_addresses import bare_urls, emails, upi_addresses, urls
from boli.corpus.pii_fold import Folded, Span, words
from boli.corpus.pii_numbers import (
    FEWEST_DIGITS,
    MANY_DIGITS,
    aadhaar_numbers,
    accounts_near_a_branch,
    branches,
    named_accounts,
    phones,
    tax_numbers,
    vehicles,
)
from boli.corpus.traits import ADDRESS, CAPITAL
from boli.errors import CorpusError

KINDS = (
    "SECRET_URL",
    "URL",
    "EMAIL",
    "UPI",
    "IFSC",
    "ACCOUNT",
    "AADHAAR",
    "PAN",
    "VEHICLE",
    "PHONE",
    "NAME",
)
# As they stand in a text that is not folded: a dash or space of any kind between.
_CAPITAL_AND_DIGIT = re.compile(r"[A-Z\uff21-\uff3a][^\w\n]{0,2}\d")
_PLACEHOLDER = re.compile(rf"<({'|'.join(KINDS)})_(\d{{1,9}})>", re.ASCII)


class NameFinder(Protocol):
    """Whatever finds names of persons: a list, a tagger, a model."""

    def __call__(self, text: str) -> Iterable[tuple[int, int]]:  # start, end in code points
        """Return where names stand in the text; end is not part of the name."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A text with placeholders, and where in the text before what was found."""

    text: str
    spans: tuple[Span, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of spans of each kind, for reports: nothing of the text is in it."""
        return dict(Counter(span.kind for span in self.spans))


def may_find(traits: int, num_digits: int) -> bool:
    """Say whether `find` can find anything in a text with such traits (traits.py), without names.

    A number has nine digits or more, or letters beside them.
    """
    few = bool(traits & CAPITAL) and num_digits > 0
    return bool(traits & ADDRESS) or few or num_digits >= FEWEST_DIGITS


def find(
    text: str,
    names: NameFinder | None = None,
    traits: int = ADDRESS | CAPITAL,  # of the text, where they are known: it takes less time
) -> tuple[Span, ...]:
    """Return every span of personal data, in order, none overlapping another.

    Start and end count code points of this very text: it may, but need not, be normalized.

    Raises:
        CorpusError: the name finder returns a span that is not in the text.
    """
    has_address = bool(traits & ADDRESS and _gate().search(text))
    folded = Folded(text) if has_address or _may_have_number(text) else None
    if folded:
        if has_address:
            _addresses(folded)
        _numbers(folded, bool(traits & CAPITAL))
    if names is not None:
        folded = folded or Folded(text)
        folded.claim(_names(text, names))
    return tuple(sorted(folded.spans, key=lambda span: span.start)) if folded else ()


def replace(
    text: str,
    *,
    keep: Collection[str] = ("URL",),
    names: NameFinder | None = None,
    traits: int = ADDRESS | CAPITAL,  # as for `find`
) -> Replaced:
    """Put a typed, numbered placeholder such as <PHONE_1> for all that `find` returns.

    Within one text the same value has the same number, however it is written (+91 98… and
    098…), and no number is used that a placeholder of the text already has: doing it again
    changes nothing. Kinds in `keep` are reported, but stay in the text: plain URLs, unless
    told otherwise, so that a later rule may decide.

    Raises:
        CorpusError: `keep` names a kind that there is not, or the name finder returns a span
            that is not in the text.
    """
    unknown = sorted(set(keep) - set(KINDS))
    if unknown:
        raise CorpusError(
            f"there is no kind of personal data called {unknown[0]!r}",
            f"the kinds are {', '.join(KINDS)}",
        )
    spans = find(text, names, traits)
    if not spans:
        return Replaced(text, ())
    used = Counter[str]()
    for kind, number in _PLACEHOLDER.findall(text):
        used[kind] = max(used[kind], int(number))
    numbers: dict[tuple[str, str], int] = {}
    parts, end = [], 0
    for span in spans:
        if span.kind in keep:
            continue
        key = span.kind, span.value
        if key not in numbers:
            used[span.kind] += 1
            numbers[key] = used[span.kind]
        parts += [text[end : span.start], f"<{span.kind}_{numbers[key]}>"]
        end = span.end
    return Replaced("".join((*parts, text[end:])), spans)


def _addresses(folded: Folded) -> None:
    folded.claim(urls(folded.text))
    folded.claim(emails(folded.text))
    folded.claim(upi_addresses(folded.text))
    folded.claim(bare_urls(folded.text))


def _may_have_number(text: str) -> bool:
    """Say whether a text that is not folded may have what `_numbers` looks for."""
    return bool(MANY_DIGITS.search(text) or _CAPITAL_AND_DIGIT.search(text))


def _numbers(folded: Folded, has_capitals: bool) -> None:
    if has_capitals:
        folded.claim(branches(folded.text))
    codes = [span for span in folded.spans if span.kind == "IFSC"]
    many = MANY_DIGITS.search(folded.text)
    if many:
        folded.claim(named_accounts(folded.text))
        folded.claim(aadhaar_numbers(folded.text))
    if has_capitals:
        folded.claim(tax_numbers(folded.text))
        folded.claim(vehicles(folded.text))
    if many:
        folded.claim(phones(folded.text))
        folded.claim(accounts_near_a_branch(folded.text, codes))


def _names(text: str, names: NameFinder) -> Iterator[Span]:
    for start, end in names(text):
        if not 0 <= start < end <= len(text):
            raise CorpusError(
                f"the name finder returned the span {start} to {end} of a text with "
                f"{len(text)} code points",
                "let it return code points from 0, the end behind the last one",
            )
        yield Span(start, end, "NAME", " ".join(text[start:end].split()).casefold())


@cache
def _gate() -> re.Pattern[str]:
    """Return a pattern without which a text has nothing that we know."""
    dots = "|".join(word for word in words("email", "dot").split("|") if not word.isascii())
    return re.compile(rf"[\d@＠]|\.[A-Za-z]|//|:/|[dD][oO][tT]|{dots}")
