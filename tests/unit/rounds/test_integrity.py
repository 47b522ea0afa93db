from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sealed_run import Writer, lines_of, write_lines

from boli.durable import read_tensors, write_tensors
from boli.errors import CorruptFileError
from boli.journal import (
    GENESIS,
    V1_DIGITS,
    Journal,
    RunInterrupted,
    _line_hash,
    read_head,
    read_journal,
    whole_lines,
)
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.integrity import verify
from boli.run import Run

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Return the folder of a run that was stopped after three rounds."""
    writer = Writer(tmp_path / "run-1")
    state = writer.begin()
    for _ in range(3):
        state = writer.step(state)
    writer.stop(state)
    return writer.folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test's key, and what it has sealed, to itself."""
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "home"))


def other_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "other-home"))


def test_run_in_a_folder_that_was_renamed_is_verified(stopped: Path) -> None:
    told = Run(stopped.rename(stopped.with_name("renamed"))).verify()
    assert (told.problem, told.num_lines, told.sealed, told.version) == ("", 5, 5, 3)
    assert told.is_own_key


def test_run_that_another_machine_signed_is_refused_until_it_is_adopted(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Run(stopped).verify().key
    other_home(tmp_path, monkeypatch)
    told = Run(stopped).verify()  # no key here yet: whoever looks has to know the right one
    assert (told.problem, told.key, told.is_own_key) == ("", key, False)
    assert "is signed by key" in Run(stopped).verify("0" * 32).problem
    adopted = Run(stopped).adopt()
    assert adopted.is_own_key
    assert adopted.key != key
    told = Run(stopped).verify()
    assert (told.problem, told.unsealed) == ("", 0)
    monkeypatch.setenv("BOLI_HOME", str(tmp_path / "home"))
    problem = Run(stopped).verify()
    assert f"is signed by key {adopted.key}" in problem.problem
    assert "--adopt" in problem.hint


def test_only_what_is_whole_can_be_adopted(stopped: Path) -> None:
    write_lines(stopped, lines_of(stopped)[:-1])
    before = (stopped / "journal.head").read_bytes()
    with pytest.raises(CorruptFileError, match="was cut: it has 4 whole lines"):
        Run(stopped).adopt()
    assert (stopped / "journal.head").read_bytes() == before


def test_lost_head_can_be_made_again_by_whoever_vouches_for_the_journal(stopped: Path) -> None:
    (stopped / "journal.head").unlink()
    told = Run(stopped).verify()
    assert "journal.head is missing" in told.problem
    assert "--adopt" in told.hint
    assert not Run(stopped).adopt().problem


def test_checkpoint_that_the_key_did_not_sign_counts_as_corrupt(stopped: Path) -> None:
    head = read_head(stopped / "journal.jsonl")
    assert head is not None
    store = CheckpointStore(stopped / "checkpoints", signer=head.key)
    assert store.load() is not None
    newest = max((stopped / "checkpoints").glob("*"))
    arrays, facts = read_tensors(newest)
    write_tensors(newest, {**arrays, "theta": arrays["theta"] + 1}, facts)
    found = CheckpointStore(stopped / "checkpoints", signer=head.key).load()
    assert found is not None
    assert found[0].version == 2
    assert found[1] == [newest]
    told = Run(stopped).verify()
    assert newest.name in told.problem
    assert "of version 2" in told.hint
    # The control: without a signer, only the checksum counts, and whoever changes it knows it.
    unsigned = CheckpointStore(stopped / "checkpoints").load()
    assert unsigned is not None
    assert unsigned[0].version == 3


def test_old_run_is_read_without_a_signature_and_signed_from_then_on(tmp_path: Path) -> None:
    folder = tmp_path / "first-1"
    folder.mkdir()
    shutil.copy(GOLDEN / "journal-v1.jsonl", folder / "journal.jsonl")
    (folder / "run.json").write_text(json.dumps({"run": "first-1"}))
    told = verify(folder, None)
    assert (told.problem, told.key, told.sealed) == ("", "", 0)
    assert told.num_lines == len(lines_of(folder))
    writer = Writer(folder)
    Run(folder).seal(writer.journal, None)
    writer.journal.append(RunInterrupted(1))
    writer.journal.seal_rest()
    told = verify(folder, None, checkpoint=False)
    assert (told.problem, told.sealed) == ("", told.num_lines)
    assert isinstance(read_journal(folder / "journal.jsonl")[-1].event, RunInterrupted)
    # The first new line names every byte of the old ones, whose own hashes are short.
    lines = lines_of(folder)
    write_lines(folder, [lines[0].replace(b", ", b",  ", 1), *lines[1:]])
    assert verify(folder, None, checkpoint=False).problem


@pytest.mark.parametrize("name", ["run-1", "another"])
def test_sealed_run_that_is_made_to_look_like_an_old_one_is_refused(
    stopped: Path, tmp_path: Path, name: str
) -> None:
    """No head, lines of schema 1 with hashes that fit, no hash in the checkpoint; another name."""
    old = (GOLDEN / "journal-v1.jsonl").read_text()
    bodies = [json.loads(line) for line in old.splitlines()]
    lines, last = [], GENESIS[:V1_DIGITS]
    for body in bodies:
        body.pop("hash")
        body |= {"prev": last} | ({"run": name} if "run" in body else {})
        last = body["hash"] = _line_hash(body)[:V1_DIGITS]
        lines.append(json.dumps(body).encode() + b"\n")
    write_lines(stopped, lines)
    (stopped / "run.json").write_text(json.dumps({"run": name}))
    (stopped / "journal.head").unlink()
    shutil.rmtree(stopped / "checkpoints")
    assert "journal.head is missing" in Run(stopped).verify().problem
    # The control: the same files in a folder that was never sealed here are an old run's.
    assert Run(stopped.rename(tmp_path / "never")).verify().problem == (
        "" if name == "another" else f"{tmp_path / 'never' / 'journal.head'} is missing"
    )


def test_old_lines_after_new_ones_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(RunInterrupted(1))
    journal.close()
    data = journal.path.read_bytes()
    old = (GOLDEN / "journal-v1.jsonl").read_bytes()
    journal.path.write_bytes(data + old)
    with pytest.raises(CorruptFileError, match="in line 2"):
        list(whole_lines(journal.path))


def test_old_checkpoint_that_knows_of_more_lines_than_there_are_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "first-1"
    (folder / "checkpoints").mkdir(parents=True)
    lines = (GOLDEN / "journal-v1.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "run.json").write_text(json.dumps({"run": "first-1"}))
    shutil.copy(GOLDEN / "checkpoint-v1.safetensors", folder / "checkpoints/000000001.safetensors")
    found = CheckpointStore(folder / "checkpoints").load()
    assert found is not None
    write_lines(folder, lines[:7])  # so many it knows of
    assert verify(folder, found).problem == ""
    write_lines(folder, lines[:6])
    assert "knows of 7" in verify(folder, found).problem
