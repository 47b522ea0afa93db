"""Tokenizers made from counts that sites send, against one trained on their pooled text.

The sites of plans/real.toml:

    base          trained on the Hindi base's text alone
    pooled        trained on all text in one place: what no federation may do
    counts L/D    from counts of pieces that at least L lines of D documents of a site hold

Each is judged by a model that is trained in one process on the text of all sites and the base:
a Kneser-Ney trigram of its tokens on all of it, which takes seconds; and, with --steps, a
micro-LLM, all weights, the same number of steps for every tokenizer.

    python benchmarks/tokenizer.py [--steps 0] [--seeds 2] [--hidden 128] [--layers 4]
        [--arms ARM ...] [--data ../shared/data] [--out FILE]

Judged on the test part: bytes a token, and bits per byte with an interval over articles
(bootstrap, paired with the pooled tokenizer).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import boli
from boli.corpus.pieces import Floors, count_pieces, pack_pieces
from boli.corpus.sources import Split, read_documents, read_split
from boli.evaluation.metrics import bits_per_byte, bytes_of
from boli.model.adapter import attach
from boli.model.base import micro_model
from boli.model.local_steps import LocalSteps, PackedText, token_lines
from boli.model.tokenizer import tokenizer_from_counts, train_tokenizer, words_in
from boli.plan import AdapterPlan, LocalStepsPlan, Plan

HERE = Path(__file__).parent
ARMS = ["base", "counts 10/3", "counts 5/2", "counts 20/5"]
DISCOUNT = 0.75
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


class Trigram:
    """Interpolated Kneser-Ney over tokens, down to the uniform distribution.

    Source: Chen & Goodman 1999, https://doi.org/10.1006/csla.1999.0128.
    """

    def __init__(self, rows: list[list[int]], size: int) -> None:
        self.size = size
        full: Counter[tuple[int, ...]] = Counter()
        for row in rows:
            full.update(zip(row, row[1:], row[2:], strict=False))
        self.orders = [full]
        while len(next(iter(self.orders[-1]))) > 1:  # how many tokens each was seen behind
            self.orders.append(Counter(gram[1:] for gram in self.orders[-1]))
        self.totals, self.kinds = [], []
        for counts in self.orders:
            totals: Counter[tuple[int, ...]] = Counter()
            for gram, count in counts.items():
                totals[gram[:-1]] += count
            self.totals.append(totals)
            self.kinds.append(Counter(gram[:-1] for gram in counts))

    def probability(self, gram: tuple[int, ...], order: int = 0) -> float:
        if not gram:
            return 1 / self.size
        lower = self.probability(gram[1:], order + 1)
        total = self.totals[order][gram[:-1]]
        if not total:
            return lower
        kept = max(0.0, self.orders[order][gram] - DISCOUNT)
        return (kept + DISCOUNT * self.kinds[order][gram[:-1]] * lower) / total


def by_trigram(tokenizer: Any, lines: list[str], articles: dict[str, Any], size: int) -> Any:
    """Return bits and bytes, (1, languages, articles, 2)."""

    def rows(texts: list[str]) -> list[list[int]]:
        found = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[0, 0, *row, 0] for row in found]

    model = Trigram(rows(lines), size)

    def bits(texts: list[str]) -> float:
        grams = (gram for row in rows(texts) for gram in zip(row, row[1:], row[2:], strict=False))
        return -sum(math.log2(model.probability(gram)) for gram in grams)

    scored = [[(bits(one), bytes_of(one)) for one in found] for found in articles.values()]
    return np.array([scored])


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
        f"Test part, {found['articles']} articles in each language. The trigram was trained on all "
        f"text; the micro-LLM ({found['micro']}) in {found['steps']} steps of 1,024 tokens, "
        f"{found['seeds']} seeds. In brackets: 95 % over articles.",
        "",
        "| tokenizer | bytes sent a site | bytes a token | trigram, bits per byte | against pooled "
        "| micro-LLM, bits per byte | against pooled |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, arm in found["arms"].items():
        sent = max(arm["bytes_sent"].values(), default=0)
        cells = [name, f"{sent:,}" if sent else "–", f"{arm['bytes_a_token']:.2f}"]
        for judge in ("trigram", "micro"):
            score = arm.get(judge)
            if score is None:
                cells += ["–", "–"]
                continue
            against = score["against_pooled"]
            cells.append(f"{score['bits_per_byte']:.4f}")
            cells.append(
                f"{against['percent']:+.2f} % ({against['low']:+.2f} to {against['high']:+.2f})"
            )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def made(plan: Plan, arm: str, hindi: list[str], pooled: list[str]) -> tuple[Any, dict[str, int]]:
    """Return a tokenizer, and how many bytes each site sent for it."""
    micro = plan.model.base.micro
    assert micro is not None
    if arm in ("base", "pooled"):
        return train_tokenizer(hindi if arm == "base" else pooled, micro.vocabulary_size), {}
    floors = Floors(*map(int, arm.removeprefix("counts ").split("/")))
    sent = {
        site.name: count_pieces(read_documents(plan, site.text, site.language), floors)
        for site in plan.site
    }
    numbers = {name: len(pack_pieces(pieces)) for name, pieces in sent.items()}
    contributors = [words_in(hindi), *sent.values()]
    return tokenizer_from_counts(contributors, micro.vocabulary_size), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--arms", nargs="*", default=ARMS)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tokenizer.json")
    options = parser.parse_args()
    data = options.data.resolve()
    shape = [
        f"model.base.micro.hidden_size={options.hidden}",
        f"model.base.micro.intermediate_size={3 * options.hidden}",
        f"model.base.micro.num_layers={options.layers}",
    ]
    plan = boli.load_plan(HERE.parent / "plans" / "real.toml", [f"corpus.root={data}", *shape])
    base = read_split(plan, plan.model.base.text, plan.model.base.language)
    splits = {
        site.language: read_split(plan, site.text, site.language)[site.language]
        for site in plan.site
    }
    hindi = base[plan.model.base.language].train
    pooled = [*hindi, *(line for split in splits.values() for line in split.train)]
    articles = articles_of(plan, data, splits)
    found: dict[str, Any] = {
        "steps": options.steps,
        "seeds": options.seeds,
        "micro": f"{options.layers} layers of {options.hidden}",
        "articles": len(next(iter(articles.values()))),
        "arms": {},
    }
    bits: dict[tuple[str, str], Any] = {}
    arms = {arm: made(plan, arm, hindi, pooled) for arm in ["pooled", *options.arms]}
    judges: dict[str, Any] = {"trigram": by_trigram}

    def by_micro(tokenizer: Any, lines: list[str], articles: dict[str, Any], _: int) -> Any:
        models = [
            trained(plan, tokenizer, lines, seed, options.steps) for seed in range(options.seeds)
        ]
        return np.array(
            [[judged(model, tokenizer, one) for one in articles.values()] for model in models]
        )

    if options.steps:
        judges["micro"] = by_micro
    for judge, score in judges.items():
        for arm, (tokenizer, numbers) in arms.items():
            started = time.monotonic()
            scores = score(tokenizer, pooled, articles, len(tokenizer))
            bits[judge, arm] = scores[..., 0]
            lines = [line for split in splits.values() for line in split.test]
            row = found["arms"].setdefault(
                arm,
                {
                    "bytes_sent": numbers,
                    "bytes_a_token": round(bytes_a_token(tokenizer, lines), 3),
                },
            )
            row[judge] = {
                "bits_per_byte": round(float(scores[..., 0].sum() / scores[..., 1].sum()), 4),
                "against_pooled": interval(bits[judge, arm], bits[judge, "pooled"]),
                "seconds": round(time.monotonic() - started, 1),
            }
            print(arm, row, flush=True)
            options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            options.out.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
