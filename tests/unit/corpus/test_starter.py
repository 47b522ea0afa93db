from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib.resources import files
from itertools import chain
from typing import Any

import pytest

from boli.corpus import starter
from boli.corpus.starter import starter_capacity, starter_languages, starter_lines
from boli.errors import CorpusError

LANGUAGES = ("bho", "hin", "mag", "mai")
TOPICS = ["weather", "market", "farm", "school", "health", "greetings"]
NAME = re.compile(r"\{([a-z_]+)")

# Words that only this one of the four languages uses.
HALLMARKS = {
    "hin": {"है", "हैं", "था", "थी", "को", "और", "नहीं", "लेकिन", "इसलिए", "आप", "रहा", "मेरा"},
    "bho": {"बा", "बानी", "बाड़न", "बाड़ी", "बिया", "नइखे", "खातिर", "बाकिर", "रउआ", "हमार", "गइल"},
    "mag": {"हइ", "हथिन", "हलइ", "गेलइ", "देथिन", "ला", "बाकि", "नञ्", "हम्मर", "अप्पन", "कउन"},
    "mai": {"अछि", "छथि", "छी", "छनि", "छैक", "छल", "केँ", "सँ", "मे", "मुदा", "नहि", "अहाँ", "हमर"},
}


def words_of(lines: list[str]) -> set[str]:
    return set(re.split(r"[ ,।?]+", " ".join(lines)))


def data_of(language: str) -> dict[str, Any]:
    file = files("boli.corpus").joinpath(f"starter_text/{language}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def slots_of(data: dict[str, Any]) -> dict[str, list[str]]:
    return {
        name: [*chain(*words.values())] if isinstance(words, dict) else words
        for name, words in data["slots"].items()
    }


def test_four_languages_have_starter_text() -> None:
    assert starter_languages() == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_same_seed_gives_same_lines_and_shorter_request_is_a_prefix(language: str) -> None:
    lines = starter_lines(language, 500, seed=7)
    assert lines == starter_lines(language, 500, seed=7)
    assert lines[:120] == starter_lines(language, 120, seed=7)
    assert lines != starter_lines(language, 500, seed=8)


@pytest.mark.parametrize("language", LANGUAGES)
def test_lines_are_distinct(language: str) -> None:
    lines = starter_lines(language, 20_000)
    assert len(set(lines)) == 20_000


def test_small_deck_deals_each_number_once() -> None:
    deck, rng = starter._Deck(6), starter.random.Random(1)
    assert sorted(deck.deal(rng) for _ in range(6)) == list(range(6))


@pytest.mark.parametrize("language", LANGUAGES)
def test_capacity_is_above_a_hundred_thousand(language: str) -> None:
    assert starter_capacity(language) > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_of_the_grammar_is_distinct(language: str) -> None:
    capacity = starter_capacity(language)
    assert len(set(starter_lines(language, capacity))) == capacity


def test_unknown_language_names_the_nearest() -> None:
    with pytest.raises(CorpusError, match="'mao'") as caught:
        starter_lines("mao", 1)
    assert "bho, hin, mag, mai" in caught.value.hint
    assert "did you mean 'ma" in caught.value.hint


@pytest.mark.parametrize("language", ["", "../hin", "Hindi"])
def test_strange_language_is_refused(language: str) -> None:
    with pytest.raises(CorpusError, match="no starter text"):
        starter_capacity(language)


def test_more_lines_than_the_grammar_can_give_says_how_many() -> None:
    capacity = starter_capacity("mag")
    with pytest.raises(CorpusError, match=str(capacity + 1)) as caught:
        starter_lines("mag", capacity + 1)
    assert str(capacity) in caught.value.hint
    with pytest.raises(CorpusError, match="-1"):
        starter_lines("mag", -1)
    assert starter_lines("mag", 0) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_line_is_clean_devanagari_with_an_end_mark(language: str) -> None:
    for line in starter_lines(language, 5_000):
        assert line.endswith(("।", "?"))
        assert line.count("।") + line.count("?") == 1
        assert not set(line) - {chr(point) for point in range(0x0900, 0x0980)} - set(" ,?")
        assert line == " ".join(line.split())
        assert line == unicodedata.normalize("NFC", line)
        assert 4 <= len(line.split()) <= 24


@pytest.mark.parametrize("language", LANGUAGES)
def test_language_has_its_own_hallmarks_and_none_of_the_others(language: str) -> None:
    words = words_of(starter_lines(language, 10_000))
    assert HALLMARKS[language] <= words
    for other in set(LANGUAGES) - {language}:
        assert not HALLMARKS[other] & words


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_list_is_used_and_every_gap_has_a_list(language: str) -> None:
    data = data_of(language)
    texts = [text for sentences in data["sentences"].values() for text in sentences.values()]
    used = set(NAME.findall(" ".join(texts)))
    assert used == set(data["slots"])
    for words in slots_of(data).values():
        assert len(words) == len(set(words)) >= 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_patterns_match_in_name_and_topic_across_languages(language: str) -> None:
    sentences, hindi = data_of(language)["sentences"], data_of("hin")["sentences"]
    assert list(sentences) == TOPICS
    assert {topic: list(texts) for topic, texts in sentences.items()} == {
        topic: list(texts) for topic, texts in hindi.items()
    }


def pattern(text: str) -> starter._Pattern:
    slots = {
        "veg": starter._read_slot("veg", {"m": ["आलू", "कद्दू"], "f": ["मूली"]}),
        "price": starter._read_slot("price", ["२०", "३०"]),
    }
    return starter._read_pattern("hin.toml, market.test", text, slots)


def test_word_agrees_with_the_group_it_stands_for() -> None:
    made = pattern("{veg} {veg|महँगा|महँगी} है।")
    assert {made.fill(number) for number in range(made.size)} == {
        "आलू महँगा है।",
        "कद्दू महँगा है।",
        "मूली महँगी है।",
    }


def test_second_word_of_a_list_differs_from_the_first() -> None:
    made = pattern("{veg}, {veg.2}, {price}")
    lines = {made.fill(number) for number in range(made.size)}
    assert made.size == len(lines) == 12
    assert "आलू, मूली, २०" in lines
    assert "आलू, आलू, २०" not in lines


def test_gap_without_a_list_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"market\.test.*'fish'"):
        pattern("{fish} है।")


def test_wrong_number_of_forms_is_refused() -> None:
    with pytest.raises(CorpusError, match="3 forms, but 'veg' has 2 groups"):
        pattern("{veg} {veg|महँगा|महँगी|महँगे} है।")
