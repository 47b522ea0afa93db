from __future__ import annotations

import struct

import numpy as np
import pytest

from boli.codec.codec import CODECS, decode_frame, encode_frame
from boli.codec.public import PublicCodec
from boli.codec.support import BLOCK, Support
from boli.errors import CodecError

LAYOUT = "00112233445566778899aabbccddeeff"
LENGTH = 500
MOVED = np.random.default_rng(3).standard_normal(LENGTH).astype(np.float32)
SUPPORT = Support(seed=1, start=2, blocks=4, above=1.5, unit=-4)
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def codec_on(bits: int = 4, support: Support = SUPPORT, draw: str = "") -> PublicCodec:
    return PublicCodec(value_bits=bits).on(support, MOVED, ((0, LENGTH),), LENGTH, draw)


def vector(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(LENGTH) / 8).astype(np.float32)


# --- what is sent


def test_support_is_what_moved_furthest_and_the_blocks_in_turn() -> None:
    positions = codec_on().positions
    assert positions is not None
    order = np.argsort(np.random.PCG64(1).random_raw(32), kind="stable")
    in_turn = [b * BLOCK + i for b in order[2:6] for i in range(BLOCK) if b * BLOCK + i < LENGTH]
    assert positions.tolist() == sorted({*np.flatnonzero(np.abs(MOVED) > 1.5), *in_turn})


def test_blocks_take_turns_in_another_order_with_another_seed() -> None:
    still = np.zeros(LENGTH, np.float32)
    found = {
        tuple(Support(seed=seed, blocks=2, unit=0).positions(still, ((0, LENGTH),), LENGTH))
        for seed in range(5)
    }
    assert len(found) == 5


def test_entries_beyond_the_grid_saturate_and_the_rest_waits() -> None:
    codec = codec_on(4)
    huge = np.full(LENGTH, -3.25, np.float32)
    sent = codec.entries(codec.encode(huge), LENGTH)
    assert set(sent.values.tolist()) == {-7 / 16}


@BITS
def test_multiples_of_a_level_on_the_grid_arrive_as_they_are(bits: int) -> None:
    codec = codec_on(bits)
    levels = np.random.default_rng(0).integers(-codec.most, codec.most + 1, LENGTH)
    even = (levels / 16).astype(np.float32)
    found = codec.entries(codec.encode(even), LENGTH)
    assert np.array_equal(found.values, even[codec.positions])


@BITS
def test_rounding_hits_an_entry_on_average(bits: int) -> None:
    level = 2.0**SUPPORT.unit
    fine = np.rint(vector() / level * 2**20) * level / 2**20
    fine = np.clip(fine, -codec_on(bits).most * level, codec_on(bits).most * level)
    fine = fine.astype(np.float32)
    codecs = [codec_on(bits, draw=f"run-gaya-{sequence}") for sequence in range(2000)]
    mean = np.mean([codec.entries(codec.encode(fine), LENGTH).values for codec in codecs], axis=0)
    # Five standard deviations of a mean of 2000, of values that differ by half a level.
    assert np.abs(mean - fine[codecs[0].positions]).max() < 5 * level / 2 / 2000**0.5


def test_same_order_rounds_alike_and_no_other_does() -> None:
    payloads = [codec_on(4, draw=name).encode(vector()) for name in ("a-1", "a-1", "a-2", "b-1")]
    assert payloads[0] == payloads[1]
    assert len(set(payloads)) == 3


@BITS
def test_payload_has_no_positions_and_no_scales(bits: int) -> None:
    codec = codec_on(bits)
    payload = codec.encode(vector())
    assert codec.positions is not None
    assert len(payload) == 10 + -(-codec.positions.size * bits // 8)
    assert payload[:6] == struct.pack("<IBb", codec.positions.size, bits, -4)


def test_levels_are_packed_as_the_module_documents_it() -> None:
    still = np.zeros(4, np.float32)
    whole = Support(blocks=1, unit=0)
    values = np.array([1, -1, 0, 1], np.float32)
    packed = {2: "4d", 4: "f110", 8: "01ff0001"}
    for bits, expected in packed.items():
        codec = PublicCodec(value_bits=bits).on(whole, still, ((0, 4),), 4)  # type: ignore[arg-type]
        assert codec.encode(values)[10:].hex() == expected


@pytest.mark.parametrize("density", [0.02, 0.25, 0.5])
def test_expected_bytes_are_about_what_a_payload_takes(density: float) -> None:
    length, codec = 100_000, PublicCodec(density, 4)
    support, moved = None, np.zeros(length, np.float32)
    for version in range(3):
        support = Support.following(support, moved, codec.share(version), 0, 0)
        found = len(codec.on(support, moved, ((0, length),), length).encode(moved))
        assert codec.expected_bytes(length, version) == pytest.approx(found, rel=0.02)
        moved = np.random.default_rng(version).standard_normal(length).astype(np.float32)


# --- what is refused


def refused(payload: bytes, codec: PublicCodec) -> str:
    with pytest.raises(CodecError) as caught:
        codec.entries(payload, LENGTH)
    return caught.value.problem


def test_nothing_is_coded_before_a_support_is_agreed_on() -> None:
    with pytest.raises(CodecError, match="no public support"):
        PublicCodec().encode(vector())
    frame = encode_frame(codec_on(), vector(), LAYOUT, None, 3)
    with pytest.raises(CodecError, match="no public support"):
        decode_frame(frame, LAYOUT, LENGTH)
    assert decode_frame(frame, LAYOUT, LENGTH, codec_on()).vector.any()
    assert CODECS[4] == PublicCodec()


@pytest.mark.parametrize(
    "other",
    [
        Support(seed=2, start=2, blocks=4, above=1.5, unit=-4),
        Support(seed=1, start=3, blocks=4, above=1.5, unit=-4),
        Support(seed=1, start=2, blocks=5, above=1.5, unit=-4),
        Support(seed=1, start=2, blocks=4, above=1.6, unit=-4),
        Support(seed=1, start=2, blocks=4, above=1.5, unit=-5),
    ],
)
def test_payload_of_another_support_or_grid_is_refused(other: Support) -> None:
    problem = "the payload is of another support or grid than was agreed on"
    assert refused(codec_on(4, other).encode(vector()), codec_on()) == problem
    assert refused(codec_on(8).encode(vector()), codec_on()) == problem


def test_one_entry_that_moved_otherwise_is_noticed() -> None:
    moved = MOVED.copy()
    moved[np.argmax(np.abs(moved))] = 0
    codec = PublicCodec(value_bits=4).on(SUPPORT, moved, ((0, LENGTH),), LENGTH)
    assert "another support" in refused(codec.encode(vector()), codec_on())


@BITS
def test_short_long_and_impossible_payloads_are_refused(bits: int) -> None:
    codec = codec_on(bits)
    payload = codec.encode(vector())
    for size in range(len(payload)):
        refused(payload[:size], codec)
    assert "do not hold" in refused(payload + b"\0", codec)
    lowest = {2: 0b10, 4: 0b1000, 8: 0b1000_0000}[bits]
    assert "outside the grid" in refused(payload[:10] + bytes([lowest]) + payload[11:], codec)


def test_bits_that_fill_up_the_last_byte_are_refused_where_they_say_anything() -> None:
    still = np.zeros(3, np.float32)
    codec = PublicCodec(value_bits=2).on(Support(blocks=1, unit=0), still, ((0, 3),), 3)
    payload = codec.encode(np.ones(3, np.float32))
    assert payload[10:].hex() == "15"
    with pytest.raises(CodecError, match="outside the grid"):
        codec.entries(payload[:10] + b"\x55", 3)


@pytest.mark.parametrize(
    "values", [{"blocks": -1}, {"above": float("nan")}, {"unit": 21}, {"unit": -101}, {"seed": -1}]
)
def test_order_with_an_impossible_support_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Support.model_validate({"blocks": 1, "unit": 0, **values})


def test_order_that_asks_for_more_blocks_than_there_are_takes_no_memory() -> None:
    support = Support(start=2**53, blocks=2**53, unit=0)
    assert support.positions(MOVED, ((0, LENGTH),), LENGTH).size == LENGTH
