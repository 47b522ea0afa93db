from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from boli.durable import Generations, read_tensors, write_tensors
from boli.errors import CorruptFileError
from boli.journal import Journal, RunInterrupted, SiteLeft, read_journal

DTYPES = st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.float16, np.bool_])
ARRAYS = st.dictionaries(
    st.text("abcxyz._0é", min_size=1, max_size=8),
    DTYPES.flatmap(lambda dtype: arrays(dtype, array_shapes(min_side=0, max_dims=3, max_side=4))),
    max_size=4,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FACTS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


@pytest.fixture(autouse=True, scope="module")
def no_fsync() -> Iterator[None]:
    """Spare the disk thousands of writes: what is tested here is content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.durable.os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("durable")


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@given(ARRAYS, FACTS)
def test_arrays_and_facts_come_back_bit_for_bit(
    folder: Path, tensors: dict[str, Any], facts: dict[str, Any]
) -> None:
    write_tensors(folder / "state", tensors, facts)
    found, told = read_tensors(folder / "state")
    assert same(found, tensors)
    assert told == facts


@given(ARRAYS, FACTS, st.data())
def test_altered_file_is_refused_or_says_the_same(
    folder: Path, tensors: dict[str, Any], facts: dict[str, Any], data: st.DataObject
) -> None:
    path = folder / "state"
    write_tensors(path, tensors, facts)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CorruptFileError):
        found, told = read_tensors(path)
        # Only padding and the spelling of JSON can differ without anyone noticing.
        assert same(found, tensors)
        assert told == facts


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(2, 3))
def test_newest_whole_of_the_kept_generations_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, whole: list[bool], keep: int
) -> None:
    store = Generations(tmp_path_factory.mktemp("generations"), keep)
    for number in range(len(whole)):
        store.save({"a": np.zeros(3, np.float32)}, {"number": number})
    kept = list(enumerate(whole))[-keep:]
    for number, good in kept:
        if not good:
            path = store.folder / f"{number + 1:09d}.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
    expected = max((number for number, good in kept if good), default=None)
    if expected is None:
        with pytest.raises(CorruptFileError):
            store.load()
    else:
        found = store.load()
        assert found is not None
        assert found[1] == {"number": expected}
        assert len(found[2]) == len(whole) - 1 - expected


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), st.data())
def test_journal_cut_anywhere_keeps_exactly_the_whole_lines(
    folder: Path, reasons: list[str], data: st.DataObject
) -> None:
    path = folder / "journal.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    journal.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("boli.journal.time", SimpleNamespace(time=lambda: 1.5))  # same length again
        for reason in reasons:
            journal.append(SiteLeft("gaya", reason))
    journal.close()
    content = path.read_bytes()
    kept = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:kept])
    expected = [SiteLeft("gaya", reason) for reason in reasons][: content[:kept].count(b"\n")]
    assert [entry.event for entry in read_journal(path)] == expected
    again = Journal(path)
    again.open()
    again.append(RunInterrupted(1))
    again.close()
    assert [entry.event for entry in read_journal(path)] == [*expected, RunInterrupted(1)]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
