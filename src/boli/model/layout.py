"""Trainable parameters ⇄ one flat float32 vector in named segments; no torch here.

A segment can be *nested*: its entries are ordered so that the first r of R
rank components are a prefix. A site that trains at a lower rank then holds a
prefix of every segment, and ranks per site need no other mechanism.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from boli.errors import LayoutError

Vector = NDArray[np.float32]
Nesting = Literal["whole", "rows", "shells"]
# Parameters that have a row for each token, in the families that we know.
TOKEN_TABLES = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "lm_head.weight")


@dataclass(frozen=True)
class Segment:
    """One named parameter inside the flat vector.

    `nesting` says how rank components lie in it: "rows", one component a row
    of a (R, n) matrix; "shells", component i the i-th L-shaped border of a
    (R, R) core; "whole", no components.
    """

    name: str
    shape: tuple[int, ...]
    offset: int  # entries before it in the vector
    nesting: Nesting = "whole"

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    def prefix(self, rank: int | None) -> int:
        """Return how many entries the first `rank` components take."""
        if rank is None or self.nesting == "whole" or rank >= self.shape[0]:
            return self.size
        return rank * rank if self.nesting == "shells" else rank * self.shape[1]


def shell_order(rank: int) -> NDArray[np.int64]:
    """Return positions of a flat (rank, rank) matrix so that every top-left block is a prefix."""
    row, column = np.divmod(np.arange(rank * rank), rank)
    return np.lexsort((column, row, np.maximum(row, column)))


@dataclass(frozen=True)
class View:
    """The part of a layout that one site trains, as spans of the flat vector."""

    rank: int | None
    spans: tuple[tuple[int, int], ...]  # half-open, ascending, not touching

    @cached_property
    def size(self) -> int:
        """Number of entries."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def name(self) -> str:
        """Short name for orders and journals."""
        return "all" if self.rank is None else f"rank-{self.rank}"

    def take(self, vector: NDArray[Any]) -> NDArray[Any]:
        """Return the entries of a full (d,) vector that this view covers, as a copy."""
        if not self.spans:
            return vector[:0].copy()
        return np.concatenate([vector[start:stop] for start, stop in self.spans])

    def put(self, vector: NDArray[Any], part: NDArray[Any]) -> None:
        """Write a (size,) part back into a full (d,) vector, in place."""
        position = 0
        for start, stop in self.spans:
            vector[start:stop] = part[position : position + stop - start]
            position += stop - start


@dataclass(frozen=True)
class Layout:
    """Named segments in name order; its digest is in every order, update and checkpoint."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[Sequence[int], Nesting]]) -> Layout:
        """Lay out parameters by name."""
        segments, offset = [], 0
        for name in sorted(shapes):
            shape, nesting = shapes[name]
            segment = Segment(name, tuple(int(length) for length in shape), offset, nesting)
            segments.append(segment)
            offset += segment.size
        return cls(tuple(segments))

    @cached_property
    def size(self) -> int:
        """d, the length of the flat vector."""
        return sum(segment.size for segment in self.segments)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that differ where any segment differs."""
        return hashlib.sha256(json.dumps(self.describe()).encode()).hexdigest()[:32]

    @property
    def token_tables(self) -> tuple[Segment, ...]:
        """Segments with a row for each token: an embedding, and an output head of its own."""
        return tuple(s for s in self.segments if s.name.endswith(TOKEN_TABLES))

    def describe(self) -> list[list[Any]]:
        """Return the segments as plain lists, for JSON."""
        return [[s.name, list(s.shape), s.nesting] for s in self.segments]

    @classmethod
    def from_description(cls, description: Sequence[Sequence[Any]]) -> Layout:
        """Return the layout that `describe` described."""
        return cls.of({name: (shape, nesting) for name, shape, nesting in description})

    def check(self, other: Layout, here: str, there: str) -> None:
        """Compare with another side's layout.

        Raises:
            LayoutError: names the first segment that differs.
        """
        if self.digest == other.digest:
            return
        mine = {s.name: (s.shape, s.nesting) for s in self.segments}
        theirs = {s.name: (s.shape, s.nesting) for s in other.segments}
        name = min(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
        raise LayoutError(
            f"{here} and {there} do not train the same parameters: segment {name!r} is "
            f"{_shape(mine.get(name))} in {here} and {_shape(theirs.get(name))} in {there}",
            "use the same base model and the same model.adapter settings on both sides",
        )

    def view(self, rank: int | None = None) -> View:
        """Return what a site of this rank trains; None means everything."""
        spans: list[tuple[int, int]] = []
        for segment in self.segments:
            start, stop = segment.offset, segment.offset + segment.prefix(rank)
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], stop)
            elif stop > start:
                spans.append((start, stop))
        return View(rank, tuple(spans))

    def pack(self, arrays: Mapping[str, NDArray[Any]]) -> Vector:
        """Return one flat (d,) vector of the arrays, which are in the segments' shapes.

        Raises:
            LayoutError: a segment is missing or has another shape.
        """
        vector = np.empty(self.size, np.float32)
        for segment in self.segments:
            array = arrays.get(segment.name)
            if array is None or array.shape != segment.shape:
                found = "missing" if array is None else str(array.shape)
                raise LayoutError(f"segment {segment.name!r} is {found}, not {segment.shape}")
            flat = np.asarray(array, np.float32).reshape(-1)
            if segment.nesting == "shells":
                flat = flat[shell_order(segment.shape[0])]
            vector[segment.offset : segment.offset + segment.size] = flat
        return vector

    def unpack(self, vector: Vector) -> dict[str, Vector]:
        """Return the arrays of a flat (d,) vector; views of it wherever order allows.

        Raises:
            LayoutError: the vector has another length.
        """
        if vector.shape != (self.size,):
            raise LayoutError(f"a vector of shape {vector.shape} is not ({self.size},)")
        arrays = {}
        for segment in self.segments:
            flat = vector[segment.offset : segment.offset + segment.size]
            if segment.nesting == "shells":
                unordered = np.empty_like(flat)
                unordered[shell_order(segment.shape[0])] = flat
                flat = unordered
            arrays[segment.name] = flat.reshape(segment.shape)
        return arrays


def _shape(found: tuple[tuple[int, ...], Nesting] | None) -> str:
    return "missing" if found is None else f"{found[0]} ({found[1]})"
