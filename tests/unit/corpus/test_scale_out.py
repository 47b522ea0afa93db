"""datatrove's executors change nothing of what comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Lines = Callable[[str, int], list[str]]

# One after the other, as a cluster would do it side by side. The task's number is in the array.
SBATCH = """#!/bin/bash
script="${@: -1}"
export SLURM_ARRAY_JOB_ID=7 SLURM_NODELIST=here SLURM_NODEID=0 SLURM_JOB_ID=7
last=$(grep -o 'array=0-[0-9]*' "$script" | grep -o '[0-9]*$')
for task in $(seq 0 "${last:-0}"); do
  SLURM_ARRAY_TASK_ID=$task bash "$script" >"$(dirname "$0")/$$.$task.log" 2>&1
done
echo 7
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def source(made_up_lines: Lines, tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    lines = made_up_lines("bho", 200)
    for number in range(5):
        part = lines[number * 30 : number * 30 + 50]  # with repeats between files
        (folder / f"{number}.txt").write_text("\n".join(part), encoding="utf-8")
    return folder


def boli(*arguments: str | Path, path: str = "") -> str:
    command = [sys.executable, "-m", "boli.cli.main", "prepare", *map(str, arguments)]
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{path}:{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(out: Path, name: str) -> list[str]:
    return [str(row) for row in pq.read_table(out / name).to_pylist()]


def assert_same(one: Path, other: Path) -> None:
    assert rows(one, "records") == rows(other, "records")
    assert sorted(rows(one, "dropped")) == sorted(rows(other, "dropped"))


def test_processes_of_datatrove_give_the_same(source: Path, tmp_path: Path) -> None:
    boli(source, "--language", "bho", "--out", tmp_path / "here")
    command = ["--executor", "local", "--tasks", "3", "--set", "workers=2"]
    said = boli(source, "--language", "bho", "--out", tmp_path / "there", *command)
    assert "kept" in said
    assert_same(tmp_path / "here", tmp_path / "there")


def test_tasks_of_ray_give_the_same(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs ray, which no extra of boli installs")
    boli(source, "--language", "bho", "--out", tmp_path / "here")
    command = ["--executor", "ray", "--tasks", "3"]
    said = boli(source, "--language", "bho", "--out", tmp_path / "there", *command)
    assert "kept" in said
    assert_same(tmp_path / "here", tmp_path / "there")


def test_jobs_of_slurm_give_the_same(source: Path, tmp_path: Path) -> None:
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/sh\necho here")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    boli(source, "--language", "bho", "--out", tmp_path / "here")
    command = ["--executor", "slurm", "--tasks", "2", "--set", "time=01:00:00"]
    command += ["--set", "partition=cpu"]
    out = tmp_path / "there"
    said = boli(source, "--language", "bho", "--out", out, *command, path=str(tmp_path / "bin"))
    logs = [path.read_text() for path in tmp_path.rglob("*.log")]
    assert "kept" in said, logs
    assert_same(tmp_path / "here", out)
