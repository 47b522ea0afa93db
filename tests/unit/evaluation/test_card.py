"""The card that lies beside an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from boli.evaluation.card import card, evaluated_card, exported_figures, exported_sentences
from boli.journal import VersionExported
from boli.plan import Plan


def front_of(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("made", "score", "tags", "words"),
    [
        (4, 0.75, [], "Version 4 of 4 is exported, the last one."),
        (2, 0.75, [], "Version 2 of 4 is exported: it was the best on the sites' tuning text."),
        (2, 0.75, [], "What came after it made that text worse."),
        (4, 1.0, ["no-better-than-base"], "> **Warning: it is no better than the base"),
        (4, None, ["no-better-than-base"], "> **Warning: 1 of 2 sites judged it"),
    ],
)
def test_card_says_which_version_it_is_and_whether_it_is_better_than_the_base(
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    made: int,
    score: float | None,
    tags: list[str],
    words: str,
) -> None:
    exported = exported_figures(VersionExported(4, made, 4, score, 1, 2))
    text = card("tiny-1", tiny_plan(tmp_path), exported)
    front = front_of(text)
    assert words in text
    assert front["tags"] == ["boli", "federated-learning", *tags]
    assert front["language"] == ["bho", "mag"]
    assert front["boli"]["version"] == 4
    assert front["boli"]["made"] == made
    assert front["boli"]["better_than_base"] is not bool(tags)


def test_card_names_a_base_of_the_hub_and_no_folder_of_this_machine(
    tiny_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    exported = exported_figures(VersionExported(4, 4, 4, 0.5, 2, 2))
    plan = tiny_plan(tmp_path)
    assert "base_model" not in front_of(card("tiny-1", plan, exported))
    assert str(tmp_path) not in card("tiny-1", plan, exported)
    for path, named in (("someone/model", True), (str(tmp_path / "model"), False), ("./b", False)):
        base = plan.model.base.model_copy(update={"path": path})
        model = plan.model.model_copy(update={"base": base})
        text = card("tiny-1", plan.model_copy(update={"model": model}), exported)
        assert (front_of(text).get("base_model") == path) is named
        assert (path in text) is named


def test_sentences_are_those_of_the_figures() -> None:
    exported = exported_figures(VersionExported(4, 4, 4, 0.75, 2, 2))
    assert json.loads(json.dumps(exported)) == exported
    assert len(list(exported_sentences(exported))) == 2


def proof(name: str, adapted: float) -> dict[str, Any]:
    return {
        "tests": [
            {
                "name": f"/home/someone/{name}",
                "language": "bho",
                "num_lines": 300,
                "base": 1.1,
                "adapted": adapted,
                "tokens_a_word": 2.5,
                "is_forgetting": False,
                "keystrokes": {"adapter": {"saved": 0.42, "hit_at_3": 0.3}},
                "fidelity": {},
                "translation": {"adapter": {"chrf": 31.0, "bleu": 4.0}},
            }
        ],
        "sentences": [f"/home/someone/{name}: A is better"],
    }


@pytest.mark.parametrize("kept", [True, False], ids=["card", "no card"])
def test_evaluation_is_put_into_a_card_once(
    tiny_plan: Callable[..., Plan], tmp_path: Path, kept: bool
) -> None:
    exported = exported_figures(VersionExported(4, 4, 4, 0.5, 2, 2))
    before = card("tiny-1", tiny_plan(tmp_path), exported) if kept else "Some words.\n"
    text = evaluated_card(
        evaluated_card(before, "run", proof("old", 0.9)), "run", proof("new", 0.8)
    )
    front = front_of(text)
    (result,) = front["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "bits_per_byte": 0.8,
        "keystrokes_saved": 0.42,
        "next_word_hit_at_3": 0.3,
        "chrf": 31.0,
        "bleu": 4.0,
    }
    assert result["dataset"] == {"type": "text", "name": "new", "args": "bho"}
    assert text.count("## Evaluation") == 1
    assert "old" not in text
    assert "/home/someone" not in text
    assert (
        "| new | bho | 300 | 1.100 | 0.800 | 2.50 | 42.0\N{NO-BREAK SPACE}% | – | 31.0 / 4.0 |"
        in text
    )
    if kept:
        assert {"library_name", "boli", "tags"} <= set(front)
        assert "their text stayed with them" in text
    else:
        assert "Some words." in text
    again = evaluated_card(text, "run", proof("new", 0.8))
    assert again == text
