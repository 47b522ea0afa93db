"""The Codec protocol, the versioned wire header, and the dense codec.

Header, 56 bytes, little-endian:

    offset  bytes  field
         0      4  magic, "BOLI"
         4      1  format version, 1
         5      1  codec number
         6      2  reserved, 0
         8     16  layout digest
        24      4  rank of the view, 0 for all
        28      8  base version
        36      8  number of entries
        44      8  number of payload bytes
        52      4  CRC-32 of the header before it and the payload
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from boli.codec.entries import Entries
from boli.codec.public import PublicCodec
from boli.codec.sparse import SparseCodec
from boli.errors import CodecError
from boli.plan_rounds import OneWayPlan

Vector = NDArray[np.float32]
MAGIC = b"BOLI"
FORMAT = 1
_HEADER = struct.Struct("<4sBBH16sIQQQ")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


class Codec(Protocol):
    """Turns a vector into payload bytes; what is lost is the caller's to keep as residual."""

    @property
    def number(self) -> int:
        """What the header calls it; never reused."""
        ...

    def encode(self, vector: Vector, version: int = 0) -> bytes:
        """Return the payload of a (m,) vector; `version` tells how far the run is."""
        ...

    def entries(self, payload: bytes, length: int) -> Entries:
        """Return what a payload says of a (length,) vector; refuse any other size."""
        ...

    def check(self, payload: bytes, length: int) -> None:
        """Refuse, before it is decoded, what this codec would not have made of such a vector.

        Raises:
            CodecError: it states other settings, or more entries than this codec sends.
        """
        ...

    def payload_bytes(self, length: int) -> int:
        """Return the most bytes that this codec makes of a vector of so many entries."""
        ...

    def expected_bytes(self, length: int, version: int) -> int:
        """Return about how many bytes the payload of an ordinary update takes."""
        ...


@dataclass(frozen=True)
class DenseCodec:
    """Every entry as a little-endian float; fp16 values saturate at ±65504."""

    dtype: str = "fp32"

    @property
    def number(self) -> int:
        return 1 if self.dtype == "fp32" else 2

    @property
    def _numpy(self) -> str:
        return "<f4" if self.dtype == "fp32" else "<f2"

    def encode(self, vector: Vector, version: int = 0) -> bytes:  # noqa: ARG002
        if self.dtype == "fp16":
            limit = np.finfo(np.float16).max
            vector = np.clip(vector, -limit, limit)
        return vector.astype(self._numpy).tobytes()

    def entries(self, payload: bytes, length: int) -> Entries:
        self.check(payload, length)
        return Entries(length, np.frombuffer(payload, self._numpy).astype(np.float32))

    def check(self, payload: bytes, length: int) -> None:
        if len(payload) != self.payload_bytes(length):
            raise CodecError(f"{len(payload)} payload bytes do not hold {length} entries")

    def payload_bytes(self, length: int) -> int:
        return length * (4 if self.dtype == "fp32" else 2)

    def expected_bytes(self, length: int, version: int) -> int:  # noqa: ARG002
        return self.payload_bytes(length)


EXACT = SparseCodec(density=1.0, value_bits=32)  # of a vector that is mostly zeros
CODECS: dict[int, Codec] = {  # each reads all that its kind can make
    1: DenseCodec("fp32"),
    2: DenseCodec("fp16"),
    3: EXACT,
    4: PublicCodec(),
}
TABLE_BYTES = 4096  # that other settings of the same kind may need for scales and levels


def codec_for(plan: OneWayPlan) -> Codec:
    """Return the codec that a plan asks for."""
    match plan.name:
        case "dense":
            return DenseCodec(plan.dtype)
        case "sparse" | "dgc":  # dgc is a way to fill the residual; its payloads are sparse
            return SparseCodec(plan.density, plan.value_bits, plan.chunk, warmup=plan.densities)
        case "public":
            return PublicCodec(plan.density, plan.value_bits, plan.densities)


@dataclass(frozen=True)
class Decay:
    """What is left of a residual at the next update; it changes evenly along the run."""

    first: float = 1.0
    last: float = 1.0
    versions: int = 1  # of the run

    def of(self, residual: Vector | None, version: int) -> Vector | None:
        """Return the residual that goes into the update on a version; None: zero."""
        kept = self.first + (self.last - self.first) * min(1.0, version / self.versions)
        return None if residual is None or not kept else np.float32(kept) * residual


def decay_for(plan: OneWayPlan, versions: int) -> Decay:
    """Return the decay that a plan asks for."""
    last = plan.final_residual_decay
    return Decay(plan.residual_decay, plan.residual_decay if last is None else last, versions)


def at_density(codec: Codec, density: float, version: int | None = None) -> Codec:
    """Return the codec that sends this share of the entries, if it leaves any out; 0: as it is.

    With a version it is the codec of that version alone, however many entries earlier ones send.
    """
    if not isinstance(codec, SparseCodec) or (not density and version is None):
        return codec
    return replace(codec, density=density or codec.density_at(version or 0), warmup=())


@dataclass(frozen=True)
class Frame:
    """What a header says, with the entries that its payload holds."""

    layout: str
    rank: int | None
    base_version: int
    entries: Entries  # of the view

    @property
    def vector(self) -> Vector:
        """All entries, (m,)."""
        return self.entries.vector()


def encode_frame(
    codec: Codec, vector: Vector, layout: str, rank: int | None, base_version: int
) -> bytes:
    """Return header and payload.

    Raises:
        CodecError: an entry is NaN or infinite.
    """
    if not np.isfinite(vector).all():
        raise CodecError(
            "an entry is NaN or infinite", "lower the learning rate of local steps", "site.diverged"
        )
    payload = codec.encode(vector, base_version)
    header = _HEADER.pack(
        MAGIC,
        FORMAT,
        codec.number,
        0,
        bytes.fromhex(layout),
        rank or 0,
        base_version,
        vector.size,
        len(payload),
    )
    return header + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(header))) + payload


def decode_frame(data: bytes, layout: str, length: int, agreed: Codec | None = None) -> Frame:
    """Read a frame whose layout and number of entries are known beforehand.

    Every length is checked against `length` before anything is allocated. With `agreed`, what
    that codec would not have made is refused before it is decoded: no frame takes much more
    work than an honest one.

    Raises:
        CodecError: the frame is torn, altered, of another layout, length or codec than was
            agreed on, or holds NaN or infinity.
    """
    if len(data) < HEADER_BYTES:
        raise CodecError(f"{len(data)} bytes are too few for a frame")
    magic, version, number, reserved, digest, rank, base_version, entries, size = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version != FORMAT or reserved or number not in CODECS:
        raise CodecError(f"not a frame of format {FORMAT}: {data[:8].hex()}")
    if digest.hex() != layout:
        raise CodecError(f"the frame has layout {digest.hex()[:8]}, not {layout[:8]}")
    codec = CODECS[number] if agreed is None else agreed
    if number != codec.number:
        raise CodecError(f"the frame is of codec {number}; {codec.number} was agreed on")
    most = codec.payload_bytes(length) + (TABLE_BYTES if agreed is None else 0)
    if entries != length or size > most or len(data) != HEADER_BYTES + size:
        raise CodecError(
            f"{entries} entries in {len(data) - HEADER_BYTES} bytes; expected {length} entries "
            f"in at most {most} bytes"
        )
    payload = data[HEADER_BYTES:]
    if (
        zlib.crc32(payload, zlib.crc32(data[: _HEADER.size]))
        != _CHECKSUM.unpack_from(data, _HEADER.size)[0]
    ):
        raise CodecError("the frame does not match its checksum")
    if agreed is not None:
        agreed.check(payload, length)
    found = codec.entries(payload, length)
    if not np.isfinite(found.values).all():
        raise CodecError("an entry is NaN or infinite")
    return Frame(layout, rank or None, base_version, found)
