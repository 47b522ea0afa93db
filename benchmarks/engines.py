"""The engines on thin lines: one job carried by NATS, by Flower, and Flower's own FedAvg beside.

    nats            plans/thin.toml with `boli coordinator` and `boli join`
    flower          the same plan with `boli flower`, inside a real federation
    flower fedavg   Flower's FedAvg strategy as its examples use it: dense and synchronous; rounds
                    and learning rate as benchmarks/thin_wire.py tuned them for this job

    python benchmarks/engines.py [--data ../shared/data] [--seeds 3] [--quick] [--out FILE]

Three sites, each in a network namespace of its own behind a line of linkshape.py's presets
(see benchmarks/links.py; needs root); bytes are those of IP packets at each site's interface, in
both directions, with handshakes, acknowledgements and retransmissions. All sites hold the base.
Every version is judged after its run on the tuning part of the sites' text, so that judging
costs no arm anything. "Equal bits per byte" is the best that FedAvg reaches in its run of the same
preset and seed; an arm's bytes and seconds are those to its first version that is as good.

Then what the NATS engine costs by itself: an idle site, an order and its update around work that
takes no time, 20 MB in one message, and the working time of sites of unlike speed.

Every measurement is kept in FILE and made only where it is not there yet. --quick makes short
runs of every kind, whose figures mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from boli.durable import write_file
from engine_arms import ARMS, Figures, Settings, measure, utilization
from engine_lines import idle, large, overhead
from links import LOOPBACK

HERE = Path(__file__).parent
PRESETS = ("broadband", "4g", "rural")
SEEDED = "rural"  # the preset that is measured with several seeds
QUICK: Settings = {"rounds.total": 2, "rounds.local_steps": 5, "model.base.micro.steps": 200}


def steps(seeds: int, quick: bool) -> list[tuple[str, Any]]:
    """Return all measurements by name, the shortest first."""
    short = QUICK if quick else {}
    found: list[tuple[str, Any]] = [
        (f"overhead {preset}", lambda preset=preset: overhead(preset))
        for preset in (LOOPBACK, *PRESETS)
    ]
    entries = 250_000 if quick else 5_000_000
    for preset in ("broadband", "4g, no loss", "rural, no loss", "4g", "rural"):
        size = entries // 10 if preset.startswith("rural") else entries
        found.append((f"large {preset}", lambda p=preset, n=size: large(p, n)))
    seconds = 30.0 if quick else 200.0
    found += [(f"idle {preset}", lambda p=preset: idle(p, seconds)) for preset in ("4g", "rural")]
    found.append(("utilization 4g", lambda: utilization("4g", DATA, short)))
    for preset in PRESETS:
        for seed in range(seeds if preset == SEEDED else 1):
            for arm in ARMS:
                more = {**short, "rounds.seed": seed}
                name = f"{arm} · {preset} · seed {seed}"
                found.append((name, lambda a=arm, p=preset, m=more: measure(a, p, DATA, m)))
    return found


def first_as_good(curve: list[Figures], target: float) -> Figures | None:
    return next((point for point in curve if point["bits_per_byte"] <= target), None)


def summary(kept: dict[str, Figures]) -> Figures:
    """Return, by preset, bytes and seconds to FedAvg's best, and their ratios; medians."""
    found: Figures = {}
    for preset in PRESETS:
        by_arm: dict[str, list[Figures]] = {arm: [] for arm in ARMS}
        targets = []
        for name, figures in kept.items():
            arm, _, rest = name.partition(" · ")
            if arm != "flower fedavg" or not rest.startswith(f"{preset} ·"):
                continue
            target = min(point["bits_per_byte"] for point in figures["curve"])
            targets.append(target)
            for other in ARMS:
                curve = kept.get(f"{other} · {rest}", {}).get("curve", [])
                by_arm[other].append(first_as_good(curve, target) or {})
        if targets:
            found[preset] = {"bits_per_byte": median(targets), **_compared(by_arm)}
    return found


def _compared(by_arm: dict[str, list[Figures]]) -> Figures:
    found: Figures = {}
    keys = ("bytes", "seconds", "seconds_outside_of_work")
    for arm, points in by_arm.items():
        if not points:
            continue
        if not all(points):
            found[arm] = "not as good"
            continue
        found[arm] = {key: median([point[key] for point in points]) for key in keys}
        for key in keys:
            theirs = [point[key] for point in by_arm["flower fedavg"]]
            ratios = [b / a[key] for a, b in zip(points, theirs, strict=True)]
            found[arm][f"times_fewer_{key}"] = median(ratios)
    return found


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def main() -> None:
    global DATA
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--seeds", type=int, default=3, help=f"of the preset {SEEDED}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="measurements whose names hold this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    DATA = given.data.resolve()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    name = "engines_quick" if given.quick else "engines"
    out = given.out or HERE / "results" / f"{name}.json"
    kept: dict[str, Figures] = json.loads(out.read_text())["runs"] if out.exists() else {}
    for step, work in steps(1 if given.quick else given.seeds, given.quick):
        if step in kept or given.only not in step:
            continue
        started = time.monotonic()
        kept[step] = work()
        shown = {k: v for k, v in kept[step].items() if k != "curve"}
        last = kept[step].get("curve", [{}])[-1]
        print(f"{step} ({time.monotonic() - started:.0f} s): {last or shown}", flush=True)
        result = {"summary": summary(kept), "runs": kept}
        write_file(out, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps(summary(kept), indent=1, ensure_ascii=False))


DATA = Path()

if __name__ == "__main__":
    main()
