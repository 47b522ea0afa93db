"""Small JSON facts that travel beside payloads, deflated with the words that they usually hold.

One byte for the format, then raw deflate with a preset dictionary (RFC 1950 calls
it that): the 340 bytes of an update take about 120.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from boli.errors import CodecError

FORMAT = 1
# Bytes of JSON; the description of a layout is the longest. As objects they may take 25 times that.
LONGEST = 1 << 20
# Never changed within a format. Deflate finds the end of it cheapest.
_WORDS = (
    b'"joined","failed","problem":"","hint":"","measure","step":,"of":,"tokens_per_second":,'
    b'"held_version":,"held_digest":,"num_lines":{"train":,"tuning":,"test":}'
    b'{"kind":"snapshot","version":1}{"kind":"delta","version":1}'
    b'{"kind":"verdict","order":"-20261231-235959-site-1","site":"site","sequence":1,'
    b'"accepted":false,"accepted":true,"reason":"superseded","keep":true}'
    b'{"kind":"order","order":"real-20261231-235959-site-1","site":"site","sequence":1,'
    b'"attempt":1,"base_version":1,"layout":"0123456789abcdef","rank":8,"local_steps":20,'
    b'"at_most":20,"position":0.1,"position_step":0.000833333333333,"evaluate":["tuning","test"],'
    b'"first":true,"returned":1}'
    b'{"kind":"update","order":"real-20261231-235959-site-1","site":"site","sequence":1,'
    b'"base_version":1,"layout":"0123456789abcdef","rank":8,"local_steps":20,"tokens":5120,'
    b'"loss":3.14159,"train_seconds":1.234,"evaluate_seconds":1.2,"work_seconds":1.345,'
    b'"idle_seconds":0.123,"residual_norm":0.1,"judgements":[{"language":"bho","part":"tuning",'
    b'"bits":12345.6789,"bytes":12345},{"language":"mag","part":"test","bits":0.0,"bytes":0}]}'
)


def pack_facts(facts: Mapping[str, Any]) -> bytes:
    """Return facts as few bytes."""
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    return bytes([FORMAT]) + deflate.compress(text) + deflate.flush()


def unpack_facts(data: bytes, longest: int = LONGEST) -> dict[str, Any]:
    """Return the facts; nothing above `longest` bytes of JSON is allocated.

    Raises:
        CodecError: they are of another format, damaged, or too long.
    """
    if not data or data[0] != FORMAT:
        raise CodecError(f"facts of format {data[:1].hex() or 'none'}, not {FORMAT:02x}")
    inflate = zlib.decompressobj(-15, zdict=_WORDS)
    try:
        text = inflate.decompress(data[1:], longest)
        if not inflate.eof or inflate.unused_data:
            raise CodecError(f"facts that do not end within {longest} bytes")
        facts = json.loads(text.decode())  # of bytes it would also take what is no UTF-8
        if b"\\u" in text:  # half of a surrogate pair can be read, but never be written again
            json.dumps(facts, ensure_ascii=False).encode()
    except (zlib.error, ValueError, RecursionError) as error:
        raise CodecError("damaged facts") from error
    if not isinstance(facts, dict):
        raise CodecError(f"facts are a JSON {type(facts).__name__}")
    return facts
