"""What the coordinator in a Flower federation and a site say to each other.

Only the coordinator may begin to speak there, and a site hears one message at a
time. So what an exchange carries is a bundle: all that the one side has to say,
in messages of `wire.py`. No answer names the site that it is from in a way that
counts: the engine knows from which Flower node it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from boli.engine.wire import Told as Words
from boli.engine.wire import pack_message, unpack_message
from boli.errors import TransportError
from boli.rounds.update import Count, Message
from boli.site.kit import Kit

RUN = r"^[a-z0-9][a-z0-9-]{0,60}$"  # also the name of a folder at the site
Form = TypeVar("Form", bound=Message)
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}$")]  # of a file
MESSAGES_AT_ONCE = 32  # from a node: each may take a megabyte of facts, and time to read them


class UnheardError(TransportError):
    """A node answered something that is no answer; it is the node's fault, not Flower's."""


Code = Annotated[str, Field(pattern=r"^([a-z][a-z.-]{0,40})?$")]  # of a failure


class Hello(Message):
    """Asks a node which site it is; then tells that site of the run."""

    kit: Kit | None = None  # for the site that the node said it is


class Greeting(Message):
    """Answers `Hello`."""

    site: Words = ""  # as its owner set it; "" : none, it belongs to somebody else
    have: dict[Name, Count] = Field(
        default_factory=dict
    )  # files of the base that are not whole here, and bytes so far
    code: Code = ""  # why it cannot take part


class Part(Message):
    """Some bytes of a file of the base."""

    file: Name
    offset: int = Field(0, ge=0)


class Pieces(Message):
    """Brings parts of the base's files; their bytes follow each other in the payload."""

    run: str = Field(pattern=RUN)
    parts: tuple[Part, ...]
    sizes: tuple[Count, ...]


class Had(Message):
    """Answers `Pieces`: what is here of each file by now."""

    have: dict[Name, Count]


class Asked(Message):
    """Brings a bundle, and waits for what the node has to say."""

    run: str = Field(pattern=RUN)
    line: int = Field(ge=0)  # a higher one: whatever was said before may be lost, so join again
    life: str = ""  # of the process that the bundle is for; "": any
    hold_seconds: float = Field(ge=0, allow_inf_nan=False)  # wait so long for something to say
    start: bool = True  # the node's process, where there is none
    sizes: tuple[Count, ...] = ()  # of the messages in the payload


class Told(Message):
    """Answers `Asked` with a bundle."""

    line: Count = 0  # the highest that the node knows
    life: str = Field("", max_length=32)  # of the node's process
    lost: Code = ""  # why there is no process that answers
    sizes: tuple[Count, ...] = Field((), max_length=MESSAGES_AT_ONCE)


def pack(kind: str, body: Message, messages: Sequence[bytes] = ()) -> bytes:
    """Return one message; `messages` follow each other in its payload."""
    facts = body.facts()
    if messages:
        facts["sizes"] = [len(message) for message in messages]
    return pack_message(kind, facts, b"".join(messages))


def split(sizes: Sequence[int], payload: bytes) -> list[bytes]:
    """Return the messages of a bundle.

    Raises:
        UnheardError: sizes and payload do not agree.
    """
    if min(sizes, default=0) < 0 or sum(sizes) != len(payload):
        raise UnheardError(f"a bundle of {len(payload)} bytes claims {sum(sizes)}")
    messages, start = [], 0
    for size in sizes:
        messages.append(payload[start : start + size])
        start += size
    return messages


def read_greeting(data: bytes) -> Greeting:
    """Return what a node answered to `Hello`.

    Raises:
        UnheardError: it is something else.
    """
    return _validated(Greeting, _body(data, "greeting")[0])


def read_had(data: bytes) -> Had:
    """Return what a node answered to `Pieces`.

    Raises:
        UnheardError: it is something else.
    """
    return _validated(Had, _body(data, "had")[0])


def read_told(data: bytes) -> tuple[Told, list[bytes]]:
    """Return what a node answered to `Asked`.

    Raises:
        UnheardError: it is something else.
    """
    body, payload = _body(data, "told")
    told = _validated(Told, body)
    return told, split(told.sizes, payload)


def _body(data: bytes, expected: str) -> tuple[Mapping[str, Any], bytes]:
    try:
        kind, body, payload = unpack_message(data)
    except TransportError as error:
        raise UnheardError(error.problem[:200]) from error
    if kind != expected:
        raise UnheardError(f"a message of another kind instead of {expected!r}")
    return body, payload


def _validated(form: type[Form], body: Mapping[str, Any]) -> Form:
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise UnheardError(f"{error.error_count()} wrong fields in {error.title}") from error
