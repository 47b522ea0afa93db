from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from boli.corpus.ngrams import BUCKETS, LENGTHS, fold, substrings

LINES = st.lists(st.text(max_size=30), max_size=6)


def test_spellings_that_writers_mix_fold_into_one() -> None:
    assert fold("हलई") == fold("हलइ")
    assert fold("शहर में बड़ा") == fold("सहर मे बडा")
    assert fold("औरत") == fold("अउरत")


def test_digits_punctuation_and_case_fold_away() -> None:
    assert fold("  Bihar, १९४८ - 5।") == "bihar"


def test_same_words_fall_into_same_buckets_wherever_they_stand() -> None:
    cut = substrings(["राम घर गइल", "घर में राम गइल रहे"])
    first, second = (set(cut.words.buckets[cut.words.lines == line].tolist()) for line in (0, 1))
    assert len(first) == 3
    assert first < second
    assert set(cut.words.buckets.tolist()) <= set(cut.forms.buckets.tolist())


def test_number_of_n_grams_is_that_of_the_folded_line() -> None:
    (count,) = substrings(["कखग घ"]).characters.lengths
    length = len(" कखग घ ")
    assert count == sum(length - n + 1 for n in LENGTHS)


@given(LINES)
def test_any_text_is_cut_and_a_line_does_not_depend_on_its_neighbours(lines: list[str]) -> None:
    together = substrings(lines)
    for number, line in enumerate(lines):
        alone = substrings([line])
        for a, b in (
            (together.characters, alone.characters),
            (together.forms, alone.forms),
            (together.words, alone.words),
        ):
            own = a.buckets[a.lines == number]
            assert np.array_equal(own, b.buckets)
            assert ((own >= 0) & (own < BUCKETS)).all()


@given(st.text(max_size=40))
def test_folding_twice_changes_nothing(line: str) -> None:
    assert fold(fold(line)) == fold(line)
