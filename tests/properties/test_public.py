"""What a cohort sums as integers is what it sends, and nothing of an entry is lost."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boli.codec.codec import decode_frame, encode_frame
from boli.codec.public import PublicCodec
from boli.codec.support import HIGHEST, LOWEST, Support
from boli.errors import CodecError

LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 33, 100])
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
NEAR = st.floats(-(2.0**-6), 2.0**-6, width=32)  # of the size of a level
VALUES = NEAR | FINITE | st.floats(-(2.0**-130), 2.0**-130, width=32)
VECTORS = LENGTHS.flatmap(lambda n: arrays(np.float32, n, elements=VALUES))
BITS = st.sampled_from([2, 4, 8])
UNITS = st.sampled_from([-10, -9, -7, LOWEST, HIGHEST]) | st.integers(LOWEST, HIGHEST)
DRAWS = st.text(max_size=5)


def codec_on(length: int, bits: Any, unit: int, draw: str = "", seed: int = 0) -> PublicCodec:
    moved = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    support = Support(seed=seed, blocks=1, above=0.5, unit=unit)
    return PublicCodec(value_bits=bits).on(support, moved, ((0, length),), length, draw)


@given(VECTORS, BITS, UNITS, DRAWS)
def test_what_is_sent_and_what_is_left_add_up_exactly(
    vector: Any, bits: Any, unit: int, draw: str
) -> None:
    codec = codec_on(vector.size, bits, unit, draw)
    frame = encode_frame(codec, vector, "0" * 32, None, 0)
    sent = decode_frame(frame, "0" * 32, vector.size, codec).vector
    left = vector - sent
    assert np.array_equal(sent + left, vector)
    for entry, gone, rest in zip(vector, sent, left, strict=True):  # nor does rounding hide any
        assert Fraction(float(gone)) + Fraction(float(rest)) == Fraction(float(entry))
    assert (np.abs(left) <= np.maximum(np.abs(vector), np.float32(2.0**unit))).all()


@given(VECTORS, BITS, UNITS, DRAWS)
def test_sent_entries_lie_next_to_the_entry_or_at_the_end_of_the_grid(
    vector: Any, bits: Any, unit: int, draw: str
) -> None:
    codec = codec_on(vector.size, bits, unit, draw)
    entry = np.abs(vector[codec.positions].astype(float)) / 2.0**unit
    found = codec.integers(codec.encode(vector)) * np.sign(vector[codec.positions])
    inside = entry < 2.0**24
    near = (found == np.floor(entry)) | (found == np.floor(entry) + 1) | (found == codec.most)
    assert (near | (found == 0))[inside].all()
    waits = (found < np.floor(np.minimum(entry, codec.most))) & inside
    assert not waits.any()


@given(st.integers(1, 5).flatmap(lambda n: arrays(np.float32, (n, 40), elements=NEAR)), BITS, UNITS)
def test_sum_of_integers_times_a_level_is_the_sum_of_what_was_sent(
    vectors: Any, bits: Any, unit: int
) -> None:
    codecs = [codec_on(40, bits, unit, f"order {place}") for place in range(len(vectors))]
    payloads = [codec.encode(vector) for codec, vector in zip(codecs, vectors, strict=True)]
    integers = sum(codecs[0].integers(payload) for payload in payloads)
    sent = sum(codecs[0].entries(payload, 40).vector().astype(float) for payload in payloads)
    assert np.array_equal(integers * 2.0**unit, sent[codecs[0].positions])


@given(st.integers(0, 200), st.integers(1, 6), st.floats(0, 2), st.integers(0, 30), st.data())
def test_view_has_its_part_of_the_support(
    length: int, blocks: int, above: float, start: int, data: st.DataObject
) -> None:
    moved = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    support = Support(seed=3, start=start, blocks=blocks, above=above, unit=0)
    cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=6)))
    spans = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    inside = np.concatenate([np.arange(*span) for span in spans] or [np.zeros(0, int)])
    part = support.positions(moved[inside], spans, length)
    whole = support.positions(moved, ((0, length),), length)
    assert inside[part].tolist() == [place for place in whole if place in inside]


@given(
    st.lists(st.floats(0.01, 0.5), min_size=1, max_size=6), st.integers(1, 2000), st.integers(0, 9)
)
def test_every_entry_has_its_turn_within_a_bounded_number_of_rounds(
    shares: list[float], length: int, seed: int
) -> None:
    support, seen, moved = None, np.zeros(length, bool), np.zeros(length, np.float32)
    num_blocks, walked, rounds = -(-length // 16), 0, 0
    while walked < num_blocks:
        support = Support.following(support, moved, shares[rounds % len(shares)], 0, seed)
        seen[support.positions(moved, ((0, length),), length)] = True
        walked, rounds = walked + support.blocks, rounds + 1
    assert seen.all()
    assert rounds <= 1 + 2 * num_blocks


@given(VECTORS, st.floats(0.01, 0.5))
@example(np.full(3, 3e38, np.float32), 0.01)
@example(np.full(3, np.finfo(np.float32).max, np.float32), 0.01)
def test_no_more_entries_are_chosen_than_asked(moved: Any, share: float) -> None:
    support = Support.following(None, moved, share, 0, 0)
    assert (np.abs(moved) > np.float32(support.above)).sum() <= max(0, round(moved.size * share))


@given(VECTORS, BITS, UNITS, st.data())
def test_altered_payload_is_some_sound_vector_or_refused(
    vector: Any, bits: Any, unit: int, data: st.DataObject
) -> None:
    """Below the checksum, as a hostile site would write it."""
    codec = codec_on(vector.size, bits, unit)
    payload = codec.encode(vector)
    start = data.draw(st.integers(0, len(payload)))
    stop = data.draw(st.integers(start, len(payload)))
    altered = payload[:start] + data.draw(st.binary(max_size=8)) + payload[stop:]
    with contextlib.suppress(CodecError):
        levels = codec.integers(altered)
        assert np.abs(levels).max(initial=0) <= codec.most
        assert codec.entries(altered, vector.size).vector().shape == vector.shape
        assert len(altered) == len(payload)


@given(VECTORS, BITS)
def test_levels_come_back_as_they_are(vector: Any, bits: Any) -> None:
    """And a second time: nothing but the levels themselves is in a payload."""
    codec = codec_on(vector.size, bits, 0)
    sent = codec.entries(codec.encode(vector), vector.size).vector()
    assert np.array_equal(codec.entries(codec.encode(sent), vector.size).vector(), sent)
