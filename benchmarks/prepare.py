"""How fast documents become clean records without near duplicates, and what is kept.

speed        documents per second, start-up included, with 1 and 2 workers, beside datatrove's
             own filters and MinHash on the same documents (prepare_peer.py), taking turns
kept         what was made of each kind of document, on both sides
memory       peak of the main process and of a worker, for as many documents and ten times that

python benchmarks/prepare.py DATA [--documents 50000] [--turns 3] [--out FILE]

datatrove needs, for Hindi: pip install orjson; pip install --no-deps indic-nlp-library 'xxhash<4'.
Without them only our own side is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from hindi_documents import write_documents

HERE = Path(__file__).parent
SEED = 20


def watched(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds and the peaks of its own and its largest child's memory."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks = {"main_bytes": 0.0, "child_bytes": 0.0}
    ended = threading.Event()

    def watch() -> None:
        own = psutil.Process(process.pid)
        while not ended.wait(0.1):
            try:
                peaks["main_bytes"] = max(peaks["main_bytes"], own.memory_info().rss)
                for child in own.children(recursive=True):
                    peaks["child_bytes"] = max(peaks["child_bytes"], child.memory_info().rss)
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    error = process.communicate()[1]
    ended.set()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{error.decode()[-3000:]}")
    return {"seconds": time.monotonic() - begun, **peaks}


def ours(documents: Path, out: Path, workers: int) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "boli.cli.main", "prepare", str(documents)]
    command += ["--language", "hin", "--out", str(out), "--workers", str(workers)]
    return watched(command)


def theirs(documents: Path, out: Path, config: str, workers: int) -> dict[str, float]:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, str(HERE / "prepare_peer.py"), str(documents), str(out)]
    return watched([*command, config, str(workers)])


def kinds(documents: Path) -> list[str]:
    """Return what each document is, in order."""
    return [
        json.loads(line)["id"].partition(":")[2]
        for path in sorted(documents.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def kept_of_ours(documents: Path, out: Path) -> set[int]:
    sizes, first = {}, 0
    for path in sorted(documents.glob("*.jsonl")):
        sizes[path.name] = first
        first += sum(1 for _ in path.open("rb"))
    places = pq.read_table(out / "records", columns=["source"])["source"].to_pylist()
    names = [place.rpartition("/")[2].split("#") for place in places]
    return {sizes[name] + int(line) - 1 for name, line in names}


def kept_of_theirs(out: Path) -> set[int]:
    lines = [
        line
        for path in (out / "kept").rglob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return {int(json.loads(line)["id"].partition(":")[0]) for line in lines}


def judged(what: list[str], kept: set[int]) -> dict[str, Any]:
    """Return the share of each kind that was kept, and of pairs of duplicates that were cut."""
    total, stayed = Counter[str](), Counter[str]()
    for place, kind in enumerate(what):
        name, _, first = kind.partition(" of ")
        total[name] += 1
        # A duplicate is found where of it and the first one not both stay.
        stayed[name] += place in kept and (not first or int(first) in kept)
    return {
        name: {"documents": total[name], "kept": round(stayed[name] / total[name], 5)}
        for name in sorted(total)
    }


def agreement(what: list[str], one: set[int], other: set[int]) -> dict[str, int]:
    clean = {place for place, kind in enumerate(what) if kind == "clean"}
    return {
        "both": len(one & other),
        "only_ours": len(one - other),
        "only_theirs": len(other - one),
        "only_ours_clean": len((one - other) & clean),
        "only_theirs_clean": len((other - one) & clean),
    }


def summary(runs: list[dict[str, float]], number: int) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "documents_per_second": round(number / statistics.median(seconds)),
        "range": [round(number / value) for value in (max(seconds), min(seconds))],
        "main_mebibytes": round(max(run["main_bytes"] for run in runs) / 2**20),
        "child_mebibytes": round(max(run["child_bytes"] for run in runs) / 2**20),
    }


def measure(data: Path, folder: Path, number: int, turns: int, times: int) -> dict[str, Any]:
    documents = folder / "documents"
    characters = write_documents(data, documents, number, SEED)
    what = kinds(documents)
    peers = ("default", "tuned") if importlib.util.find_spec("indicnlp") else ()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(turns):
        for workers in (1, 2):
            run = ours(documents, folder / f"ours{workers}", workers)
            runs.setdefault(f"ours, {workers} workers", []).append(run)
            print(f"ours, {workers} workers: {number / run['seconds']:.0f} a second", flush=True)
        for name in peers:
            run = theirs(documents, folder / name, name, 2)
            runs.setdefault(f"datatrove {name}, 2 workers", []).append(run)
            print(f"datatrove {name}: {number / run['seconds']:.0f} a second", flush=True)
    kept = {"ours": kept_of_ours(documents, folder / "ours2")}
    kept |= {f"datatrove {name}": kept_of_theirs(folder / name) for name in peers}
    figures: dict[str, Any] = {
        "documents": number,
        "characters": characters,
        "turns": turns,
        "speed": {name: summary(found, number) for name, found in runs.items()},
        "kept": {name: judged(what, found) for name, found in kept.items()},
        "agreement": {name: agreement(what, kept["ours"], found) for name, found in kept.items()},
        "steps": steps(folder / "ours2"),
    }
    if times > 1:
        shutil.rmtree(documents)
        write_documents(data, documents, times * number, SEED)
        run = ours(documents, folder / "ours2", 2)
        figures["ten_times"] = {"documents": times * number} | summary([run], times * number)
    return figures


def steps(out: Path) -> dict[str, float]:
    """Return microseconds per document of each step, one worker."""
    figures = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        name: round(value / 1000 / figures["documents"], 1)
        for name, value in figures["nanoseconds"].items()
    } | {"seconds of duplicates": round(figures["seconds"]["duplicates"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "prepare.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(given.data, Path(folder), given.documents, given.turns, given.times)
    figures["machine"] = f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    given.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
