"""Facts beside payloads: what is read can be written again."""

from __future__ import annotations

import json
import zlib

import pytest

from boli.codec.facts import _WORDS, FORMAT, pack_facts, unpack_facts
from boli.errors import CodecError


def deflated(text: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    return bytes([FORMAT]) + deflate.compress(text) + deflate.flush()


def test_facts_in_any_script_come_back() -> None:
    facts = {"problem": "यहाँ कोई पाठ नहीं 🙂", "step": 3}
    assert unpack_facts(pack_facts(facts)) == facts
    assert unpack_facts(deflated(json.dumps(facts).encode())) == facts


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b'{"problem":"\\ud800"}', id="escaped"),
        pytest.param(b'{"problem":"\xed\xa0\x80"}', id="in bytes"),
        pytest.param('{"problem":"\\ud800"}'.encode("utf-16-le"), id="in UTF-16"),
    ],
)
def test_half_of_a_surrogate_pair_which_no_journal_can_hold_is_refused(text: bytes) -> None:
    with pytest.raises(CodecError, match="damaged"):
        unpack_facts(deflated(text))
