"""Coverage-guided mutations of frames, payloads and facts: `make fuzz` runs 1,000,000.

What comes out is a vector of the stated length or a CodecError; anything else ends the
run, and so does memory above twice what the stated entries need, a position and a value
each, and the message itself; and so do more symbols, or more calls, of the range decoder than
the stated entries can need. The checksum is made to fit again, as a hostile site would,
so that mutations get past it.

    python tests/faults/fuzz_frames.py [-runs=1000000] [libFuzzer's options]
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import atheris
import numpy as np
from numpy.typing import NDArray

with atheris.instrument_imports(include=["boli.codec"]):
    from boli.codec import entropy
    from boli.codec.codec import CODECS, HEADER_BYTES, DenseCodec, decode_frame, encode_frame
    from boli.codec.facts import LONGEST, pack_facts, unpack_facts
    from boli.codec.public import PublicCodec
    from boli.codec.sparse import SparseCodec
    from boli.codec.support import Support
    from boli.errors import CodecError

LAYOUT = "0" * 32
FACTS = 9  # kind of a seed; other kinds are codecs, or whole frames
LENGTHS = (0, 1, 63, 64, 65, 300, 4097)
ENTRY_BYTES = 12  # a position and a value
FIXED_BYTES = (1 << 14) + 24 * entropy.AHEAD  # of what does not grow with a message
# An entry is a gap, a level, and where positions lie far apart a skip; the decoder looks ahead.
SYMBOLS_AN_ENTRY, FIXED_SYMBOLS = 3, 2 * entropy.AHEAD
FIXED_CALLS = 32  # for looking ahead ever less; and one for each block of symbols


def agreed(length: int) -> PublicCodec:
    """Return the codec of a cohort that sends half of the entries."""
    moved = np.linspace(-1, 1, length, dtype=np.float32)
    support = Support(seed=length, blocks=2, above=0.5, unit=-3)
    return PublicCodec(value_bits=4).on(support, moved, ((0, length),), length)


AGREED = {length: agreed(length) for length in LENGTHS}


def seeds() -> list[bytes]:
    """Return sound inputs of every kind."""
    found = []
    codecs = [DenseCodec(), DenseCodec("fp16")]
    codecs += [SparseCodec(0.2, bits, 64) for bits in (2, 4, 8, 32)]  # type: ignore[arg-type, misc]
    for place, length in enumerate(LENGTHS):
        vector = np.random.default_rng(place).standard_normal(length).astype(np.float32)
        for codec in [*codecs, AGREED[length]]:
            frame = encode_frame(codec, vector, LAYOUT, None, 3)
            found += [
                bytes([0, place]) + frame,
                bytes([codec.number, place]) + frame[HEADER_BYTES:],
            ]
    facts = pack_facts({"kind": "update", "order": "run-gaya-1", "sequence": 1, "loss": 2.5})
    return [*found, bytes([FACTS, 0]) + facts]


SEEDS = seeds()
CALLS: list[int] = []  # symbols of each


def count_work() -> None:
    """Note every call of the range decoder."""
    take = entropy._Decoder.take

    def counted(decoder: entropy._Decoder, count: int) -> NDArray[np.int32]:
        CALLS.append(count)
        return take(decoder, count)

    entropy._Decoder.take = counted  # type: ignore[method-assign]


def one(data: bytes) -> None:
    """Read one mutation, and look at the memory that it took."""
    if len(data) < 2:
        return
    kind, length = data[0], LENGTHS[data[1] % len(LENGTHS)]
    CALLS.clear()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    read(kind, data[2:], length)
    most = tracemalloc.get_traced_memory()[1] - before
    stated = LONGEST if kind == FACTS else ENTRY_BYTES * length
    if most > 2 * (stated + len(data)) + FIXED_BYTES:
        raise MemoryError(f"{most} bytes to read {len(data)} that state {stated}")
    if sum(CALLS) > SYMBOLS_AN_ENTRY * length + FIXED_SYMBOLS:
        raise RuntimeError(f"{sum(CALLS)} symbols decoded for {length} entries")
    if len(CALLS) > FIXED_CALLS + sum(CALLS) // entropy.AHEAD:
        raise RuntimeError(f"{len(CALLS)} calls for {sum(CALLS)} symbols")


def read(kind: int, body: bytes, length: int) -> None:
    """Read a frame, a payload or facts, whole or refused."""
    try:
        if kind in CODECS:
            codec = AGREED[length] if kind == AGREED[length].number else CODECS[kind]
            assert codec.entries(body, length).vector().shape == (length,)
        elif kind == FACTS:
            unpack_facts(body)
        else:
            head, rest = body[: HEADER_BYTES - 4], body[HEADER_BYTES:]
            seal = struct.pack("<I", zlib.crc32(rest, zlib.crc32(head)))
            found = decode_frame(head + seal + rest, LAYOUT, length, AGREED[length])
            assert found.vector.shape == (length,)
    except CodecError:
        pass


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Begin at a sound input every other time: libFuzzer itself keeps only the shortest."""
    draw = random.Random(seed)
    begin = draw.choice(SEEDS) if draw.random() < 0.5 else data
    mutated: bytes = atheris.Mutate(begin, min(max_size, len(begin) + 64))
    return mutated


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(SEEDS):
            (Path(folder) / f"{number:03}").write_bytes(data)
        np.seterr(all="ignore")
        count_work()
        tracemalloc.start()
        for data in SEEDS:
            one(data)
        (used,) = (
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmSize")
        )
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        options = [option for option in sys.argv[1:] if option.startswith("-")]
        runs = [] if any(option.startswith("-runs") for option in options) else ["-runs=1000000"]
        options = [*runs, *options, "-max_len=20000", "-len_control=0"]
        atheris.Setup([sys.argv[0], *options, folder], one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
