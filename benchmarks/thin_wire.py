"""Bytes and tokens to a quality: every usual way to train one LoRA at three sites, and ours.

All arms train the adapter of benchmarks/lora.toml with boli's own local steps, as one process a
site, and differ in what they exchange:

    dense      gradients at every step, torch's all-reduce
    fp16       the same, with torch's fp16_compress_hook
    powersgd   the same, with torch's powerSGD_hook
    diloco     pseudo-gradients every 20 local steps, dense, outer Nesterov
    fedavg     the same, with plain averaging
    ours       sparse pseudo-gradients, and twice the tokens

    python benchmarks/thin_wire.py [--seeds 3] [--data ../shared/data] [--arms ...] [--out FILE]
    python benchmarks/thin_wire.py --tune    tries RATES on seed 0 and prints the tuning part
    python benchmarks/thin_wire.py --draw    draws what FILE holds, beside it

Every run is kept in FILE with its settings, and made only where it is not there yet; so an
interrupted benchmark goes on where it was. Curves are of the tuning part, on which the settings
were chosen; the test part is judged at the end of a run, and nothing is chosen by it. Change no
source while it runs: sites start from what is on disk then.

Bytes are a site's, up and down. Of `diloco`, `fedavg` and `ours` they are those of the frames as
sent, headers included. Of the others they are what a ring all-reduce of the tensors that the hook
hands to torch needs, 2 (N - 1) / N of their size each way; what gloo and TCP add is not counted,
in these arms' favor.

Source: Vogels et al. 2019, PowerSGD, https://arxiv.org/abs/1905.13727; Douillard et al. 2023,
DiLoCo, https://arxiv.org/abs/2311.08105; McMahan et al. 2017, FedAvg,
https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import boli
from boli.evaluation.told import made
from boli.evaluation.units import size
from boli.journal import OrderSent, UpdateAccepted, read_journal
from boli.plan import Plan, available_cores
from boli.preparation import prepare_base
from boli.rounds.update import Order
from boli.site.work import TrainingWork, open_work

HERE = Path(__file__).parent
Settings = dict[str, Any]
Figures = dict[str, Any]
Register = Callable[..., None]  # of a hook of torch: takes its options, and what it is for

# 300 local steps of 8 × 128 tokens a site; judged every 20, also where gradients are exchanged.
TOKENS: Settings = {
    "model.local_steps.batch_sequences": 8,
    "rounds.total": 15,
    "rounds.local_steps": 20,
    "evaluation.every_rounds": 1,
}
RATE = "model.local_steps.learning_rate"
# Each arm's rate is the best of RATES on the tuning part of seed 0 (--tune).
RATES = (5e-3, 1e-2, 1.5e-2, 2e-2)
SETTINGS: dict[str, Settings] = {
    "dense": TOKENS | {RATE: 1e-2},
    "fp16": TOKENS | {RATE: 1e-2},
    # Compression begins where the learning rate's warm-up ends, as torch advises.
    "powersgd": TOKENS | {RATE: 1e-2, "matrix_approximation_rank": 4, "start_powerSGD_iter": 15},
    "diloco": TOKENS
    | {
        RATE: 1e-2,
        "rounds.outer.name": "nesterov",
        "rounds.outer.learning_rate": 0.7,
        "rounds.outer.momentum": 0.5,  # over so few rounds 0.9, as published, is too much
    },
    "fedavg": TOKENS
    | {RATE: 1.5e-2, "rounds.outer.name": "sgd", "rounds.outer.learning_rate": 1.0},
    "ours": {
        "model.local_steps.batch_sequences": 4,
        RATE: 5e-3,
        "rounds.total": 8,
        "rounds.local_steps": 150,
        "rounds.outer.name": "sgd",
        "rounds.outer.learning_rate": 1.6,
        "codec.name": "sparse",
        "codec.density": 0.445,
        "codec.value_bits": 2,
        "codec.residual_decay": 0.3,
        "codec.final_residual_decay": 1.0,
        "codec.train_from_residual": True,
        "evaluation.every_rounds": 1,
    },
}


def federated(plan: Plan, _options: Settings) -> Figures:
    """Train with real nodes and frames, and read the run's journal."""
    with tempfile.TemporaryDirectory() as folder:
        run = boli.train(plan, runs=folder)
        report = run.report()
        events = [entry.event for entry in read_journal(run.folder / "journal.jsonl")]
    sent: Counter[int] = Counter()  # bytes that it took from a version to the next, by the later
    for event in events:
        match event:
            case OrderSent():
                sent[event.base_version] += event.bytes_down
            case UpdateAccepted():
                sent[made(event)] += event.bytes_up
    sites = len(plan.site)
    curve = []
    for points in zip(*report["curve"].values(), strict=True):
        version, tokens, _ = points[0]
        so_far = sum(count for when, count in sent.items() if when <= version) / sites
        curve.append([round(so_far), tokens, statistics.fmean(point[2] for point in points)])
    test = {code: report["languages"][code]["after"]["test"] for code in plan.languages}
    total = sum(site["bytes_up"] + site["bytes_down"] for site in report["sites"].values())
    return figures(curve, test) | {"bytes": round(total / sites)}


def plain_gradients(_options: Settings, shared: DistributedDataParallel) -> None:
    shared.register_comm_hook(None, default_hooks.allreduce_hook)


def half_gradients(_options: Settings, shared: DistributedDataParallel) -> None:
    shared.register_comm_hook(None, default_hooks.fp16_compress_hook)


def low_rank_gradients(options: Settings, shared: DistributedDataParallel) -> None:
    state = powerSGD_hook.PowerSGDState(None, **options)
    shared.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def all_reduced(register: Register, plan: Plan, options: Settings) -> Figures:
    """Train with gradients averaged at every step, by one process a site on this machine."""
    origin, sites = prepare_base(plan), len(plan.site)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(sites, spawn) as pool:
        store = f"file://{folder}/store"
        site = partial(site_of_all_reduce, plan, origin, partial(register, options), store)
        found = list(pool.map(site, range(sites)))
    curve = []
    for points in zip(*found, strict=True):
        sent, tokens, _ = points[0]
        bits = statistics.fmean(judged["tuning"] for *_, judged in points)
        curve.append([round(sent), tokens * sites, bits])
    last = [points[-1][2]["test"] for points in found]
    return figures(curve, dict(zip(plan.languages, last, strict=True)))


def site_of_all_reduce(
    plan: Plan, origin: str, register: Register, store: str, rank: int
) -> list[tuple[float, int, dict[str, float]]]:
    """Be one site; returns bytes, its own tokens and bits per byte, by part, along the run."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(plan.threads_per_site(available_cores()))
    sites, rounds = len(plan.site), plan.rounds
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=sites)
    work = open_work(plan, plan.site[rank], origin)
    model = work.steps.model
    # Its backward averages the gradients, so that local steps are the same steps at every site.
    shared = DistributedDataParallel(model.base_model)
    shared.embed_tokens = model.get_input_embeddings()  # a Llama looks for it there
    setattr(model, model.base_model_prefix, shared)
    register(shared)
    sent, tokens, points = 0.0, 0, []
    plain = dist.all_reduce

    def counted(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 2 * 2 * (sites - 1) / sites * tensor.nbytes
        return plain(tensor, *rest, **options)

    with mock.patch.object(dist, "all_reduce", counted):
        for version in range(rounds.total + 1):
            points.append((sent, tokens, judged(work, last=version == rounds.total)))
            if version < rounds.total:
                step = 1 / (rounds.total * rounds.local_steps)
                done = work.steps.run(lambda: rounds.local_steps, version / rounds.total, step)
                tokens += done.tokens if done else 0
    dist.destroy_process_group()
    return points


def judged(work: TrainingWork, *, last: bool) -> dict[str, float]:
    """Return bits per byte of what the site's adapter is now, by part, as a node judges."""
    theta = work.adapter.read()
    order = Order(
        order="judge",
        site="",
        sequence=0,
        base_version=0,
        layout="",
        local_steps=0,
        evaluate=("tuning", "test") if last else ("tuning",),
    )
    done = work.perform(order, theta, theta, lambda: 0, lambda *_: True)
    found = done.judgements if done else ()
    return {judgement.part: judgement.bits / judgement.bytes for judgement in found}


def figures(curve: list[list[float]], test: Mapping[str, float]) -> Figures:
    """Return what is kept of a run; a curve's points are bytes of a site, all tokens, bits."""
    sent, tokens, tuning = curve[-1]
    return {
        "bytes": sent,
        "tokens": tokens,
        "tuning": tuning,
        "test": statistics.fmean(test.values()),
        "languages": dict(test),
        "curve": curve,
    }


ARMS: dict[str, Callable[[Plan, Settings], Figures]] = {
    "dense": partial(all_reduced, plain_gradients),
    "fp16": partial(all_reduced, half_gradients),
    "powersgd": partial(all_reduced, low_rank_gradients),
    "diloco": federated,
    "fedavg": federated,
    "ours": federated,
}


def measure(arm: str, seed: int, settings: Settings, data: Path) -> Figures:
    of_plan = {key: value for key, value in settings.items() if "." in key}
    of_plan |= {"corpus.root": str(data), "rounds.seed": seed, "model.adapter.seed": seed}
    plan = boli.load_plan(
        HERE / "lora.toml",
        [f"{key}={json.dumps(value)}" for key, value in of_plan.items()],
    )
    options = {key: value for key, value in settings.items() if "." not in key}
    started = time.monotonic()
    found = ARMS[arm](plan, options)
    seconds = round(time.monotonic() - started, 1)
    return {"arm": arm, "seed": seed, "settings": settings, "seconds": seconds, **found}


def kept(path: Path) -> list[Figures]:
    return json.loads(path.read_text())["runs"] if path.exists() else []


def write(path: Path, runs: list[Figures]) -> None:
    whole = {"summary": dict(summary(present(runs))), "runs": runs}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def have(path: Path, arm: str, seed: int, settings: Settings, data: Path) -> Figures:
    """Return a run, making and keeping it where it is not there yet."""
    for run in kept(path):
        if (run["arm"], run["seed"], run["settings"]) == (arm, seed, settings):
            return run
    found = measure(arm, seed, settings, data)
    write(path, [*kept(path), found])
    return found


def present(runs: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Return arm to its runs with the settings of today, by seed."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    found = {
        arm: [run for run in ordered if (run["arm"], run["settings"]) == (arm, settings)]
        for arm, settings in SETTINGS.items()
    }
    return {arm: of_arm for arm, of_arm in found.items() if of_arm}


def summary(by_arm: Mapping[str, Sequence[Figures]]) -> Iterator[tuple[str, Figures]]:
    """Yield arm and figures; what is against dense is so seed by seed."""
    dense_runs = {run["seed"]: run for run in by_arm.get("dense", ())}
    for arm, runs in by_arm.items():
        tests = [run["test"] for run in runs]
        both = [(run, dense_runs[run["seed"]]) for run in runs if run["seed"] in dense_runs]
        yield (
            arm,
            {
                "seeds": [run["seed"] for run in runs],
                "test": statistics.fmean(tests),
                "test_spread": max(tests) - min(tests),
                "bytes": round(statistics.fmean(run["bytes"] for run in runs)),
                "tokens": runs[0]["tokens"],
                "test_against_dense_percent": [
                    round((run["test"] / peer["test"] - 1) * 100, 2) for run, peer in both
                ],
                "times_fewer_bytes_than_dense": [
                    round(peer["bytes"] / run["bytes"], 1) for run, peer in both
                ],
                # Along the curves, so of the tuning part; none where a run never comes so near.
                "bytes_to_1_percent": [reached(run, 1.01 * peer["tuning"]) for run, peer in both],
                "bytes_to_3_percent": [reached(run, 1.03 * peer["tuning"]) for run, peer in both],
            },
        )


def reached(run: Figures, goal: float) -> float | None:
    return next((sent for sent, _, bits in run["curve"] if bits <= goal), None)


def tune(path: Path, arms: Sequence[str], data: Path) -> None:
    for arm in arms:
        for rate in RATES:
            found = have(path, arm, 0, SETTINGS[arm] | {RATE: rate}, data)
            print(f"{arm:9} rate {rate:<6g} tuning {found['tuning']:.4f}", flush=True)


def draw(path: Path) -> None:
    """Draw bits per byte over bytes and over tokens, as SVG beside the result file."""
    for axis, name, label in (
        (0, "bytes", "bytes up and down at a site"),
        (1, "tokens", "tokens, of all sites together"),
    ):
        drawing = path.with_name(f"{path.stem}_{name}.svg")
        curves(present(kept(path)), axis, label).savefig(drawing, metadata={"Date": None})
        print(f"written to {drawing}")


def curves(by_arm: Mapping[str, Sequence[Figures]], axis: int, label: str) -> Any:
    """Return a figure: of each arm the median over seeds, their spread, and the test part's."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": label, "svg.fonttype": "none", "font.size": 9}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for arm, runs in by_arm.items():
        points = list(zip(*(run["curve"][1:] for run in runs), strict=True))
        x = [statistics.median(point[axis] for point in each) for each in points]
        bits = [[point[2] for point in each] for each in points]
        (line,) = axes.plot(x, [statistics.median(each) for each in bits], lw=1.8, label=arm)
        low, high = ([pick(each) for each in bits] for pick in (min, max))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
        ends = [run["test"] for run in runs]
        axes.plot([x[-1]] * len(ends), ends, "D", ms=4, mfc="none", color=line.get_color())
    if axis == 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axes.set_xlabel(label)
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = max((len(runs) for runs in by_arm.values()), default=0)
    said = (
        f"lines: tuning part, median and spread of {seeds} seeds; diamonds: test part, at the end"
    )
    axes.set_title(said, fontsize=9, loc="left")
    axes.legend(frameon=False)
    return figure


def measure_all(path: Path, seeds: int, arms: Sequence[str], data: Path) -> None:
    for seed in range(seeds):
        for arm in arms:
            run = have(path, arm, seed, SETTINGS[arm], data)
            print(
                f"seed {seed} {arm:9} tuning {run['tuning']:.4f} test {run['test']:.4f}  "
                f"{size(run['bytes'])} a site, {run['tokens']:,} tokens, {run['seconds']:.0f} s",
                flush=True,
            )
    write(path, kept(path))
    for arm, found in summary(present(kept(path))):
        print(arm, found)
    print(f"written to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "thin_wire.json")
    parser.add_argument("--tune", action="store_true", help="try RATES on seed 0")
    parser.add_argument("--draw", action="store_true", help="draw what the result file holds")
    options = parser.parse_args()
    data = options.data.resolve()
    if options.draw:
        draw(options.out)
    elif options.tune:
        tune(options.out, options.arms, data)
    else:
        measure_all(options.out, options.seeds, options.arms, data)


if __name__ == "__main__":
    main()
