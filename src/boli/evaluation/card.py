"""Which version a run exports, in words, and the card that lies beside the adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from boli.evaluation.units import percent
from boli.journal import VersionExported
from boli.plan import Plan

Exported = Mapping[str, Any]
WARNING = "Warning: "


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
    # JSON is YAML, line by line.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()]
    said = "\n\n".join(
        f"> **{sentence}**" if sentence.startswith(WARNING) else sentence
        for sentence in exported_sentences(exported)
    )
    what = "whole model" if full else "LoRA adapter"
    return (
        "---\n" + "\n".join(lines) + "\n---\n\n"
        f"# {run}\n\n"
        f"A {what} that {len(plan.site)} site{'s' if len(plan.site) != 1 else ''} trained in "
        f"{plan.rounds.total} rounds; their text stayed with them.\n\n{said}\n"
    )
