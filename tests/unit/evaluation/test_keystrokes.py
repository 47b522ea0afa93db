from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boli.errors import CorpusError, ModelError
from boli.evaluation.keystrokes import (
    UNKNOWN_WORDS,
    Candidates,
    Mixture,
    train_ngram,
    type_lines,
    words_of,
)
from boli.evaluation.next_word import LanguageModel, pieces_of

Lines = Callable[[str, int], list[str]]
SAME = ["राम घर गइल।", "सीता घर गइल।", "राम खेत गइल।"]


class Fixed:
    """Suggests the same words in the same order."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def candidates(self, before: str, prefix: str, most: int) -> Candidates:
        found = [word for word in self.words if word.startswith(prefix)]
        return [(word, 1 / (1 + place)) for place, word in enumerate(found)][:most]


def test_words_end_at_spaces_and_before_signs() -> None:
    assert words_of("राम, घर  गइल।") == ["राम", ",", "घर", "गइल", "।"]
    assert words_of("3.5 - ‘के’ ..") == ["3", ".5", "-", "‘के’", ".", "."]


def test_keys_are_counted_as_the_protocol_says() -> None:
    # "abcd" is the fourth of all and the first with "abc"; "x" is never shown.
    found = type_lines(Fixed("abe", "abf", "abg", "abcd"), ["abcd x abf", "abe"])
    assert found.keys.tolist() == [5 + 2 + 4, 4]
    assert found.typed.tolist() == [(3 + 1) + 2 + 1, 1]
    assert found.words.tolist() == [3, 1]
    assert (found.first.tolist(), found.shown.tolist()) == ([0, 1], [1, 1])
    assert found.saved == pytest.approx(1 - 8 / 15)
    assert (found.hit_at_1, found.hit_at_3) == (0.25, 0.5)


def test_word_that_its_last_letter_alone_would_show_saves_nothing() -> None:
    assert type_lines(Fixed("a", "b", "c", "cd"), ["cd"]).typed.tolist() == [2]
    assert type_lines(Fixed(), ["cd e"]).saved == 0.0


def test_text_without_words_is_refused() -> None:
    with pytest.raises(CorpusError, match="no word to type"):
        type_lines(Fixed("a"), ["  "])
    with pytest.raises(CorpusError, match="no word"):
        train_ngram(["", " "])


def test_ngram_prefers_what_followed_the_context() -> None:
    ngram = train_ngram(SAME)
    assert ngram.candidates("सीता", "", 1)[0][0] == "घर"
    assert ngram.candidates("", "", 1)[0][0] == "राम"
    assert [word for word, _ in ngram.candidates("", "ग", 9)] == ["गइल"]
    assert ngram.candidates("राम", "zzz", 3) == []


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("before", ["", "राम", "राम घर", "अनजान अनजान", "सीता अनजान"])
def test_probabilities_of_all_words_sum_to_almost_one(order: int, before: str) -> None:
    ngram = train_ngram(SAME, order)
    found = ngram.candidates(before, "", 1000)
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True)
    assert all(share > 0 for share in shares)
    known = len(ngram.words) / (UNKNOWN_WORDS + len(ngram.words))
    assert known < sum(shares) < 1


def test_mixture_adds_weighted_probabilities() -> None:
    mixed = Mixture([Fixed("a", "b"), Fixed("b")], [0.4, 0.6]).candidates("", "", 2)
    assert mixed == [("b", pytest.approx(0.4 / 2 + 0.6)), ("a", pytest.approx(0.4))]


def test_more_text_saves_more(made_up_lines: Lines) -> None:
    lines = made_up_lines("bho", 220)
    few, many = (type_lines(train_ngram(lines[20:end]), lines[:20]) for end in (25, 220))
    assert many.saved > few.saved > 0


@pytest.fixture(scope="module")
def model(micro_base: Path, load_tiny: Callable[..., Any]) -> LanguageModel:
    base = load_tiny(micro_base)
    return LanguageModel(base.model, base.tokenizer, base.max_length)


def log_odds(model: LanguageModel, before: str, word: str) -> float:
    """Return the log probability of a word, spelled as its tokenizer does, and of its end."""
    end = model.tokenizer.eos_token_id
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    head = [end, *(encode(before) if before else [])]
    own = encode(f" {word}" if before else word)
    with torch.no_grad():
        logits = model.model(torch.tensor([head + own])).logits[0].double()
    logs = torch.log_softmax(logits, -1).numpy()
    spelled = sum(logs[len(head) - 1 + place, token] for place, token in enumerate(own))
    ends = [*np.flatnonzero(model.pieces.ends), end]
    began = np.logaddexp.reduce(logs[len(head) - 1, ends]) if before else 0.0
    return float(spelled + np.logaddexp.reduce(logs[-1, ends]) - began)


@pytest.mark.parametrize("before", ["", "गया"])
def test_language_model_gives_words_their_probabilities(model: LanguageModel, before: str) -> None:
    found = model.candidates(before, "", 5)
    assert len(found) == 5
    assert sum(share for _, share in found) <= 1 + 1e-6
    for word, share in found:
        # All ways to spell a word are added up, so the tokenizer's own is a lower bound.
        assert np.log(share) >= log_odds(model, before, word) - 1e-4


def test_language_model_keeps_to_what_was_typed(model: LanguageModel, made_up_lines: Lines) -> None:
    line = made_up_lines("hin", 1)[0]
    first, second = line.split()[:2]
    for size in range(1, len(second)):
        found = model.candidates(first, second[:size], 3)
        assert found
        assert all(word.startswith(second[:size]) for word, _ in found)


def test_tokens_write_what_they_stand_for(model: LanguageModel) -> None:
    text = "राम घर गइल। 12 abc"
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(model.pieces.texts[token] for token in tokens).decode() == text


def test_sentencepiece_marks_spaces_and_bytes() -> None:
    names = ["<bos>", "▁घर", "<0xE0>", "।"]

    class Tokenizer:
        all_special_ids = (0,)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [names[number] for number in ids]

        def __len__(self) -> int:
            return len(names)

    pieces = pieces_of(Tokenizer(), 9)
    assert pieces.texts == [b"", " घर".encode(), b"\xe0", "।".encode()]
    assert pieces.ends.tolist() == [False, True, False, True]
    names[1] = "घर"
    with pytest.raises(ModelError, match="where the tokenizer's words begin"):
        pieces_of(Tokenizer(), 9)
