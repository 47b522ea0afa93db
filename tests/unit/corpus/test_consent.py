"""The rule by which text may leave: a truth table of what was noted and of what stands now."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from boli.corpus.consent import (
    LIMITS,
    MANIFEST,
    TEMPLATE,
    Consent,
    Terms,
    consent_date,
    effective,
    parse_manifest,
    why_not,
)
from boli.errors import CorpusError

OPEN = Terms(("training",), None, "MIT", "any", "IN-BR", "a@b.in")
SOON, LATE = date(2026, 12, 1), date(2030, 12, 1)
BOTH = ("training", "evaluation")

TABLE: list[tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None]] = [
    # noted when it was prepared, standing now, effective; as what differs from OPEN
    ({}, {}, {}),
    # Unknown on either side allows nothing.
    (None, {}, None),
    ({}, None, None),
    (None, None, None),
    # Purposes: those that both name.
    ({"purposes": BOTH}, {}, {}),
    ({}, {"purposes": BOTH}, {}),
    ({"purposes": ()}, {}, {"purposes": ()}),
    ({}, {"purposes": ()}, {"purposes": ()}),
    ({"purposes": ("training",)}, {"purposes": ("evaluation",)}, {"purposes": ()}),
    # Expires: the earlier day.
    ({"expires": SOON}, {}, {"expires": SOON}),
    ({}, {"expires": SOON}, {"expires": SOON}),
    ({"expires": SOON}, {"expires": LATE}, {"expires": SOON}),
    ({"expires": LATE}, {"expires": SOON}, {"expires": SOON}),
    # Licence: equal, or none.
    ({"licence": ""}, {}, {"licence": ""}),
    ({}, {"licence": ""}, {"licence": ""}),
    ({"licence": "CC0-1.0"}, {}, {"licence": ""}),
    ({}, {"licence": "CC0-1.0"}, {"licence": ""}),
    ({}, {"licence": "mit"}, {"licence": ""}),
    # Region: equal, or the premises.
    ({"region": "IN-UP"}, {}, {"residency": "premises", "region": ""}),
    ({}, {"region": "IN-UP"}, {"residency": "premises", "region": ""}),
    ({}, {"region": ""}, {"residency": "premises", "region": ""}),
    # Residency: what neither of the four limits is stays.
    ({"residency": "everywhere"}, {}, {"residency": "premises", "region": ""}),
    ({}, {"residency": ""}, {"residency": "premises", "region": ""}),
    # Contact: the present one.
    ({"contact": "old@b.in"}, {}, {}),
    *(  # the stricter limit, whichever side it is on
        (
            {"residency": noted},
            {"residency": now},
            {"residency": LIMITS[min(LIMITS.index(noted), LIMITS.index(now))]},
        )
        for noted, now in product(LIMITS, LIMITS)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("noted", "now", "expected"), TABLE)
def test_the_stricter_counts(
    noted: dict[str, Any] | None, now: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    def terms(values: dict[str, Any] | None) -> Terms | None:
        return None if values is None else replace(OPEN, **values)

    assert effective(terms(noted), terms(now)) == (terms(expected) or Terms())


def test_nothing_goes_that_one_of_both_forbids() -> None:
    """Every pair of some terms, for every pool and day of some: and what both allow goes."""
    some = [
        Terms(purposes, expires, licence, limit, region)
        for purposes in ((), ("training",), ("evaluation",), BOTH)
        for expires in (None, SOON, LATE)
        for licence in ("", "MIT")
        for limit, region in (
            *product(LIMITS[1:], ("IN-BR", "IN-UP")),
            ("any", ""),
            ("premises", ""),
        )
    ]
    went = 0
    for noted, now in product(some, some):
        under = effective(noted, now)
        for place, today in (("IN-BR", SOON), ("IN-UP", LATE), ("NP", SOON)):

            def goes(terms: Terms, place: str = place, today: date = today) -> bool:
                values = asdict(terms)
                values.pop("contact")
                licences = frozenset({"MIT"})
                return not why_not(**values, pool_region=place, licences=licences, today=today)

            if goes(under):
                went += 1
                assert goes(noted)
                assert goes(now)
            elif noted.region == now.region:
                assert not (goes(noted) and goes(now))
    assert went > 500  # the control: it is not that nothing goes


ALLOWED: dict[str, Any] = {
    "purposes": ("training",),
    "expires": None,
    "licence": "MIT",
    "residency": "any",
    "region": "",
    "pool_region": "IN-BR",
    "licences": frozenset({"MIT"}),
}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"expires": "2026-11-24"}, ""),
        ({"expires": "2026-11-23"}, "expired"),
        ({"purposes": ("evaluation",)}, "no consent"),
        ({"licence": ""}, "no licence"),
        ({"licence": "GPL-2.0-only"}, "does not take"),
        ({"residency": "premises", "region": "IN-BR"}, "premises"),
        ({"residency": "state", "region": "IN-BR"}, ""),
        ({"residency": "state", "region": "IN-UP"}, "state"),
        ({"residency": "state", "region": "IN", "pool_region": "IN"}, "state"),
        ({"residency": "country", "region": "IN-UP"}, ""),
        ({"residency": "country", "region": "NP"}, "country"),
        ({"residency": "country", "region": "", "pool_region": ""}, "country"),
        ({"residency": "everywhere"}, "premises"),
        ({"residency": ""}, "premises"),
    ],
)
def test_whatever_is_not_allowed_stays(changed: dict[str, Any], reason: str) -> None:
    values = ALLOWED | changed
    if values["expires"]:
        values["expires"] = date.fromisoformat(values["expires"])
    told = why_not(**values, today=date(2026, 11, 24))
    assert (reason in told) if reason else not told


@pytest.mark.parametrize(
    ("now", "day"),
    [
        ("2026-12-01T09:59:59", "2026-12-01"),  # 23:59:59 on Kiritimati, where it ends first
        ("2026-12-01T10:00:00", "2026-12-02"),
        ("2026-12-01T00:00:00", "2026-12-01"),
        ("2026-11-30T23:59:59", "2026-12-01"),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "UTC+12", "UTC-14", "Asia/Kolkata"])
def test_the_last_day_ends_where_it_ends_first_whatever_the_time_zone_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, now: str, day: str, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
        assert consent_date(moment) == date.fromisoformat(day)
        assert consent_date() == (datetime.now(UTC) + timedelta(hours=14)).date()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_template_allows_nothing() -> None:
    assert parse_manifest(TEMPLATE.encode(), Path(MANIFEST)) == Consent()
    assert Consent().terms() == Terms() == effective(None, OPEN)


@pytest.mark.parametrize(
    "data", [b"a = " + b"[" * 100_000, b"\xff", b"licence = 'MIT", b'[consent]\nexpires = "x"']
)
def test_what_is_no_manifest_is_told(data: bytes) -> None:
    with pytest.raises(CorpusError, match=r"source\.toml"):
        parse_manifest(data, Path(MANIFEST))
