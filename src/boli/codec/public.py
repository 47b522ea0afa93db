"""Integers on a grid that all members of a cohort share, of entries that all of them send.

Neither positions nor scales travel, and integers add up: the sum of what the
members sent is known from the sum of their integers alone, so it can be taken
under masks.

Payload, little-endian; k entries are sent:

    bytes     field
        4     k
        1     bits of a value, b: 2, 4, or 8
        1     unit, signed: one level is 2 to the power of it
        4     CRC-32 of the k positions, 64 bits each
 ⌈k·b ÷ 8⌉    levels in two's complement, the first in the lowest bits; never -2^(b-1)

Rounding is stochastic and hits an entry on average, as far as what is left of it
is exact in float32. Where it would not be, the level nearer to zero is sent: this
concerns entries below half a level that are no multiple of 2^-24 of one.

Sources: Alistarh et al. 2017, QSGD. https://arxiv.org/abs/1610.02132
Bonawitz et al. 2017 on sums under masks. https://eprint.iacr.org/2017/281
Knuth, TAOCP 2, 4.2.2, theorem B on when a float sum is exact.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.codec.support import FURTHEST, Positions, Support, Vector
from boli.errors import CodecError

Levels = NDArray[np.int64]
_FIELDS = struct.Struct("<IBbI")


@dataclass(frozen=True)
class PublicCodec:
    """What the plan says; `on` adds what a cohort agreed on, without which nothing is coded."""

    density: float = 1 / 32
    value_bits: Literal[2, 4, 8] = 2
    warmup: tuple[float, ...] = ()  # densities of the first versions
    positions: Positions | None = field(default=None, compare=False)  # (k,) ascending
    unit: int = 0
    draw: str = ""  # what rounding is drawn from

    @property
    def number(self) -> int:
        return 4

    @property
    def most(self) -> int:
        """The largest level."""
        return int((1 << (self.value_bits - 1)) - 1)

    def share(self, version: int) -> float:
        """Return the share of the entries that is sent."""
        return self.warmup[version] if version < len(self.warmup) else self.density

    def on(
        self,
        support: Support,
        moved: Vector,  # (m,) version minus version 0, of a view
        spans: Sequence[tuple[int, int]],  # of the view
        length: int,  # d, of the whole vector
        draw: str = "",
    ) -> PublicCodec:
        """Return the codec of one cohort.

        Whoever encodes gives `draw` the order's name: the same order rounds to the
        same bits again, and no two orders round alike.
        """
        positions = support.positions(moved, spans, length)
        return replace(self, positions=positions, unit=support.unit, draw=draw)

    def encode(self, vector: Vector, version: int = 0) -> bytes:  # noqa: ARG002
        levels = self._levels(vector[self._agreed()])
        return self._fields() + _pack(levels, self.value_bits)

    def entries(self, payload: bytes, length: int) -> Entries:
        values = self.integers(payload).astype(np.float32) * np.float32(2.0**self.unit)
        return Entries(length, values, self._agreed())

    def integers(self, payload: bytes) -> Levels:
        """Return the levels of a payload, (k,); one level is 2 to the power of `unit`.

        Raises:
            CodecError: it is damaged, or of another support than was agreed on.
        """
        self.check(payload, length=0)
        count = self._agreed().size
        levels = _unpack(payload[_FIELDS.size :], self.value_bits)
        if levels[count:].any() or (levels[:count] < -self.most).any():
            raise CodecError("a level lies outside the grid")
        found: Levels = levels[:count]
        return found

    def check(self, payload: bytes, length: int) -> None:  # noqa: ARG002
        size, count, fields = _FIELDS.size, self._agreed().size, self._fields()
        if payload[:size] != fields:
            raise CodecError("the payload is of another support or grid than was agreed on")
        if len(payload) - size != -(-count * self.value_bits // 8):
            raise CodecError(f"{len(payload) - size} bytes do not hold {count} levels")

    def payload_bytes(self, length: int) -> int:
        return _FIELDS.size + -(-length * self.value_bits // 8)

    def expected_bytes(self, length: int, version: int) -> int:
        share = self.share(version)
        # Nothing has moved at version 0; later some of what moved furthest is in turn too.
        furthest = FURTHEST if version else 0.0
        sent = share * (1 - FURTHEST + furthest * (1 - share * (1 - FURTHEST)))
        return _FIELDS.size + int(length * sent * self.value_bits / 8)

    def _agreed(self) -> Positions:
        if self.positions is None:
            raise CodecError("no public support was agreed on")
        return self.positions

    def _fields(self) -> bytes:
        positions = self._agreed()
        check = zlib.crc32(positions.astype("<i8").tobytes())
        return _FIELDS.pack(positions.size, self.value_bits, self.unit, check)

    def _levels(self, values: Vector) -> Levels:
        """Round to levels whose rest is exact; the rest of what is beyond the grid waits."""
        magnitudes = np.abs(values.astype(np.float64)) / 2.0**self.unit
        lower = np.floor(magnitudes)
        drawn = np.random.default_rng([*self.draw.encode()]).random(values.size)
        levels = np.minimum(lower + (magnitudes - lower > drawn), self.most)
        for nearer in (np.minimum(lower, self.most), np.zeros_like(lower)):
            levels = np.where(self._is_exact(values, levels), levels, nearer)
        signed: Levels = (levels * np.sign(values)).astype(np.int64)
        return signed

    def _is_exact(self, values: Vector, levels: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell where value - sent has no rounding error, by adding it back in both ways."""
        sent = (levels * 2.0**self.unit).astype(np.float32) * np.sign(values)
        left = values - sent
        exact: NDArray[np.bool_] = (left + sent == values) & (values - left == sent)
        return exact


def _pack(levels: Levels, bits: int) -> bytes:
    """Put levels into so many bits each, the first into the lowest."""
    a_byte = 8 // bits
    codes = np.zeros(-(-levels.size // a_byte) * a_byte, np.uint8)
    codes[: levels.size] = levels & ((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: bytes = np.bitwise_or.reduce(codes.reshape(-1, a_byte) << shifts, axis=1).tobytes()
    return packed


def _unpack(packed: bytes, bits: int) -> Levels:
    """Return the levels, and those that the last byte is filled up with."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = np.frombuffer(packed, np.uint8)[:, None] >> shifts
    half = 1 << (bits - 1)
    return ((codes.reshape(-1).astype(np.int64) & (2 * half - 1)) ^ half) - half
