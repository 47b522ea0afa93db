"""One job over three ways to carry it: our plan over nats, over Flower, and Flower's FedAvg.

Every arm leaves its versions with the time at which each was made; bytes are read at the
sites' interfaces meanwhile, and the versions are judged after the run, all alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import boli
from boli.errors import CorruptFileError
from boli.journal import OrderSent, RoundStepped, UpdateAccepted, read_journal
from boli.plan import Plan
from boli.preparation import prepare_base
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.update import Order
from boli.site.work import open_work
from links import REPOSITORY, Counted, Links, end, free_port, start

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
Settings = dict[str, Any]
Figures = dict[str, Any]
BOLI = [sys.executable, "-m", "boli.cli.main"]
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "262144",
}
LIMITS = 'text = ["**"]\n'  # of the sites: the corpus has names like seed.bho
LONGEST_SECONDS = 3600.0  # of a run


@dataclass
class Watched:
    """Bytes at the sites' interfaces over a run, and the versions that were made."""

    links: Links
    counts: list[tuple[float, Counted]] = field(default_factory=list)  # by Unix time
    versions: dict[int, tuple[float, Any]] = field(default_factory=dict)  # time, vector
    began: float = 0.0  # Unix time of the first order
    work: dict[int, float] = field(default_factory=dict)  # of the slowest site, by version made
    asked_at: dict[str, float] = field(default_factory=dict)  # Unix time of its first order
    updates: dict[str, list[tuple[float, UpdateAccepted]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def counting(self, also: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Count once a second."""
        over = threading.Event()

        def count() -> None:
            while not over.is_set():
                self.counts.append((time.time(), self.links.counted()))
                also()
                over.wait(1.0)

        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.counts.append((time.time(), self.links.counted()))

    def bytes_until(self, when: float) -> float:
        """Return the bytes of a site, up and down, mean over sites."""
        counted = next((one for at, one in self.counts if at >= when), self.counts[-1][1])
        return statistics.fmean(up + down for up, down in counted.values())

    def curve(self, judge: Callable[[Any], float]) -> list[Figures]:
        """Return what each version took: seconds since the first order, bytes, bits per byte."""
        found, worked = [], 0.0
        for version, (when, theta) in sorted(self.versions.items()):
            worked += self.work.get(version, 0.0)
            seconds = max(0.0, when - self.began)
            found.append(
                {
                    "version": version,
                    "seconds": round(seconds, 1),
                    "seconds_outside_of_work": round(seconds - worked, 1),
                    "bytes": round(self.bytes_until(when)),
                    "bits_per_byte": round(judge(theta), 5),
                }
            )
        return found


def over_nats(plan_path: Path, settings: list[str], plan: Plan, base: str, links: Links) -> Watched:
    """Run a plan with the commands that people use; all sites have the base already."""
    watched = Watched(links)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        place, runs = folder / "coordinator", folder / "runs"
        words = [*BOLI, "coordinator", plan_path, "--listen", f"0.0.0.0:{port}"]
        words += ["--folder", place, "--runs", runs]
        for setting in settings:
            words += ["--set", setting]
        for site in plan.site:
            address = f"{links.hub_address(site.name)}:{port}"
            invite = [*BOLI, "invite", site.name, "--folder", place, "--address", address]
            out = folder / f"{site.name}.boli"
            assert start([*invite, "--out", out], folder / "invite.log").wait() == 0
        limits = folder / "limits.toml"
        limits.write_text(LIMITS)
        with watched.counting(partial(keep_version, runs, watched.versions)):
            coordinator = start(words, folder / "coordinator.log")
            stack.callback(end, coordinator)
            for site in plan.site:
                join = [*BOLI, "join", folder / f"{site.name}.boli", "--data", plan.corpus.root]
                join += ["--state", folder / "states" / site.name, "--base", base]
                join += ["--limits", limits, "--accept"]
                agent = links.start(site.name, join, folder / f"{site.name}.log")
                stack.callback(end, agent)
            wait_for(coordinator, folder)
        (journal,) = runs.glob("*/journal.jsonl")
        read_facts(watched, journal)
    return watched


def wait_for(process: subprocess.Popen[Any], folder: Path) -> None:
    """Wait for the end of a run.

    Raises:
        RuntimeError: it did not end well; the logs say why.
    """
    try:
        code = process.wait(LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        code = -1
    if code != 0:
        logs = [path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")]
        raise RuntimeError(f"the run ended with {code}:\n" + "\n".join(logs))


def read_facts(watched: Watched, journal: Path) -> None:
    """Take when versions were made, and what of it was work, from a run's journal."""
    work: dict[int, float] = defaultdict(float)
    for entry in read_journal(journal):
        match entry.event:
            case OrderSent() as fact:
                watched.began = watched.began or entry.time
                watched.asked_at.setdefault(fact.site, entry.time)
            case UpdateAccepted() as fact:
                made = fact.base_version + 1
                work[made] = max(work[made], fact.work_seconds)
                watched.updates.setdefault(fact.site, []).append((entry.time, fact))
            case RoundStepped() as fact:
                _, theta = watched.versions[fact.version]
                watched.versions[fact.version] = entry.time, theta
    watched.work = {key: work[key] for key in watched.versions if key}
    _, theta = watched.versions[0]
    watched.versions[0] = watched.began, theta


def fedavg(
    plan_path: Path,  # noqa: ARG001
    settings: list[str],  # noqa: ARG001
    plan: Plan,
    base: str,
    links: Links,
) -> Watched:
    """Run Flower's FedAvg in a real federation: one SuperLink, one SuperNode a site."""
    watched = Watched(links)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        versions = folder / "versions"
        versions.mkdir()
        (folder / "plan.json").write_text(plan.model_dump_json())
        with watched.counting():
            config = f'plan="{folder / "plan.json"}" base="{base}" versions="{versions}"'
            app = folder / "app"
            shutil.copytree(HERE / "flower_fedavg", app)
            last = versions / f"{plan.rounds.total}.npy"
            flower_run(folder, app, ["-c", config], plan, links, stack, last.exists)
            time.sleep(1.0)  # so that its line is there too
        lines = (versions / "versions.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            theta = np.load(versions / f"{line['version']}.npy")
            watched.versions[line["version"]] = line["time"], theta
            watched.work[line["version"]] = line["seconds"]
        watched.began = watched.versions[0][0]
    return watched


def over_flower(
    plan_path: Path, settings: list[str], plan: Plan, base: str, links: Links
) -> Watched:
    """Run a plan inside a Flower federation; all sites have the base already."""
    watched = Watched(links)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        runs = folder / "runs"
        words: list[Any] = [*BOLI, "flower", plan_path, folder / "app", "--runs", runs]
        for setting in settings:
            words += ["--set", setting]
        assert start(words, folder / "app.log").wait() == 0

        def is_over() -> bool:
            return any(runs.glob("*/report.html"))

        limits = folder / "limits.toml"
        limits.write_text(LIMITS)
        nodes = {}
        for site in plan.site:
            state = folder / site.name
            nodes[site.name] = f' data="{plan.corpus.root}" state="{state}" base="{base}"'
            nodes[site.name] += f' limits="{limits}" accept=true'
        with watched.counting(partial(keep_version, runs, watched.versions)):
            flower_run(folder, folder / "app", [], plan, links, stack, is_over, nodes)
        (journal,) = runs.glob("*/journal.jsonl")
        read_facts(watched, journal)
    return watched


def keep_version(runs: Path, versions: dict[int, tuple[float, Any]]) -> None:
    """Keep what the last checkpoint of the one run below a folder holds."""
    for path in runs.glob("*/checkpoints"):
        with contextlib.suppress(CorruptFileError, OSError):
            found = CheckpointStore(path).load()
            if found is not None:
                versions.setdefault(found[0].version, (0.0, found[0].theta.copy()))


def flower_run(
    folder: Path,
    app: Path,
    options: list[str],
    plan: Plan,
    links: Links,
    stack: contextlib.ExitStack,
    is_over: Callable[[], bool],
    nodes: Mapping[str, str] | None = None,  # more of each site's node-config
) -> None:
    """Bring up a federation, submit an app and wait until it is over."""
    port = free_port()
    environment = {**FLOWER, "FLWR_HOME": str(folder / "flwr"), "OMP_WAIT_POLICY": "PASSIVE"}
    (folder / "flwr").mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    words: list[Any] = [BIN / "flower-superlink", "--insecure", "--host", "0.0.0.0"]
    words += ["--port", port, "--disable-runtime-dependency-installation"]
    log = folder / "superlink.log"
    stack.callback(end, start(words, log, env=environment, cwd=folder))
    deadline = time.monotonic() + 60
    while "running" not in log.read_text().lower() and time.monotonic() < deadline:
        time.sleep(0.2)
    for site in plan.site:
        words = [BIN / "flower-supernode", "--insecure"]
        words += ["--superlink", f"{links.hub_address(site.name)}:{port}"]
        more = (nodes or {}).get(site.name, "")
        words += ["--port", free_port(), "--node-config", f'site="{site.name}"{more}']
        node = links.start(
            site.name, words, folder / f"{site.name}.log", env=environment, cwd=folder
        )
        stack.callback(end, node)
    words = [BIN / "flwr", "run", app, "here", *options]
    wait_for(start(words, folder / "run.log", env=environment, cwd=folder), folder)
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_over():
        if time.monotonic() > deadline or "FAILED" in log.read_text():
            logs = [path.read_text(errors="replace")[-3000:] for path in folder.rglob("*.log")]
            raise RuntimeError("\n".join(logs))
        time.sleep(0.5)


def judge_of(plan: Plan, base: str) -> Callable[[Any], float]:
    """Return what judges a version on all sites' test parts, as their nodes would."""
    lines = plan.evaluation.model_copy(update={"max_lines": JUDGED_LINES})
    plan = plan.model_copy(update={"evaluation": lines})
    works = [open_work(plan, site, base) for site in plan.site]
    order = Order(
        order="judge", site="", sequence=0, base_version=0, layout="", local_steps=0,
        evaluate=("test",),
    )  # fmt: skip

    def judge(theta: Any) -> float:
        done = [work.perform(order, theta, theta, lambda: 0, lambda *_: True) for work in works]
        return statistics.fmean(d.judgements[0].bits / d.judgements[0].bytes for d in done)

    return judge


JUDGED_LINES = 300  # of each language, after the run
# No arm judges while it trains: what is left of it, at the first version and the last, is short.
ALL: Settings = {
    "engine.threads_per_site": 1,
    "evaluation.every_rounds": 1000,
    "evaluation.max_lines": 1,
}
ARMS: dict[str, tuple[str, Settings, Callable[..., Watched]]] = {
    "nats": ("thin_lora.toml", {}, over_nats),
    "flower": ("thin_lora.toml", {}, over_flower),
    # As thin_wire.py tuned its arm `fedavg`.
    "flower fedavg": (
        "lora.toml",
        {
            "model.local_steps.batch_sequences": 8,
            "model.local_steps.learning_rate": 1.5e-2,
            "rounds.total": 15,
            "rounds.local_steps": 20,
            "rounds.outer.name": "sgd",
            "rounds.outer.learning_rate": 1.0,
        },
        fedavg,
    ),
}


def measure(arm: str, preset: str, data: Path, more: Settings) -> Figures:
    """Carry out an arm's plan behind a preset's links."""
    name, own, carry_out = ARMS[arm]
    path = REPOSITORY / "benchmarks" / name
    values = {**ALL, **own, **more, "corpus.root": str(data)}
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    plan = boli.load_plan(path, settings)
    base = prepare_base(plan)
    sites = tuple(site.name for site in plan.site)
    loads = [os.getloadavg()[0]]
    with Links(preset, sites).up() as links:
        watched = carry_out(path, settings, plan, base, links)
        late = links.late_p99_ms()
    loads.append(os.getloadavg()[0])
    shown = {key: value for key, value in values.items() if key != "corpus.root"}
    return {
        "plan": name,
        "settings": shown,
        "curve": watched.curve(judge_of(plan, base)),
        "bytes_by_site": watched.counts[-1][1],
        "late_p99_ms": late,
        "load_before_and_after": [round(load, 1) for load in loads],
    }


# Few steps to an order, so that a slow site's update is not late; one site is 4 times slower.
UNLIKE: Settings = {
    "rounds.mode": "asynchronous",
    "rounds.buffer_size": 3,
    "rounds.most_share": 0.67,
    "rounds.max_staleness": 10,
    "rounds.local_steps": 100,
    "rounds.total": 16,
    "site.gaya.slowdown": 4.0,
}


def utilization(preset: str, data: Path, more: Settings) -> Figures:
    """Return the share of its time since its first order that each site was in local steps."""
    path = REPOSITORY / "benchmarks" / "thin_lora.toml"
    values = {**ALL, **UNLIKE, **more, "corpus.root": str(data)}
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    plan = boli.load_plan(path, settings)
    base = prepare_base(plan)
    with Links(preset, tuple(site.name for site in plan.site)).up() as links:
        watched = over_nats(path, settings, plan, base, links)
        late = links.late_p99_ms()
    found: Figures = {"late_p99_ms": late}
    for site, updates in sorted(watched.updates.items()):
        last, _ = updates[-1]
        trained = sum(fact.train_seconds for _, fact in updates)
        tokens = sum(fact.tokens for _, fact in updates)
        found[site] = {
            "updates": len(updates),
            "seconds": round(last - watched.asked_at[site], 1),
            "trained_percent": round(100 * trained / (last - watched.asked_at[site]), 2),
            "tokens_per_second": round(tokens / trained),
        }
    return found
