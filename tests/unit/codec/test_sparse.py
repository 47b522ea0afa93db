from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from boli.codec import entropy
from boli.codec.codec import EXACT, DenseCodec, at_density, decode_frame, encode_frame
from boli.codec.entropy import decode_positions, encode_positions
from boli.codec.sparse import SparseCodec, largest
from boli.errors import CodecError

LAYOUT = "00112233445566778899aabbccddeeff"


def random_vector(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def there_and_back(codec: SparseCodec, vector: np.ndarray, version: int = 0) -> np.ndarray:
    return codec.entries(codec.encode(vector, version), vector.size).vector()


def test_the_largest_of_each_chunk_are_sent() -> None:
    vector = random_vector(130)
    expected = []
    for start in (0, 64, 128):
        part = np.abs(vector[start : start + 64])
        keep = max(1, round(part.size * 0.125))
        expected += sorted(start + np.argsort(-part)[:keep])
    assert largest(vector, 0.125, 64).tolist() == expected


def test_of_equal_entries_as_many_are_sent_as_asked_and_zeros_never() -> None:
    assert largest(np.full(64, -2, np.float32), 0.125, 64).tolist() == list(range(8))
    vector = np.zeros(128, np.float32)
    vector[100] = -1
    assert largest(vector, 0.5, 64).tolist() == [100]


def test_selection_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = random_vector(5000)
    whole = largest(vector, 0.1, 64)
    monkeypatch.setattr("boli.codec.sparse.BLOCK", 256)
    assert np.array_equal(largest(vector, 0.1, 64), whole)


def test_first_versions_send_more() -> None:
    vector = random_vector(4096)
    codec = SparseCodec(density=1 / 64, warmup=(0.25, 0.0625))
    sent = [np.count_nonzero(there_and_back(codec, vector, v)) for v in range(4)]
    assert sent[0] == pytest.approx(1024, rel=0.05)
    assert sent[1] == pytest.approx(256, rel=0.05)
    assert sent[2] == sent[3] == pytest.approx(64, rel=0.05)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_bits_leave_less(bits: int) -> None:
    vector = random_vector(40_960)
    chosen = largest(vector, 1 / 16, 4096)
    sent = there_and_back(SparseCodec(1 / 16, bits), vector)
    left = np.linalg.norm(vector[chosen] - sent[chosen]) / np.linalg.norm(vector[chosen])
    assert left < {2: 0.17, 4: 0.10, 8: 0.01}[bits]


def test_two_bits_spend_little_more_than_shannon_asks_for_their_error() -> None:
    vector = random_vector(1 << 17)
    codec = SparseCodec(density=0.43)
    payload = codec.encode(vector)
    left = vector - codec.entries(payload, vector.size).vector()
    error = float(np.sum(left**2) / np.sum(vector**2))
    bits = 8 * len(payload) / vector.size
    assert bits - 0.5 * math.log2(1 / error) < 0.3  # of a Gaussian; 0.4 with levels of equal use


def test_exact_values_lose_nothing_of_what_is_kept() -> None:
    vector = np.zeros(1000, np.float32)
    vector[[3, 500, 999]] = 1e-40, -7.7, 3e38
    codec = SparseCodec(1.0, 32)
    assert np.array_equal(there_and_back(codec, vector), vector)


def test_positions_take_little_more_than_their_entropy() -> None:
    length, keep = 1_000_000, 15_625
    positions = np.sort(np.random.default_rng(1).permutation(length)[:keep]).astype(np.int64)
    bits = encode_positions(positions, length).size * 32
    ways = math.lgamma(length + 1) - math.lgamma(keep + 1) - math.lgamma(length - keep + 1)
    assert bits < 1.002 * ways / math.log(2)


def test_payload_is_hundreds_of_times_smaller_than_dense_at_a_tenth_of_a_percent() -> None:
    vector = random_vector(1 << 20)
    payload = SparseCodec(0.001, 2, 0).encode(vector)
    assert 4 * vector.size / len(payload) > 2000


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0, b"\xff\xff\xff\x7f", "entries"),
        (4, b"\x03", "bits"),
        (5, b"\x00", "entries"),
        (8, b"\xff\xff\xff\xff", "bytes early"),
        (12, b"\xff\xff\xff\xff", "bytes early"),
    ],
)
def test_field_that_does_not_fit_is_refused(offset: int, value: bytes, problem: str) -> None:
    payload = bytearray(SparseCodec(0.1).encode(random_vector(500)))
    payload[offset : offset + len(value)] = value
    with pytest.raises(CodecError, match=problem):
        SparseCodec().entries(bytes(payload), 500).vector()


def test_trailing_bytes_and_wild_scales_are_refused() -> None:
    vector = random_vector(500)
    payload = SparseCodec(0.1).encode(vector)
    with pytest.raises(CodecError, match="follow"):
        SparseCodec().entries(payload + b"\0", 500).vector()

    class Wild(SparseCodec):
        def encode(self, vector: np.ndarray, version: int = 0) -> bytes:
            data = bytearray(SparseCodec(0.1).encode(vector))
            data[-8:-4] = b"\xc0\x7f\x80\x7f"  # NaN, infinity
            return bytes(data)

    with pytest.raises(CodecError, match="NaN or infinite"):
        decode_frame(encode_frame(Wild(), vector, LAYOUT, None, 0), LAYOUT, 500)


@pytest.mark.parametrize("bits", [2, 4, 8, 32])
@pytest.mark.parametrize("density", [0.001, 1 / 64, 0.25])
def test_expected_bytes_are_about_what_a_payload_takes(bits: int, density: float) -> None:
    codec = SparseCodec(density, bits, chunk=0)
    found = len(codec.encode(random_vector(200_000)))
    assert codec.expected_bytes(200_000, 0) == pytest.approx(found, rel=0.2)


def test_words_that_lead_past_the_end_are_refused() -> None:
    refused = 0
    for seed in range(100):
        words = np.random.default_rng(seed).integers(0, 1 << 32, 8, np.uint32)
        try:
            positions = decode_positions(words, 20, 64)
        except CodecError:
            refused += 1
        else:
            assert positions[-1] < 64
    assert 0 < refused < 100


# --- what a payload may cost


PLANS = [
    SparseCodec(),
    SparseCodec(1 / 32, 4, 64),
    SparseCodec(0.5, 8, 64),
    SparseCodec(0.01, 2, 0),
    SparseCodec(0.01, warmup=(0.3,)),
    EXACT,
]


def clustered(length: int) -> np.ndarray:
    """Return a vector whose entries are as uneven as its chunks allow."""
    vector = random_vector(length, 3) * np.float32(1e-3)
    vector[: length // 7] *= 1000
    return vector


@pytest.mark.parametrize("codec", PLANS, ids=repr)
@pytest.mark.parametrize("length", [0, 1, 63, 500, 4097, 300_000])
def test_what_a_codec_makes_is_within_what_it_says_it_makes(
    codec: SparseCodec, length: int
) -> None:
    for vector in (random_vector(length), clustered(length), np.zeros(length, np.float32)):
        payload = codec.encode(vector)
        assert len(payload) <= codec.payload_bytes(length)
        codec.check(payload, length)
        frame = encode_frame(codec, vector, LAYOUT, None, 0)
        assert decode_frame(frame, LAYOUT, length, codec).entries.length == length


def test_most_bytes_follow_the_density() -> None:
    d = 40_000_000
    assert SparseCodec().payload_bytes(d) < 1.2 * SparseCodec().expected_bytes(d, 0)
    assert SparseCodec().payload_bytes(d) < d / 50
    assert SparseCodec(warmup=(0.25,)).payload_bytes(d) > 8 * SparseCodec().payload_bytes(d)


def test_only_the_first_versions_may_send_what_the_first_versions_send() -> None:
    codec, vector = SparseCodec(1 / 64, warmup=(0.25,)), random_vector(5000)
    frame = encode_frame(codec, vector, LAYOUT, None, 0)
    assert decode_frame(frame, LAYOUT, 5000, at_density(codec, 0.0, 0)).entries.values.size > 1000
    with pytest.raises(CodecError, match=r"agreed on|in at most"):
        decode_frame(frame, LAYOUT, 5000, at_density(codec, 0.0, 1))
    assert at_density(codec, 0.0) is codec
    assert at_density(codec, 0.1, 0) == SparseCodec(0.1)


@pytest.mark.parametrize(
    "made",
    [SparseCodec(1 / 8), SparseCodec(value_bits=8), SparseCodec(chunk=64), SparseCodec(chunk=0)],
    ids=repr,
)
def test_payload_of_other_settings_is_refused_before_it_is_decoded(
    made: SparseCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = random_vector(50_000)
    frame = encode_frame(made, vector, LAYOUT, None, 0)
    assert decode_frame(frame, LAYOUT, vector.size).entries.values.size  # it is sound in itself
    monkeypatch.setattr("boli.codec.sparse.decode_positions", None)
    with pytest.raises(CodecError, match=r"agreed on|in at most"):
        decode_frame(frame, LAYOUT, vector.size, SparseCodec())


def test_frame_of_another_codec_than_was_agreed_on_is_refused() -> None:
    frame = encode_frame(DenseCodec(), random_vector(500), LAYOUT, None, 0)
    with pytest.raises(CodecError, match="codec 1; 3 was agreed on"):
        decode_frame(frame, LAYOUT, 500, SparseCodec(0.5))


def test_skips_before_the_last_entry_take_no_call_each(monkeypatch: pytest.MonkeyPatch) -> None:
    length, count = 4_000_000, 62_500
    positions = np.append(np.arange(count - 1), length - 1).astype(np.int64)
    words = encode_positions(positions, length)
    calls: list[int] = []
    take = entropy._Decoder.take

    def counted(decoder: Any, number: int) -> Any:
        calls.append(number)
        return take(decoder, number)

    monkeypatch.setattr(entropy._Decoder, "take", counted)
    assert np.array_equal(decode_positions(words, count, length), positions)
    assert sum(calls) < 2 * count
    assert len(calls) < 20


def test_last_positions_come_back_where_nothing_follows_them() -> None:
    for count in (1, 2, 3, 700):
        for length in (count, 4 * count, 100_000):
            draw = np.random.default_rng(count + length)
            for _ in range(20):
                positions = np.sort(draw.choice(length, count, replace=False)).astype(np.int64)
                words = encode_positions(positions, length)
                assert np.array_equal(decode_positions(words, count, length), positions)
