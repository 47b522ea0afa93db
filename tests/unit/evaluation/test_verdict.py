from __future__ import annotations

import pytest

from boli.evaluation.paired import Comparison
from boli.evaluation.verdict import by_language, span, verdict, winner

SPACE = "\N{NO-BREAK SPACE}"


def against(b: float, low: float | None = None, high: float | None = None) -> Comparison:
    return Comparison(0.8, b, 0.8 / b - 1, low, high, 40)


def plain(found: dict[str, Comparison]) -> str:
    return verdict(found).replace(SPACE, " ")


def test_the_row_with_the_fewest_bits_wins_whoever_it_is() -> None:
    found = {"base": against(2.0, -0.7, -0.5), "six_gram": against(0.5, 0.5, 0.7)}
    assert plain(found) == (
        "A 6-gram wins: 0.500 bits per byte; the model needs 0.800, 60.0 % more than it (50.0 to "
        "70.0 %). The model needs 60.0 % less than the untouched base (2.000; 50.0 to 70.0 %). "
        "Over 40 documents none of this is noise."
    )
    won = winner(found)
    assert won is not None
    assert (won["row"], won["noise"]) == ("six_gram", False)
    found = {"base": against(0.7, 0.1, 0.2)}
    assert plain(found).startswith("The untouched base wins: 0.700")
    assert plain(found).endswith("Over 40 documents this is not noise.")


def test_lead_that_may_be_noise_is_no_lead_without_a_word() -> None:
    found = {"ppmd": against(0.81, -0.03, 0.01), "six_gram": against(0.9, -0.2, -0.05)}
    won = winner(found)
    assert won is not None
    assert won["noise"] is True
    assert won["sentence"].replace(SPACE, " ") == (
        "The model wins: 0.800 bits per byte, 1.2 % less than PPMd (0.810; −3.0 to 1.0 %), which "
        "may be noise."
    )
    assert plain(found).endswith("Over 40 documents the difference to PPMd may be noise.")


def test_rows_that_need_the_same_have_no_winner_in_words() -> None:
    found = {"ppmd": against(0.8, -0.1, 0.1), "base": against(1.6, -0.6, -0.4)}
    assert plain(found).startswith("The model and PPMd need the same: 0.800 bits per byte. The")


def test_without_rows_nothing_is_said() -> None:
    assert (verdict({}), winner({})) == ("", None)


def test_languages_with_the_same_outcome_are_named_together() -> None:
    def of(row: str, noise: bool | None) -> dict[str, object]:
        return {"winner": {"row": row, "noise": noise}}

    languages = {
        "bho": of("model", False), "mag": of("model", False), "mai": of("ppmd", True),
        "hne": of("base", None), "hin": {}, "awa": {"winner": None},
    }  # fmt: skip
    assert by_language({"languages": languages}) == (
        "By language: the model wins in bho and mag, not noise; PPMd beats the model in mai, which "
        "may be noise; the untouched base beats the model in hne."
    )
    assert by_language({"languages": {"bho": of("model", False)}}) == ""


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-20.0, -5.0, "5.0 to 20.0 %"), (5.0, 20.0, "5.0 to 20.0 %"), (-3.0, 1.0, "−3.0 to 1.0 %")],
)
def test_interval_has_signs_where_they_are_needed(low: float, high: float, words: str) -> None:
    assert span(low, high).replace(SPACE, " ") == words
