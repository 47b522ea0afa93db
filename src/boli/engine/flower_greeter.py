"""Finding out which site a Flower node is, and bringing it what it lacks of the base."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from boli.engine.flower_wire import (
    Greeting,
    Hello,
    Part,
    Pieces,
    UnheardError,
    pack,
    read_greeting,
    read_had,
)
from boli.engine.wire import harmless
from boli.site.kit import Kit

PIECES_BYTES = 4 << 20  # of the base, in one message: far below what any proxy refuses


@dataclass(frozen=True)
class Reply:
    """What came back for a message, or why nothing will."""

    node: int  # that Flower says it is from
    data: bytes = b""
    problem: str = ""


class Post(Protocol):
    """All that the engine needs of Flower's Grid; called from several threads."""

    def node_ids(self) -> set[int]:
        """Return the nodes that are connected."""
        ...

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        """Send bytes to a node; returns the message's id, or "" where it was not taken."""
        ...

    def fetch(self, message: str) -> Reply | None:
        """Return the reply to a message, if it is there."""
        ...


class LineLost(Exception):  # noqa: N818, it is no error: the node is asked again
    """A node gave no answer, or not in time."""


def converse(
    post: Post, node: int, data: bytes, seconds: float, is_wanted: Callable[[], bool]
) -> bytes:
    """Send a message to a node and return its answer.

    Raises:
        LineLost: there is none, or it is not wanted any more.
        TransportError: Flower itself does not answer.
    """
    message = post.send(node, data, seconds)
    if not message:
        raise LineLost("Flower did not take the message")
    deadline = time.monotonic() + seconds + 60  # Flower says so itself before that
    pause = 0.1
    while is_wanted() and time.monotonic() < deadline:
        reply = post.fetch(message)
        if reply is None:
            time.sleep(pause)
            pause = min(pause * 1.2, 1.0)
        elif reply.problem:
            raise LineLost(harmless(reply.problem))
        elif reply.node != node:  # whatever it holds, it counts for nobody
            raise LineLost(f"the answer came from node {reply.node}, which was not asked")
        else:
            return reply.data
    raise LineLost("no answer in time")


@dataclass(frozen=True)
class Greeter:
    """Makes a node ready for a run: asks its name, and completes its base."""

    post: Post
    kit: Kit
    base: Path  # the folder that holds the kit's files
    seconds: float  # for one answer
    is_site: Callable[[str], bool]  # of the run: nobody else is sent the base

    def greet(self, node: int, is_wanted: Callable[[], bool]) -> Greeting:
        """Return what the node said, once it has all that it needs.

        Raises:
            LineLost: it does not answer, or answers something else.
            TransportError: Flower itself does not answer.
        """
        try:
            greeting = self._hello(node, Hello(), is_wanted)
            if greeting.code or not self.is_site(greeting.site):
                return greeting
            site = greeting.site
            greeting = self._hello(node, Hello(kit=self.kit.for_site(site)), is_wanted)
            if greeting.site != site:
                raise UnheardError(f"node {node} was {site} a moment ago")
            if greeting.code:
                return greeting
            have = dict(greeting.have)
            while pieces := self._pieces(have):
                answer = converse(self.post, node, pieces, self.seconds, is_wanted)
                before, had = have, read_had(answer).have
                have = {name: had.get(name, size) for name, size in before.items()}
                if have == before or any(have[name] < before[name] for name in have):
                    raise UnheardError(f"node {node} does not keep what it is sent")
        except UnheardError as error:
            raise LineLost(error.problem) from error
        return greeting

    def _hello(self, node: int, hello: Hello, is_wanted: Callable[[], bool]) -> Greeting:
        answer = converse(self.post, node, pack("hello", hello), self.seconds, is_wanted)
        return read_greeting(answer)

    def _pieces(self, have: Mapping[str, int]) -> bytes:
        """Return the next message's worth of what is missing; nothing once all is there.

        Raises:
            LineLost: a file of the base cannot be read; who has it goes on.
        """
        parts, contents, room = [], [], PIECES_BYTES
        for file in self.kit.files:
            offset = have.get(file.name, file.size)
            if offset < file.size and room:
                try:
                    with (self.base / file.name).open("rb") as content:
                        content.seek(offset)
                        contents.append(content.read(room))
                except (OSError, ValueError) as error:
                    raise LineLost(f"{file.name} of the base cannot be read: {error}") from error
                parts.append(Part(file=file.name, offset=offset))
                room -= len(contents[-1])
        if not parts:
            return b""
        sizes = tuple(len(content) for content in contents)
        pieces = Pieces(run=self.kit.run, parts=tuple(parts), sizes=sizes)
        return pack("pieces", pieces, contents)
