"""How much memory `boli prepare` takes for files that are made to take all of it.

Each file is prepared alone, with one worker, beside an honest one of 200 sentences; a row has the
peak of the resident memory of the main process and of the worker, and what was kept and dropped.
`--source` runs another copy of the code, under `ulimit -v` of 8 GB and for at most five minutes,
to have something to compare with.

python benchmarks/prepare_hostile.py [--only NAME ...] [--source DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from boli.corpus.starter import starter_lines

HERE = Path(__file__).parent
LIMIT_KILOBYTES, SECONDS = 8 << 20, 300.0


def tags(folder: Path) -> None:
    (folder / "a.html").write_text("<p>" * (31_000_000 // 3))


def attributes(folder: Path) -> None:
    tag = "<p " + "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3 + ">"
    (folder / "a.html").write_text(tag * (31_000_000 // len(tag)))


def formatting(folder: Path) -> None:
    page = "<!-->" + "".join(f"<b a{n}>" for n in range(3000)) + "<p>x" * 60_000
    (folder / "a.html").write_text(page)


def nested(folder: Path) -> None:
    (folder / "a.html").write_text("<div>" * (31_000_000 // 5))


def words(folder: Path) -> None:
    (folder / "a.html").write_text("<p>" + "गया में आज " * (31_000_000 // 28), encoding="utf-8")


def json_line(folder: Path) -> None:
    with (folder / "a.jsonl").open("w") as file:
        file.write('{"text": "')
        for _ in range(1000):
            file.write("a" * 1_000_000)
        file.write('"}\n')


def json_values(folder: Path) -> None:
    line = '{"text": "a", "x": [' + ",".join(['{"a":1}'] * 480_000) + "]}\n"
    (folder / "a.jsonl").write_text(line * 10)


def no_newlines(folder: Path) -> None:
    with (folder / "a.tsv").open("w") as file:
        for _ in range(1000):
            file.write("a\t" * 500_000)


def line_ends(folder: Path) -> None:
    (folder / "a.jsonl").write_text(json.dumps({"text": "a\n" * 1_000_000}) + "\n")


def zip_members(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(100):
            archive.writestr(f"{number}.txt", b"a" * 60_000_000)


def gzip_bomb(folder: Path) -> None:
    with gzip.open(folder / "a.txt.gz", "wb") as file:
        for _ in range(1000):
            file.write(b"a" * 1_000_000)


def parquet_cells(folder: Path) -> None:
    cells = [f"{number}" + "a" * (3 << 20) for number in range(300)]
    pq.write_table(pa.table({"text": cells}), folder / "a.parquet", compression="zstd")


CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "tags": ("31 MB of <p>", tags),
    "nested": ("31 MB of nested <div>", nested),
    "attributes": ("31 MB of attributes", attributes),
    "formatting": ("0.3 MB of elements such as b, behind <!-->", formatting),
    "words": ("a page of 31 MB of text", words),
    "json line": ("a line of JSON of 1 GB", json_line),
    "json values": ("10 lines of JSON of 480,000 objects each", json_values),
    "no newlines": ("1 GB of cells without a line end", no_newlines),
    "line ends": ("a text of a million lines", line_ends),
    "zip members": ("a zip of 6 MB with 100 members of 60 MB", zip_members),
    "gzip": ("a gzip of 1 MB that unpacks to 1 GB", gzip_bomb),
    "parquet": ("a Parquet file of 35 kB with cells of 900 MB", parquet_cells),
}


def prepared(source: Path, out: Path, code: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "boli.cli.main", "prepare", str(source)]
    command += ["--language", "bho", "--out", str(out), "--workers", "1"]
    environment = dict(os.environ)
    if code is not None:
        environment["PYTHONPATH"] = str(code / "src")
        command = ["bash", "-c", f'ulimit -v {LIMIT_KILOBYTES}; exec "$@"', "-", *command]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    peaks = {"main_mebibytes": 0, "worker_mebibytes": 0}
    ended = threading.Event()

    def note(name: str, one: psutil.Process) -> None:
        peaks[name] = max(peaks[name], round(one.memory_info().rss / 2**20))

    def watch() -> None:
        own = psutil.Process(process.pid)
        while not ended.wait(0.05):
            try:
                note("main_mebibytes", own)
                for child in own.children(recursive=True):
                    note("worker_mebibytes", child)
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    begun, error = time.monotonic(), ""
    try:
        error = process.communicate(timeout=SECONDS)[1].decode()
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.communicate()
        error = f"not done after {SECONDS:.0f} s"
    ended.set()
    thread.join()
    found: dict[str, Any] = {**peaks, "seconds": round(time.monotonic() - begun, 1)}
    if process.returncode:
        return {**found, "ended": error.strip().splitlines()[-1] if error.strip() else "killed"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {**found, "kept": report["kept"], "dropped": report["dropped"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[*CASES])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows: dict[str, Any] = {}
    for name in chosen.only:
        what, write = CASES[name]
        with tempfile.TemporaryDirectory(prefix="boli-hostile-") as temporary:
            folder = Path(temporary)
            source = folder / "source"
            source.mkdir()
            lines = "\n".join(starter_lines("bho", 200))
            (source / "honest.txt").write_text(lines + "\n", encoding="utf-8")
            write(source)
            size = sum(path.stat().st_size for path in source.iterdir())
            found = prepared(source, folder / "out", chosen.source)
        rows[name] = {"what": what, "bytes": size, **found}
        print(name, rows[name], flush=True)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
