"""Messages in parts that a slow line can finish, and the way back."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from boli.engine.nats_settings import PART_BYTES
from boli.errors import TransportError

FETCH_BYTES = 32 << 10  # of a file, at a time
MOST_BEGUN = 2  # messages, of one sender
_LABEL = re.compile(r"^([0-9a-f]{12})\.(\d{1,6})\.(\d{1,6})(\.s)?$")


@dataclass(frozen=True)
class Label:
    """Which part of which message; also the id by which a server drops what comes twice."""

    message: str  # made anew whenever a message is sent, kept when a part is sent again
    index: int
    count: int
    starts: bool = False  # what came before it in the stream is void

    @classmethod
    def of(cls, text: str | None) -> Label:
        """Read a label.

        Raises:
            TransportError: it is none.
        """
        found = _LABEL.match(text or "")
        if found is None or not int(found[2]) < int(found[3]):
            raise TransportError(f"{(text or '')[:40]!r} labels no part")
        return cls(found[1], int(found[2]), int(found[3]), found[4] is not None)

    def __str__(self) -> str:
        return f"{self.message}.{self.index}.{self.count}{'.s' if self.starts else ''}"


def parts_of(message: bytes, starts: bool = False) -> Iterator[tuple[Label, bytes]]:
    """Cut a message into labelled parts."""
    key, count = secrets.token_hex(6), max(1, -(-len(message) // PART_BYTES))
    for index in range(count):
        part = message[index * PART_BYTES : (index + 1) * PART_BYTES]
        yield Label(key, index, count, starts and index == 0), part


@dataclass
class _Begun:
    """A message of which some parts are there."""

    parts: dict[int, bytes] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)


@dataclass
class Assembler:
    """Puts the last two messages together that were begun; with each part goes its handle.

    Two, because a part of the message before may come late, over a connection that was given up.
    """

    largest_bytes: int
    _begun: dict[tuple[str, int], _Begun] = field(default_factory=dict)  # the oldest first

    def add(self, label: Label, data: bytes, handle: Any) -> tuple[bytes | None, list[Any]]:
        """Take a part; return the message if it is whole now, and the handles it is done with.

        What was begun before a message that is whole, or begun too long ago, nobody will complete.

        Raises:
            TransportError: the message is larger than any may be.
        """
        if label.count * PART_BYTES > self.largest_bytes + PART_BYTES or len(data) > PART_BYTES:
            raise TransportError(f"a message of {label.count} parts is too large")
        key = label.message, label.count
        message = self._begun.setdefault(key, _Begun())
        message.parts[label.index] = data
        message.handles.append(handle)
        if len(message.parts) < label.count:
            return None, self._drop(len(self._begun) - MOST_BEGUN)
        done = self._drop(list(self._begun).index(key) + 1)
        return b"".join(message.parts[index] for index in range(label.count)), done

    def _drop(self, count: int) -> list[Any]:
        """Forget the oldest messages; return their handles."""
        oldest = list(self._begun)[: max(0, count)]
        return [handle for name in oldest for handle in self._begun.pop(name).handles]
