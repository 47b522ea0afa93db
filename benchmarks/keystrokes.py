"""Next-word hits and keystrokes saved by word 3-grams, the row that a model has to beat.

own              trained on the dialect's NLLB-Seed articles that are neither tuning nor test
hindi            on Hindi alone (stories and news): what a keyboard of today would know
own + relatives  both sister dialects and Hindi mixed in, with a weight chosen on tuning articles
own, 500         the first 500 sentences of `own`

Judged on the held-out articles, every second line of the test part; evaluation/keystrokes.py
states the protocol. Intervals are paired, by article. Deterministic: nothing is drawn but those.

python benchmarks/keystrokes.py DATA [--every N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from boli.corpus.sources import normal_form, part_of
from boli.evaluation.keystrokes import (
    KeystrokeScore,
    Mixture,
    Predictor,
    WordNgram,
    train_ngram,
    type_lines,
)
from boli.evaluation.paired import compare, folds_sentence
from boli.plan import HeldOutPlan
from language import read

HERE = Path(__file__).parent
RULE = HeldOutPlan(test_percent=6, tuning_percent=6)  # as plans/real.toml
DIALECTS = ("bho", "mag", "hne")
WEIGHTS = (0.25, 0.1, 0.05)  # of the relatives
TUNING_LINES = 40
Parts = dict[str, list[tuple[str, str]]]


def split(data: Path, name: str) -> Parts:
    """Return lines and their articles by part, without repeats, as a run divides them."""
    urls = (data / "parallel/nllb_seed/seed.url").read_text("utf-8").split("\n")
    lines = (data / f"parallel/nllb_seed/seed.{name}").read_text("utf-8").split("\n")
    parts: Parts = {"train": [], "tuning": [], "test": []}
    seen: set[str] = set()
    for line, url in zip(lines, urls, strict=True):
        form = normal_form(line)
        if form and form not in seen:
            seen.add(form)
            parts[part_of(url, RULE)].append((" ".join(line.split()), url))
    return parts


def chosen(own: WordNgram, others: WordNgram, tuning: list[str]) -> tuple[Predictor, float]:
    """Return the mixture that saves most on tuning lines, and its weight of the relatives."""
    mixtures = [(Mixture([own, others], [1 - weight, weight]), weight) for weight in WEIGHTS]
    return max(mixtures, key=lambda pair: type_lines(pair[0], tuning).saved)


def figures(score: KeystrokeScore) -> dict[str, float]:
    return {
        "hit_at_1": round(score.hit_at_1, 4),
        "hit_at_3": round(score.hit_at_3, 4),
        "saved": round(score.saved, 4),
        "words": int(score.words.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of real text")
    parser.add_argument("--every", type=int, default=2, help="take every n-th test line")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "keystrokes.json")
    options = parser.parse_args()
    parts = {name: split(options.data, name) for name in DIALECTS}
    hindi = read(options.data / "parallel/kangri/train.xnr-hin.tsv", 1)
    hindi += read(options.data / "parallel/ntrex/newstest2019.hin")
    text = {name: [line for line, _ in own["train"]] for name, own in parts.items()}
    by_hindi = train_ngram(hindi)
    found: dict[str, Any] = {"every": options.every}
    for name in DIALECTS:
        rows = parts[name]["test"][:: options.every]
        lines, articles = [line for line, _ in rows], [url for _, url in rows]
        own = train_ngram(text[name])
        others = train_ngram([l for n in DIALECTS if n != name for l in text[n]] + hindi)  # noqa: E741
        tuning = [line for line, _ in parts[name]["tuning"]]
        mixed, weight = chosen(own, others, tuning[:: max(1, len(tuning) // TUNING_LINES)])
        predictors = {
            "own": own,
            "hindi": by_hindi,
            "own + relatives": mixed,
            "own, 500": train_ngram(text[name][:500]),
        }
        scores = {kind: type_lines(predictor, lines) for kind, predictor in predictors.items()}
        found[name] = {
            "train_lines": len(text[name]),
            "test": folds_sentence(articles),
            "weight_of_relatives": weight,
            **{kind: figures(score) for kind, score in scores.items()},
            "keys_typed": {
                kind: compare(
                    scores[kind].typed, scores["own"].typed, scores["own"].keys, articles
                ).sentence(kind, "own", "article")
                for kind in scores
                if kind != "own"
            },
        }
        print(name, json.dumps(found[name], ensure_ascii=False, indent=1), flush=True)
    text_out = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    options.out.write_text(text_out, encoding="utf-8")


if __name__ == "__main__":
    main()
