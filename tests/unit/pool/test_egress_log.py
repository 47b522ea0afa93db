from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boli.errors import PoolError
from boli.pool.egress_log import HEAD, EgressLog, Mark, first_break, line_hash, read_log

POOL = "a" * 32


@pytest.fixture
def log(tmp_path: Path) -> EgressLog:
    log = EgressLog(tmp_path)
    for number in range(5):
        log.append("intent" if number % 2 == 0 else "done", pool=POOL, of=number - 1, n=number)
    return log


def marks(log: EgressLog) -> tuple[Mark, ...]:
    head = json.loads((log.folder / HEAD).read_text())
    return tuple(Mark(head["log"], line["seq"], line["hash"]) for line in read_log(log.folder))


def test_untouched_log_is_whole(log: EgressLog) -> None:
    assert first_break(log.folder) == ""
    assert first_break(log.folder, marks(log), POOL) == ""
    assert [line["n"] for line in read_log(log.folder)] == [0, 1, 2, 3, 4]
    assert log.path.stat().st_mode & 0o777 == 0o600


def change(lines: list[Any]) -> list[Any]:
    lines[2]["n"] = 99
    return lines


def change_and_rehash(lines: list[Any]) -> list[Any]:
    lines[2]["n"] = 99
    del lines[2]["hash"]
    lines[2]["hash"] = line_hash(lines[2])
    return lines


def rewrite_all(lines: list[Any]) -> list[Any]:
    lines[2]["n"] = 99
    previous = lines[1]["hash"]
    for line in lines[2:]:
        line["prev"] = previous
        del line["hash"]
        previous = line["hash"] = line_hash(line)
    return lines


TAMPERING: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "changed": (change, "line 3 was altered"),
    "changed, with a new hash": (change_and_rehash, "line 4 does not follow"),
    "rewritten to the end": (rewrite_all, "line 5 is not the one that head.json"),
    "removed": (lambda lines: lines[:2] + lines[3:], "line 3 does not follow"),
    "first removed": (lambda lines: lines[1:], "line 1 does not follow"),
    "moved": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 does not follow"),
    "doubled": (lambda lines: lines[:2] + lines[1:], "line 3 does not follow"),
    "cut": (lambda lines: lines[:3], "cut after line 3: there were 5"),
    "emptied": (lambda lines: [], "cut after line 0: there were 5"),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_found_where_it_is(log: EgressLog, kind: str) -> None:
    alter, told = TAMPERING[kind]
    lines = alter([json.loads(line) for line in log.path.read_text().splitlines()])
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told in first_break(log.folder)


def test_every_changed_byte_is_found(log: EgressLog) -> None:
    whole = log.path.read_bytes()
    for place in range(0, len(whole), 7):
        log.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert first_break(log.folder), place


def test_log_and_head_cut_together_are_found_by_the_pool(log: EgressLog) -> None:
    noted = marks(log)
    lines = log.path.read_bytes().splitlines(keepends=True)[:3]
    log.path.write_bytes(b"".join(lines))
    head = json.loads((log.folder / HEAD).read_text())
    last = json.loads(lines[-1])
    end = len(b"".join(lines))
    (log.folder / HEAD).write_text(json.dumps({**head, "seq": 2, "hash": last["hash"], "end": end}))
    assert first_break(log.folder) == ""
    assert "cut after line 3: there were 5" in first_break(log.folder, noted, POOL)


def test_log_rewritten_with_its_head_is_found_by_the_pool(log: EgressLog) -> None:
    noted = marks(log)
    lines = rewrite_all([json.loads(line) for line in log.path.read_text().splitlines()])
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    head = json.loads((log.folder / HEAD).read_text())
    (log.folder / HEAD).write_text(json.dumps({**head, "hash": lines[-1]["hash"]}))
    assert first_break(log.folder) == ""
    assert "line 3 is not the one that the pool has noted" in first_break(log.folder, noted, POOL)


def test_a_pool_that_was_told_nothing_is_found(log: EgressLog) -> None:
    assert "the pool has noted no such line" in first_break(log.folder, (), POOL)


def test_missing_files_are_found(log: EgressLog) -> None:
    whole = log.path.read_bytes()
    log.path.unlink()
    assert "log.jsonl is missing" in first_break(log.folder)
    log.path.write_bytes(whole)
    (log.folder / HEAD).unlink()
    assert "head.json is missing" in first_break(log.folder)


def test_nothing_is_logged_after_a_cut(log: EgressLog) -> None:
    log.path.write_bytes(log.path.read_bytes()[:-10])
    with pytest.raises(PoolError, match="was cut"):
        log.append("intent")


def test_nothing_is_logged_without_the_head(log: EgressLog) -> None:
    (log.folder / HEAD).write_text("{")
    with pytest.raises(PoolError, match="missing or not whole"):
        log.append("intent")


@pytest.mark.parametrize("torn", [1, 20, -1])
def test_line_that_a_killed_process_tore_is_written_over(log: EgressLog, torn: int) -> None:
    head, before = (log.folder / HEAD).read_bytes(), log.path.read_bytes()
    log.append("intent", n=5)
    line = log.path.read_bytes()[len(before) :]
    (log.folder / HEAD).write_bytes(head)
    log.path.write_bytes(before + line[:torn])
    assert first_break(log.folder) == ""  # it never came to send anything
    log.append("intent", n=6)
    assert [line["n"] for line in read_log(log.folder)] == [0, 1, 2, 3, 4, 6]
    assert first_break(log.folder) == ""


def test_line_that_the_head_has_not_noted_yet_counts(log: EgressLog) -> None:
    head = (log.folder / HEAD).read_bytes()
    log.append("intent", n=5)
    (log.folder / HEAD).write_bytes(head)
    log.append("intent", n=6)
    assert [line["n"] for line in read_log(log.folder)] == [0, 1, 2, 3, 4, 5, 6]
    assert first_break(log.folder) == ""


def test_no_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no egress log"):
        list(read_log(tmp_path))


def test_nothing_is_logged_after_the_last_line_was_rewritten(log: EgressLog) -> None:
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    lines[-1]["n"] = 9
    del lines[-1]["hash"]
    lines[-1]["hash"] = line_hash(lines[-1])
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PoolError, match="line 5 is not the one that head"):
        log.append("intent")


def test_last_line_of_any_length_is_recognized(log: EgressLog) -> None:
    log.append("intent", records=["x" * 300_000])
    log.append("done", of=5)
    assert first_break(log.folder) == ""


def test_second_key_of_the_same_name_is_found(log: EgressLog) -> None:
    """The chain's hash is of what Python reads, which is the last of two; others may differ."""
    data = log.path.read_bytes()
    log.path.write_bytes(data.replace(b'"n": 2', b'"n": 7, "n": 2'))
    assert "line 3 was altered" in first_break(log.folder)


def test_lines_that_others_log_meanwhile_need_no_mark_yet(log: EgressLog) -> None:
    noted = marks(log)
    log.append("intent", pool=POOL, n=5)
    log.append("done", pool=POOL, of=5, n=6)
    assert first_break(log.folder, noted, POOL, upto=4) == ""
    assert "noted no such line" in first_break(log.folder, noted, POOL)
