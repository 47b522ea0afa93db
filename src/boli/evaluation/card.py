"""Which version a run exports, in words, and the card that lies beside the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from boli.evaluation.units import bits, percent
from boli.journal import VersionExported
from boli.plan import Plan

Exported = Mapping[str, Any]
WARNING = "Warning: "
BEGIN, END = "<!-- boli evaluate: begin -->", "<!-- boli evaluate: end -->"


def exported_figures(event: VersionExported) -> dict[str, Any]:
    """Return what report.json says of the exported version."""
    score = event.score
    return {
        **asdict(event),
        "change_percent": None if score is None else (score - 1) * 100,
        "better_than_base": score is not None and score < 1,
    }


def exported_sentences(exported: Exported) -> Iterator[str]:
    """Yield which version became the adapter, why, and whether it is better than the base."""
    made, last = exported["made"], exported["last"]
    if made == last:
        yield f"Version {made} of {last} is exported, the last one."
    else:
        yield f"Version {made} of {last} is exported: it was the best on the sites' tuning text."
        yield (
            "What came after it made that text worse. If every site is honest, the training text "
            "was read too often, or in too large steps: lower rounds.total or the learning rates, "
            "or raise model.local_steps.dropout."
        )
    change = exported["change_percent"]
    if change is None:
        yield (
            f"{WARNING}{exported['judges']} of {exported['sites']} sites judged it on tuning text, "
            "which is not more than half: it is not known whether it is better than the base."
        )
    elif change < 0:
        better = percent(-change)
        yield f"More than half of the sites judge it at least {better} better than the base."
    else:
        yield (
            f"{WARNING}it is no better than the base: no majority of the sites judges it better "
            f"on their tuning text (the majority's bound is {percent(change)} more bits)."
        )


def against_six_gram(model: float | None, six_gram: float | None) -> str:
    """Say whether a model beats a 6-gram on the same lines; empty where one is not known."""
    if not model or not six_gram:
        return ""
    told = f"{bits(model)} bits per byte against {bits(six_gram)}"
    change = (model / six_gram - 1) * 100
    if abs(change) < 0.05:
        return f"The model and a 6-gram of each site's own text need the same: {told}."
    if change < 0:
        return f"The model beats a 6-gram of each site's own text by {percent(-change)}: {told}."
    return (
        f"The model loses to a 6-gram of each site's own text by {percent(change)}: {told}. "
        "Counting characters for some seconds does better than this training so far."
    )


def beside_sentences(mean: Mapping[str, Any], briefly: bool = False) -> Iterator[str]:
    """Yield how the exported version stands beside the base and what sites' own text can do."""
    if mean["winner"] is not None:
        yield mean["winner"]["sentence"] if briefly else mean["verdict"]
    if mean["mixed"] is not None and mean["six_gram"] is not None:
        change = (mean["mixed"] / mean["six_gram"] - 1) * 100
        noise = mean["differences"].get("mixed_to_six_gram", {})
        word = "below" if change < 0 else "above"
        doubt = noise.get("low_percent") is not None and noise["better"] is None
        yield (
            f"Mixed with token n-grams that stay at their sites, it needs {bits(mean['mixed'])}, "
            f"{percent(abs(change))} {word} the 6-gram{', which may be noise' * doubt}."
        )


def front_matter(front: Mapping[str, Any]) -> str:
    """Return what a card begins with, for programs; with the empty line after it."""
    # JSON is YAML, line by line.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items()]
    return f"---\n{''.join(lines)}---\n\n"


def card(run: str, plan: Plan, exported: Exported) -> str:
    """Return the README.md of an adapter: a model card in the Hugging Face format."""
    base = plan.model.base.path or ""
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    full = plan.model.adapter.kind == "full"
    front: dict[str, Any] = {
        "library_name": "transformers" if full else "peft",
        "language": sorted(plan.languages),
        "tags": ["boli", "federated-learning"],
        "boli": {"run": run, "plan": plan.digest, **exported},
    }
    if is_hub_id:
        front["base_model"] = base
    if not exported["better_than_base"]:
        front["tags"].append("no-better-than-base")
    said = "\n\n".join(
        f"> **{sentence}**" if sentence.startswith(WARNING) else sentence
        for sentence in exported_sentences(exported)
    )
    what = "whole model" if full else "LoRA adapter"
    return (
        f"{front_matter(front)}# {run}\n\n"
        f"A {what} that {len(plan.site)} site{'s' if len(plan.site) != 1 else ''} trained in "
        f"{plan.rounds.total} rounds; their text stayed with them.\n\n{said}\n"
    )


def evaluated_card(text: str, name: str, proof: Mapping[str, Any]) -> str:
    """Return a card with the figures of `proof.as_json`, in place of those that it had.

    They stand in `model-index` of the front matter, as the Hugging Face hub reads them, and in a
    table. A card without front matter gets some.
    """
    index = [{"name": name, "results": [_result(test) for test in proof["tests"]]}]
    line = f"model-index: {json.dumps(index, ensure_ascii=False)}\n"
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        text = f"---\n---\n\n# {name}\n" + text
    front, _, body = text[4:].partition("---\n")
    front = "".join(
        each for each in front.splitlines(keepends=True) if not each.startswith("model-index:")
    )
    section = f"{BEGIN}\n## Evaluation\n\n{_table(proof)}\n{END}\n"
    body = re.sub(rf"\n*{BEGIN}.*?{END}\n?", "\n", body, flags=re.DOTALL).rstrip("\n")
    return f"---\n{front}{line}---\n{body}\n\n{section}"


def _result(test: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [{"type": "bits_per_byte", "value": round(test["adapted"], 4), "name": "bits/byte"}]
    for key, kind in (("saved", "keystrokes_saved"), ("hit_at_3", "next_word_hit_at_3")):
        if test["keystrokes"]:
            metrics.append({"type": kind, "value": round(test["keystrokes"]["adapter"][key], 4)})
    if test["fidelity"]:
        value = test["fidelity"]["adapter"]["sentence_pass"]
        metrics.append({"type": "language_fidelity", "value": round(value, 4)})
    if test["translation"]:
        found = test["translation"]["adapter"]
        metrics += [{"type": kind, "value": round(found[kind], 2)} for kind in ("chrf", "bleu")]
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": "text", "name": _shown(test["name"]), "args": test["language"]},
        "metrics": metrics,
    }


def _shown(name: str) -> str:
    """Return a test's name without the folders of this machine."""
    return name.rpartition("/")[2]


def _table(proof: Mapping[str, Any]) -> str:
    rows = [
        "| test | language | lines | base | adapter | tokens a word | keystrokes saved "
        "| fidelity | chrF++ / BLEU |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for test in proof["tests"]:
        typed, stays, translated = (
            test[key].get("adapter") for key in ("keystrokes", "fidelity", "translation")
        )
        cells = [
            _shown(test["name"]) + (" (the base's own)" if test["is_forgetting"] else ""),
            test["language"],
            f"{test['num_lines']:,}",
            f"{test['base']:.3f}",
            f"{test['adapted']:.3f}",
            f"{test['tokens_a_word']:.2f}",
            percent(100 * typed["saved"]) if typed else "–",
            percent(100 * stays["sentence_pass"]) if stays else "–",
            f"{translated['chrf']:.1f} / {translated['bleu']:.1f}" if translated else "–",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    said: Sequence[str] = [f"- {_shown(sentence)}" for sentence in proof["sentences"]]
    return "Bits per byte of base and adapter: smaller is better.\n\n" + "\n".join(
        [*rows, "", *said]
    )
