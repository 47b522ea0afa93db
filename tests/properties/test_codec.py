from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from boli.codec.codec import DenseCodec, decode_frame, encode_frame
from boli.errors import CodecError

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = arrays(np.float32, st.integers(0, 50), elements=FINITE)
LAYOUTS = st.binary(min_size=16, max_size=16).map(bytes.hex)
CODECS = st.sampled_from(["fp32", "fp16"]).map(DenseCodec)


@given(VECTORS, LAYOUTS, st.none() | st.integers(1, 1024), st.integers(0, 2**53))
def test_fp32_frame_loses_nothing(vector: Any, layout: str, rank: int | None, version: int) -> None:
    data = encode_frame(DenseCodec(), vector, layout, rank, version)
    found = decode_frame(data, layout, vector.size)
    assert found.vector.tobytes() == vector.tobytes()
    assert (found.layout, found.rank, found.base_version) == (layout, rank, version)


# Up to what a sum takes in at all; far above, an entry and 65504 have no common grid.
SUMMABLE = arrays(np.float32, st.integers(0, 50), elements=st.floats(-(2.0**22), 2.0**22, width=32))


@given(SUMMABLE)
def test_fp16_and_its_residual_lose_nothing(vector: Any) -> None:
    data = encode_frame(DenseCodec("fp16"), vector, "0" * 32, None, 0)
    sent = decode_frame(data, "0" * 32, vector.size).vector
    assert np.array_equal(sent + (vector - sent), vector)
    assert (np.abs(vector - sent) <= np.maximum(np.abs(vector), 2**-24)).all()


@given(CODECS, VECTORS, st.data())
def test_altered_frame_is_refused(codec: DenseCodec, vector: Any, data: st.DataObject) -> None:
    frame = encode_frame(codec, vector, "0" * 32, None, 0)
    start = data.draw(st.integers(0, len(frame)))
    stop = data.draw(st.integers(start, len(frame)))
    altered = frame[:start] + data.draw(st.binary(max_size=8)) + frame[stop:]
    if altered == frame:
        return
    with pytest.raises(CodecError):
        decode_frame(altered, "0" * 32, vector.size)


@given(st.binary(max_size=200), st.integers(0, 2**40))
def test_any_bytes_are_a_frame_or_a_codec_error(data: bytes, length: int) -> None:
    with contextlib.suppress(CodecError):
        decode_frame(b"BOLI\1\1\0\0" + data, "0" * 32, length)
    with pytest.raises(CodecError):
        decode_frame(data[:56], "0" * 32, length)
