"""The engines on thin lines: one job carried by NATS, by Flower, and Flower's own FedAvg beside.

    nats            benchmarks/thin_lora.toml with `boli coordinator` and `boli join`
    flower          the same plan with `boli flower`, inside a real federation
    flower fedavg   Flower's FedAvg strategy as its examples use it: dense and synchronous

    python benchmarks/engines.py [--data ../shared/data] [--seeds 3] [--quick] [--out FILE]

Three sites, each in a network namespace of its own behind a line of one of the presets of
benchmarks/links.py (needs root); bytes are those of IP packets at each site's interface, in both
directions, with handshakes, acknowledgements and retransmissions. All sites hold the base.
All arms train on the same number of sequences, but for `nats` and `flower`, which take a quarter
more; engine_arms.py says how each was tuned. Every version is judged after its run on the test
part of the sites' text, by which nothing was chosen; judging costs no arm anything. "Equal bits
per byte" is the best that FedAvg reaches in its run of the same preset and seed; an arm's bytes
and seconds are those to its first version that is as good. Seconds are as the clock ran on this
machine, whose cores the three sites share; what of them was not local work is told apart.

Then what the NATS engine costs by itself: an idle site, an order and its update around work that
takes no time, 20 MB in one message, a cut in the middle of an update, and the share of their time
that sites of unlike speed train.

Every measurement is kept in FILE and made only where it is not there yet: remove FILE after any
change. Beside it is a page of tables. --quick makes a short run of every kind, keeps nothing
unless it is given a FILE, and its figures mean little.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from boli.durable import write_file
from engine_arms import ARMS, Settings, measure, utilization
from engine_lines import heal_often, idle, large, overhead
from engine_tables import PRESETS, Figures, page, summary
from links import LOOPBACK

HERE = Path(__file__).parent
SEEDED = "rural"  # the preset that is measured with several seeds
ONE_SEED = ("flower",)  # carries the same bits as `nats`: its versions are the same
LARGE, QUICK_LARGE = 5_000_000, 250_000  # entries: 20 MB, and 1 MB
TINY_BASE: Settings = {"model.base.micro.steps": 50}
TINY: dict[str, Settings] = {  # what --quick trains
    "nats": TINY_BASE | {"rounds.total": 3, "rounds.local_steps": 10},
    "flower": TINY_BASE | {"rounds.total": 3, "rounds.local_steps": 10},
    "flower fedavg": TINY_BASE | {"rounds.total": 2, "rounds.local_steps": 5},
    "utilization": TINY_BASE | {"rounds.total": 3, "rounds.local_steps": 20},
}
Steps = dict[str, Callable[[], Figures]]


def line_steps(quick: bool) -> Steps:
    """Return what is measured of the NATS engine by itself."""
    found: Steps = {}
    for preset in (LOOPBACK, *PRESETS):
        found[f"overhead {preset}"] = partial(overhead, preset, 20 if quick else 60)
    entries = QUICK_LARGE if quick else LARGE
    for preset in ("broadband", "4g, no loss", "rural, no loss", "4g", "rural"):
        share = 10 if preset.startswith("rural") else 1  # 2 MB there: half a minute
        found[f"large {preset}"] = partial(large, preset, entries // share)
    cut_seconds = 5.0 if quick else 30.0
    for preset, size in (("4g", 2_500_000), ("rural, no loss", 500_000)):
        count = size // 10 if quick else size
        times = 1 if quick else 5
        found[f"cut {preset}"] = partial(heal_often, preset, count, cut_seconds, times)
    found["idle rural"] = partial(idle, "rural", 30.0 if quick else 200.0)
    return found


def job_steps(seeds: int, quick: bool, data: Path) -> Steps:
    """Return the runs of the job."""
    found: Steps = {}
    for preset in (SEEDED,) if quick else PRESETS:
        for arm in ARMS:
            for seed in range(seeds if preset == SEEDED and arm not in ONE_SEED else 1):
                more = {**(TINY[arm] if quick else {}), "rounds.seed": seed}
                found[f"{arm} · {preset} · seed {seed}"] = partial(measure, arm, preset, data, more)
    more = TINY["utilization"] if quick else {}
    found["utilization 4g"] = partial(utilization, "4g", data, more)
    return found


def carry_out(steps: Steps, out: Path) -> None:
    """Make what is not in a file yet; write it and its page after each measurement."""
    kept: dict[str, Figures] = json.loads(out.read_text())["runs"] if out.exists() else {}
    for name, work in steps.items():
        if name in kept:
            continue
        started = time.monotonic()
        kept[name] = work()
        shown = kept[name].get("curve", [kept[name]])[-1]
        print(f"{name} ({time.monotonic() - started:.0f} s): {shown}", flush=True)
        result = {"summary": summary(kept, list(ARMS)), "runs": kept}
        write_file(out, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        tables = page(result["summary"], kept, list(ARMS))
        write_file(out.with_suffix(".md"), tables.encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data")
    parser.add_argument("--seeds", type=int, default=3, help=f"of the preset {SEEDED}")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="measurements whose names hold this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # on TLS connections that are closed
    seeds = 1 if given.quick else given.seeds
    steps = line_steps(given.quick) | job_steps(seeds, given.quick, given.data.resolve())
    wanted = {name: work for name, work in steps.items() if given.only in name}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else HERE / "results"
        out = given.out or kept / "engines.json"
        carry_out(wanted, out)
        print(out.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
