from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from boli import journal as module
from boli.errors import CorruptFileError, StorageError
from boli.journal import (
    GENESIS,
    Event,
    Journal,
    RoundStepped,
    RunInterrupted,
    SiteLeft,
    read_journal,
)

KINDS = sorted(Event.registry.values(), key=lambda kind: kind.name)
SAMPLES: dict[Any, Any] = {
    str: "गया",
    int: 2**53,
    bool: True,
    float: 0.1,
    list[str]: ["000000001.safetensors"],
    dict[str, str]: {"gaya": "mag"},
    dict[str, dict[str, int]]: {"mag": {"train": 3}},
    dict[str, float]: {"gaya": 0.1},
    float | None: None,
    int | None: None,
    dict[str, dict[str, float | int | None]]: {"gaya": {"norm": 0.1, "cosine": None}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def three(path: Path) -> Path:
    """Return a journal of three events."""
    journal = Journal(path)
    for number in range(3):
        journal.append(RunInterrupted(number))
    journal.close()
    return path


def sample(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    return kind(**{f.name: SAMPLES[hints[f.name]] for f in fields(kind)})


def versions(path: Path) -> list[int]:
    events = [entry.event for entry in read_journal(path)]
    assert all(isinstance(event, RunInterrupted) for event in events)
    return [event.version for event in events if isinstance(event, RunInterrupted)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_event_comes_back_as_it_was(path: Path, kind: type[Event]) -> None:
    journal = Journal(path)
    journal.append(sample(kind))
    journal.close()
    (entry,) = read_journal(path)
    assert entry.event == sample(kind)
    assert type(entry.event) is kind


def test_name_of_an_event_is_its_class_in_snake_case() -> None:
    assert RunInterrupted.name == "run_interrupted"
    assert Event.registry["site_left"] is SiteLeft


def test_line_holds_schema_number_time_and_the_hash_before(three: Path) -> None:
    lines = [json.loads(line) for line in three.read_text().splitlines()]
    assert [line["v"] for line in lines] == [2, 2, 2]
    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert [line["prev"] for line in lines] == [GENESIS, lines[0]["hash"], lines[1]["hash"]]
    assert [line["event"] for line in lines] == ["run_interrupted"] * 3
    assert lines[0]["time"] <= lines[1]["time"] <= lines[2]["time"]
    assert len({line["hash"] for line in lines}) == 3


@pytest.mark.parametrize("explicitly", [True, False])
def test_reopened_journal_continues_the_chain(three: Path, explicitly: bool) -> None:
    journal = Journal(three)
    if explicitly:
        journal.open()
    journal.append(RunInterrupted(3))
    journal.append(RunInterrupted(4))
    journal.close()
    journal.append(RunInterrupted(5))
    journal.close()
    assert versions(three) == [0, 1, 2, 3, 4, 5]
    assert [entry.seq for entry in read_journal(three)] == [0, 1, 2, 3, 4, 5]


# --- what was altered


def test_any_altered_byte_before_the_last_line_is_refused(three: Path) -> None:
    data = three.read_bytes()
    end = data.rfind(b"\n", 0, -1)
    for place in range(end):
        altered = bytearray(data)
        altered[place] ^= 1
        three.write_bytes(altered)
        with pytest.raises(CorruptFileError, match="was altered near byte"):
            read_journal(three)
        with pytest.raises(CorruptFileError):
            Journal(three).open()
        assert three.read_bytes() == altered


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2), (1, 2), (0, 0, 1, 2), (0, 1, 1, 2)], ids=str)
def test_lines_moved_removed_or_repeated_are_refused(three: Path, order: tuple[int, ...]) -> None:
    lines = three.read_bytes().splitlines(keepends=True)
    extra = lines[2]  # so that what is wrong is never the last line
    three.write_bytes(b"".join(lines[i] for i in order) + extra)
    with pytest.raises(CorruptFileError):
        read_journal(three)


def test_line_of_another_run_is_refused(three: Path, tmp_path: Path) -> None:
    other = Journal(tmp_path / "other")
    for _ in range(3):
        other.append(RunInterrupted(9))
    lines = three.read_bytes().splitlines(keepends=True)
    strange = (tmp_path / "other").read_bytes().splitlines(keepends=True)
    three.write_bytes(lines[0] + strange[1] + lines[2])
    with pytest.raises(CorruptFileError):
        read_journal(three)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        pytest.param(
            b"3",
        ),
    ],
)
def test_line_that_is_no_event_is_refused(three: Path, line: bytes) -> None:
    lines = three.read_bytes().splitlines(keepends=True)
    three.write_bytes(lines[0] + line + b"\n" + lines[1] + lines[2])
    with pytest.raises(CorruptFileError):
        read_journal(three)


def test_journal_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(CorruptFileError, match="No such file"):
        read_journal(path)


# --- what was torn


def test_torn_last_line_is_cut_off_wherever_it_was_torn(three: Path) -> None:
    data = three.read_bytes()
    start = data.rfind(b"\n", 0, -1) + 1
    for kept in range(start, len(data)):
        three.write_bytes(data[:kept])
        assert versions(three) == [0, 1]
        journal = Journal(three)
        journal.open()
        journal.append(RunInterrupted(7))
        journal.close()
        assert versions(three) == [0, 1, 7]


def test_garbage_of_a_power_cut_at_the_end_is_cut_off(three: Path) -> None:
    with three.open("ab") as file:
        file.write(bytes(5000))
    journal = Journal(three)
    journal.open()
    journal.append(RunInterrupted(3))
    journal.close()
    assert versions(three) == [0, 1, 2, 3]


def test_journal_torn_in_its_first_line_starts_anew(three: Path) -> None:
    three.write_bytes(three.read_bytes()[:10])
    assert read_journal(three) == []
    journal = Journal(three)
    journal.append(RunInterrupted(5))
    journal.close()
    assert versions(three) == [5]


# --- newer versions


def test_unknown_kind_is_skipped_and_still_part_of_the_chain(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Event, "registry", dict(Event.registry))

    @dataclass(frozen=True)
    class FromTheFuture(Event):
        number: int

    journal = Journal(path)
    for event in (RunInterrupted(0), FromTheFuture(1), RunInterrupted(2)):
        journal.append(event)
    journal.close()
    assert len(read_journal(path)) == 3
    del Event.registry["from_the_future"]
    assert versions(path) == [0, 2]
    path.write_bytes(path.read_bytes().replace(b'"number": 1', b'"number": 2'))
    with pytest.raises(CorruptFileError):
        read_journal(path)


def test_field_that_a_newer_version_added_is_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "asdict", lambda event: {**asdict(event), "mood": "good"})
    journal = Journal(path)
    journal.append(RunInterrupted(4))
    journal.close()
    assert '"mood": "good"' in path.read_text()
    assert versions(path) == [4]


def test_line_of_an_older_version_is_read_without_the_field_added_since(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Event, "registry", dict(Event.registry))

    @dataclass(frozen=True)
    class Newer(RunInterrupted):
        mood: str = "not told"

    Event.registry["run_interrupted"] = Newer
    assert [entry.event for entry in read_journal(three)] == [Newer(0), Newer(1), Newer(2)]


# --- observers and disks


def test_observers_see_events_after_they_are_written(path: Path) -> None:
    seen: list[tuple[Event, int]] = []
    journal = Journal(path, [lambda event: seen.append((event, path.stat().st_size))])
    journal.append(RunInterrupted(1))
    first = path.stat().st_size
    journal.append(SiteLeft("gaya", "signal 9"))
    journal.close()
    assert seen == [
        (RunInterrupted(1), first),
        (SiteLeft("gaya", "signal 9"), path.stat().st_size),
    ]


def test_write_that_falls_short_leaves_no_half_line(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    journal = Journal(three)
    journal.open()
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(StorageError, match="No space left"):
        journal.append(RunInterrupted(3))
    monkeypatch.undo()
    assert three.read_bytes().endswith(b"\n")
    journal.append(RunInterrupted(4))
    journal.close()
    assert versions(three) == [0, 1, 2, 4]
    assert [entry.seq for entry in read_journal(three)] == [0, 1, 2, 3]


@pytest.mark.root
def test_full_disk_keeps_every_whole_line_and_goes_on_when_there_is_space(
    tiny_disk: Callable[[int], Path],
) -> None:
    disk = tiny_disk(16)
    journal = Journal(disk / "journal.jsonl")

    def fill() -> None:
        for number in range(1000):
            journal.append(RunInterrupted(number))

    with pytest.raises(StorageError, match="No space left") as caught:
        fill()
    assert "free some space" in caught.value.hint
    written = len(read_journal(journal.path))
    assert written > 10
    assert versions(journal.path) == list(range(written))
    # The same on an open that follows a crash, and once there is space again.
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:-5]))
    again = Journal(journal.path)
    again.open()
    again.append(RunInterrupted(77))
    again.sync()
    again.close()
    assert versions(journal.path) == [*range(written - 5), 77]


def test_sync_brings_the_file_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    journal = Journal(path)
    journal.sync()
    journal.append(RunInterrupted(1))
    assert synced == []
    journal.sync()
    journal.close()
    assert synced == [path]


def test_journal_in_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Journal(tmp_path / "gone" / "journal.jsonl").append(RoundStepped(1, 2, 3, 0.5, 1.0))
