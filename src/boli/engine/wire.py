"""What a local node and its coordinator say to each other: facts, then a payload.

The facts' length stands in front of them, so that any bytes may follow. Both ends
import this module, and neither imports the other.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from boli.codec.facts import pack_facts, unpack_facts
from boli.errors import BoliError, CodecError, TransportError, public_words
from boli.rounds.transport import Failed, Instruction, Joined, Malformed, Stop, Version
from boli.rounds.update import (
    MOST_COPIES,
    PROTOCOL,
    Copy,
    Count,
    Message,
    Order,
    Short,
    Verdict,
    check_protocol,
)

_LENGTH = struct.Struct("<I")
if TYPE_CHECKING:
    Line = Connection[Any, Any]
else:
    Line = Connection


def pack_message(kind: str, body: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Return one message: length of the facts, facts, payload."""
    header = pack_facts({"kind": kind, **body})
    return _LENGTH.pack(len(header)) + header + payload


def unpack_message(data: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Return kind, header and payload.

    Raises:
        TransportError: it is not a message.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        body = unpack_facts(data[_LENGTH.size : _LENGTH.size + length])
        kind = body.pop("kind")
        if not isinstance(kind, str):
            raise TransportError(f"kind is {type(kind).__name__}")
        return kind, body, data[_LENGTH.size + length :]
    except (struct.error, KeyError, CodecError) as error:
        raise TransportError(f"not a message: {error}") from error


def harmless(text: str) -> str:
    """Return a site's words as one line that no terminal takes for a command."""
    return "".join(" " if unicodedata.category(one) == "Cc" else one for one in text[:500])


Told = Annotated[str, AfterValidator(harmless)]  # goes into the journal, and onto the display
Word = Annotated[Short, AfterValidator(harmless)]
NumLines = Annotated[dict[Word, Count], Field(max_length=10)]  # by part


class Joining(Message):
    """A node is there: what it holds, and what it reads."""

    layout: list[tuple[Told, list[Count], Word]]
    num_lines: Annotated[dict[Word, NumLines], Field(max_length=100)]  # by language
    held_version: int = Field(ge=-1, le=2**53)
    held_digest: Count
    copies: Annotated[tuple[Copy, ...], Field(max_length=MOST_COPIES)] = ()

    def joined(self, site: str, restarts: int) -> Joined:
        """Return it as the coordinator hears it, from the site that the engine knows it is."""
        held = self.held_version, self.held_digest
        return Joined(site, self.layout, self.num_lines, *held, restarts, self.copies)


def read_joining(body: Mapping[str, Any]) -> Joining:
    """Return what a node says when it joins.

    Raises:
        TransportError: it speaks another protocol.
        ValidationError: it says something else.
    """
    check_protocol(body, "the site")
    return Joining.model_validate(body)


def unsound(site: str, error: Exception) -> Malformed | Failed:
    """Return what cannot be read as the coordinator notes it, without a value of the message."""
    if isinstance(error, ValidationError):
        return Malformed(site, f"{error.error_count()} wrong fields in {error.title}"[:200])
    if not isinstance(error, BoliError):
        return Malformed(site, type(error).__name__)
    if error.code == "protocol":  # it is honest, and will not change
        return Failed(site, error.problem, error.hint)
    return Malformed(site, error.problem[:200])


class _Held(Message):
    """Says which version a payload brings."""

    version: Count


def instruction_of(data: bytes) -> Instruction:
    """Return what the coordinator asks of a node.

    Raises:
        TransportError: it cannot be read.
    """
    kind, body, payload = unpack_message(data)
    try:
        match kind:
            case "order":
                return Order.model_validate(body)
            case "verdict":
                return Verdict.model_validate(body)
            case "delta" | "snapshot":
                version = _Held.model_validate(body).version
                return Version(version, kind == "snapshot", payload)
            case "stop":
                return Stop()
    except ValidationError as error:
        raise TransportError(f"not a message: {error}") from error
    raise TransportError(f"unknown kind {kind[:20]!r}")


def joining_facts(joined: Joined) -> dict[str, Any]:
    """Return what a node says; of copies only where there are any, as before they were told."""
    copies = {"copies": [copy.facts() for copy in joined.copies]} if joined.copies else {}
    protocol = {"protocol": PROTOCOL} if PROTOCOL > 1 else {}
    return {
        **protocol,
        "layout": joined.layout,
        "num_lines": joined.num_lines,
        "held_version": joined.held_version,
        "held_digest": joined.held_digest,
        **copies,
    }


class Failing(Message):
    """A node cannot go on; its words stay at the site."""

    code: Annotated[str, Field(pattern=r"^[a-z][a-z.-]{0,40}$")]

    @model_validator(mode="before")
    @classmethod
    def _without_words(cls, value: Any) -> Any:
        """Take an older site for one whose reason is not known: it sent words of its own."""
        is_older = isinstance(value, dict) and "code" not in value and "problem" in value
        return {"code": BoliError.code} if is_older else value

    def failed(self, site: str) -> Failed:
        """Return it as the coordinator hears it, in the coordinator's own words."""
        return Failed(site, *public_words(self.code))


def failing_facts(error: BoliError) -> dict[str, Any]:
    """Return all that may travel of an error."""
    return {"code": error.code}


FIGURES = TypeAdapter(Annotated[dict[Short, float], Field(max_length=100)])  # of a measurement
