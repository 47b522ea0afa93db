from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boli.errors import ModelError
from boli.model.tokenizer import (
    END,
    tokenizer_from_counts,
    tokens_of,
    train_tokenizer,
    words_in,
)

Lines = Callable[[str, int], list[str]]


def parts(tokenizer: Any) -> tuple[list[Any], dict[str, int]]:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["merges"], model["vocab"]


@pytest.mark.parametrize(
    "text",
    [
        "गया जाइब, तोहरा संगे।",
        " two  spaces\tand\ttabs ",
        "क्ष त्र ज्ञ श्र ड़ ढ़ ॐ १२३ 123",
        "emoji 🙂 and \u200d joiners",
        "ᱥᱟᱱᱛᱟᱲᱤ",
        "she's , isn 't . clean ?",
        "",
    ],
)
def test_any_text_comes_back_from_its_tokens(tiny_tokenizer: Any, text: str) -> None:
    tokens = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.decode(tokens) == text
    assert all(0 <= token < 320 for token in tokens)


def test_pieces_keep_vowel_signs_with_their_letters(tiny_tokenizer: Any) -> None:
    split = tiny_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for word in ("हिन्दी", "बानी", "क्षेत्रीय", "कुत्ता"):
        assert [span for _, span in split(word)] == [(0, len(word))]
    text = "मैं गया था। 12 रुपया"
    for _, (start, _) in split(text):
        assert not unicodedata.category(text[start]).startswith("M")
    assert [text[a:b] for _, (a, b) in split(text)] == [
        "मैं",
        " गया",
        " था",
        "।",
        " ",
        "1",
        "2",
        " रुपया",
    ]


def test_tokenizer_has_the_size_asked_for_and_ends_with_its_end_token(
    made_up_lines: Lines, tmp_path: Path
) -> None:
    import transformers

    tokenizer = train_tokenizer(made_up_lines("mag", 200), 340)
    assert len(tokenizer) == 340
    assert tokenizer.eos_token == tokenizer.bos_token == END
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == END
    line = made_up_lines("mag", 1)[0]
    trained = tokenizer(line)["input_ids"]
    assert tokenizer.eos_token_id not in trained
    assert len(trained) < len(line.encode())
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again(line)["input_ids"] == trained
    assert again.eos_token_id == tokenizer.eos_token_id


# --- from counts


def test_counts_of_one_text_make_the_tokenizer_of_that_text(made_up_lines: Lines) -> None:
    lines = [*made_up_lines("mag", 150), "aaaa aaa aa, abab ababab. 1998 ॐ"]
    assert parts(tokenizer_from_counts([words_in(lines)], 500)) == parts(
        train_tokenizer(lines, 500)
    )


@given(st.permutations(range(3)))
def test_order_of_the_sites_changes_nothing(order: list[int]) -> None:
    counts = [{" राम": 5, " काम": 3}, {" राम": 2, " नाम": 9, "ता": 4}, {" धाम": 1}]
    found = parts(tokenizer_from_counts([counts[i] for i in order], 290))
    assert found == parts(tokenizer_from_counts(counts, 290))


def test_large_counts_of_one_site_do_not_outweigh_the_others() -> None:
    few, many = {" abc": 3}, {" xyz": 3 * 10**6}
    merges, _ = parts(tokenizer_from_counts([few, many], 400))
    alike, _ = parts(tokenizer_from_counts([few, {" xyz": 3}], 400))
    assert merges == alike


def test_hostile_site_gets_no_more_than_its_share_of_the_vocabulary(made_up_lines: Lines) -> None:
    honest = [words_in(made_up_lines(language, 150)) for language in ("hin", "bho", "mag")]
    junk = {f" {chr(97 + i % 26)}{chr(97 + i // 26)}qqwwzzxxvvkkjj": 1 for i in range(400)}
    _, vocabulary = parts(tokenizer_from_counts([*honest, junk], 500))
    made = [symbol for symbol in vocabulary if len(symbol) > 1 and symbol != END]
    taken = [symbol for symbol in made if symbol.lstrip("Ġ").isascii()]
    assert len(taken) <= 1.5 * (500 - 257) / 4 + 1


def test_nobody_sent_anything() -> None:
    with pytest.raises(ModelError, match="no words"):
        tokenizer_from_counts([{}, {}], 300)


def test_tokens_of_what_sites_sent_are_those_that_their_words_need(tiny_tokenizer: Any) -> None:
    sites = [{" गया": 32, "।": 64}, {" गया": 11, " ab": 16}, {}]
    found = tokens_of(tiny_tokenizer, sites)
    needed = {
        token
        for word in (" गया", "।", " ab")
        for token in tiny_tokenizer.tokenize(word, add_special_tokens=False)
    }
    assert set(found) == needed
    assert found["a"] == 16
    assert max(found.values()) >= 64
