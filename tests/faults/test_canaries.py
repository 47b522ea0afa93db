"""A thousand phrases that may not leave do not: not into the pool, a log, a report, or the wire."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from canaries import canary, files_with_canaries, traces, ways_to_hide

Lines = Callable[[str, int], list[str]]

OPEN = 'licence = "CC0-1.0"\n[consent]\npurposes = ["training"]\n[residency]\nlimit = "any"\n'
MANIFESTS = {  # folder → its source.toml, and how many canaries are in its text
    "closed": (None, 300),
    "expired": (OPEN.replace("[residency]", "expires = 2020-01-01\n[residency]"), 100),
    "premises": (OPEN.replace('"any"', '"premises"'), 100),
    "elsewhere": (OPEN.replace('"any"', '"state"\nregion = "IN-UP"'), 100),
    "evaluation": (OPEN.replace('["training"]', '["evaluation"]'), 100),
    "labels": (None, 200),
}
PERSONAL = 100  # in text that may leave, where personal data is replaced


@pytest.fixture(scope="module")
def archive(made_up_lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of folders: one may leave, the others hold canaries."""
    root = tmp_path_factory.mktemp("archive")
    lines = made_up_lines("bho", 1400)
    number = 0
    for name, (manifest, count) in MANIFESTS.items():
        folder = root / name
        folder.mkdir()
        if manifest:
            (folder / "source.toml").write_text(manifest)
        texts = [f"{lines[number + k]} {canary(number + k)} {lines[k]}" for k in range(count)]
        number += count
        if name == "labels":
            write_recordings(folder, texts)
        else:
            (folder / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    folder = root / "open"
    folder.mkdir()
    (folder / "source.toml").write_text(OPEN)
    personal = [
        f"{lines[1000 + k]} zqcanary{k:04d}.name@example{k}.org {lines[1100 + k]}"
        for k in range(PERSONAL)
    ]
    (folder / "a.txt").write_text("\n".join([*lines[1200:1300], *personal]), encoding="utf-8")
    assert number + PERSONAL == 1000
    return root


def write_recordings(folder: Path, labels: list[str]) -> None:
    """Write short sounds, and what is said in them."""
    rng = np.random.default_rng(1)
    rows = []
    for number, label in enumerate(labels):
        sound = 0.1 * rng.standard_normal(16_000).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
        rows.append(f"{number}.wav\t{label}")
    (folder / "labels.tsv").write_text("\n".join(rows), encoding="utf-8")


class Tap:
    """A line to a server, and all that went over it."""

    def __init__(self, port: int) -> None:
        self.seen: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._target = port
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._server.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        taken = bytearray()
        with one, other:
            try:
                while data := one.recv(1 << 16):
                    taken += data
                    other.sendall(data)
            except OSError:
                pass
        self.seen.append(bytes(taken))

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    """Return the port of an S3 server with a bucket called pool."""
    script = Path(__file__).with_name("s3_server.py")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    request = f"PUT /pool HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(request.encode())
        assert b" 200 " in line.recv(1000)
    yield port
    process.kill()
    process.wait()
    process.stdout.close()


class Desk:
    """Runs commands with a home of its own, and keeps what they print."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.printed: list[str] = []

    def boli(self, *arguments: str | Path) -> str:
        environment = os.environ | {
            "BOLI_HOME": str(self.home),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        command = [sys.executable, "-m", "boli.cli.main", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=250
        )
        assert done.returncode == 0, done.stderr
        self.printed += [done.stdout, done.stderr]
        return done.stdout


def prepared(desk: Desk, archive: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    desk.boli("prepare", archive, "--language", "bho", "--out", out, "--column", "2", *more)
    return pq.read_table(out / "records").to_pylist()


def test_what_may_not_leave_does_not(
    archive: Path,
    s3: int,
    tmp_path: Path,
    tiny_plan_file: Callable[..., Path],
) -> None:
    desk, out = Desk(tmp_path / "home"), tmp_path / "prepared"
    rows = prepared(desk, archive, out)
    # They are text at their site: what is sent on is chosen from among them.
    assert sum("zqcanary" in row["text"] for row in rows) > 800
    tap = Tap(s3)
    pools = [str(tmp_path / "pool"), f"s3://pool/p?endpoint=http://127.0.0.1:{tap.port}"]
    for pool in pools:
        desk.boli("pool", "create", pool, "--region", "IN-BR")
        said = desk.boli("share", out, "--pool", pool, "--site", "arrah")
        assert "shared" in said
        desk.boli("pool", "stats", pool)
        desk.boli("pool", "log", pool, "--verify")
        desk.boli("pool", "get", pool, "--out", tmp_path / f"copy{pools.index(pool)}")
    tap.close()
    for number in range(2):
        copy = pq.read_table(tmp_path / f"copy{number}" / "records").to_pylist()
        assert sum("<EMAIL_1>" in row["text"] for row in copy) > 0.8 * PERSONAL
        assert not any("zqcanary" in str(row) for row in copy)
    # A site trains on what may not leave; numbers travel, and facts.
    site = {"name": "arrah", "language": "bho", "text": [{"path": str(out)}]}
    gaya = {"name": "gaya", "language": "mag", "text": ["mag.txt"]}
    plan = tiny_plan_file(tmp_path, site=[site, gaya])
    desk.boli("train", plan, "--runs", tmp_path / "runs")
    runs = [path for path in (tmp_path / "runs").glob("*/*") if path.name != "sites"]

    wire = b"".join(tap.seen)
    assert b"PAR1" in wire
    assert traces(wire) == 0
    assert files_with_canaries(tmp_path / "pool", tmp_path / "home", *runs) == []
    assert files_with_canaries(out / "report.html", out / "report.json") == []
    assert traces("\n".join(desk.printed).encode()) == 0


def test_the_same_phrases_are_found_where_they_may_leave(
    archive: Path, s3: int, tmp_path: Path
) -> None:
    """The control: with other manifests the very same commands let them out, and it shows."""
    source = tmp_path / "archive"
    source.mkdir()
    (source / "source.toml").write_text(OPEN)
    (source / "a.txt").write_bytes((archive / "closed" / "a.txt").read_bytes())
    desk, out = Desk(tmp_path / "home"), tmp_path / "prepared"
    prepared(desk, source, out)
    tap = Tap(s3)
    pools = [str(tmp_path / "pool"), f"s3://pool/q?endpoint=http://127.0.0.1:{tap.port}"]
    for pool in pools:
        desk.boli("pool", "create", pool, "--region", "IN-BR")
        desk.boli("share", out, "--pool", pool, "--site", "arrah")
    desk.boli("pool", "stats", pools[1])
    tap.close()
    assert files_with_canaries(tmp_path / "pool")
    assert traces(b"".join(tap.seen)) > 200
    assert files_with_canaries(out / "examples.html", out / "records")


@pytest.mark.parametrize("way", ways_to_hide(""))
def test_a_leak_is_found_in_every_form(tmp_path: Path, way: str) -> None:
    for number in (0, 7, 999):
        path = tmp_path / "x"
        path.write_bytes(b"\0ahead" + ways_to_hide(canary(number))[way] + b"behind")
        assert files_with_canaries(tmp_path) == [path]
    path.write_bytes(ways_to_hide("nothing of that kind")[way])
    assert files_with_canaries(tmp_path) == []
