"""Tokenizers made from counts that sites send, against one trained on their pooled text.

The sites of plans/real.toml; a micro-LLM of its size, all weights, trained in one process on the
text of all three sites and the base, the same number of steps for every tokenizer:

    base          trained on the Hindi base's text alone
    pooled        trained on all text in one place: what no federation may do
    counts L/D    from counts of pieces that at least L lines of D documents of a site hold

    python benchmarks/tokenizer.py [--seeds 2] [--steps 200] [--data ../shared/data] [--out FILE]

Judged on the test part: bytes a token, and bits per byte with an interval over articles
(bootstrap, paired with the pooled tokenizer).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import boli
from boli.corpus.pieces import Floors, count_pieces, pack_pieces
from boli.corpus.sources import Split, read_documents, read_split
from boli.evaluation.metrics import bits_per_byte
from boli.model.adapter import attach
from boli.model.base import micro_model
from boli.model.local_steps import LocalSteps, PackedText, token_lines
from boli.model.tokenizer import tokenizer_from_counts, train_tokenizer, words_in
from boli.plan import AdapterPlan, LocalStepsPlan, Plan

HERE = Path(__file__).parent
FLOORS = ((10, 3), (5, 2), (20, 5))
DRAWS = 2000  # of articles


def articles_of(plan: Plan, data: Path, splits: dict[str, Split]) -> dict[str, list[list[str]]]:
    """Return the test lines of each site's language by article."""
    found: dict[str, list[list[str]]] = {}
    for site in plan.site:
        source = site.text[0]
        assert source.path is not None
        assert source.held_out_by is not None
        lines, keys = (
            (data / path).read_text(encoding="utf-8").split("\n")
            for path in (source.path, source.held_out_by)
        )
        article = {" ".join(line.split()): key for line, key in zip(lines, keys, strict=True)}
        by_article: dict[str, list[str]] = {}
        for line in splits[site.language].test:
            by_article.setdefault(article[line], []).append(line)
        found[site.language] = list(by_article.values())
    return found


def bytes_a_token(tokenizer: Any, lines: list[str]) -> float:
    tokens = tokenizer(lines, add_special_tokens=False)["input_ids"]
    return sum(len(line.encode()) for line in lines) / sum(map(len, tokens))


def trained(plan: Plan, tokenizer: Any, lines: list[str], seed: int, steps: int) -> Any:
    """Return a micro-LLM trained on all text in one process."""
    micro = plan.model.base.micro
    assert micro is not None
    model = micro_model(micro.model_copy(update={"seed": seed}), tokenizer.eos_token_id)
    adapter = attach(model, AdapterPlan(kind="full"))
    inner = LocalStepsPlan(
        batch_sequences=8,
        sequence_length=128,
        learning_rate=3e-3,
        weight_decay=0.01,
        final_learning_rate=0.05,
        compile="off",
    )
    text = PackedText(list(token_lines(tokenizer, lines)), 128, seed)
    LocalSteps(model, adapter, text, inner).run(lambda: steps, 0.0, 1.0 / steps)
    return model


def judged(model: Any, tokenizer: Any, articles: list[list[str]]) -> list[tuple[float, int]]:
    """Return bits and bytes of each article."""
    found = [bits_per_byte(model, tokenizer, lines, 512) for lines in articles]
    return [(one.bits, one.bytes) for one in found]


def interval(ours: Any, theirs: Any) -> dict[str, float]:
    """Return our bits ÷ theirs, less one, in percent, with 95 % over articles.

    Both are (seeds, languages, articles); an article of one draw is the same in all languages.
    """
    draw = np.random.default_rng(0)
    a, b = ours.sum(axis=(0, 1)), theirs.sum(axis=(0, 1))
    picks = draw.integers(0, a.size, (DRAWS, a.size))
    ratios = 100 * (a[picks].sum(axis=1) / b[picks].sum(axis=1) - 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {
        "percent": round(100 * float(a.sum() / b.sum() - 1), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def table(found: dict[str, Any]) -> str:
    rows = [
        f"Micro-LLM of plans/real.toml, {found['steps']} steps of 1,024 tokens on pooled text, "
        f"{found['seeds']} seeds; test part, {found['articles']} articles in each language.",
        "",
        "| tokenizer | bytes sent a site | bytes a token | bits per byte | against pooled |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, arm in found["arms"].items():
        sent = max(arm["bytes_sent"].values(), default=0)
        against = arm["against_pooled"]
        rows.append(
            f"| {name} | {sent or '–'} | {arm['bytes_a_token']:.2f} | {arm['bits_per_byte']:.4f} | "
            f"{against['percent']:+.2f} % ({against['low']:+.2f} to {against['high']:+.2f}) |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tokenizer.json")
    options = parser.parse_args()
    data = options.data.resolve()
    plan = boli.load_plan(HERE.parent / "plans" / "real.toml", [f"corpus.root={data}"])
    base = read_split(plan, plan.model.base.text, plan.model.base.language)
    splits = {
        site.language: read_split(plan, site.text, site.language)[site.language]
        for site in plan.site
    }
    micro = plan.model.base.micro
    assert micro is not None
    size = micro.vocabulary_size
    hindi = base[plan.model.base.language].train
    pooled = [*hindi, *(line for split in splits.values() for line in split.train)]
    tokenizers = {
        "base": (train_tokenizer(hindi, size), {}),
        "pooled": (train_tokenizer(pooled, size), {}),
    }
    for least_lines, least_documents in FLOORS:
        floors = Floors(least_lines, least_documents)
        sent = {
            site.name: count_pieces(read_documents(plan, site.text, site.language), floors)
            for site in plan.site
        }
        numbers = {name: len(pack_pieces(pieces)) for name, pieces in sent.items()}
        made = tokenizer_from_counts([words_in(hindi), *sent.values()], size)
        tokenizers[f"counts {least_lines}/{least_documents}"] = made, numbers
    articles = articles_of(plan, data, splits)
    found: dict[str, Any] = {
        "steps": options.steps,
        "seeds": options.seeds,
        "articles": len(next(iter(articles.values()))),
        "arms": {},
    }
    bits: dict[str, Any] = {}
    for name, (tokenizer, numbers) in tokenizers.items():
        started = time.monotonic()
        runs = []
        for seed in range(options.seeds):
            model = trained(plan, tokenizer, pooled, seed, options.steps)
            runs.append([judged(model, tokenizer, articles[code]) for code in articles])
        scores = np.array(runs)  # (seeds, languages, articles, 2)
        bits[name] = scores[..., 0]
        lines = [line for split in splits.values() for line in split.test]
        found["arms"][name] = {
            "bytes_sent": numbers,
            "bytes_a_token": round(bytes_a_token(tokenizer, lines), 3),
            "bits_per_byte": round(float(bits[name].sum() / scores[..., 1].sum()), 4),
            "seconds": round(time.monotonic() - started, 1),
        }
        print(name, found["arms"][name], flush=True)
        if "pooled" in bits:
            for arm in bits:
                against = interval(bits[arm], bits["pooled"])
                found["arms"][arm]["against_pooled"] = against
            options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            options.out.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
