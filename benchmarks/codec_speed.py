"""How fast the sparse codec and the sums are, and how near positions are to their entropy.

encode, decode-and-add   one update of an adapter of an 8 B model (d = 40 million), 2 cores
positions                bits against log2 of the number of supports
fold                     10,000 updates (d = 1 million, 1.5 %) through the coordinator, one core,
                         with 10 and with 1,000 sites: memory must not grow with them

python benchmarks/codec_speed.py [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from boli.codec.codec import encode_frame
from boli.codec.entropy import encode_positions
from boli.codec.sparse import SparseCodec
from boli.rounds.buffer import BufferedStrategy
from boli.rounds.outer import Sgd
from boli.rounds.sums import add_to
from boli.rounds.transport import Delivery
from boli.rounds.update import Order, ServerState, SiteProgress, Update, UpdateHeader

HERE = Path(__file__).parent
LAYOUT = "0" * 32


def peak_vectors(d: int, run: Any) -> float:
    """Return the memory that `run` takes beyond what was there, in float32 vectors of length d."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / (4 * d)


def one_update(d: int = 40_000_000) -> dict[str, Any]:
    found: dict[str, Any] = {"d": d}
    for bits in (2, 4):
        codec = SparseCodec(1 / 64, bits)  # type: ignore[arg-type]
        sums = np.ones(d, np.int64)  # all of it is there: a coordinator has summed before
        encode, add = [], []
        for seed in range(3):
            vector = np.random.default_rng(seed).standard_normal(d, np.float32)
            started = time.perf_counter()
            payload = codec.encode(vector)
            encode.append(time.perf_counter() - started)
            started = time.perf_counter()
            add_to(sums, codec.entries(payload, d), ((0, d),), 0.5)
            add.append(time.perf_counter() - started)
        memory = peak_vectors(d, lambda codec=codec, vector=vector: codec.encode(vector))
        found[f"{bits}_bits"] = {
            "payload_bytes": len(payload),
            "encode_seconds": sorted(encode),
            "decode_and_add_seconds": sorted(add),
            "encode_memory_vectors": round(memory, 3),
        }
    return found


def positions() -> list[dict[str, float]]:
    rows = []
    for d, share in (
        (163_840, 0.03),
        (1_000_000, 1 / 64),
        (40_000_000, 1 / 64),
        (1_400_000, 0.001),
    ):
        k = round(d * share)
        chosen = np.sort(np.random.default_rng(0).choice(d, k, replace=False)).astype(np.int64)
        ways = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
        bits = encode_positions(chosen, d).size * 32
        rows.append(
            {"d": d, "k": k, "bits_each": bits / k, "of_entropy": bits * math.log(2) / ways}
        )
    return rows


def fold(num_sites: int, num_updates: int = 10_000, d: int = 1_000_000) -> dict[str, float]:
    """Fold updates as the loop does: as they come, a few at a time, a round when all are in."""
    names = [f"site-{n}" for n in range(num_sites)]
    codec = SparseCodec(0.015)
    strategy = BufferedStrategy(
        buffer_size=num_sites,
        max_staleness=0,
        staleness_power=0.5,
        token_power=1.0,
        norm_multiple=10.0,
        reference_tokens=1000,
        max_tokens_per_step=1000,
        outer=Sgd(np.float32(1)),
        spans=dict.fromkeys(names, ((0, d),)),
        uplink=codec,
        downlink=codec,
    )
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal(d, np.float32) * np.float32(1e-3) for _ in range(8)]
    state = ServerState("run", LAYOUT, np.zeros(d, np.float32), {n: SiteProgress() for n in names})
    seconds, done, rounds = 0.0, 0, 0
    while done < num_updates:
        frames = [encode_frame(codec, vector, LAYOUT, None, state.version) for vector in vectors]
        sites = {}
        for name, site in state.sites.items():
            order = Order(
                order=f"{name}-{rounds}", site=name, sequence=rounds + 1, at_most=1,
                base_version=state.version, layout=LAYOUT, local_steps=1,
            )  # fmt: skip
            sites[name] = site.change(outstanding=order, sequence=order.sequence)
        state = ServerState(**{**vars(state), "sites": sites})
        deliveries = []
        for n, name in enumerate(names[: num_updates - done]):
            header = UpdateHeader(
                order=f"{name}-{rounds}", site=name, sequence=rounds + 1,
                base_version=state.version, layout=LAYOUT, local_steps=1, tokens=1000,
            )  # fmt: skip
            deliveries.append(Delivery(name, Update(header, frames[n % 8])))
        started = time.perf_counter()
        for start in range(0, len(deliveries), 8):
            state, verdicts, _ = strategy.fold(state, deliveries[start : start + 8])
            assert all(verdict.accepted for verdict in verdicts)
        if strategy.ready(state):
            state, _, _ = strategy.step(state)
        seconds += time.perf_counter() - started
        done, rounds = done + len(deliveries), rounds + 1
    # Unlike getrusage's, this one does not begin with the peak of the process that started us.
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    peak = int(line.split()[1]) / 1024
    return {"sites": num_sites, "updates": done, "seconds": seconds, "peak_mebibytes": peak}


def folded_apart(num_sites: int) -> Any:
    """Fold in a process of its own, on one core, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--fold", str(num_sites)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "codec_speed.json")
    parser.add_argument("--fold", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fold:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(fold(options.fold)))
        return
    found = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "one_update": one_update(),
        "positions": positions(),
        "fold": [folded_apart(num_sites) for num_sites in (10, 1000)],
    }
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
