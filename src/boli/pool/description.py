"""What a pool says of itself, kept in its table's own metadata: there whole, or not at all."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.corpus.consent import REGION
from boli.errors import PoolError
from boli.plan import NAME

OPEN_LICENCES = (
    "Apache-2.0",
    "CC-BY-2.0",
    "CC-BY-2.5",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC-PDDC",
    "CC0-1.0",
    "MIT",
    "ODC-By-1.0",
    "ODbL-1.0",
    "OGL-UK-3.0",
    "PDDL-1.0",
)
LICENCE = r"^[A-Za-z0-9][A-Za-z0-9.+-]{0,99}$"


class Description(BaseModel):
    """Where a pool is in law, and what it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str = Field(pattern=NAME)
    region: str = Field(pattern=f"^{REGION}$")  # ISO 3166, where its disks are
    licences: tuple[str, ...] = Field(min_length=1)
    created: str

    def text(self) -> str:
        """Return it as JSON that carries its own hash."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "sha256": _digest(body)}, sort_keys=True)


def _digest(body: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def new_description(name: str, region: str, licences: tuple[str, ...]) -> Description:
    """Return the description of a new pool.

    Raises:
        PoolError: a value is not allowed.
    """
    import re

    for licence in licences:
        if not re.fullmatch(LICENCE, licence):
            raise PoolError(f"{licence!r} is no SPDX identifier", "for example CC-BY-4.0")
    try:
        return Description(
            id=uuid4().hex,
            name=name,
            region=region,
            licences=tuple(sorted(set(licences or OPEN_LICENCES))),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise PoolError(
            f"the pool's {first['loc'][0]} cannot be {first['input']!r}",
            "a name is lower-case letters, digits and dashes, at most 31; a region is ISO 3166: "
            "IN, or IN-BR",
        ) from None


def read_description(text: str, url: str) -> Description:
    """Return the description that a pool's table carries.

    Raises:
        PoolError: it is not whole, or is not a pool's.
    """
    try:
        body = json.loads(text)
        found = body.pop("sha256")
        if _digest(body) == found:
            return Description.model_validate(body)
    except (ValueError, KeyError, TypeError, AttributeError):  # a ValidationError is a ValueError
        pass
    raise PoolError(f"the table at {url} is not a boli pool, or was altered", "check the address")
