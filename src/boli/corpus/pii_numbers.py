"""Find numbers that name a person in India: phone, Aadhaar, PAN, bank account, vehicle.

Source: Verhoeff 1969, "Error detecting decimal codes" (the check digit of Aadhaar); UIDAI's
numbering of Aadhaar (12 digits, the first from 2 to 9); the National Numbering Plan 2003 of
India (mobile numbers begin with 6 to 9, area code and number have ten digits together);
Income Tax Rules, rule 114 (PAN); RBI's IFSC; Central Motor Vehicles Rules, rule 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from boli.corpus.pii_fold import GAP, LETTERS, Span, cue, lists, words

FEWEST_DIGITS = 9  # fewer are no phone and no account
MANY_DIGITS = re.compile(rf"\d(?:[^\w\n]{{0,4}}\d){{{FEWEST_DIGITS - 1},}}")

# The dihedral group D5 as a multiplication table, and the permutation by position.
_TIMES = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_MOVED = (
    "0123456789", "1576283094", "5803796142", "8916043527",
    "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip

# Lookbehinds stand behind the first character, so that the search can skip to it.
_ALONE = r"(?<![A-Za-z0-9].)"
_IFSC = re.compile(rf"[A-Z]{_ALONE}[A-Z]{{3}}0(?=[A-Z]{{0,5}}\d)[A-Z0-9]{{6}}(?![A-Za-z0-9])")
_PAN = re.compile(rf"[A-Z]{_ALONE}[A-Z]{{2}}[ABCFGHLJPTK][A-Z]\d{{4}}[A-Z](?![A-Za-z0-9])")
_AADHAAR = re.compile(
    rf"[2-9](?<![\d_+].)(?<!\d[-. ,].)(?<!\+ .)\d{{3}}({GAP}|)\d{{4}}\1\d{{4}}"
    r"(?![\d_]|[- ]\d{4}(?!\d)|[.,]\d)"
)
_NUMBER_STARTS = re.compile(r"[+(]|\d+")
_MARK = re.compile(r"[A-Z] ?-?\d{4}")  # what every registration mark has
_ACCOUNT = r"\d(?:[ -]?\d){8,17}(?![ -]?\d)"
_NEAR_IFSC = 80  # code points
_CUE_REACH = 60


def check_digit_holds(digits: str) -> bool:
    """Return whether the last of these ASCII digits is the check digit of the others (Verhoeff)."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_TIMES[check][int(_MOVED[place % 8][int(digit)])])
    return check == 0


def branches(text: str) -> Iterator[Span]:
    """Find IFSC codes, which name the branch of a bank."""
    for match in _IFSC.finditer(text):
        yield _span(match, "IFSC")


def named_accounts(text: str) -> Iterator[Span]:
    """Find account numbers (9 to 18 digits) behind a word such as खाता or A/c."""
    for digits in MANY_DIGITS.finditer(text):
        start = max(0, digits.start() - _CUE_REACH)
        for match in _shapes().account.finditer(text, start, digits.end()):
            if not _shapes().other_cue.search(match["gap"]):
                yield _span(match, "ACCOUNT", "number")


def aadhaar_numbers(text: str) -> Iterator[Span]:
    """Find Aadhaar numbers whose check digit holds."""
    for match in _AADHAAR.finditer(text):
        if not (_is_amount(match) or _is_round(match[0])) and check_digit_holds(_digits(match[0])):
            yield _span(match, "AADHAAR")


def tax_numbers(text: str) -> Iterator[Span]:
    """Find PANs: the fourth letter says what kind of taxpayer it is."""
    for match in _PAN.finditer(text):
        yield _span(match, "PAN")


def vehicles(text: str) -> Iterator[Span]:
    """Find registration marks: BR 01 AB 1234, 22 BH 1234 AA."""
    if not _MARK.search(text):
        return
    for match in _shapes().vehicle.finditer(text):
        yield _span(match, "VEHICLE")


def phones(text: str) -> Iterator[Span]:
    """Find mobile numbers, landlines with their area code, and numbers abroad behind a +."""
    for digits in MANY_DIGITS.finditer(text):
        for first in _NUMBER_STARTS.finditer(text, max(0, digits.start() - 3), digits.end()):
            match = _phone(text, first.start())
            if match:
                yield _span(match, "PHONE")


def _phone(text: str, start: int) -> re.Match[str] | None:
    shapes = _shapes()
    match = shapes.mobile.match(text, start)
    if match and (match["prefix"] or _has_cue(match) or not _is_other(match)):
        return match
    match = shapes.mobile_with_cue.match(text, start)
    if match and (match["prefix"] or _has_cue(match)):
        return match
    match = shapes.landline.match(text, start)
    if match and (match["trunk"] is not None or _has_cue(match)):
        area = _digits(match["area"]).removeprefix("0")
        if len(area) + len(_digits(match["number"])) == 10:
            return match
    match = shapes.joined_landline.match(text, start)
    if match and _has_cue(match):
        return match
    match = shapes.abroad.match(text, start)
    return match if match and 8 <= len(_digits(match[0])) <= 15 else None


def accounts_near_a_branch(text: str, codes: list[Span]) -> Iterator[Span]:
    """Find account numbers near an IFSC; `codes` are the IFSC spans of this text."""
    for code in codes:
        first = max(0, code.start - _NEAR_IFSC)
        for match in re.compile(rf"(?<!\d){_ACCOUNT}").finditer(
            text, first, min(len(text), code.end + _NEAR_IFSC)
        ):
            if not _is_amount(match):
                yield _span(match, "ACCOUNT")


class _Shapes(NamedTuple):
    account: re.Pattern[str]
    other_cue: re.Pattern[str]
    phone_cue: re.Pattern[str]
    before: re.Pattern[str]
    after: re.Pattern[str]
    vehicle: re.Pattern[str]
    mobile: re.Pattern[str]
    mobile_with_cue: re.Pattern[str]
    landline: re.Pattern[str]
    joined_landline: re.Pattern[str]
    abroad: re.Pattern[str]


@cache
def _shapes() -> _Shapes:
    others = f"{cue('phone')}|{cue('aadhaar')}"
    states = words("vehicle", "states")
    series = "[A-HJ-NP-Z]{1,3}"  # I and O are not given out, so UP 15 OF 2011 is none
    # A single 0 and a hyphen may belong to the word before: मो0-98…
    start = r"(?<![\d_])(?<!\d\.)(?:(?<![1-9]-)(?<!\d0-)|(?<=\d{10}-))"
    stop = r"(?!\d|_|\.\d|-\d{3}(?!\d{7}))"
    country = rf"(?:\+ ?91{GAP}?|0091{GAP}?)"
    prefix = (
        rf"(?P<prefix>{country}\(?0?\)?{GAP}?|\+?\(\+?91\){GAP}?|91{GAP}|91(?=[6-9]\d{{9}}(?!\d))"
        rf"|0(?=[6-9]\d\d)|(?<![{LETTERS}]0)(?<![{LETTERS}])0[ -]{{1,2}})?"
    )
    return _Shapes(
        account=re.compile(
            rf"{cue('account')}(?P<gap>(?:[^\d\n\0]|(?<=[{LETTERS}])0(?!\d)){{0,25}})"
            rf"(?P<number>{_ACCOUNT})",
            re.IGNORECASE,
        ),
        other_cue=re.compile(others, re.IGNORECASE),
        phone_cue=re.compile(rf"{cue('phone')}[^\d\n]{{0,15}}\n?[^\d\n]{{0,3}}$", re.IGNORECASE),
        before=re.compile(rf"(?:{words('amount', 'before')}) ?$", re.IGNORECASE),
        after=re.compile(rf" ?(?:{words('amount', 'after')})(?![{LETTERS}])", re.IGNORECASE),
        vehicle=re.compile(
            rf"(?<![A-Za-z0-9])(?:(?:{states})[ -]?\d{{1,2}}[ -]?{series}[ -]?\d{{4}}"
            r"|[2-9]\d[ -]?BH[ -]?\d{4}[ -]?[A-HJ-NP-Z]{1,2})(?![A-Za-z0-9])"
        ),
        mobile=re.compile(f"{start}{prefix}(?P<number>{_grouped('groups')}){stop}"),
        mobile_with_cue=re.compile(
            f"{start}{prefix}(?P<number>{_grouped('groups_with_cue')}){stop}"
        ),
        landline=re.compile(
            rf"{start}(?P<trunk>{country}|(?=0)|(?=\(\d+\)))?"
            rf"(?P<area>\(0?[1-8]\d{{1,3}}\)|0?[1-8]\d{{1,3}})(?:(?<=\)){GAP}?|{GAP})"
            rf"(?P<number>[1-9]\d{{5,7}}|[1-9]\d{{1,3}}{GAP}\d{{3,4}}){stop}"
        ),
        joined_landline=re.compile(rf"{start}0[1-8]\d{{9}}{stop}"),
        abroad=re.compile(
            r"(?<![A-Za-z0-9+])\+ ?(?!91)[1-9]\d{0,2}"
            rf"(?:{GAP}?(?:\(\d{{1,4}}\)|\d{{1,11}})){{1,5}}{stop}"
        ),
    )


def _grouped(name: str) -> str:
    """Return a pattern for ten digits that begin with 6 to 9, grouped as a list says."""
    shapes = []
    for groups in lists()["phone"][name]:
        first, *rest = map(int, groups.split())
        shapes.append(
            "[6-9]" + rf"\d{{{first - 1}}}" + "".join(rf"{GAP}\d{{{size}}}" for size in rest)
        )
    return "|".join(shapes)


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _span(match: re.Match[str], kind: str, group: str | int = 0) -> Span:
    """Return a span whose value is the same however the number was grouped."""
    value = re.sub(r"[^A-Z0-9]", "", match[group].upper())
    if kind == "PHONE" and (value.startswith("91") or not match[0].startswith("+")):
        value = value[-10:]
    return Span(match.start(group), match.end(group), kind, value)


def _has_cue(match: re.Match[str]) -> bool:
    start = match.start()
    return bool(_shapes().phone_cue.search(match.string[max(0, start - 40) : start]))


def _is_amount(match: re.Match[str]) -> bool:
    """Return whether money or a measure stands beside the number."""
    text, shapes = match.string, _shapes()
    before = shapes.before.search(text[max(0, match.start() - 8) : match.start()])
    return bool(before or shapes.after.match(text, match.end()))


def _is_round(number: str) -> bool:
    """Return whether every group ends with 00, as in 65000 75000, or the number with 00000."""
    groups = re.findall(r"\d+", number)
    return number.endswith("00000") or (
        len(groups) > 1 and all(group.endswith("00") for group in groups)
    )


def _is_other(match: re.Match[str]) -> bool:
    """Return whether a number with the digits of a mobile number is more likely another one."""
    text, number = match.string, match["number"]
    groups = re.findall(r"\d+", number)
    if _is_amount(match) or _is_round(number):
        return True
    if len(groups) == 1:
        return False
    if len(groups) == 2 and ("." in number or ("-" in number and groups[0][:2] == groups[1][:2])):
        return True  # 9876.543210 and 78901-78925
    if all(int(after) == int(before) + 1 for before, after in pairwise(groups)):
        return True
    return bool(  # more numbers beside it: a table
        re.search(r"\d[ ,]{1,2}$", text[max(0, match.start() - 3) : match.start()])
        or re.match(r"[ ,]{1,2}\d", text[match.end() : match.end() + 3])
    )
