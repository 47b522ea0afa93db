"""boli prepare as a user runs it: what it prints, writes, and does when it is interrupted."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

Lines = Callable[[str, int], list[str]]
COMMAND = [sys.executable, "-m", "boli.cli.main", "prepare"]


def boli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def records(out: Path) -> list[dict[str, object]]:
    return pq.read_table(out / "records").to_pylist()


@pytest.fixture
def source(made_up_lines: Lines, tmp_path: Path) -> Path:
    """Return a folder with a page, a table and plain text."""
    folder = tmp_path / "archive"
    folder.mkdir()
    lines = made_up_lines("bho", 60)
    (folder / "a.txt").write_text("\n".join(lines[:20]), encoding="utf-8")
    (folder / "b.tsv").write_text(
        "\n".join(f"{k}\t{line}" for k, line in enumerate(lines[20:40])), encoding="utf-8"
    )
    (folder / "c.html").write_text(
        f"<nav>{lines[41]}</nav><p>{lines[42]} {lines[43]}<p>{lines[44]}<script>var x</script>",
        encoding="utf-8",
    )
    return folder


def test_a_folder_becomes_records_and_a_report(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = boli(source, "--language", "bho", "--out", out, "--column", "2", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "documents in 3 files" in done.stdout
    assert f"wrote {source}/source.toml" in done.stdout
    assert len(records(out)) > 30
    page = (out / "report.html").read_text(encoding="utf-8")
    examples = (out / "examples.html").read_text(encoding="utf-8")
    assert "What became of the documents" in page
    assert "script" not in next(
        str(row["text"]) for row in records(out) if str(row["source"]).endswith("c.html#1")
    )
    dropped = pq.read_table(out / "dropped").to_pylist()
    for row in records(out):  # no text on the page that is shown around
        assert str(row["text"]) not in page
    for row in dropped:
        assert len(row["excerpt"]) < 12 or row["excerpt"] not in page
    assert all(row["reason"] in examples for row in dropped)
    assert stat.S_IMODE((out / "examples.html").stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "examples.json").stat().st_mode) == 0o600


def test_the_prepared_text_can_be_trained_on(source: Path, tmp_path: Path) -> None:
    import boli as package

    out = tmp_path / "out"
    assert boli(source, "--language", "bho", "--out", out, "--column", "2").returncode == 0
    plan = tmp_path / "plan.toml"
    first = Path(package.__file__).parents[2] / "plans" / "first.toml"
    plan.write_text(
        first.read_text(encoding="utf-8").replace(
            'starter = "bho", lines = 4000', f'path = "{out}"'
        ),
        encoding="utf-8",
    )
    from boli.corpus.sources import read_split

    loaded = package.load_plan(plan)
    site = next(site for site in loaded.site if site.language == "bho")
    split = read_split(loaded, site.text, "bho")["bho"]
    assert sum(split.counts.values()) == len({str(row["text"]) for row in records(out)})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "o"], "no source"),
        (["s", "--language", "bho"], "no folder"),
        (["s", "--language", "Bhojpuri", "--out", "o"], "ISO 639-3"),
        (["nowhere", "--language", "bho", "--out", "o"], "nothing at nowhere"),
        (["--out", "o", "--explain", "x"], "no finished preparation"),
        (["a.txt", "--language", "bho", "--out", "o", "--identifier", "a.txt"], "a.txt"),
        (["a.txt", "--language", "bho", "--out", "o", "--executor", "slurm"], "time, partition"),
        (
            ["a.txt", "--language", "bho", "--out", "o", "--executor", "local", "--set", "x=1"],
            "'x'",
        ),
    ],
)
def test_a_wrong_command_says_what_to_change(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("x")
    done = boli(*arguments)
    assert done.returncode not in (0, 1), done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_consent_that_is_taken_back_counts_at_once(source: Path, tmp_path: Path) -> None:
    import os

    out, pool = tmp_path / "out", tmp_path / "pool"
    manifest = source / "source.toml"
    given = 'licence = "CC0-1.0"\n[consent]\npurposes = ["training"]\n[residency]\nlimit = "any"\n'
    manifest.write_text(given)
    assert boli(source, "--language", "bho", "--out", out, "--column", "2").returncode == 0

    def shared() -> str:
        command = [sys.executable, "-m", "boli.cli.main", "share", str(out), "--pool", str(pool)]
        environment = os.environ | {"BOLI_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [*command, "--site", "arrah", "--dry-run"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return done.stdout

    create = ["pool", "create", str(pool), "--region", "IN-BR"]
    subprocess.run([sys.executable, "-m", "boli.cli.main", *create], check=True)
    assert "stayed behind        0" in shared()
    manifest.write_text(given.replace('"training"', ""))
    assert "would share          0" in shared()
    assert "no consent to training" in shared()
    manifest.write_text(given)
    source.rename(tmp_path / "away")
    assert "would share          0" in shared()
    assert "it is gone, or has moved" in shared()
    (tmp_path / "away").rename(source)
    assert "stayed behind        0" in shared()


def test_consent_that_is_given_later_is_noted_before_it_counts(
    source: Path, tmp_path: Path
) -> None:
    out, pool = tmp_path / "out", tmp_path / "pool"
    command = [source, "--language", "bho", "--out", out, "--column", "2"]
    done = boli(*command)
    assert f"wrote {source}/source.toml: fill it in and give this command again" in done.stdout
    (source / "source.toml").write_text(
        'licence = "CC0-1.0"\n[consent]\npurposes = ["training"]\n[residency]\nlimit = "any"\n'
    )

    def given(*arguments: str | Path) -> str:
        words = [sys.executable, "-m", "boli.cli.main", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    given("pool", "create", pool, "--region", "IN-BR")
    share = ["share", out, "--pool", pool, "--site", "arrah", "--dry-run"]
    said = given(*share)
    assert "would share          0" in said
    assert f"boli prepare --out {out} --note" in said
    (source / "new.txt").write_text("a file that came later")  # is no reason to begin anew
    done = boli(*command)
    assert done.returncode != 0
    assert "--note" in done.stderr
    assert "The sources allow sharing all" in given("prepare", "--out", out, "--note")
    assert "stayed behind        0" in given(*share)
    assert not any("new.txt" in str(row["source"]) for row in records(out))


def long_source(made_up_lines: Lines, folder: Path) -> Path:
    """Return a folder that takes some seconds."""
    folder.mkdir()
    lines = made_up_lines("bho", 4000)
    for number in range(10):
        part = [f"{line} {number}" for line in lines]
        (folder / f"{number}.txt").write_text("\n".join(part), encoding="utf-8")
    return folder


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    made_up_lines: Lines, tmp_path: Path
) -> None:
    source, out = long_source(made_up_lines, tmp_path / "s"), tmp_path / "out"
    command = [*COMMAND, str(source), "--language", "bho", "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((out / "work").glob("*/progress.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "nothing is lost" in stdout
    (progress,) = (out / "work").glob("*/progress.json")
    done = json.loads(progress.read_text())
    assert done["parts"] >= 1
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not (out / "work").exists()
    whole = boli(source, "--language", "bho", "--out", tmp_path / "whole")
    assert whole.returncode == 0
    assert records(out) == records(tmp_path / "whole")
