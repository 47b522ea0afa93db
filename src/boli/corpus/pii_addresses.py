"""Find addresses: URLs and the secrets in them, e-mail, UPI.

Source: RFC 3986 (which characters a URL has), RFC 5322 and RFC 6531 (e-mail; the shapes that
people use, not all that the grammar allows), NPCI's UPI handles in tables/personal.toml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from boli.corpus.pii_fold import LETTERS, Span, cue, lists, words

_INDIC = LETTERS.removeprefix("A-Za-z")
_LABEL = f"[A-Za-z0-9{_INDIC}](?:[A-Za-z0-9{_INDIC}-]{{0,61}}[A-Za-z0-9{_INDIC}])?"
_LOCAL = re.compile(
    rf"(?:[A-Za-z0-9_+](?:[A-Za-z0-9._%+-]{{0,62}}[A-Za-z0-9_%+-])?|[{_INDIC}]{{1,40}})$"
)
_MARKED = re.compile(r"(?=[A-Za-z0-9._%+-]{0,63}[\d._])[A-Za-z0-9._%+-]{2,64}$")
_HANDLE = re.compile(r"[A-Za-z][A-Za-z0-9]{1,19}(?![\w@-]|\.[A-Za-z0-9])")
_URL_CHARACTERS = r"[!#-;=?-\[\]_a-z~]"
_BIG_MIX = re.compile(r"(?<![\w%.-])(?=\w*\d\w*\d)(?=\w*[A-Za-z])[A-Za-z0-9]{24,}(?![\w%.-])")
# The beginning of a JSON web token. From the first eyJ of a word on: every one would take too long.
# (No possessive group: Python before 3.11.5 matches those wrongly at times.)
_SIGNED = re.compile(r"(?<![\w-])(?:(?!eyJ)[\w-])*eyJ[\w-]{8,}+\.eyJ")
_PASSWORD = re.compile(r"//[^/\s@]+@")
_OPENING = {")": "(", "]": "["}


def urls(text: str) -> Iterator[Span]:
    """Find URLs with a scheme or www, as URL, or as SECRET_URL where one holds a secret.

    A secret is a password or address before the host, a query value under a key such as
    `token` or `email`, a long mix of letters and digits, an e-mail address, a mobile number.
    """
    if "//" not in text and ":/" not in text and "ww" not in text.lower():
        return
    for match in _shapes().url.finditer(text):
        yield _url(text, match.start(), match.end())


def bare_urls(text: str) -> Iterator[Span]:
    """Find addresses that begin with the host: magahi.example.com, bit.ly/x."""
    if "." in text:
        for match in _shapes().bare.finditer(text):
            yield _url(text, match.start(), match.end())


def emails(text: str) -> Iterator[Span]:
    """Find e-mail addresses, also with spaces, brackets or words for @ and dots."""
    if "@" not in text and not any(word in text for word in _spelled_signs()):
        return
    shapes = _shapes()
    for at in shapes.at.finditer(text):
        sign = at[0].strip()
        if at[0] == "@":
            local = _LOCAL
            domain = shapes.domain.match(text, at.end()) or shapes.spaced.match(text, at.end())
        elif sign == "@":
            local, domain = _LOCAL, shapes.spaced.match(text, at.end())
            if domain is None and at[0] == "@ ":
                domain = shapes.known.match(text, at.end())
        elif sign[0] in "[({<" or " " in sign:  # [at], at the rate
            local = shapes.spelled_local
            domain = shapes.spelled.match(text, at.end()) or shapes.domain.match(text, at.end())
        else:
            local, domain = shapes.spelled_local, shapes.spelled.match(text, at.end())
            if domain is None:  # "come at gmail.com" is no address, "ravi.77 at gmail.com" is
                local, domain = _MARKED, shapes.spaced.match(text, at.end())
        before = local.search(text, max(0, at.start() - 80), at.start()) if domain else None
        if before and domain:
            value = f"{_undotted(before[0])}@{_undotted(domain[0])}".casefold()
            yield Span(before.start(), domain.end(), "EMAIL", value)


def upi_addresses(text: str) -> Iterator[Span]:
    """Find UPI addresses: a known handle, or any near a word such as UPI."""
    shapes = _shapes()
    for at in re.finditer("@", text):
        local = _LOCAL.search(text, max(0, at.start() - 64), at.start())
        handle = _HANDLE.match(text, at.end())
        if local and handle and local[0].isascii():
            known = handle[0].lower() in lists()["upi"]["handles"]
            near = text[max(0, local.start() - 30) : local.start()]
            if known or shapes.upi.search(near):
                value = text[local.start() : handle.end()].casefold()
                yield Span(local.start(), handle.end(), "UPI", value)


@cache
def _spelled_signs() -> tuple[str, ...]:
    """Return the words for @ as they are looked for before the pattern, which is slow."""
    found: list[str] = lists()["email"]["at"]
    return tuple({form for word in found for form in (word, word.title(), word.upper())})


class _Shapes(NamedTuple):
    url: re.Pattern[str]
    bare: re.Pattern[str]
    at: re.Pattern[str]
    domain: re.Pattern[str]
    known: re.Pattern[str]  # a domain with an ending from the list
    spaced: re.Pattern[str]  # a provider, and perhaps spaces about its dot
    spelled: re.Pattern[str]
    spelled_local: re.Pattern[str]
    upi: re.Pattern[str]
    secret: re.Pattern[str]


@cache
def _shapes() -> _Shapes:
    indic_endings, providers = words("email", "endings"), words("email", "providers")
    at, dot = words("email", "at"), words("email", "dot")
    endings = f"(?:com|org|net|info|edu|gov|co|in|{indic_endings})"
    ending = (
        rf"(?:(?:{words('email', 'glued_endings')})(?=\.?[A-Z])"
        rf"|[A-Za-z]{{2,18}}(?![A-Za-z]|\.[a-z0-9])|{indic_endings})"
    )
    # A dot written out, or in brackets, or with spaces around it.
    dots = rf"(?: ?[\[({{<] ?(?:{dot}|\.) ?[\])}}>] ?| (?:{dot}) | ?\. ?)"
    written = rf"(?: ?[\[({{<] ?(?:{dot}|\.) ?[\])}}>] ?| (?:{dot}) )"
    end = f"(?![{LETTERS}0-9])"
    return _Shapes(
        url=re.compile(
            # https://, and the misspellings that are met in the wild; a second one is another URL.
            # It begins at the first h of several, or at the last one, where one before it ended.
            r"(?:(?:(?<!h)h++|(?<=h)h)t{2,4}ps?(?::/{1,3}|//:?)|ftp://|(?<![A-Za-z0-9@.-])w{3,4}\d?\.)"
            rf"(?:(?!(?<![=/?&])https?://){_URL_CHARACTERS})+(?:(?<=\.)(?:{indic_endings}))?",
            re.IGNORECASE,
        ),
        bare=re.compile(
            r"(?<![A-Za-z0-9@._/-])(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}"
            rf"(?:(?:{words('url', 'endings')})(?![a-z0-9-]|\.[a-z])(?:/{_URL_CHARACTERS}*)?"
            rf"|[a-z]{{2,10}}/{_URL_CHARACTERS}+)",
        ),
        at=re.compile(rf" ?[\[({{<] ?(?:{at}|@) ?[\])}}>] ?| @ ?|@ ?| (?:{at}) ", re.IGNORECASE),
        domain=re.compile(rf"(?:{_LABEL}\.){{1,6}}?{ending}"),
        known=re.compile(rf"(?:{_LABEL}\.){{1,4}}?{endings}(?![A-Za-z0-9])", re.IGNORECASE),
        spaced=re.compile(rf"(?:{providers}){dots}(?:co{dots}in|{endings}){end}", re.IGNORECASE),
        spelled=re.compile(rf"{_LABEL}(?:{written}{endings}){{1,2}}{end}", re.IGNORECASE),
        spelled_local=re.compile(
            rf"(?:[A-Za-z0-9._%+-]{{1,64}}|[{_INDIC}]{{1,40}})"
            rf"(?:{written}(?:[A-Za-z0-9._%+-]{{1,64}}|[{_INDIC}]{{1,40}})){{0,3}}$",
            re.IGNORECASE,
        ),
        upi=re.compile(cue("upi"), re.IGNORECASE),
        secret=re.compile(rf"[?&;#/](?:{words('url', 'secret_keys')})=[^&;#]{{4}}", re.IGNORECASE),
    )


def _url(text: str, start: int, end: int) -> Span:
    """Leave what the sentence put behind the URL, and look for secrets in it."""
    unopened = {
        closing: text.count(closing, start, end) - text.count(opening, start, end)
        for closing, opening in _OPENING.items()
    }
    while end > start and (text[end - 1] in ".,;:!?'*-" or unopened.get(text[end - 1], 0) > 0):
        end -= 1
        if text[end] in unopened:
            unopened[text[end]] -= 1
    url = text[start:end]
    rest = url.partition("//")[2] or url
    secret = (
        _PASSWORD.search(url)
        or _shapes().secret.search(url)
        or _SIGNED.search(url)
        or _BIG_MIX.search(rest)
        or re.search(r"[\w+-](?:@|%40)[\w-]{1,63}\.\w", rest)
        or re.search(r"(?<![\w.%-])(?:\+?91)?[6-9]\d{9}(?![\w.%-])", rest)
    )
    return Span(start, end, "SECRET_URL" if secret else "URL", url)


def _undotted(address: str) -> str:
    """Write "ram dot kumar" as ram.kumar, so that both get one number."""
    dot = words("email", "dot")
    plain = re.sub(
        rf" ?[\[({{<]? ?(?:(?<![{LETTERS}])(?:{dot})(?![{LETTERS}])|\.) ?[\])}}>]? ?",
        ".",
        address,
        flags=re.IGNORECASE,
    )
    return plain.strip()
