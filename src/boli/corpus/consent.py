"""What may be done with the text of a source: its licence, consent, residency and contact.

A source folder says so itself, in source.toml. Where that file is missing, or says nothing, the
text may be trained on at its site, and nothing of it may leave: `Terms()` is that case.

Text leaves only where `why_not` finds no reason against the `effective` terms: the stricter of
what was noted when a record was prepared and of what its source says now.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.errors import CorpusError

MANIFEST = "source.toml"
Residency = Literal["premises", "state", "country", "any"]
LIMITS: tuple[Residency, ...] = ("premises", "state", "country", "any")  # the strictest first
Purpose = Literal["training", "evaluation", "publication"]
FIRST_TO_END = timezone(timedelta(hours=14))  # where each day begins and ends first
REGION = r"[A-Z]{2}(-[A-Z0-9]{1,3})?"  # ISO 3166: IN, IN-BR

TEMPLATE = """\
# What may be done with the text and recordings of this folder. Until it is filled in, boli trains
# on them here, and nothing of them leaves this machine.

# Under which licence the text is given on, as an SPDX identifier: CC0-1.0, CC-BY-4.0 …
licence = ""

# Who agreed to what, until when. Purposes: training, evaluation, publication.
[consent]
purposes = []
# expires = 2030-12-31
# How consent was given, in your own words; no names of persons.
basis = ""

# How far the text may travel: premises (not at all), state, country, any.
[residency]
limit = "premises"
# Where this folder is, as in ISO 3166: IN-BR is Bihar. Needed for state and country.
region = ""

# Whom to ask, or to tell that a record has to go. This address goes into the pool with the text.
[contact]
address = ""
"""


_FORMS = {
    "licence": 'an SPDX identifier, without spaces: "CC-BY-4.0", "CC0-1.0"',
    "consent": "a table: [consent] on a line of its own",
    "consent.purposes": 'a list: ["training"]; also "evaluation", "publication"',
    "consent.expires": "a date without quotes: 2030-12-31",
    "consent.basis": "text in quotes, at most 2000 characters",
    "residency": "a table: [residency] on a line of its own",
    "residency.limit": 'one of "premises", "state", "country", "any"',
    "residency.region": 'an ISO 3166 code: "IN", or "IN-BR" for Bihar',
    "contact": "a table: [contact] on a line of its own",
    "contact.address": "text in quotes, at most 320 characters",
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Agreed(_Table):
    purposes: tuple[Purpose, ...] = ()
    expires: date | None = None  # the last day
    basis: str = Field("", max_length=2000)


class _Limits(_Table):
    limit: Residency = "premises"
    region: str = Field("", pattern=f"^({REGION})?$")


class _Contact(_Table):
    address: str = Field("", max_length=320)


class Consent(_Table):
    """One manifest. The one without a word in it allows nothing but training on the premises."""

    licence: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9.+-]{0,99})?$")
    consent: _Agreed = _Agreed()
    residency: _Limits = _Limits()
    contact: _Contact = _Contact()

    def terms(self) -> Terms:
        """Return the terms that it states."""
        return Terms(
            purposes=self.consent.purposes,
            expires=self.consent.expires,
            licence=self.licence,
            residency=self.residency.limit,
            region=self.residency.region,
            contact=self.contact.address,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be done with a record: those of its columns that a manifest decides."""

    purposes: tuple[str, ...] = ()
    expires: date | None = None  # last day of the consent
    licence: str = ""  # SPDX
    residency: str = "premises"
    region: str = ""  # ISO 3166
    contact: str = ""


def parse_manifest(data: bytes, path: Path) -> Consent:
    """Return what the bytes of a source.toml say; `path` is for errors.

    Raises:
        CorpusError: they are no manifest, or say what it may not.
    """
    try:
        return Consent.model_validate(tomllib.loads(data.decode("utf-8-sig")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise CorpusError(
            f"cannot read {path}: {error}", "mend that line; dates are written 2030-12-31"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        if first["type"] == "extra_forbidden":
            raise CorpusError(
                f"{path} has a key {where!r}, which is not known",
                "there are licence, consent.purposes, consent.expires, consent.basis, "
                "residency.limit, residency.region and contact.address",
            ) from None
        raise CorpusError(
            f"{path}: {where} cannot be {first['input']!r}", f"write {_FORMS.get(where, 'a word')}"
        ) from None


def effective(noted: Terms | None, now: Terms | None) -> Terms:
    """Return the stricter of the terms that were noted at preparation and those that stand now.

    - Either is unknown (None): nothing is allowed.
    - purposes: those that both name.
    - expires: the earlier day.
    - licence: the one that both name; where they name two, none, and that denies.
    - residency: the stricter limit, if both name the same region; if not, the premises.
    - contact: the one that stands now. It allows nothing and denies nothing.
    """
    if noted is None or now is None:
        return Terms()
    here = noted.region == now.region and {noted.residency, now.residency} <= set(LIMITS)
    return Terms(
        purposes=tuple(purpose for purpose in noted.purposes if purpose in now.purposes),
        expires=min((day for day in (noted.expires, now.expires) if day), default=None),
        licence=noted.licence if noted.licence == now.licence else "",
        residency=min(noted.residency, now.residency, key=_strictness) if here else LIMITS[0],
        region=now.region if here else "",
        contact=now.contact,
    )


def _strictness(limit: str) -> int:
    return [*LIMITS].index(limit)  # type: ignore[arg-type]


def consent_date(now: datetime | None = None) -> date:
    """Return the date that the last day of a consent is compared with.

    A manifest says until which day, and not in which time zone. The text must not leave once that
    day has ended anywhere, so this is the date where it is latest: UTC+14. It is made from UTC,
    and the time zone of this machine has no part in it.
    """
    return (now or datetime.now(UTC)).astimezone(FIRST_TO_END).date()


def why_not(
    *,
    purposes: tuple[str, ...],
    expires: date | None,
    licence: str,
    residency: str,
    region: str,
    pool_region: str,
    licences: frozenset[str],  # that the pool takes
    today: date,
    purpose: str = "training",
) -> str:
    """Return why text may not go into a pool; empty where it may. Whatever is unknown denies."""
    if purpose not in purposes:
        return f"no consent to {purpose}"
    if expires is not None and expires < today:
        return "consent has expired"
    if not licence:
        return "no licence is named"
    if licence not in licences:
        return f"the pool does not take {licence}"
    return _too_far(residency, region, pool_region)


def _too_far(residency: str, region: str, pool_region: str) -> str:
    if residency == "any":
        return ""
    if residency == "country" and region and region[:2] == pool_region[:2]:
        return ""
    if residency == "state" and "-" in region and region == pool_region:
        return ""
    if residency in ("country", "state"):
        return f"it may not leave its {residency}"
    return "it may not leave the premises"
