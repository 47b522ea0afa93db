"""Ways in which a site may alter an update on its way, for tests of what refuses them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from boli.codec.codec import HEADER_BYTES, DenseCodec, encode_frame
from boli.rounds.update import Update

Lie = Callable[[Update, random.Random], Update | bytes]


def lie_in_header(**values: object) -> Lie:
    """Put these values into the header."""
    return lambda update, _: Update(update.header.model_copy(update=values), update.payload)


def lie_in_payload(alter: Callable[[bytes], bytes]) -> Lie:
    """Alter the payload of every update that has one."""
    return lambda update, _: Update(update.header, update.payload and alter(update.payload))


def lie_in_vector(value: float, more_entries: int = 0) -> Lie:
    """Fill the vector with one value, checksum and all; or give it another length."""

    def lie(update: Update, _: random.Random) -> Update:
        header = update.header
        if not header.local_steps:
            return update
        length = int.from_bytes(update.payload[36:44], "little") + more_entries
        zeros = np.zeros(length, np.float32)
        frame = encode_frame(DenseCodec(), zeros, header.layout, header.rank, header.base_version)
        start, payload = frame[: HEADER_BYTES - 4], (zeros + np.float32(value)).tobytes()
        checksum = zlib.crc32(payload, zlib.crc32(start)).to_bytes(4, "little")
        return Update(header, start + checksum + payload)

    return lie


def lie_about_judgements(bits: Callable[[int, float], float]) -> Lie:
    """Judge otherwise: `bits` gets the version and what was found; no bits, no judgement."""

    def lie(update: Update, _: random.Random) -> Update:
        header = update.header
        first = header.sequence == 1  # judges the base, whatever it was trained from
        version = 0 if first else header.base_version
        told = [
            each.model_copy(update={"bits": bits(version, each.bits)}) for each in header.judgements
        ]
        return Update(header.model_copy(update={"judgements": tuple(told)}), update.payload)

    return lie


def _replay() -> Lie:
    first: list[Update] = []

    def lie(update: Update, _: random.Random) -> Update:
        first.append(update)
        return first[0]

    return lie


def _noise(update: Update, draw: random.Random) -> Update:
    return Update(update.header, draw.randbytes(len(update.payload)))


LIES: Mapping[str, Callable[[], Lie]] = {
    "nan": lambda: lie_in_vector(float("nan")),
    "infinite": lambda: lie_in_vector(float("inf")),
    "huge": lambda: lie_in_vector(1e30),
    "longer": lambda: lie_in_vector(0.0, more_entries=1),
    "shorter": lambda: lie_in_vector(0.0, more_entries=-1),
    "trailing bytes": lambda: lie_in_payload(lambda payload: payload + b"\0"),
    "torn": lambda: lie_in_payload(lambda payload: payload[:-1]),
    "flipped bit": lambda: lie_in_payload(lambda p: p[:-1] + bytes([p[-1] ^ 1])),
    "empty": lambda: lie_in_payload(lambda _: b""),
    "noise": lambda: _noise,
    "other layout": lambda: lie_in_header(layout="0" * 32),
    "other rank": lambda: lie_in_header(rank=1),
    "future version": lambda: lie_in_header(base_version=10**6),
    "too many tokens": lambda: lie_in_header(tokens=2**50),
    "no tokens": lambda: lie_in_header(tokens=0),
    "no local steps": lambda: lie_in_header(local_steps=0),
    "forged name": lambda: lie_in_header(site="somebody-else"),
    "bad header": lambda: lie_in_header(loss=float("nan")),
    "replay": _replay,
    "not a message": lambda: lambda _, draw: draw.randbytes(100),
}
