from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from boli.codec.codec import (
    CODECS,
    FORMAT,
    HEADER_BYTES,
    Codec,
    Decay,
    DenseCodec,
    decay_for,
    decode_frame,
    encode_frame,
)
from boli.errors import CodecError
from boli.plan_rounds import OneWayPlan

LAYOUT = "00112233445566778899aabbccddeeff"
VECTOR = np.array([0.0, -0.0, 1.5, -2.25, 1e-30, 3e38], np.float32)
DTYPES = ("fp32", "fp16")


def frame(dtype: str = "fp32", rank: int | None = 4) -> bytes:
    return encode_frame(DenseCodec(dtype), VECTOR, LAYOUT, rank, 7)


def resealed(data: bytes, header: dict[int, bytes] | None = None) -> bytes:
    """Write bytes into the header and make the checksum fit again, as a hostile site would."""
    altered = bytearray(data)
    for offset, value in (header or {}).items():
        altered[offset : offset + len(value)] = value
    checksum = zlib.crc32(altered[HEADER_BYTES:], zlib.crc32(altered[:52]))
    altered[52:56] = struct.pack("<I", checksum)
    return bytes(altered)


def refused(data: bytes, length: int = VECTOR.size, layout: str = LAYOUT) -> str:
    with pytest.raises(CodecError) as caught:
        decode_frame(data, layout, length)
    return caught.value.problem


# --- what travels


def test_fp32_loses_nothing() -> None:
    found = decode_frame(frame(), LAYOUT, VECTOR.size)
    assert found.vector.tobytes() == VECTOR.tobytes()
    assert found.vector.dtype == np.float32
    assert (found.layout, found.rank, found.base_version) == (LAYOUT, 4, 7)
    assert len(frame()) == 56 + 4 * VECTOR.size


def test_fp16_takes_half_the_bytes_and_rounds_to_nearest() -> None:
    data = frame("fp16")
    assert len(data) == 56 + 2 * VECTOR.size
    found = decode_frame(data, LAYOUT, VECTOR.size).vector
    assert found.tolist() == [0, 0, 1.5, -2.25, 0, 65504]


def test_view_of_everything_comes_back_as_none() -> None:
    assert decode_frame(frame(rank=None), LAYOUT, VECTOR.size).rank is None


def test_empty_vector_can_travel() -> None:
    data = encode_frame(DenseCodec(), VECTOR[:0], LAYOUT, None, 0)
    assert decode_frame(data, LAYOUT, 0).vector.size == 0


def test_header_is_as_the_module_documents_it() -> None:
    data = frame("fp16")
    assert HEADER_BYTES == 56
    assert data[0:4] == b"BOLI"
    assert data[4:8] == bytes([1, 2, 0, 0])
    assert data[8:24] == bytes.fromhex(LAYOUT)
    assert struct.unpack_from("<IQQQ", data, 24) == (4, 7, 6, 12)
    assert struct.unpack_from("<I", data, 52)[0] == zlib.crc32(data[56:], zlib.crc32(data[:52]))


def test_decoded_vector_may_be_written_to() -> None:
    for dtype in DTYPES:
        decode_frame(frame(dtype), LAYOUT, VECTOR.size).vector[:] = 1


def test_encoding_leaves_the_vector_untouched() -> None:
    vector = np.array([1e9, -1e9], np.float32)
    encode_frame(DenseCodec("fp16"), vector, LAYOUT, None, 0)
    assert vector.tolist() == [1e9, -1e9]


# --- what is refused


@pytest.mark.parametrize("dtype", DTYPES)
def test_frame_torn_at_any_place_is_refused(dtype: str) -> None:
    data = frame(dtype)
    for kept in range(len(data)):
        refused(data[:kept])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_is_refused(dtype: str) -> None:
    data = frame(dtype)
    for place in range(len(data) * 8):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        refused(bytes(altered))


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 4, b"x" * 1000])
def test_trailing_bytes_are_refused(extra: bytes) -> None:
    refused(frame() + extra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_on_both_sides(dtype: str, value: float) -> None:
    codec = DenseCodec(dtype)
    vector = np.array([1, value, 2], np.float32)
    with pytest.raises(CodecError, match="NaN or infinite") as caught:
        encode_frame(codec, vector, LAYOUT, None, 0)
    assert "learning rate" in caught.value.hint
    hostile = bytearray(encode_frame(codec, np.ones(3, np.float32), LAYOUT, None, 0))
    hostile[56:] = vector.astype(codec._numpy).tobytes()
    assert "NaN or infinite" in refused(resealed(bytes(hostile)), 3)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"BOLO"),
        (4, bytes([FORMAT + 1])),
        (4, b"\0"),
        (5, bytes([0])),
        (5, bytes([99])),
        (6, b"\1"),
        (7, b"\1"),
    ],
)
def test_other_magic_format_codec_or_reserved_bits_are_refused(offset: int, value: bytes) -> None:
    assert "not a frame of format 1" in refused(resealed(frame(), {offset: value}))


@pytest.mark.parametrize("entries", [0, 5, 7, 2**62, 2**64 - 1])
def test_other_number_of_entries_is_refused_before_anything_is_allocated(entries: int) -> None:
    assert "expected 6" in refused(resealed(frame(), {36: struct.pack("<Q", entries)}))


@pytest.mark.parametrize("size", [0, 12, 23, 25, 2**62, 2**64 - 1])
def test_other_payload_size_is_refused(size: int) -> None:
    refused(resealed(frame(), {44: struct.pack("<Q", size)}))


def test_shorter_payload_that_says_so_is_refused() -> None:
    assert "do not hold" in refused(resealed(frame()[:-4], {44: struct.pack("<Q", 20)}))


def test_payload_of_another_width_is_refused() -> None:
    refused(resealed(frame("fp32"), {5: bytes([2])}))
    refused(resealed(frame("fp16"), {5: bytes([1])}))


def test_frame_of_another_layout_or_length_is_refused() -> None:
    assert "has layout 00112233, not ffffffff" in refused(frame(), layout="f" * 32)
    assert "expected 5 entries" in refused(frame(), 5)
    assert "expected 7 entries" in refused(frame(), 7)


def test_payload_of_another_size_is_refused_by_the_codec_itself() -> None:
    for dtype in DTYPES:
        codec = DenseCodec(dtype)
        with pytest.raises(CodecError):
            codec.entries(codec.encode(VECTOR) + b"\0", VECTOR.size).vector()
        with pytest.raises(CodecError):
            codec.entries(codec.encode(VECTOR), VECTOR.size + 1).vector()


# --- error feedback


def test_sent_and_residual_together_are_what_was_to_be_sent() -> None:
    rng = np.random.default_rng(1)
    vector = (rng.normal(size=5000) * 10.0 ** rng.integers(-12, 7, 5000)).astype(np.float32)
    data = encode_frame(DenseCodec("fp16"), vector, LAYOUT, None, 0)
    sent = decode_frame(data, LAYOUT, vector.size).vector
    residual = vector - sent
    assert residual.any()
    assert np.array_equal(sent + residual, vector)


def test_error_feedback_brings_across_what_is_too_small_for_fp16() -> None:
    codec = DenseCodec("fp16")
    step = np.array([1e-9, 1.0 + 2**-13, 70000.0], np.float32)  # lost, rounded, saturated
    residual, arrived = np.zeros(3, np.float32), np.zeros(3)
    for _ in range(500):
        error = step + residual
        sent = codec.entries(codec.encode(error), 3).vector()
        residual = error - sent
        arrived += sent
    assert arrived[0] == pytest.approx(500e-9, abs=2**-24)
    assert arrived[1] == pytest.approx(500 * (1 + 2**-13), abs=2**-10)
    assert arrived[2] == 500 * 65504


def test_numbers_of_codecs_are_fixed_and_lead_back_to_them() -> None:
    codecs: list[Codec] = [DenseCodec("fp32"), DenseCodec("fp16")]
    assert [codec.number for codec in codecs] == [1, 2]
    assert all(CODECS[codec.number] == codec for codec in codecs)


def test_decay_moves_evenly_along_the_run() -> None:
    ones = np.ones(3, np.float32)
    decay = Decay(0.2, 1.0, 8)
    kept = [decay.of(ones, version) for version in (0, 4, 8, 9)]
    assert [float(each[0]) for each in kept if each is not None] == pytest.approx([0.2, 0.6, 1, 1])
    assert Decay().of(ones, 5) is not None
    assert Decay(0.0, 1.0, 8).of(ones, 0) is None
    assert decay.of(None, 4) is None
    plan = OneWayPlan(name="sparse", residual_decay=0.3)
    assert decay_for(plan, 8) == Decay(0.3, 0.3, 8)
    final = plan.model_copy(update={"final_residual_decay": 0.0})
    assert decay_for(final, 8) == Decay(0.3, 0.0, 8)
