from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boli import durable
from boli.durable import Generations, locked, read_tensors, write_file, write_tensors
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
