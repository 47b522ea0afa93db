"""Whatever a tokenizer does to a text, a byte that its tokens do not give back is counted."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from boli.corpus import round_trip
from boli.corpus.round_trip import _common_bytes, lost_bytes

LINE = "गया में आज Bahut भीड़ बा।"


def wrapped(tokenizer: tokenizers.Tokenizer, **special: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def characters(alphabet: str, *, unknown: bool = True, **parts: Any) -> Any:
    """Return a tokenizer with one token for each character, and <unk> for all others."""
    names = ["<unk>", "</s>", *alphabet]
    vocabulary = {name: number for number, name in enumerate(names)}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    inner.decoder = decoders.Fuse()
    for name, part in parts.items():
        setattr(inner, name, part)
    declared = {"unk_token": "<unk>"} if unknown else {}
    return wrapped(inner, eos_token="</s>", **declared)


def llama_like(alphabet: str) -> Any:
    """Return what SentencePiece makes of Llama: a space in front, bytes where letters fail."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *alphabet]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(pieces))}
    inner = tokenizers.Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return wrapped(inner, eos_token="</s>", unk_token="<unk>")


def lost(tokenizer: Any, *texts: str) -> list[int]:
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return lost_bytes(tokenizer, texts, rows)


def test_nothing_is_lost_by_tokens_of_bytes(tiny_tokenizer: Any) -> None:
    odd = "e\u0301 \u200dक्\u200cष ﬁ İ <unk> <|end|> \ufffd  two"
    assert lost(tiny_tokenizer, LINE, odd, "", " a") == [0, 0, 0, 0]


def test_nothing_is_lost_where_letters_fall_back_to_bytes() -> None:
    tokenizer = llama_like("abchutB ")
    assert "<0xE0>" in tokenizer.convert_ids_to_tokens(tokenizer(LINE)["input_ids"])
    assert lost(tokenizer, LINE, "Bahut", "") == [0, 0, 0]


def test_space_in_front_of_every_text_is_no_loss() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"Ġ": 0, "a": 1, "b": 2}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    assert lost(wrapped(inner), "ab", "a b") == [0, 0]


@pytest.mark.parametrize("unknown", [True, False], ids=["declared", "only in tokenizer.json"])
def test_what_is_unknown_is_lost(unknown: bool) -> None:
    tokenizer = characters("abc ", unknown=unknown)
    assert lost(tokenizer, "abc", "a गया b", "गया") == [0, len("गया".encode()), len("गया".encode())]
    assert lost(tokenizer, "unk <u> sunk") == [len("unk<u>sunk")]


def test_letters_that_are_dropped_in_silence_are_lost() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # no token for what is unknown
    inner.decoder = decoders.Fuse()
    assert lost(wrapped(inner), "ab", "aगb", "xyz") == [0, 3, 3]


def test_changed_case_and_normalized_letters_are_lost() -> None:
    lower = characters("abcdefghijklmnopqrstuvwxyz ", normalizer=normalizers.Lowercase())
    assert lost(lower, "a small House") == [1]
    compatible = characters("fi 1", normalizer=normalizers.NFKC())
    assert lost(compatible, "fi ﬁ ①") == [len("ﬁ①".encode())]
    bare = characters("कखगयम ", normalizer=normalizers.StripAccents())
    marks = [one for one in "गया में" if unicodedata.combining(one) or one in "ाे"]
    assert lost(bare, "गया में")[0] >= len("".join(marks).encode()) - 3


def test_spaces_and_ends_that_are_cut_off_are_lost() -> None:
    stripped = characters("ab ", normalizer=normalizers.Strip())
    assert lost(stripped, "ab", "  ab ") == [0, 3]
    cut = characters("ab ")
    cut.backend_tokenizer.enable_truncation(3)
    rows = [cut.backend_tokenizer.encode("ab" * 10).ids]
    assert lost_bytes(cut, ["ab" * 10], rows) == [17]


def test_whole_words_that_are_made_lower_case_are_lost_whole() -> None:
    vocabulary = {"<unk>": 0, "house": 1, "small": 2}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    found = lost(wrapped(inner, unk_token="<unk>"), "small House")
    assert len("House") <= found[0] <= len(" House")


class EveryLetter:
    """Says all letters for each: any text is a part of what it gives back."""

    unk_token_id = None

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once

    def decode(self, row: Sequence[int], **_: bool) -> str:
        return "".join("abcdefghij" if self.at_once else chr(97 + token) for token in row)


def test_tokens_that_say_every_letter_give_nothing_back() -> None:
    text = "abcjihbca"
    assert lost_bytes(EveryLetter(True), [text], [[0] * len(text)]) == [len(text)]
    assert lost_bytes(EveryLetter(False), [text], [[*range(10)] * len(text)]) == [len(text)]
    row = [ord(letter) - 97 for letter in text]
    assert lost_bytes(EveryLetter(False), [text], [row]) == [0]  # one for each is honest


def longest(text: str, back: str) -> int:
    """Return the length of a longest common subsequence, by its definition."""
    sizes = [[0] * (len(back) + 1) for _ in range(len(text) + 1)]
    for i, j in itertools.product(range(len(text)), range(len(back))):
        same = sizes[i][j] + 1 if text[i] == back[j] else 0
        sizes[i + 1][j + 1] = max(same, sizes[i][j + 1], sizes[i + 1][j])
    return sizes[-1][-1]


def test_alignment_is_a_longest_common_subsequence() -> None:
    draw = random.Random(3)
    for _ in range(400):
        text, back = ("".join(draw.choices("abcd", k=draw.randrange(25))) for _ in range(2))
        assert _common_bytes(text, back) == longest(text, back)
    assert _common_bytes("अaकग", "अकगb") == 9


def test_long_texts_are_aligned_in_blocks_and_never_given_more_than_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(4)
    tokenizer = characters("abcdefgh ")
    text = "".join(draw.choices("abcdefgh ", k=20_000))
    marred = "".join(letter if draw.random() < 0.98 else "ग" for letter in text)
    truth = 3 * marred.count("ग")
    sizes: list[int] = []
    align = round_trip._common_bytes

    def noted(one: str, other: str) -> int:
        sizes.append(max(len(one), len(other)))
        return align(one, other)

    monkeypatch.setattr(round_trip, "_common_bytes", noted)
    assert truth <= lost(tokenizer, marred)[0] < len(marred.encode()) / 2
    assert max(sizes) <= round_trip.BLOCK
    assert sum(sizes) < 1.2 * len(marred)
