from __future__ import annotations

import math

import numpy as np
import pytest

from boli.codec.codec import decode_frame, encode_frame
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
