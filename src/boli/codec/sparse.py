"""The largest entries of each chunk, in a few bits each; the rest is left for later.

What is sent of an entry is never more than twice the entry itself, so that what
is left of it is exact in float32 and the two always add up to the entry.

Payload, little-endian; k entries of `length` are sent:

    bytes     field
        4     k
        1     bits of a value: 2, 4, 8, or 32
        1     chunks that share a scale
        2     chunk size ÷ 64; 0: the whole vector is one chunk
        4     words of positions, n
        4     words of levels, m; at 32 bits the number of values
      4·n     positions, ascending, range-coded as gaps
      4·m     levels, range-coded; at 32 bits the values themselves, float32
    below 32 bits:
  ⌈k ÷ 8⌉     signs, first entry in the lowest bit; 1: negative
    2·s·g     scales of g groups, upper halves of float32; s = 2 at 2 bits (a lower and
              an upper magnitude), s = 1 at 4 and 8 bits (the magnitude of a level's step)
      2·l     how often each of the l levels occurs, of 65535; l = 2 to the power of bits - 1

Source: Sarfi et al. 2025, SparseLoCo. https://arxiv.org/abs/2508.15706
"""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.codec.entropy import decode_positions, decode_symbols, encode_positions, encode_symbols
from boli.errors import CodecError

Vector = NDArray[np.float32]
Positions = NDArray[np.int64]
Bits = Literal[2, 4, 8, 32]
_FIELDS = struct.Struct("<IBBHII")
BLOCK = 1 << 20  # entries looked at together: temporaries stay small, and two cores share the work
FURTHEST = 2.0**15  # between the largest entry of a group and its scale: what is left stays exact
OFTEN = 65535
VALUE_BITS = {2: 1.25, 4: 2.6, 8: 6.4, 32: 32.0}  # that a sent entry takes once coded
GREATEST = np.uint32(0x7F7F0000).view(np.float32)  # that 16 bits of float32 can say


@dataclass(frozen=True)
class SparseCodec:
    """Keep the largest `density` of each chunk; more of them in the first versions."""

    density: float = 1 / 64
    value_bits: Bits = 2
    chunk: int = 4096  # entries, a multiple of 64; 0: the whole vector
    scale_chunks: int = 16  # chunks that share a scale
    warmup: tuple[float, ...] = ()  # densities of the first versions

    @property
    def number(self) -> int:
        return 3

    def encode(self, vector: Vector, version: int = 0) -> bytes:
        chunk = self.chunk or max(1, vector.size)
        positions = largest(vector, self.density_at(version), chunk)
        sent = vector[positions]
        if self.value_bits == 32:
            return self._pack(positions.size, encode_positions(positions, vector.size), [sent])
        group = positions // (chunk * self.scale_chunks)
        num_groups = _num_groups(vector.size, self.chunk, self.scale_chunks)
        magnitudes = np.abs(sent)
        size = chunk * self.scale_chunks
        sizes = np.minimum(size, vector.size - size * np.arange(num_groups))
        first = np.flatnonzero(np.diff(positions // chunk, prepend=-1))  # of every chunk
        least = np.minimum.reduceat(magnitudes, first) if first.size else magnitudes
        in_group = np.bincount(group[first], minlength=num_groups)
        least = np.bincount(group[first], least, num_groups) / np.maximum(in_group, 1)
        least = least.astype(np.float32)
        scales, levels = _quantize(magnitudes, group, sizes, least, self.value_bits)
        book = _book(scales, self.value_bits)
        keep = magnitudes >= book[group, levels] * np.float32(0.5)
        positions, levels, sent = positions[keep], levels[keep], sent[keep]
        often = _often(levels, book.shape[1])
        words = encode_symbols(levels.astype(np.int32), _shares(often)) if levels.size else _NONE
        coded = encode_positions(positions, vector.size)
        signs = np.packbits(sent < 0, bitorder="little")
        upper = (scales.view(np.uint32) >> 16).astype("<u2")
        return self._pack(positions.size, coded, [words, signs, upper, often])

    def _pack(
        self, count: int, positions: NDArray[np.uint32], rest: list[NDArray[np.generic]]
    ) -> bytes:
        fields = _FIELDS.pack(
            count,
            self.value_bits,
            self.scale_chunks,
            self.chunk // 64,
            positions.size,
            rest[0].size,
        )
        parts = (part.astype(part.dtype.newbyteorder("<")).tobytes() for part in (positions, *rest))
        return fields + b"".join(parts)

    def check(self, payload: bytes, length: int) -> None:
        count, bits, scale_chunks, chunk, *_ = _FIELDS.unpack(_Reader(payload).take(_FIELDS.size))
        own = self.value_bits, self.scale_chunks, self.chunk // 64
        if (bits, scale_chunks, chunk) != own:
            raise CodecError(
                f"values of {bits} bits, {scale_chunks} chunks of {64 * chunk} a scale: "
                f"{self.value_bits}, {self.scale_chunks} and {self.chunk} were agreed on"
            )
        most = self._most_entries(length)
        if count > most:
            raise CodecError(f"{count} of {length} entries; at most {most} were agreed on")

    def entries(self, payload: bytes, length: int) -> Entries:
        reader = _Reader(payload)
        count, bits, scale_chunks, chunk, num_positions, num_levels = _FIELDS.unpack(
            reader.take(_FIELDS.size)
        )
        if bits not in (2, 4, 8, 32) or not scale_chunks or count > length:
            raise CodecError(f"{count} of {length} entries in {bits} bits each")
        words = reader.array("<u4", num_positions)
        if bits == 32:
            values = reader.array("<f4", num_levels)
            if num_levels != count:
                raise CodecError(f"{num_levels} values for {count} entries")
            reader.end()
            return Entries(
                length, values.astype(np.float32), decode_positions(words, count, length)
            )
        coded = reader.array("<u4", num_levels)
        signs = reader.array("u1", -(-count // 8))
        num_groups = _num_groups(length, chunk * 64, scale_chunks)
        upper = reader.array("<u2", num_groups * (2 if bits == 2 else 1))
        often = reader.array("<u2", 1 << (bits - 1))
        reader.end()
        positions = decode_positions(words, count, length)
        if not count:
            return Entries(length, np.zeros(0, np.float32), positions)
        levels = decode_symbols(coded, count, _shares(often))
        scales = (upper.astype(np.uint32) << 16).view(np.float32).reshape(num_groups, -1)
        size = (chunk * 64 or length) * scale_chunks
        ends = np.searchsorted(positions, np.arange(1, num_groups + 1) * size)
        values, start = np.empty(count, np.float32), 0
        for magnitudes, end in zip(_book(scales, bits), ends, strict=True):
            magnitudes.take(levels[start:end], out=values[start:end])
            start = end
        negative = np.unpackbits(signs, count=count, bitorder="little").view(bool)
        np.negative(values, out=values, where=negative)
        return Entries(length, values, positions)

    def payload_bytes(self, length: int) -> int:
        count, bits = self._most_entries(length), self.value_bits
        # k positions take no more than the entropy of a support of that density, wherever they
        # lie: gaps are coded under its geometric distribution, whose costs add up to that.
        share = min(0.5, count / max(1, length))
        gap_bits = length * _entropy(share)
        value_bits = count * (32 if bits == 32 else bits)  # with the sign
        rounding = (gap_bits + value_bits) // 50 + 8 * 128  # of probabilities, and up to words
        return _FIELDS.size + self._fixed_bytes(length) + int(gap_bits + value_bits + rounding) // 8

    def _most_entries(self, length: int) -> int:
        """Return how many entries `largest` chooses of so many, at the greatest density."""
        density, chunk = max(self.density, *self.warmup, 0.0), self.chunk or max(1, length)
        num_chunks, rest = divmod(length, chunk)
        return sum(
            number * min(size, max(1, round(size * density)))
            for number, size in ((num_chunks, chunk), (1, rest))
            if size
        )

    def _fixed_bytes(self, length: int) -> int:
        """Return what scales and the table of levels take."""
        if self.value_bits == 32:
            return 0
        groups = _num_groups(length, self.chunk, self.scale_chunks)
        return groups * (4 if self.value_bits == 2 else 2) + (2 << (self.value_bits - 1))

    def expected_bytes(self, length: int, version: int) -> int:
        share, bits = self.density_at(version), self.value_bits
        coded_bits = length * (_entropy(share) + share * VALUE_BITS[bits])
        return self._fixed_bytes(length) + _FIELDS.size + int(coded_bits / 8)

    def density_at(self, version: int) -> float:
        """Return the share of the entries that is sent on a version."""
        return self.warmup[version] if version < len(self.warmup) else self.density


_NONE = np.zeros(0, np.uint32)


class _Reader:
    """Cuts a payload into its parts; each is looked at, not copied."""

    def __init__(self, payload: bytes) -> None:
        self._rest = memoryview(payload)

    def take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise CodecError(f"the payload ends {size - len(self._rest)} bytes early")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def end(self) -> None:
        if self._rest:
            raise CodecError(f"{len(self._rest)} bytes follow the payload")


def _entropy(share: float) -> float:
    """Return the bits an entry that a support of that density takes."""
    if not 0 < share < 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def _num_groups(length: int, chunk: int, scale_chunks: int) -> int:
    return max(1, -(-length // ((chunk or max(1, length)) * scale_chunks)))


def largest(vector: Vector, density: float, chunk: int) -> Positions:
    """Return the positions of the largest `density` of each chunk, ascending, without zeros."""
    block = max(1, BLOCK // chunk) * chunk
    starts = range(0, vector.size, block)
    if len(starts) <= 1:
        return _largest_in(vector, 0, density, chunk)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(
            lambda start: _largest_in(vector[start : start + block], start, density, chunk), starts
        )
        return np.concatenate(list(found))


def _largest_in(part: Vector, start: int, density: float, chunk: int) -> Positions:
    found = []
    whole = part.size // chunk * chunk
    for rows, first in ((part[:whole].reshape(-1, chunk), 0), (part[None, whole:], whole)):
        if not rows.size:
            continue
        keep = min(rows.shape[1], max(1, round(rows.shape[1] * density)))
        # Float bits without the sign order like the magnitudes, and integers sort faster.
        bits = np.ascontiguousarray(rows).view(np.int32) & np.int32(0x7FFFFFFF)
        bound = np.partition(bits, -keep, axis=1)[:, -keep, None]
        chosen = bits > np.maximum(bound, 0)
        short = keep - chosen.sum(axis=1)
        for row in np.flatnonzero(short):  # entries that equal the bound: the first ones
            if bound[row, 0]:
                equal = np.flatnonzero(bits[row] == bound[row, 0])[: short[row]]
                chosen[row, equal] = True
        found.append(np.flatnonzero(chosen) + (start + first))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _quantize(
    magnitudes: Vector, group: Positions, sizes: Positions, least: Vector, bits: int
) -> tuple[Vector, NDArray[np.int64]]:
    """Return scales (g, 2) or (g, 1), and the level (k,) of every magnitude.

    `sizes` (g,) are the entries of each group, sent or not; `least` (g,) is about the
    least magnitude that is sent.
    """
    num_groups = sizes.size
    top = np.zeros(num_groups, np.float32)
    np.maximum.at(top, group, magnitudes)
    if bits == 2:
        return _two_means(magnitudes, group, sizes, least, top)
    steps = 1 << (bits - 1)
    best = np.full(num_groups, np.inf)
    scale = np.zeros(num_groups, np.float32)
    # The largest entries may be cut: what is left of them is sent later.
    for cut in 2.0 ** -np.arange(0, 6, 0.5):
        tried = _upper_half((top * (cut / steps)).astype(np.float32))
        tried = np.minimum(tried, GREATEST / np.float32(steps))
        sent = tried[group] * (_levels(magnitudes, tried[group], steps) + 1)
        error = np.bincount(group, np.square(magnitudes - sent, dtype=np.float64), num_groups)
        scale = np.where(error < best, tried, scale)
        best = np.minimum(error, best)
    return scale[:, None], _levels(magnitudes, scale[group], steps)


def _levels(magnitudes: Vector, scale: Vector, steps: int) -> NDArray[np.int64]:
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(magnitudes / safe), 1, steps).astype(np.int64) - 1


def _two_means(
    magnitudes: Vector, group: Positions, sizes: Positions, least: Vector, top: Vector
) -> tuple[Vector, NDArray[np.int64]]:
    """Split each group's magnitudes in two by Lloyd's rule, and use the two means.

    The border weighs bits against error as the choice of what is sent does: the rarer the
    upper level, the cheaper the lower one, and what is saved sends more entries.
    Source: Chou, Lookabaugh & Gray 1989, Entropy-constrained vector quantization.
    https://doi.org/10.1109/29.17498
    """
    num_groups = top.size
    count = np.bincount(group, minlength=num_groups)
    total = np.bincount(group, magnitudes, num_groups)
    low = high = total / np.maximum(count, 1)
    middle = 1.5 * low
    share = (count + 1) / (sizes + 2)
    for _ in range(12):
        above = magnitudes >= middle[group]
        count_above = np.bincount(group[above], minlength=num_groups)
        total_above = np.bincount(group[above], magnitudes[above], num_groups)
        high = np.where(count_above, total_above / np.maximum(count_above, 1), high)
        low = (total - total_above) / np.maximum(count - count_above, 1)
        rare = (count_above + 1) / (count + 2)
        # What the least entry that is sent gains, a bit that it costs.
        bits = 1 + np.log2((1 - share) / share) - np.log2(1 - rare)
        gain = low * np.maximum(2 * least - low, 0) / np.maximum(bits, 1)
        apart = np.maximum(high - low, 1e-3 * low + 1e-30)
        middle = (low + high) / 2 + gain * np.log2((1 - rare) / rare) / (2 * apart)
    means = np.stack([low, high], axis=1)
    scales = _upper_half(np.maximum(means, top[:, None] / FURTHEST).astype(np.float32))
    return scales, (magnitudes >= middle[group]).astype(np.int64)


def _upper_half(values: Vector) -> Vector:
    """Round to what the upper 16 bits of float32 can say."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x8000) & 0xFFFF0000
    upper: Vector = np.minimum(rounded, 0x7F7F0000).astype(np.uint32).view(np.float32)
    return upper


def _book(scales: Vector, bits: int) -> Vector:
    """Return the magnitude of every level in every group, (g, levels)."""
    if bits == 2:
        return scales
    return (scales * np.arange(1, (1 << (bits - 1)) + 1)).astype(np.float32)


def _often(levels: NDArray[np.int64], num_levels: int) -> NDArray[np.uint16]:
    """Return how often each level occurs, of 65535; at least once where it does."""
    counts = np.bincount(levels, minlength=num_levels)
    shares = counts * (OFTEN - num_levels) // max(1, levels.size)
    return (shares + (counts > 0)).astype("<u2")


def _shares(often: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return probabilities; a level that is said not to occur keeps a little, for any decoder."""
    return np.asarray(often, np.float64) + 1e-3
