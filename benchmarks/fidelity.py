"""Whether a text that drifts from a dialect into Hindi, or into a sister, is found out.

Learned from NLLB-Seed alone (`seed`: bho mag hne, articles that are neither tuning nor test), and
from two or more domains of most languages (`domains`), always beside Hindi (news, stories), Awadhi
(ILI 2018) and Maithili (interface messages): a text may drift into every one of them.
Constants of evaluation/fidelity.py were chosen on LoResMT 2020, the UDHR and the tuning articles.

against_hindi   balanced accuracy on windows of 5, 10 and 20 words, dialect against Hindi:
                FLORES-200 (parallel: no topic helps), and held-out articles against Hindi news
hindi_grammar   Hindi lines of FLORES-200 with each word that GATITOS translates put into the
                dialect, but for the 150 most frequent words of Hindi training text; called Hindi.
                Most are the same word in both, so that few change (`words_replaced`)
hindi_strewn    the same lines with a fifth of the words that are not among those 150 replaced by
                words of GATITOS at random that Hindi does not have; share called Hindi
sisters         balanced accuracy between bho, mag and hne on whole lines
all_ways        the same between bho, mag, hne, hin, awa and mai
rates           sentence, marker and window pass rates of dialect, Hindi, that mixture, lines whose
                second half is Hindi, Maithili and Awadhi

Beside it: the identifier alone (corpus/language.py), of the same lines, and naive Bayes on
characters (1-5-grams), of 3,000 of them a language. Seeds draw 80 % of the training articles and
lines, and the windows. Means over seeds; `paired` compares errors between sisters by held-out
article, for the first seed.

python benchmarks/fidelity.py DATA [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from boli.corpus.ngrams import fold, substrings
from boli.corpus.sources import normal_form, part_of, read_labeled
from boli.evaluation.fidelity import LEAN, Fidelity, judge, learn
from boli.evaluation.paired import compare
from boli.plan import HeldOutPlan
from language import NaiveBayes, grams, read

HERE = Path(__file__).parent
RULE = HeldOutPlan(test_percent=6, tuning_percent=6)  # as plans/real.toml
DIALECTS = ("bho", "mag", "hne")
NEIGHBORS = ("hin", "awa", "mai")
SIZES = (5, 10, 20)
SEEDS = (0, 1, 2)
STREWN = 0.2
BAYES_LINES = 3000  # of each language: as many as need no hour
FUNCTION_WORDS = 150
GOALS = {5: (0.86, 0.90), 10: (0.93, 0.96), 20: (0.97, 0.99)}
MARKUP = re.compile(r"\{\{[^}]*\}\}|\$\d|\[\[|\]\]|<[^>]*>|\\n|'''?|\(?_\w\)?")
Floats = np.ndarray[Any, Any]
Margins = Callable[[Sequence[str], str], Floats]  # lines, language → (lines, other languages)


class Data:
    """Text by language, and what is judged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        urls = (folder / "parallel/nllb_seed/seed.url").read_text("utf-8").split("\n")
        self.seed: dict[str, dict[str, list[tuple[str, str]]]] = {}
        for name in DIALECTS:
            lines = (folder / f"parallel/nllb_seed/seed.{name}").read_text("utf-8").split("\n")
            parts: dict[str, list[tuple[str, str]]] = {"train": [], "tuning": [], "test": []}
            for line, url in zip(lines, urls, strict=True):
                if line.strip():
                    parts[part_of(url, RULE)].append((" ".join(line.split()), url))
            self.seed[name] = parts
        self.news = read(folder / "parallel/ntrex/newstest2019.hin")
        stories = read(folder / "parallel/kangri/train.xnr-hin.tsv", 1)
        ili = read_labeled(folder / "ili2018/dev.tsv")
        messages = [read(folder / f"i18n/{name}.tsv", 2) for name in ("mai", "gnome_mai")]
        own = {name: [line for line, _ in self.seed[name]["train"]] for name in DIALECTS}
        others = {
            "hin": [kept(stories), kept(self.news)],
            "awa": [ili["awa"]],
            "mai": [[MARKUP.sub("", line) for line in lines] for lines in messages],
        }
        loresmt = read(folder / "parallel/loresmt2019/train.eng-bho.tsv", 1)[:9000]
        self.train = {
            "seed": {**{name: [own[name]] for name in DIALECTS}, **others},
            "domains": {
                "bho": [own["bho"], ili["bho"], loresmt, read(folder / "mono/bho_news_jnu.txt")],
                "mag": [own["mag"], ili["mag"], read(folder / "mono/mag_kmi.txt")[:6000]],
                "hne": [own["hne"]],
                **others,
                "hin": [*others["hin"], ili["hin"]],
            },
        }
        flores = folder / "parallel/flores200_devtest_001-300"
        self.flores = {n: read(flores / f"devtest.{n}") for n in (*DIALECTS, *NEIGHBORS)}
        self.held_out = {
            **{name: [line for line, _ in self.seed[name]["test"]] for name in DIALECTS},
            "hin": [line for line in self.news if part_of(normal_form(line), RULE) == "test"],
        }
        frequent = Counter(w for own in others["hin"] for line in own for w in fold(line).split())
        self.hindi_words = set(frequent)
        self.function_words = {word for word, _ in frequent.most_common(FUNCTION_WORDS)}

    @cache  # noqa: B019
    def mixed(self, dialect: str) -> tuple[list[str], float]:
        """Return Hindi lines with a dialect's content words, and the share of words replaced."""
        words = self._lexicon(dialect)
        lines, replaced, total = [], 0, 0
        for line in self.flores["hin"]:
            own = line.split()
            new = [
                words[word] if word in words and fold(word) not in self.function_words else word
                for word in own
            ]
            replaced += sum(a != b for a, b in zip(own, new, strict=True))
            total += len(own)
            lines.append(" ".join(new))
        return lines, replaced / total

    @cache  # noqa: B019
    def strewn(self, dialect: str) -> list[str]:
        """Return Hindi lines in which a fifth of the content words are the dialect's own."""
        own = {word for word, *_ in self._entries(dialect)}
        frequent = Counter(w for line, _ in self.seed[dialect]["train"] for w in fold(line).split())
        closed = {word for word, _ in frequent.most_common(FUNCTION_WORDS)}
        hindi = {fold(word) for word, *_ in self._entries("hin")} | self.hindi_words
        words = sorted(word for word in own if fold(word) not in hindi | closed)
        rng, lines = random.Random(0), []
        for line in self.flores["hin"]:
            new = [
                rng.choice(words)
                if fold(word) not in self.function_words and rng.random() < STREWN
                else word
                for word in line.split()
            ]
            lines.append(" ".join(new))
        return lines

    def _entries(self, language: str) -> list[list[str]]:
        rows = [row.split("\t") for row in read(self.folder / f"gatitos/{language}-eng.tsv")]
        return [row for row in rows if " " not in row[0]]

    def _lexicon(self, dialect: str) -> dict[str, str]:
        found: dict[str, dict[str, str]] = {}
        for name in (dialect, "hin"):
            found[name] = {row[0]: row[1].lower() for row in self._entries(name)}
        own = {english: word for word, english in reversed(found[dialect].items())}
        return {word: own[english] for word, english in found["hin"].items() if english in own}


def kept(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if part_of(normal_form(line), RULE) == "train"]


def drawn(data: Data, regime: str, seed: int) -> dict[str, list[list[str]]]:
    """Draw four fifths of the training text, of NLLB-Seed by article."""
    rng = random.Random(seed)
    articles = sorted({url for _, url in data.seed["bho"]["train"]})
    chosen = set(rng.sample(articles, len(articles) * 4 // 5))
    found: dict[str, list[list[str]]] = {}
    for name, domains in data.train[regime].items():
        found[name] = []
        for number, lines in enumerate(domains):
            if name in DIALECTS and not number:
                own = [line for line, url in data.seed[name]["train"] if url in chosen]
            else:
                own = [line for line in lines if rng.random() < 0.8]
            found[name].append(own)
    return found


def window(line: str, size: int, rng: random.Random) -> str | None:
    words = line.split()
    if len(words) < size:
        return None
    start = rng.randrange(len(words) - size + 1)
    return " ".join(words[start : start + size])


def windows(lines: Sequence[str], size: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [own for own in (window(line, size, rng) for line in lines) if own]


def judges(fidelity: Fidelity, text: dict[str, list[list[str]]]) -> dict[str, Margins]:
    """Return what tells by how much lines are in a language rather than in each other one."""
    labels = list(fidelity.languages)
    rng = random.Random(0)
    few = {name: [line for own in text[name] for line in own] for name in labels}
    bayes = NaiveBayes(
        {name: rng.sample(own, min(BAYES_LINES, len(own))) for name, own in few.items()}
    )

    @cache
    def identified(lines: tuple[str, ...]) -> Floats:
        return fidelity.identifier.scores(substrings(lines))

    @cache
    def counted(lines: tuple[str, ...]) -> Floats:
        scores = []
        for line in lines:
            rows = [row for row in map(bayes.rows.get, grams(line)) if row is not None]
            scores.append(bayes.logs[:, rows].sum(1))
        return np.array(scores)

    def of(scores: Callable[[tuple[str, ...]], Floats]) -> Margins:
        def margins(lines: Sequence[str], language: str) -> Floats:
            own, found = labels.index(language), scores(tuple(lines))
            return found[:, [own]] - np.delete(found, own, 1)

        return margins

    return {
        "fidelity": lambda lines, language: fidelity.margins(lines, language) + LEAN,
        "markers alone": lambda lines, language: fidelity.marker_margins(lines, language) + LEAN,
        "identifier": of(identified),
        "naive Bayes": of(counted),
    }


def against_hindi(
    margins: Margins, labels: Sequence[str], sets: dict[str, list[str]], seed: int
) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for name in DIALECTS:
        column = [label for label in labels if label != name].index("hin")
        found[name] = {}
        for size in SIZES:
            own = margins(windows(sets[name], size, seed), name)[:, column] > 0
            hindi = margins(windows(sets["hin"], size, seed), name)[:, column] <= 0
            found[name][size] = float(own.mean() + hindi.mean()) / 2
    return found


def told_apart(
    margins: Margins, labels: Sequence[str], sets: dict[str, list[str]], among: Sequence[str]
) -> dict[str, float]:
    """Return the recall of each language, of lines that are called by the one that loses least."""
    return {name: float(right_among(margins, labels, sets, among, name).mean()) for name in among}


def right_among(
    margins: Margins,
    labels: Sequence[str],
    sets: dict[str, list[str]],
    among: Sequence[str],
    name: str,
) -> Floats:  # (lines,) bool
    least = []
    for other in among:
        columns = [k for k, n in enumerate(n for n in labels if n != other) if n in among]
        least.append(margins(sets[name], other)[:, columns].min(1))
    found: Floats = np.stack(least, 1).argmax(1) == among.index(name)
    return found


def measured(folder: Path, regime: str, seed: int) -> dict[str, Any]:
    data = Data(folder)
    text = drawn(data, regime, seed)
    fidelity = learn(text)
    labels = fidelity.languages
    found: dict[str, Any] = {"markers": len(fidelity.markers)}
    all_judges = judges(fidelity, text)
    for judge_name, margins in all_judges.items():
        grammar, strewn = {}, {}
        for name in DIALECTS:
            column = [label for label in labels if label != name].index("hin")
            grammar[name] = float((margins(data.mixed(name)[0], name)[:, column] <= 0).mean())
            strewn[name] = float((margins(data.strewn(name), name)[:, column] <= 0).mean())
        found[judge_name] = {
            "against_hindi": {
                "flores": against_hindi(margins, labels, data.flores, seed),
                "held_out": against_hindi(margins, labels, data.held_out, seed),
            },
            "hindi_grammar": grammar,
            "hindi_strewn": strewn,
            "sisters": {
                "flores": told_apart(margins, labels, data.flores, DIALECTS),
                "held_out": told_apart(margins, labels, data.held_out, DIALECTS),
            },
            "all_ways": told_apart(margins, labels, data.flores, (*DIALECTS, *NEIGHBORS)),
        }
    found["rates"] = rates(data, fidelity)
    if seed == SEEDS[0]:
        found["paired"] = paired(data, fidelity, all_judges)
    print(regime, seed, json.dumps(found["fidelity"]), flush=True)
    return found


def rates(data: Data, fidelity: Fidelity) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in DIALECTS:
        halves = [
            " ".join([*own.split()[: len(own.split()) // 2], *hin.split()[len(hin.split()) // 2 :]])
            for own, hin in zip(data.flores[name], data.flores["hin"], strict=True)
        ]
        texts = {
            "itself": data.flores[name],
            "held-out articles": data.held_out[name],
            "Hindi": data.flores["hin"],
            "Hindi grammar": data.mixed(name)[0],
            "strewn Hindi": data.strewn(name),
            "half Hindi": halves,
            "Maithili": data.flores["mai"],
            "Awadhi": data.flores["awa"],
        }
        found[name] = {}
        for kind, lines in texts.items():
            score = judge(fidelity, lines, name)
            found[name][kind] = [score.sentence_pass, score.marker_pass, score.window_pass]
    return found


def paired(data: Data, fidelity: Fidelity, found: dict[str, Margins]) -> dict[str, str]:
    """Compare errors on held-out articles: lines of a sister that are called another's."""
    articles = [url for name in DIALECTS for _, url in data.seed[name]["test"]]
    labels, ones = fidelity.languages, np.ones(len(articles))
    errors = {}
    for judge_name, margins in found.items():
        wrong = [right_among(margins, labels, data.held_out, DIALECTS, n) for n in DIALECTS]
        errors[judge_name] = 1.0 - np.concatenate(wrong)
    return {
        name: compare(errors["fidelity"], errors[name], ones, articles).sentence(
            "fidelity", name, "article"
        )
        for name in found
        if name != "fidelity" and errors[name].sum()
    }


def mean_of(values: Sequence[Any]) -> Any:
    """Return the mean over seeds of each number in nested tables."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [mean_of(own) for own in zip(*values, strict=True)]
    return round(statistics.mean(values), 4)


def spread_of(values: Sequence[Any]) -> float:
    """Return the largest difference between seeds of any number in nested tables."""
    first = values[0]
    if isinstance(first, dict):
        return max(spread_of([value[key] for value in values]) for key in first)
    return round(max(values) - min(values), 4)


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["# Fidelity: does a dialect stay itself?", "", __doc__.split("\n\npython")[0].strip()]
    for regime, own in found["regimes"].items():
        lines += ["", f"## Learned from {regime}", "", HEAD, RULER]
        for name in JUDGES:
            figures = own["mean"][name]
            flores, held = (figures["against_hindi"][kind] for kind in ("flores", "held_out"))
            cells = [" / ".join(f"{flores[d][size]:.3f}" for size in SIZES) for d in DIALECTS]
            cells.append(
                " / ".join(
                    f"{statistics.mean(held[d][size] for d in DIALECTS):.3f}" for size in SIZES
                )
            )
            cells += [
                " / ".join(f"{figures[kind][d]:.3f}" for d in DIALECTS)
                for kind in ("hindi_grammar", "hindi_strewn")
            ]
            among = (*(figures["sisters"][kind] for kind in ("flores", "held_out")),)
            among += (figures["all_ways"],)
            cells += [f"{statistics.mean(recall.values()):.3f}" for recall in among]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += [
            "",
            "Pass rates of sentences / markers / windows:",
            "",
            "| text | bho | mag | hne |",
        ]
        lines.append("|---|--:|--:|--:|")
        for kind in own["mean"]["rates"]["bho"]:
            cells = [
                " / ".join(f"{value:.2f}" for value in own["mean"]["rates"][d][kind])
                for d in DIALECTS
            ]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines += ["", *(f"- {said}" for said in own["paired"].values())]
    return "\n".join(lines) + "\n"


JUDGES = ("fidelity", "markers alone", "identifier", "naive Bayes")
HEAD = (
    "| | bho against Hindi, 5 / 10 / 20 words | mag | hne | held-out articles, mean | "
    "Hindi grammar called Hindi, bho / mag / hne | strewn Hindi called Hindi | sisters | "
    "sisters, held-out | all ways |"
)
RULER = "|---|" + "--:|" * 9


def plot(found: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "fidelity", "svg.fonttype": "none"}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    means = found["regimes"]["domains"]["mean"]
    for axis, dialect in zip(axes, DIALECTS, strict=True):
        for name in JUDGES:
            values = [means[name]["against_hindi"]["flores"][dialect][size] for size in SIZES]
            axis.plot(SIZES, values, marker="o", label=name)
        axis.plot(SIZES, [GOALS[size][0] for size in SIZES], "k:", label="goal")
        axis.set(title=f"{dialect} against Hindi, FLORES-200", xlabel="words", xticks=SIZES)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("balanced accuracy")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of real text")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder to write")
    options = parser.parse_args()
    data = Data(options.data)
    found: dict[str, Any] = {
        "lines": {
            "flores": {name: len(own) for name, own in data.flores.items()},
            "held_out": {name: len(own) for name, own in data.held_out.items()},
            "held_out_articles": len({url for _, url in data.seed["bho"]["test"]}),
        },
        "words_replaced": {name: round(data.mixed(name)[1], 3) for name in DIALECTS},
        "goals": {str(size): goal for size, goal in GOALS.items()},
        "regimes": {},
    }
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = {
            regime: [pool.submit(measured, options.data, regime, seed) for seed in SEEDS]
            for regime in data.train
        }
        done = {regime: [job.result() for job in own] for regime, own in jobs.items()}
    for regime, runs in done.items():
        sentences = runs[0].pop("paired")
        found["regimes"][regime] = {
            "mean": mean_of(runs),
            "largest_difference_between_seeds": spread_of([run["fidelity"] for run in runs]),
            "paired": sentences,
        }
    # The same keys as a file will have: JSON knows no numbers as keys.
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fidelity.md").write_text(table(found), encoding="utf-8")
    plot(found, options.out / "fidelity.svg")
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (options.out / "fidelity.json").write_text(text + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
