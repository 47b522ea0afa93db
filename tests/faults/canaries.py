"""Phrases that nobody else writes, and a search for them in any form: what leaks is found."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import itertools
import json
import random
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SIGN = "कऩरी"  # ऩ is one code point in NFC and two in NFD
LATIN = "zqcanary"
LETTERS = "कखगचजटडतदनपबमरलसह"
DEEPEST = 4


def canary(number: int) -> str:
    """Return a phrase of three words that is all its own."""
    drawn = random.Random(f"canary {number}")
    words = ["".join(drawn.choices(LETTERS, k=6)) for _ in range(2)]
    return f"{SIGN}{drawn.randrange(10**8):08d} {LATIN}{number:04d} {' '.join(words)}"


def _forms(word: str) -> set[bytes]:
    """Return how a word can stand in bytes, in the middle of other text."""
    found = set()
    for text in {word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)}:
        plain = text.encode()
        found |= {plain, text.encode("utf-16-le"), text.encode("utf-16-be")}
        found |= {json.dumps(text)[1:-1].encode(), plain.hex().encode()}
        for ahead in range(3):  # of what stands before it, the base64 of its middle depends
            coded = base64.b64encode(b"x" * ahead + plain)
            found.add(coded[4 if ahead else 0 : len(coded) // 4 * 4 - 4])
    return found


NEEDLES = re.compile(b"|".join(map(re.escape, sorted(_forms(SIGN) | _forms(LATIN)))))
_PACKED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY|\x28\xb5\x2f\xfd|\x78[\x01\x5e\x9c\xda]")


def traces(data: bytes, depth: int = 0) -> int:
    """Return how often a canary shows in bytes, packed ones too."""
    found = len(NEEDLES.findall(data))
    if depth < DEEPEST:
        found += sum(traces(inner, depth + 1) for inner in _inside(data))
    return found


def _inside(data: bytes) -> Iterator[bytes]:
    """Yield what is packed in bytes, wherever it begins."""
    for match in _PACKED.finditer(data):
        rest = data[match.start() :]
        head = match[0]
        try:
            if head.startswith(b"\x1f\x8b"):
                yield zlib.decompressobj(31).decompress(rest, 1 << 26)
            elif head.startswith(b"BZh"):
                yield bz2.BZ2Decompressor().decompress(rest, 1 << 26)
            elif head.startswith(b"\x28"):
                yield pa.CompressedInputStream(io.BytesIO(rest), "zstd").read()
            else:
                yield zlib.decompressobj().decompress(rest, 1 << 26)
        except (zlib.error, OSError, EOFError, ValueError, pa.ArrowException):
            continue
    ends = [match.end() for match in re.finditer(b"PAR1", data)]
    for first, last in itertools.pairwise(ends):  # also inside a stream of others
        try:
            table = pq.read_table(io.BytesIO(data[first - 4 : last]))
        except (OSError, ValueError, pa.ArrowException):
            continue
        metadata = repr(table.schema.metadata)
        yield "\n".join([metadata, *map(_row, table.to_pylist())]).encode()


def _row(row: dict[str, Any]) -> str:
    """Return a row's values as text; bytes as they are, as far as they are text."""
    values = (
        v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in row.values()
    )
    return "\n".join(values)


def files_with_canaries(*roots: Path) -> list[Path]:
    """Return the files below folders, or files, in which a canary shows."""
    paths = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    return sorted(path for path in paths if path.is_file() and traces(path.read_bytes()))


def ways_to_hide(text: str) -> dict[str, bytes]:
    """Return a text in every form that a search must see through."""
    plain = f"x{text}x".encode()
    parquet = io.BytesIO()
    pq.write_table(pa.table({"a": [text]}), parquet, compression="zstd")
    return {
        "plain": plain,
        "base64": base64.b64encode(plain),
        "base64, moved": base64.b64encode(b"yy" + plain),
        "gzip": gzip.compress(plain),
        "gzip in base64": base64.b64encode(plain) + gzip.compress(base64.b64encode(plain)),
        "zlib": zlib.compress(plain),
        "bzip2": bz2.compress(plain),
        "zstd": bytes(pa.Codec("zstd").compress(plain)),
        "UTF-16": text.encode("utf-16"),
        "UTF-16, big end first": text.encode("utf-16-be"),
        "NFD": unicodedata.normalize("NFD", text).encode(),
        "NFC": unicodedata.normalize("NFC", text).encode(),
        "JSON": json.dumps(text).encode(),
        "hex": plain.hex().encode(),
        "Parquet": parquet.getvalue(),
        "Parquet in gzip": gzip.compress(b"ahead" + parquet.getvalue()),
    }
