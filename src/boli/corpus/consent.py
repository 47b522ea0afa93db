"""What may be done with the text of a source: its licence, consent, residency and contact.

A source folder says so itself, in source.toml. Where that file is missing, or says nothing, the
text may be trained on at its site, and nothing of it may leave: `Consent()` is that case.
"""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.errors import CorpusError

MANIFEST = "source.toml"
Residency = Literal["premises", "state", "country", "any"]
Purpose = Literal["training", "evaluation", "publication"]
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

    def columns(self) -> dict[str, Any]:
        """Return it as the fields of a record that say what may be done with that."""
        return {
            "purposes": self.consent.purposes,
            "expires": self.consent.expires,
            "licence": self.licence,
            "residency": self.residency.limit,
            "region": self.residency.region,
            "contact": self.contact.address,
        }


def read_consent(folder: Path) -> Consent | None:
    """Return what source.toml of a folder says; None where there is no such file.

    Raises:
        CorpusError: the file cannot be read, or says what it may not.
    """
    path = folder / MANIFEST
    try:
        return Consent.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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


def nearest_consent(folder: Path) -> Consent | None:
    """Return what the nearest source.toml says, at a folder or above it.

    Raises:
        CorpusError: a manifest cannot be read, or says what it may not.
    """
    for place in (folder, *folder.absolute().parents):
        found = read_consent(place)
        if found is not None:
            return found
    return None


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
