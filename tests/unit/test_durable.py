from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli import durable
from boli.durable import (
    Generations,
    locked,
    make_private,
    open_private,
    read_tensors,
    write_file,
    write_tensors,
)
from boli.errors import CorruptFileError, StorageError

ARRAYS = {
    "theta": np.linspace(-3, 3, 40, dtype=np.float32),
    "sum": np.arange(-5, 5, dtype=np.int64),
    "payload": np.frombuffer(b"BOLI\0\xff", np.uint8),
    "none": np.zeros((0, 3), np.float32),
    "half": np.ones((2, 3), np.float16),
}
FACTS = {"version": 3, "name": "भोजपुरी", "rate": 0.1, "sites": {"gaya": [1, None]}}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name])
        for name in left
    )


# --- one file


def test_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "state"
    write_file(path, b"old" * 1000)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("folder" if target.is_dir() else f"{target.stat().st_size} bytes")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_file(tmp_path / "state", b"12345")
    assert steps == ["5 bytes", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "may write to"),
        (errno.EACCES, "may write to"),
        (errno.EIO, "check the disk"),
    ],
)
def test_disk_that_refuses_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    path = tmp_path / "state"
    write_file(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=f"cannot write .*{os.strerror(number)}") as caught:
        write_file(path, b"new")
    assert hint in caught.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_file(tmp_path / "file" / "state", b"new")


@pytest.mark.root
def test_full_disk_leaves_the_old_file_whole_and_no_temporary(
    tiny_disk: Callable[[int], Path],
) -> None:
    disk = tiny_disk(64)
    path = disk / "state"
    write_file(path, b"old" * 100)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_file(path, bytes(100_000))
    assert "free some space" in caught.value.hint
    assert path.read_bytes() == b"old" * 100
    assert list(disk.iterdir()) == [path]
    write_file(path, bytes(20_000))  # what the failed attempt took is free again
    assert path.stat().st_size == 20_000


# --- private files


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Let everybody read and write whatever says nothing else."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_private_file_and_the_folders_made_for_it_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    write_file(path, b"secret", private=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    write_file(tmp_path / "report", b"for all")  # the control: an ordinary file keeps the umask
    assert stat.S_IMODE((tmp_path / "report").stat().st_mode) == 0o666


@pytest.mark.usefixtures("open_umask")
def test_private_file_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, opened = [], os.open

    def noted(path: Any, flags: int, mode: int = 0o777, **values: Any) -> int:
        descriptor = opened(path, flags, mode, **values)
        if flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", noted)
    write_file(tmp_path / "key", b"secret", private=True)
    assert modes == [0o600]


@pytest.mark.usefixtures("open_umask")
def test_states_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = Generations(tmp_path / "state").save(ARRAYS, FACTS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_link_at_the_name_that_used_to_be_temporary_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "state"
    for planted in (f".{path.name}.tmp", f".{path.name}.{'0' * 16}.tmp", path.name):
        (tmp_path / planted).symlink_to(victim)
    write_file(path, b"secret", private=True)
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert path.read_bytes() == b"secret"


def test_thread_that_plants_links_all_the_time_changes_no_other_file(tmp_path: Path) -> None:
    victim, path, over = tmp_path / "victim", tmp_path / "place" / "state", threading.Event()
    victim.write_bytes(b"precious")
    path.parent.mkdir()
    num_planted = 0

    def plant() -> None:
        nonlocal num_planted
        while not over.is_set():
            for name in (
                path.name,
                f".{path.name}.tmp",
                f".{path.name}.{num_planted % 99:016x}.tmp",
            ):
                with contextlib.suppress(OSError):
                    (path.parent / "new").symlink_to(victim)
                    (path.parent / "new").replace(path.parent / name)
                    num_planted += 1

    attacker = threading.Thread(target=plant)
    attacker.start()
    try:
        for number in range(200):
            write_file(path, b"%d" % number, private=True)
    finally:
        over.set()
        attacker.join()
    assert num_planted > 0
    assert victim.read_bytes() == b"precious"
    assert stat.S_IMODE(victim.stat().st_mode) & 0o077


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".state.{letter * 16}.tmp" for letter in "da")
    other = tmp_path / f".stately.{'d' * 16}.tmp"
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    with alive.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_file(tmp_path / "state", b"new")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_two_writers_of_one_file_both_succeed(tmp_path: Path) -> None:
    path, errors = tmp_path / "state", list[Exception]()

    def write() -> None:
        try:
            for _ in range(100):
                write_file(path, b"x" * 1000)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("open_umask")
def test_folder_that_others_could_read_is_closed_with_all_that_is_in_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    folder = tmp_path / "state"
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "answer").write_bytes(b"update")
    (folder / "link").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    (folder / "a-users-own").write_bytes(b"")
    make_private(folder, ("runs", "link", "pipe", "not-there"))
    for path in (folder, folder / "pipe", folder / "runs", *(folder / "runs").rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert stat.S_IMODE((folder / "a-users-own").stat().st_mode) == 0o666
    assert stat.S_IMODE(outside.stat().st_mode) == 0o666
    make_private(tmp_path / "new", ())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        open_private(tmp_path / "log")
    os.close(open_private(victim))  # the control
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(StorageError), locked(tmp_path, "the folder"):
        pass
    assert victim.read_bytes() == b"precious"


# --- arrays and facts


def test_arrays_and_facts_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, ARRAYS, FACTS)
    arrays, facts = read_tensors(path)
    assert same(arrays, ARRAYS)
    assert facts == FACTS


def test_array_that_is_not_contiguous_is_written_as_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(path, {"turned": matrix.T, "some": matrix[:, ::2]}, {})
    arrays, _ = read_tensors(path)
    assert np.array_equal(arrays["turned"], matrix.T)
    assert np.array_equal(arrays["some"], matrix[:, ::2])


def test_file_without_arrays_is_possible(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", {}, {"a": 1})
    assert read_tensors(tmp_path / "x") == ({}, {"a": 1})


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -100, -1])
def test_torn_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "state"
    write_tensors(path, ARRAYS, FACTS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match=str(path)):
        read_tensors(path)


def test_longer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_tensors(path, ARRAYS, FACTS)
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")
    with pytest.raises(CorruptFileError):
        read_tensors(path)


@pytest.mark.parametrize("place", [-1, -50, -200])
def test_altered_entry_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "state"
    write_tensors(path, ARRAYS, FACTS)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="checksum"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("old", "new"), [(b"version", b"Version"), (b'"sum"', b'"sun"'), (b"[10]", b"[ 5]")]
)
def test_altered_fact_name_or_shape_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "state"
    write_tensors(path, ARRAYS, FACTS)
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CorruptFileError):
        read_tensors(path)


def foreign(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"facts": "{}"}},
        {"__metadata__": {"sha256": "0"}},
        {"__metadata__": {"facts": "{", "sha256": "0"}},
        pytest.param(
            {
                "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
                "__metadata__": {"facts": "{}", "sha256": "0"},
            },
        ),
    ],
)
def test_tensors_that_boli_did_not_write_are_refused(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    path = tmp_path / "state"
    path.write_bytes(foreign(header, b"\0\0\0\0" if "a" in header else b""))
    with pytest.raises(CorruptFileError):
        read_tensors(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError):
        read_tensors(tmp_path / "gone")
    with pytest.raises(CorruptFileError):
        read_tensors(tmp_path)


# --- generations


def numbers(store: Generations) -> list[int]:
    return [int(path.stem) for path in store.paths()]


def save(store: Generations, number: int) -> Path:
    return store.save({"a": np.full(50, number, np.float32)}, {"number": number})


def loaded(store: Generations) -> int:
    found = store.load()
    assert found is not None
    return int(found[1]["number"])


def test_nothing_saved_is_not_an_error(tmp_path: Path) -> None:
    assert Generations(tmp_path / "never").load() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_last_few_generations_are_kept_newest_first(tmp_path: Path, keep: int) -> None:
    store = Generations(tmp_path, keep)
    for number in range(1, 13):
        save(store, number)
    assert numbers(store) == list(range(12, 12 - keep, -1))
    found = store.load()
    assert found is not None
    assert found[1] == {"number": 12}
    assert found[2] == []


def test_load_falls_back_past_a_corrupt_newest_and_names_it(tmp_path: Path) -> None:
    store = Generations(tmp_path)
    save(store, 1)
    newest = save(store, 2)
    newest.write_bytes(newest.read_bytes()[:-1])
    found = store.load()
    assert found is not None
    assert found[1] == {"number": 1}
    assert found[2] == [newest]


def test_no_whole_generation_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    store = Generations(tmp_path)
    paths = [save(store, 1), save(store, 2)]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(CorruptFileError) as caught:
        store.load()
    assert all(str(path) in str(caught.value) for path in paths)
    assert "cannot be resumed" in caught.value.hint


def test_saving_goes_on_after_a_corrupt_newest(tmp_path: Path) -> None:
    store = Generations(tmp_path)
    save(store, 1)
    save(store, 2).write_bytes(b"torn")
    assert loaded(store) == 1
    save(store, 3)
    assert loaded(store) == 3


def test_corrupt_generation_does_not_push_out_the_last_whole_one(tmp_path: Path) -> None:
    store = Generations(tmp_path)
    save(store, 1)
    save(store, 2).write_bytes(b"torn")
    assert loaded(store) == 1
    save(store, 3).write_bytes(b"torn too")
    assert loaded(store) == 1


def test_temporary_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    store = Generations(tmp_path)
    save(store, 1)
    (tmp_path / ".000000002.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / "lock").write_text("77")
    assert loaded(store) == 1
    assert save(store, 2).name == "000000002.safetensors"


@pytest.mark.root
def test_full_disk_leaves_older_generations(tiny_disk: Callable[[int], Path]) -> None:
    store = Generations(tiny_disk(64) / "checkpoints")
    save(store, 1)
    with pytest.raises(StorageError, match="No space left"):
        store.save({"a": np.zeros(100_000, np.float32)}, {"number": 2})
    assert loaded(store) == 1
    assert len(list(store.folder.iterdir())) == 1


# --- locks

TRY_LOCK = """
import sys
from pathlib import Path
from boli.durable import locked
from boli.errors import StorageError
try:
    with locked(Path(sys.argv[1]), "run"):
        print("held", flush=True)
        sys.stdin.read()
except StorageError as error:
    print(error, flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRY_LOCK, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "run", "run"):
        said, _ = start(tmp_path / "run").communicate("", timeout=60)
    assert f"run {tmp_path / 'run'} is in use by process {os.getpid()}" in said
    said, _ = start(tmp_path / "run").communicate("", timeout=60)
    assert said == "held\n"


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with start(tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StorageError, match=f"in use by process {holder.pid}"),
            locked(tmp_path, "run"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=60)
    with locked(tmp_path, "run"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_lock_is_let_go_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path, "run"):
        raise KeyError
    with locked(tmp_path, "run"):
        pass


def test_lock_where_no_folder_can_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError), locked(tmp_path / "file" / "run", "run"):
        pass


def test_whole_tree_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    synced = set()

    def note(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", note)
    durable.sync_tree(tmp_path)
    assert synced == {tmp_path, tmp_path / "deep", tmp_path / "deep" / "a", tmp_path / "b"}
