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

from pydantic import AfterValidator, Field, TypeAdapter

from boli.codec.facts import pack_facts, unpack_facts
from boli.errors import CodecError, TransportError
from boli.rounds.transport import Joined
from boli.rounds.update import MOST_COPIES, Copy, Count, Message, Short

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


NumLines = Annotated[dict[Short, Count], Field(max_length=10)]  # by part; goes into the journal


class Joining(Message):
    """A node is there: what it holds, and what it reads."""

    layout: list[tuple[str, list[Count], Short]]
    num_lines: Annotated[dict[Short, NumLines], Field(max_length=100)]  # by language
    held_version: int = Field(ge=-1)
    held_digest: int
    copies: Annotated[tuple[Copy, ...], Field(max_length=MOST_COPIES)] = ()

    def joined(self, site: str, restarts: int) -> Joined:
        """Return it as the coordinator hears it, from the site that the engine knows it is."""
        held = self.held_version, self.held_digest
        return Joined(site, self.layout, self.num_lines, *held, restarts, self.copies)


def joining_facts(joined: Joined) -> dict[str, Any]:
    """Return what a node says; of copies only where there are any, as before they were told."""
    copies = {"copies": [copy.facts() for copy in joined.copies]} if joined.copies else {}
    return {
        "layout": joined.layout,
        "num_lines": joined.num_lines,
        "held_version": joined.held_version,
        "held_digest": joined.held_digest,
        **copies,
    }


def harmless(text: str) -> str:
    """Return a site's words as one line that no terminal takes for a command."""
    return "".join(" " if unicodedata.category(one) == "Cc" else one for one in text[:500])


Told = Annotated[str, AfterValidator(harmless)]  # goes into the journal and onto the display


class Failing(Message):
    """A node cannot go on."""

    problem: Told
    hint: Told


FIGURES = TypeAdapter(Annotated[dict[Short, float], Field(max_length=100)])  # of a measurement
