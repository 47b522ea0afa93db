"""Nothing is lost, only delayed: what a codec sends and what it leaves add up to the entry."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boli.codec.codec import decode_frame, encode_frame
from boli.codec.entropy import decode_positions, encode_positions
from boli.codec.sparse import SparseCodec
from boli.errors import CodecError

LENGTHS = st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 129, 300])
VALUES = st.floats(-3.0, 3.0, width=32) | st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = LENGTHS.flatmap(lambda n: arrays(np.float32, n, elements=VALUES, fill=st.just(0.0)))
CODECS = st.builds(
    SparseCodec,
    density=st.sampled_from([0.001, 1 / 64, 0.25, 1.0]),
    value_bits=st.sampled_from([2, 4, 8, 32]),
    chunk=st.sampled_from([0, 64, 128]),
    scale_chunks=st.integers(1, 3),
)


@given(CODECS, VECTORS)
def test_what_is_sent_and_what_is_left_add_up_exactly(codec: SparseCodec, vector: Any) -> None:
    frame = encode_frame(codec, vector, "0" * 32, None, 0)
    sent = decode_frame(frame, "0" * 32, vector.size).vector
    left = vector - sent
    assert np.array_equal(sent + left, vector)
    assert (np.abs(left) <= np.abs(vector)).all()


@given(CODECS, VECTORS)
def test_sending_what_was_decoded_again_as_it_is_changes_no_bit(
    codec: SparseCodec, vector: Any
) -> None:
    sent = codec.entries(codec.encode(vector), vector.size).vector()
    exact = SparseCodec(density=1.0, value_bits=32)
    again = exact.entries(exact.encode(sent), vector.size).vector()
    assert np.array_equal(again, sent)


@given(
    st.integers(0, 10_000).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=min(n, 50)))
    )
)
def test_positions_come_back(case: tuple[int, set[int]]) -> None:
    length, chosen = case
    positions = np.array(sorted(chosen), np.int64)
    words = encode_positions(positions, length)
    assert decode_positions(words, positions.size, length).tolist() == sorted(chosen)


@given(CODECS, VECTORS, st.data())
def test_altered_payload_is_some_sound_vector_or_refused(
    codec: SparseCodec, vector: Any, data: st.DataObject
) -> None:
    """Below the checksum, as a hostile site would write it."""
    payload = codec.encode(vector)
    start = data.draw(st.integers(0, len(payload)))
    stop = data.draw(st.integers(start, len(payload)))
    altered = payload[:start] + data.draw(st.binary(max_size=8)) + payload[stop:]
    with contextlib.suppress(CodecError):
        assert codec.entries(altered, vector.size).vector().shape == vector.shape


@given(st.binary(max_size=200), st.integers(0, 2**20))
def test_any_bytes_are_a_payload_or_a_codec_error(data: bytes, length: int) -> None:
    with contextlib.suppress(CodecError):
        SparseCodec().entries(data, length).vector()
