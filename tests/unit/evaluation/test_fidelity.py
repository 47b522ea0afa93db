from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli.durable import read_tensors, write_tensors
from boli.errors import CorpusError, CorruptFileError
from boli.evaluation.fidelity import (
    WINDOW,
    Fidelity,
    forms_of,
    judge,
    learn,
    marker_shares,
    windows_of,
)
from boli.evaluation.fidelity_file import load_fidelity, save_fidelity

GRAMMAR = {  # function words: three languages of one vocabulary
    "bho": ["के", "बा", "ना", "रहल", "एगो", "आपन", "कइल", "गइल"],
    "hin": ["का", "है", "नहीं", "था", "एक", "अपना", "किया", "गया"],
    "mag": ["के", "हई", "न", "हलइ", "एगो", "अप्पन", "कयलक", "गेलइ"],
}
CONTENT = [f"{a}{b}" for a in "कखगघचजटडतद" for b in ("मल", "रिया", "सोन", "पुर", "तारा")]
TOPICS = {"news": ["सरकार", "चुनाव"], "stories": ["राजा", "रानी"]}


def lines(language: str, domain: str, count: int, seed: int = 0, topic: float = 0.1) -> list[str]:
    rng = random.Random(f"{language} {domain} {seed}")
    return [
        " ".join(
            rng.choice(TOPICS[domain])
            if rng.random() < topic
            else rng.choice(GRAMMAR[language] if place % 2 else CONTENT)
            for place in range(14)
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def learned() -> Fidelity:
    return learn(
        {
            "bho": [lines("bho", "news", 150), lines("bho", "stories", 150)],
            "hin": [lines("hin", "news", 150, topic=0.0), lines("hin", "stories", 150)],
            "mag": [lines("mag", "news", 300)],
        }
    )


def test_own_lines_pass_and_those_of_every_neighbor_do_not(learned: Fidelity) -> None:
    assert judge(learned, lines("bho", "news", 60, 1), "bho").sentence_pass > 0.95
    for neighbor in ("hin", "mag"):
        score = judge(learned, lines(neighbor, "news", 60, 1), "bho")
        assert score.sentence_pass < 0.05
        assert score.drifts_to == neighbor
        assert score.marker_pass < 0.5
    assert learned.best(lines("mag", "news", 60, 1)).count("mag") > 57


def test_own_words_in_the_grammar_of_a_neighbor_do_not_pass(learned: Fidelity) -> None:
    # Content words are the same in all three: only function words can tell.
    mixed = [line.replace("है", "हवे") for line in lines("hin", "stories", 60, 2)]
    score = judge(learned, mixed, "bho")
    assert score.sentence_pass < 0.05
    assert score.marker_pass < 0.2


def test_word_of_a_topic_is_no_marker(learned: Fidelity) -> None:
    strong = dict(learned.strongest("bho", "hin", 1000))
    assert "बा" in strong
    assert "सरकार" not in strong  # Hindi news lacks it, and so do Bhojpuri stories


def test_line_that_changes_language_in_its_middle_has_a_weak_window(learned: Fidelity) -> None:
    own, other = lines("bho", "news", 40, 3, 0.0), lines("hin", "news", 40, 3, 0.0)
    switched = [f"{a} {a} {b}" for a, b in zip(own, other, strict=True)]
    whole, part = judge(learned, own, "bho"), judge(learned, switched, "bho")
    assert whole.window_pass > 0.95
    assert part.window_pass < 0.1
    assert part.sentence_pass > 0.9  # two thirds of each line are Bhojpuri
    assert part.weakest_neighbor == "hin"
    assert len(part.weakest.split()) == WINDOW


def test_windows_cover_a_line_and_a_short_line_is_one() -> None:
    assert windows_of("क ख ग") == ["क ख ग"]
    assert windows_of(" ".join("कखगघचजटडतद")) == ["क ख ग घ च ज ट ड", "ग घ च ज ट ड त द"]


def test_forms_are_folded_words_and_their_endings() -> None:
    assert forms_of("रहलीं") == ["रहलि", "~लि", "~हलि"]


def test_text_without_markers_passes_nowhere(learned: Fidelity) -> None:
    score = judge(learned, ["12 34", "…"], "bho")
    assert (score.sentence_pass, score.marker_pass) == (0.0, 0.0)
    assert marker_shares(learned, ["..."], "bho").tolist() == [0.0, 0.0]


def test_file_brings_back_the_same_answers(learned: Fidelity, tmp_path: Path) -> None:
    save_fidelity(learned, tmp_path / "f")
    again = load_fidelity(tmp_path / "f")
    text = lines("mag", "news", 20, 5)
    assert (again.margins(text, "bho") == learned.margins(text, "bho")).all()
    assert again.markers == learned.markers


def unsorted(arrays: dict[str, Any]) -> None:
    arrays["markers"] = np.frombuffer("ब\nअ".encode(), np.uint8)


def lopsided(arrays: dict[str, Any]) -> None:
    arrays["weights"] = np.abs(arrays["weights"])


def enormous(arrays: dict[str, Any]) -> None:
    arrays["weights"] = arrays["weights"] * np.float32(1e9)


def narrow(arrays: dict[str, Any]) -> None:
    arrays["weights"] = arrays["weights"][:, :, 1:]


@pytest.mark.parametrize("spoil", [unsorted, lopsided, enormous, narrow])
def test_file_that_is_none_is_refused(learned: Fidelity, tmp_path: Path, spoil: Any) -> None:
    save_fidelity(learned, tmp_path / "f")
    arrays, facts = read_tensors(tmp_path / "f", "")
    arrays = {name: array.copy() for name, array in arrays.items()}
    spoil(arrays)
    write_tensors(tmp_path / "f", arrays, facts)
    with pytest.raises(CorruptFileError, match="not a fidelity model"):
        load_fidelity(tmp_path / "f")
    with pytest.raises(CorruptFileError, match="no fidelity model"):
        load_fidelity(tmp_path / "none")


def test_what_cannot_be_learned_or_judged_is_said(learned: Fidelity) -> None:
    with pytest.raises(CorpusError, match="a domain of mag has 3 lines"):
        learn({"bho": [lines("bho", "news", 50)], "mag": [lines("mag", "news", 3)]})
    with pytest.raises(CorpusError, match="cannot tell"):
        learn({"bho": [lines("bho", "news", 50)]})
    with pytest.raises(CorpusError, match="no word that tells"):
        learn({name: [lines("bho", "news", 50)] for name in ("bho", "mag")})
    with pytest.raises(CorpusError, match="awa was not learned"):
        judge(learned, ["क"], "awa")
    with pytest.raises(CorpusError, match="no line"):
        judge(learned, [], "bho")
