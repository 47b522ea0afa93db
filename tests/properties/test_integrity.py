"""Every edit of a sealed run's files is noticed; nothing that a crash leaves is taken for one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_run import Writer, lines_of, rechained, write_lines

from boli.errors import CorruptFileError
from boli.journal import Head, Journal, RunResumed, read_head, whole_lines
from boli.run import Run

MOMENTS = ("torn", "garbage", "journal", "checkpoint", "sealed", "corrupt", "stopped")


@contextmanager
def run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run-1"


def problem_of(folder: Path) -> str:
    try:
        return Run(folder).verify().problem
    except CorruptFileError as error:
        return error.problem


def crash(writer: Writer, state: Any, moment: str, cut: int) -> None:
    """Make a round up to this moment, and leave what a power cut there can leave."""
    synced = writer.journal.path.stat().st_size
    if moment == "stopped":
        writer.stop(state)
        return
    state = writer.write_journal(state)
    written = writer.journal.path.stat().st_size
    if moment in ("checkpoint", "sealed", "corrupt"):
        state = writer.save_checkpoint(state)
    if moment in ("sealed", "corrupt"):
        writer.seal(state)
    writer.journal.close()
    if moment in ("torn", "garbage"):
        data = bytearray(writer.journal.path.read_bytes())
        kept = synced + cut % (written - synced)
        # A line that was not synced may have its end on the disk, and not its middle.
        data[kept:] = b"" if moment == "torn" else bytes(written - kept - 1) + data[-1:]
        writer.journal.path.write_bytes(data)
    if moment == "corrupt":
        max((writer.folder / "checkpoints").glob("*")).write_bytes(b"nothing")


def resume(folder: Path) -> tuple[Writer, Any]:
    """Go on as `boli train --resume` does."""
    writer = Writer(folder)
    assert writer.journal.key is not None
    name = writer.journal.key.fingerprint
    told, checkpoints, found = Run(folder)._verified(name, name, writer.journal.key)
    told.check()
    writer.checkpoints = checkpoints
    assert found is not None
    Run(folder).seal(writer.journal, found)
    state = found[0].welcome_back()
    checkpoints.save(state)
    writer.journal.append(RunResumed(state.version, [], state.journal_seq))
    writer.journal.seal_rest()
    return writer, state


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(MOMENTS), st.integers(0, 500)), min_size=1, max_size=6))
def test_no_crash_is_taken_for_an_attack(crashes: list[tuple[str, int]]) -> None:
    with run_folder() as folder:
        writer = Writer(folder)
        state = writer.step(writer.step(writer.begin()))
        for moment, cut in crashes:
            crash(writer, state, moment, cut)
            problem = problem_of(folder)
            assert not problem or (moment == "corrupt" and "was changed or not whole" in problem)
            writer, state = resume(folder)
            state = writer.step(state)
        writer.stop(state)
        assert not problem_of(folder)
        assert Run(folder).verify().unsealed == 0


Attack = Callable[[Path, Path, st.DataObject], None]  # the run, another one, what to draw from


def line_of(folder: Path, data: st.DataObject) -> int:
    head = read_head(folder / "journal.jsonl")
    assert head is not None
    return data.draw(st.integers(0, head.num_lines - 1))


def cut(folder: Path, _: Path, data: st.DataObject) -> None:
    write_lines(folder, lines_of(folder)[: line_of(folder, data)])


def tear(folder: Path, _: Path, data: st.DataObject) -> None:
    lines, number = lines_of(folder), line_of(folder, data)
    kept = lines[number][: data.draw(st.integers(0, len(lines[number]) - 1))]
    write_lines(folder, [*lines[:number], kept])


def alter(folder: Path, _: Path, data: st.DataObject) -> None:
    lines, number = lines_of(folder), line_of(folder, data)
    line = bytearray(lines[number])
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    write_lines(folder, [*lines[:number], bytes(line), *lines[number + 1 :]])


def insert_space(folder: Path, _: Path, data: st.DataObject) -> None:
    lines, number = lines_of(folder), line_of(folder, data)
    lines[number] = lines[number].replace(b", ", b",  ", 1)
    write_lines(folder, lines)


def swap(folder: Path, _: Path, data: st.DataObject) -> None:
    lines, number = lines_of(folder), line_of(folder, data)
    other = (number + 1) % len(lines)
    lines[number], lines[other] = lines[other], lines[number]
    write_lines(folder, lines)


def rewrite(folder: Path, _: Path, data: st.DataObject) -> None:
    bodies, number = [json.loads(line) for line in lines_of(folder)], line_of(folder, data)
    bodies[number]["time"] += 1
    write_lines(folder, rechained(bodies))


def splice(folder: Path, other: Path, data: st.DataObject) -> None:
    number = line_of(folder, data)
    bodies = [json.loads(line) for line in (*lines_of(folder)[:number], *lines_of(other)[number:])]
    write_lines(folder, rechained(bodies))


def take(*names: str) -> Attack:
    def attack(folder: Path, other: Path, _: st.DataObject) -> None:
        for name in names:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
                shutil.copytree(other / name, folder / name)
            else:
                shutil.copy(other / name, folder / name)

    return attack


def remove(*names: str) -> Attack:
    def attack(folder: Path, other: Path, _: st.DataObject) -> None:
        for name in names:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink()

    return attack


def remove_newest_checkpoint(folder: Path, _: Path, __: st.DataObject) -> None:
    max((folder / "checkpoints").glob("*")).unlink()


def change_head(folder: Path, _: Path, data: st.DataObject) -> None:
    path = folder / "journal.head"
    head = json.loads(path.read_bytes())
    name = data.draw(st.sampled_from(sorted(head)))
    value = head[name]
    head[name] = value - 1 if isinstance(value, int) else "f" * len(value)
    path.write_text(json.dumps(head))


ATTACKS: dict[str, Attack] = {
    "cut": cut,
    "tear": tear,
    "alter": alter,
    "space": insert_space,
    "swap": swap,
    "rewrite": rewrite,
    "splice": splice,
    "change the head": change_head,
    "another journal": take("journal.jsonl"),
    "another head": take("journal.head"),
    "another journal and head": take("journal.jsonl", "journal.head"),
    "another checkpoint": take("checkpoints"),
    "all of another run but run.json": take("journal.jsonl", "journal.head", "checkpoints"),
    "no head": remove("journal.head"),
    "no journal": remove("journal.jsonl"),
    "no checkpoint": remove("checkpoints"),
    "no newest checkpoint": remove_newest_checkpoint,
}


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=6)
@given(st.data())
def test_every_edit_of_what_was_sealed_is_noticed(name: str, data: st.DataObject) -> None:
    with run_folder() as folder:
        writers = [Writer(folder), Writer(folder.with_name("run-2"))]
        for writer in writers:
            state = writer.begin()
            for _ in range(4):
                state = writer.step(state)
            moment = data.draw(st.sampled_from(("journal", "sealed", "stopped")))
            crash(writer, state, moment, 0)
            assert not problem_of(writer.folder)  # the control
        ATTACKS[name](folder, writers[1].folder, data)
        assert problem_of(folder)
        with pytest.raises(CorruptFileError):
            resume(folder)


def older_copy(folder: Path) -> tuple[Path, Writer, Any]:
    """Return a copy of a run's folder, and the run, which went on since."""
    writer = Writer(folder)
    state = writer.step(writer.step(writer.begin()))
    old = folder.with_name("old")
    shutil.copytree(folder, old)
    for _ in range(3):
        state = writer.step(state)
    writer.stop(state)
    return old, writer, state


@pytest.mark.parametrize(
    "names",
    [
        ("checkpoints",),
        ("journal.jsonl",),
        ("journal.head", "journal.jsonl"),
        ("checkpoints", "journal.jsonl"),
    ],
    ids=" ".join,
)
def test_part_of_an_older_copy_beside_newer_files_is_noticed(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder = tmp_path / "run-1"
    old, _, _ = older_copy(folder)
    take(*names)(folder, old, None)  # type: ignore[arg-type]
    assert problem_of(folder)


def test_whole_folder_put_back_from_an_older_copy_is_not_noticed(tmp_path: Path) -> None:
    """It is what restoring from a copy does; who keeps the last hash elsewhere can tell."""
    folder = tmp_path / "run-1"
    old, _, _ = older_copy(folder)
    kept = Run(folder).verify().last
    take("checkpoints", "journal.jsonl", "journal.head")(folder, old, None)  # type: ignore[arg-type]
    assert not problem_of(folder)
    assert Run(folder).verify().last != kept


def test_whoever_has_the_key_can_write_another_journal(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run-1")
    state = writer.step(writer.step(writer.begin()))
    writer.stop(state)
    bodies = [json.loads(line) for line in lines_of(writer.folder)]
    bodies[-1]["time"] += 1
    write_lines(writer.folder, rechained(bodies))
    *_, last = whole_lines(writer.journal.path)
    head = read_head(writer.journal.path)
    assert isinstance(head, Head)
    assert problem_of(writer.folder)
    (writer.folder / "journal.head").write_text(
        json.dumps(vars(replace(head, hash=last.link).signed(writer.journal.key)))  # type: ignore[arg-type]
    )
    assert not problem_of(writer.folder)


def test_lines_after_the_head_are_counted_as_not_signed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run-1")
    state = writer.step(writer.begin())
    crash(writer, state, "journal", 0)
    told = Run(writer.folder).verify()
    assert (told.problem, told.unsealed, told.sealed) == ("", 1, 2)


def test_finished_journal_takes_no_more_lines(tmp_path: Path) -> None:
    from boli.journal import RunFinished

    writer = Writer(tmp_path / "run-1")
    state = writer.step(writer.begin())
    writer.journal.append(RunFinished(state.version, 1.0, "adapter"))
    writer.journal.seal_rest()
    writer.journal.close()
    assert not problem_of(writer.folder)
    again = Journal(writer.journal.path)
    again.append(RunResumed(1, [], 2))
    again.close()
    assert "goes on after line 3" in problem_of(writer.folder)
