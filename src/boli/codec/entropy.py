"""Lossless last stage: sorted positions and small symbols in nearly as few bits as they need.

Positions are coded as gaps with a range coder, under the geometric distribution
that a random support of that density has. Source: Bamler 2022, constriction.
https://arxiv.org/abs/2201.01741
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from boli.errors import CodecError

Words = NDArray[np.uint32]
SPAN = 6  # gaps up to so many times the mean gap have a symbol of their own
LARGEST_ALPHABET = 1 << 16
AT_ONCE = 1 << 14  # symbols: what is between them and positions stays small
AHEAD = 1 << 12  # symbols that are decoded at least, also where fewer positions are missing


def encode_positions(positions: NDArray[np.int64], length: int) -> Words:
    """Code (k,) ascending positions below `length`; k and `length` are known to the decoder."""
    if not positions.size:
        return np.zeros(0, np.uint32)
    probabilities = _gap_probabilities(positions.size, length)
    step = probabilities.size - 1
    gaps = np.diff(positions, prepend=-1) - 1
    skips = gaps // step
    symbols = np.full(gaps.size + int(skips.sum()), step, np.int32)
    symbols[np.cumsum(skips + 1) - 1] = gaps % step
    return encode_symbols(symbols, probabilities)


def decode_positions(words: Words, count: int, length: int) -> NDArray[np.int64]:
    """Return the (count,) positions; memory and work are bounded by count and length alone.

    Raises:
        CodecError: the words hold no such positions.
    """
    if not count:
        return np.zeros(0, np.int64)
    probabilities = _gap_probabilities(count, length)
    step = probabilities.size - 1
    decoder = _Decoder(words, probabilities)
    found = np.zeros(count, np.int64)
    num_found, position = 0, -1
    skips_left = length // step
    while num_found < count:
        symbols = decoder.take_gaps(min(count - num_found, AT_ONCE), step)
        is_gap = symbols < step
        symbols[is_gap] += 1
        ahead = np.cumsum(symbols, dtype=np.int64)
        ahead += position
        skips_left -= symbols.size - int(is_gap.sum())
        if ahead[-1] >= length or skips_left < 0:
            raise CodecError(f"a position lies outside the {length} entries")
        ends = ahead[is_gap]
        found[num_found : num_found + ends.size] = ends
        num_found += ends.size
        position = int(ahead[-1])
    return found


def _gap_probabilities(count: int, length: int) -> NDArray[np.float64]:
    """Return the geometric distribution of gaps; its last entry stands for "further than that".

    Products and sums only: they are the same on every machine, powers are not.
    """
    share = count / length
    size = min(LARGEST_ALPHABET, max(64, length // 4), max(1, -(-SPAN * length // count)))
    steps = np.full(size, 1.0 - share)
    steps[0] = share
    probabilities = np.cumprod(steps)
    rest = max(1e-6, 1.0 - float(probabilities.sum()))
    floored: NDArray[np.float64] = np.maximum(np.append(probabilities, rest), 1e-9)
    return floored


def encode_symbols(symbols: NDArray[np.int32], probabilities: NDArray[np.float64]) -> Words:
    """Code symbols, each an index of `probabilities`."""
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, _model(probabilities))
    words: Words = encoder.get_compressed()
    return words


def decode_symbols(
    words: Words, count: int, probabilities: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Return (count,) int32 symbols; words that were never coded give some symbols or other."""
    return _Decoder(words, probabilities).take(count)


class _Decoder:
    def __init__(self, words: Words, probabilities: NDArray[np.float64]) -> None:
        self._decoder = constriction.stream.queue.RangeDecoder(words.astype(np.uint32))
        self._model = _model(probabilities)
        self._ahead = AHEAD  # symbols that may be left

    def take(self, count: int) -> NDArray[np.int32]:
        try:
            symbols: NDArray[np.int32] = self._decoder.decode(self._model, count)
        except (AssertionError, ValueError) as error:  # constriction: invalid compressed data
            raise CodecError("the coded positions or values are damaged") from error
        return symbols

    def take_gaps(self, count: int, step: int) -> NDArray[np.int32]:
        """Return symbols with at most `count` gaps among them, which are those below `step`.

        Where few gaps are missing there may be very many skips before the last of them, and one
        call for each would take seconds. So the decoder looks ahead, and what follows the last
        gap is left out. Past the end of the words it finds symbols that were never coded, or none:
        then half as many are left.
        """
        while count < self._ahead:
            before = self._decoder.clone()
            try:
                symbols = self.take(self._ahead)
                break
            except CodecError:
                self._decoder = before
                self._ahead //= 2
        else:
            return self.take(count)
        ends = np.flatnonzero(symbols < step)
        return symbols[: ends[count - 1] + 1] if ends.size >= count else symbols


def _model(probabilities: NDArray[np.float64]) -> Any:
    return constriction.stream.model.Categorical(probabilities, perfect=False)
