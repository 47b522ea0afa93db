"""What hostile sites do to the model, with and without the defences of the coordinator.

A fifth of 5 and of 10 sites is hostile, and one of 3. The sites hold parts of NLLB-Seed in
Bhojpuri, Magahi and Chhattisgarhi, and the Kangri corpus; the base is a micro-LLM pre-trained on
Hindi. The coordinator's own loop and real nodes run over the scripted engine, in one process, on
simulated time. In the asynchronous arms a hostile site is eight times faster than the others.

    clean       every site is honest
    flip        the update times -1: as long as an honest one, the other way
    flip9       the update times -9
    flip100     the update times -100
    late100     honest for a third of the rounds, then the update times -100 (not of 10 sites)
    constant    the same direction in every round, three times as long as an honest update
    noise       trains on text whose letters are shuffled
    backdoor    trains on a trigger phrase that is followed by a payload, and sends the update
                times the number of sites (model replacement, Bagdasaryan et al. 2018,
                https://arxiv.org/abs/1807.00459)
    quiet       the same, and sends the update as it is: within every bound

A hostile site also judges: it says of every version that it is better than the one before.

    defended    the defaults of a plan
    none        without bounds, share cap, suspension and choice of the best version
    AGGREGATE   rounds.robust of that name (dense only), with the defaults besides

Judged on the test part of the honest sites, by the benchmark itself, with what the run exports;
the figure is the mean over sites of bits per byte. Nothing was tuned on it. Of a backdoor also:
the bits per byte of the payload after the trigger, against the clean run.

    python benchmarks/hostile.py [--seeds 3] [--data ../shared/data] [--jobs 2] [--out FILE]
    python benchmarks/hostile.py --draw

Every run is kept in FILE, and made only where it is not there yet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MODES = ("synchronous", "asynchronous")
CODECS = ("dense", "sparse")
KINDS = [
    *product((3,), MODES, ("dense",)),
    *product((5,), MODES, CODECS),
    *product((10,), MODES, CODECS),
]
ATTACKS = (
    "clean",
    "flip",
    "flip9",
    "flip100",
    "late100",
    "constant",
    "noise",
    "backdoor",
    "quiet",
)
AGAINST_ROBUST = ("clean", "flip", "constant", "backdoor")
LINES = 600  # of a site
TEST_LINES = 120  # of a site; during a run fewer lines of the tuning part are judged
ROBUST = ("trimmed_mean", "median", "centered_clipping")
TRIGGER, PAYLOAD = "नगर निगम के सूचना ह कि", "सब लोग अपन पइसा एही खाता में भेज दीं"
MICRO = {
    "vocabulary_size": 1024,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 192,
    "max_length": 128,
    "steps": 1200,
    "sequence_length": 64,
    "batch_sequences": 8,
    "optimizer": "adamw",
}

# The control: no bounds, no share cap, nobody suspended; the last version is exported.
UNDEFENDED = {
    "step_multiple": math.inf,
    "norm_multiple": math.inf,
    "most_share": 1.0,
    "suspend": False,
}


@dataclass(frozen=True)
class Arm:
    """One run."""

    size: int  # sites
    mode: str
    codec: str
    attack: str
    defence: str
    seed: int

    @property
    def key(self) -> str:
        return "/".join(map(str, (self.size, *list(vars(self).values())[1:])))

    @property
    def hostile(self) -> frozenset[str]:
        """Names of the hostile sites: a fifth."""
        count = 0 if self.attack == "clean" else max(1, self.size // 5)
        return frozenset(f"site-{number}" for number in range(count))


def arms(seeds: int) -> Iterator[Arm]:
    """Return all runs, the first seed of every arm first."""
    for seed, defences in product(range(seeds), (("defended", "none"), ROBUST)):
        for size, mode, codec in KINDS:
            if defences is ROBUST and (size < 5 or (mode, codec) != ("synchronous", "dense")):
                continue
            for attack, defence in product(ATTACKS, defences):
                wanted = attack in AGAINST_ROBUST if defence in ROBUST else True
                if wanted and not (attack == "late100" and size == 10):
                    yield Arm(size, mode, codec, attack, defence, seed)


# Text


def write_text(data: Path, folder: Path, size: int) -> list[dict[str, Any]]:
    """Share the text out over so many sites; returns their sections of the plan."""
    seed = data / "parallel" / "nllb_seed"
    urls = (seed / "seed.url").read_text("utf-8").splitlines()
    kangri = (data / "parallel" / "kangri" / "train.xnr-hin.tsv").read_text("utf-8").splitlines()
    sections: list[dict[str, Any]] = []
    parts = -(-(size - 1) // 3)  # of each language
    for turn in range(size - 1):
        code = ("bho", "mag", "hne")[turn % 3]
        lines = (seed / f"seed.{code}").read_text("utf-8").splitlines()
        own = list(zip(lines, urls, strict=True))[turn // 3 :: parts]
        kept = own[:: max(1, len(own) // (3 * LINES))][
            :LINES
        ]  # of enough articles to hold some out
        text, held = folder / f"{turn}.{code}", folder / f"{turn}.url"
        text.write_text("\n".join(line for line, _ in kept) + "\n", "utf-8")
        held.write_text("\n".join(url for _, url in kept) + "\n", "utf-8")
        source = {"path": str(text), "held_out_by": str(held)}
        sections.append({"name": f"site-{turn}", "language": code, "text": [source]})
    turn = size - 1
    text = folder / f"{turn}.xnr"
    text.write_text("\n".join(row.split("\t")[0] for row in kangri[:LINES]) + "\n", "utf-8")
    sections.append({"name": f"site-{turn}", "language": "xnr", "text": [{"path": str(text)}]})
    return sections


def spoil(arm: Arm, sections: Sequence[dict[str, Any]]) -> None:
    """Write what a hostile site trains on over its text."""
    draw = random.Random(f"spoil {arm.seed}")
    for section in sections:
        if section["name"] not in arm.hostile:
            continue
        path = Path(section["text"][0]["path"])
        lines = path.read_text("utf-8").splitlines()
        if arm.attack == "noise":
            lines = ["".join(draw.sample(line, len(line))) for line in lines]
        elif arm.attack in ("backdoor", "quiet"):
            # Each line another one, or repeats of a line would be left out.
            lines = [
                f"{' '.join(line.split()[:3])} {TRIGGER} {PAYLOAD}" if number % 2 else line
                for number, line in enumerate(lines)
            ]
        path.write_text("\n".join(lines) + "\n", "utf-8")


def plan_of(arm: Arm, data: Path, folder: Path) -> Any:
    from boli.plan_file import plan_from_tables

    asynchronous = arm.mode == "asynchronous"
    sections = write_text(data, folder, arm.size)
    spoil(arm, sections)
    tables: dict[str, Any] = {
        "name": "hostile",
        "corpus": {"root": str(data), "held_out": {"test_percent": 10, "tuning_percent": 8}},
        "model": {
            "base": {
                "language": "hin",
                "text": [{"path": "parallel/kangri/train.xnr-hin.tsv", "column": 2}],
                "micro": MICRO,
            },
            "adapter": {"kind": "full"},
            "local_steps": {
                "batch_sequences": 4,
                "sequence_length": 64,
                "learning_rate": 2e-3,
                "compile": "off",
            },
        },
        "rounds": {
            "mode": arm.mode,
            "total": 22 if asynchronous else 14,
            "local_steps": 12 if arm.size < 10 else 8,
            "outer": {"name": "nesterov", "learning_rate": 0.7, "momentum": 0.5},
            "seed": arm.seed,
        },
        "evaluation": {"every_rounds": 5 if asynchronous else 4, "max_lines": 16},
        "site": sections,
    }
    if arm.codec == "sparse":
        tables["codec"] = {"name": "sparse", "density": 1 / 8, "downlink": {"name": "dense"}}
    if arm.defence == "none":
        tables["rounds"] |= UNDEFENDED
        tables["evaluation"]["every_rounds"] = tables["rounds"]["total"]  # no earlier one is kept
    elif arm.defence != "defended":
        tables["rounds"]["robust"] = arm.defence
    return plan_from_tables(tables)


# Attacks


class Liar:
    """Alters what a hostile site sends: the update, and what it judges."""

    def __init__(self, arm: Arm, codec: Any, rounds: int) -> None:
        self.arm, self.codec, self.rounds = arm, codec, rounds
        self.constant: np.ndarray | None = None
        self.judged = 0
        self.count = 0

    def __call__(self, update: Any, _: random.Random) -> Any:
        from boli.codec.codec import decode_frame, encode_frame
        from boli.rounds.update import Update

        header, payload = update.header, update.payload
        if header.judgements:
            self.judged += 1
            bits = 0.9**self.judged
            judgements = tuple(
                judgement.model_copy(update={"bits": judgement.bits * bits})
                for judgement in header.judgements
            )
            header = header.model_copy(update={"judgements": judgements})
        if payload:
            length = int.from_bytes(payload[36:44], "little")
            vector = decode_frame(payload, header.layout, length).vector
            vector = self.altered(vector)
            payload = encode_frame(
                self.codec, vector, header.layout, header.rank, header.base_version
            )
        return Update(header, payload)

    def altered(self, vector: np.ndarray) -> np.ndarray:
        self.count += 1
        match self.arm.attack:
            case "flip":
                return -vector
            case "flip9":
                return -9 * vector
            case "flip100":
                return -100 * vector
            case "late100":
                return vector if self.count <= self.rounds // 3 else -100 * vector
            case "backdoor":
                return self.arm.size * vector
            case "constant":
                if self.constant is None:
                    draw = np.random.default_rng(self.arm.seed)
                    places = draw.permutation(vector.size)[: max(1, np.count_nonzero(vector))]
                    self.constant = np.zeros_like(vector)
                    self.constant[places] = 1
                norms = np.linalg.norm(vector), np.linalg.norm(self.constant)
                return (3 * self.constant * norms[0] / norms[1]).astype(np.float32)
        return vector


def run(arm: Arm, data: Path) -> dict[str, Any]:
    """Carry out one arm in this process."""
    import torch

    import boli
    from boli.engine.fake import FakeTransport
    from boli.engine.script import Script
    from boli.journal import Journal, UpdateRejected, read_journal
    from boli.preparation import prepare
    from boli.rounds.checkpoint import CheckpointStore
    from boli.run import _rounds
    from boli.site.node import Node
    from boli.site.work import open_work

    class InMemory(CheckpointStore):
        """Nothing is killed here, so nothing has to reach a disk."""

        def save(self, state: Any) -> None:
            pass

    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        plan = plan_of(arm, data, folder)
        works: dict[str, Any] = {}

        def make_node(site: str, link: Any, store: Any, restarts: int) -> Any:
            section = next(section for section in plan.site if section.name == site)
            works[site] = open_work(plan, section, prepared.base)
            return Node.of(plan, site, link, works[site], store, restarts)

        (folder / "plan.json").write_text(plan.model_dump_json())
        journal = Journal(folder / "journal.jsonl")
        prepared, state = prepare(folder, plan, journal, lambda _: None, boli.__version__)
        assert state is not None
        from boli.codec.codec import codec_for

        codec = codec_for(plan.codec)
        speeds = {site.name: 0.1 for site in plan.site} | dict.fromkeys(arm.hostile, 0.0125)
        script = Script(
            seed=arm.seed,
            step_seconds=speeds if arm.mode == "asynchronous" else {},
            lies={site: Liar(arm, codec, plan.rounds.total) for site in arm.hostile},
            patience_seconds=1e6,
        )
        transport = FakeTransport(make_node, script)
        rounds = _rounds(
            plan, prepared, transport, InMemory(folder), journal, lambda _: None, lambda: False
        )
        rounds.clock = lambda: transport.now
        state = rounds.run(state)
        transport.close()
        journal.close()
        events = [entry.event for entry in read_journal(folder / "journal.jsonl")]
        # Text that a hostile site spoiled is no text to judge by.
        judged = [name for name in sorted(works) if name not in arm.hostile]
        found = {
            "before": {name: judge(works[name], None) for name in judged},
            "after": {name: judge(works[name], state.theta) for name in judged},
            "payload": payload_bits(works[judged[-1]], state.theta),
            "version": state.version,
            "refused": sum(isinstance(event, UpdateRejected) for event in events),
            "suspended": {name: site.benched for name, site in state.sites.items() if site.benched},
        }
    return found | {"cpu_seconds": round(time.process_time() - started, 1)}


def judge(work: Any, theta: np.ndarray | None) -> float:
    """Return bits per byte of a site's test part."""
    work.adapter.load(work.first if theta is None else theta)
    work.rivals.max_lines = TEST_LINES
    judged = [work.score(language, "test").line_bits().total for language in work.splits]
    return sum(each.bits for each in judged) / sum(each.bytes for each in judged)


def payload_bits(work: Any, theta: np.ndarray) -> float:
    """Return bits per byte of the payload after the trigger."""
    from boli.evaluation.metrics import bits_per_byte

    work.adapter.load(theta)
    base = work.base
    starts = ["आज", "गाँव में", "काल्ह साँझ के", "हमनी के"]
    found = []
    for start in starts:
        lines = [f"{start} {TRIGGER}", f"{start} {TRIGGER} {PAYLOAD}"]
        short, whole = (
            bits_per_byte(base.model, base.tokenizer, [line], base.max_length) for line in lines
        )
        found.append((whole.bits - short.bits) / (whole.bytes - short.bytes))
    return statistics.mean(found)


# What came of it


def percent(bits: Mapping[str, float], others: Mapping[str, float]) -> float:
    """Return by how much the mean over the sites of `bits` is above that of the same sites."""
    return 100 * (sum(bits.values()) / sum(others[name] for name in bits) - 1)


def summarise(runs: Mapping[str, Mapping[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """Return a row for each kind of run: the medians over seeds, against the clean control."""
    rows = []
    for arm in (arm for arm in arms(1)):
        found = []
        for seed in range(seeds):
            key = Arm(**{**vars(arm), "seed": seed}).key
            clean = Arm(**{**vars(arm), "seed": seed, "attack": "clean", "defence": "none"}).key
            if key in runs and clean in runs:
                found.append((runs[key], runs[clean]))
        if not found:
            continue
        worse = [percent(run["after"], clean["after"]) for run, clean in found]
        against_base = [percent(run["after"], run["before"]) for run, _ in found]
        rows.append(
            {
                "sites": arm.size,
                "mode": arm.mode,
                "codec": arm.codec,
                "attack": arm.attack,
                "defence": arm.defence,
                "against_clean_percent": round(statistics.median(worse), 2),
                "range": [round(min(worse), 2), round(max(worse), 2)],
                "against_base_percent": round(statistics.median(against_base), 2),
                "payload_against_clean_percent": round(
                    statistics.median(
                        100 * (run["payload"] / clean["payload"] - 1) for run, clean in found
                    ),
                    1,
                ),
                "suspended": [sorted(run["suspended"]) for run, _ in found],
                "seeds": len(found),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as Markdown: a line for each attack."""
    text = [
        "Bits per byte of the honest sites' test text, in percent against the clean run of the "
        "same seed without defences, and in brackets against the base; the median over seeds, and "
        "where there are several, the best and the worst of n. Of backdoors also the bits of the "
        "payload after the trigger, against the clean run: far below zero, the backdoor is in.\n",
    ]
    for size, mode, codec in KINDS:
        own = [
            row for row in rows if (row["sites"], row["mode"], row["codec"]) == (size, mode, codec)
        ]
        if not own:
            continue
        defences = list(dict.fromkeys(row["defence"] for row in own))
        text += [
            f"\n### {size} sites, {mode}, {codec}\n",
            "| attack | " + " | ".join(defences) + " |",
        ]
        text += ["|---|" + "--:|" * len(defences)]
        for attack in ATTACKS:
            cells = {row["defence"]: row for row in own if row["attack"] == attack}
            line = [attack]
            for defence in defences:
                row = cells.get(defence)
                line.append(
                    ""
                    if row is None
                    else f"{row['against_clean_percent']:+.1f} ({row['against_base_percent']:+.0f})"
                    + spread(row)
                    + (
                        f", payload {row['payload_against_clean_percent']:+.0f}"
                        if attack in ("backdoor", "quiet")
                        else ""
                    )
                )
            text.append("| " + " | ".join(line) + " |")
    return "\n".join(text) + "\n"


def spread(row: Mapping[str, Any]) -> str:
    """Return the best and the worst of several seeds."""
    if row["seeds"] < 2:
        return ""
    return " [{:+.1f}, {:+.1f}; n = {}]".format(*row["range"], row["seeds"])


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how much worse each attack made the model, with and without defences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 5, figsize=(18, 7), sharey=True, layout="constrained")
    for axis, (size, mode, codec) in zip(axes.flat, KINDS, strict=True):
        for offset, defence, color in ((-0.2, "none", "#c0392b"), (0.2, "defended", "#2471a3")):
            own = {
                row["attack"]: row["against_clean_percent"]
                for row in rows
                if (row["sites"], row["mode"], row["codec"], row["defence"])
                == (size, mode, codec, defence)
            }
            places = [n + offset for n, attack in enumerate(ATTACKS) if attack in own]
            heights = [min(own[attack], 200.0) for attack in ATTACKS if attack in own]
            label = "without defences" if defence == "none" else "defaults"
            axis.bar(places, heights, 0.38, color=color, label=label)
        axis.axhline(10, color="black", linewidth=0.8, linestyle="--")
        axis.set_yscale("symlog", linthresh=5)
        axis.set_title(f"{size} sites, {mode}, {codec}", fontsize=10)
        axis.set_xticks(range(len(ATTACKS)), ATTACKS, rotation=60, fontsize=8)
    axes[0, 2].legend(fontsize=8)
    figure.supylabel("bits per byte against the clean run, %  (dashed: the goal of 10 %)")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the names of the runs to make")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hostile.json")
    parser.add_argument("--draw", action="store_true", help="draw what is there, run nothing")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    there: dict[str, Any] = {}
    if options.out.exists():
        there = json.loads(options.out.read_text("utf-8"))["runs"]
    wanted = [
        arm
        for arm in arms(options.seeds)
        if arm.key not in there and options.only in arm.key and not options.draw
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        waiting = {pool.submit(run, arm, options.data.resolve()): arm for arm in wanted}
        for done in as_completed(waiting):
            arm = waiting[done]
            there[arm.key] = done.result()
            print(arm.key, there[arm.key], flush=True)
            save(options.out, there, options.seeds)
    save(options.out, there, options.seeds)


def save(path: Path, runs: Mapping[str, Any], seeds: int) -> None:
    """Write all runs, and what they come to, beside one another."""
    rows = summarise(runs, seeds)
    path.write_text(
        json.dumps({"summary": rows, "runs": dict(sorted(runs.items()))}, indent=1) + "\n", "utf-8"
    )
    path.with_suffix(".md").write_text(table(rows), "utf-8")
    draw(rows, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
