"""Workers: what they return is in order, and what kills one costs one document."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boli.corpus.cleaning import FAILED, Cleaner, Settings
from boli.corpus.documents import Document
from boli.corpus.facts import Facts
from boli.corpus.worker import Batch, Cleaned, Workers, clean_here
from boli.errors import CorpusError

Lines = Callable[[str, int], list[str]]
SETTINGS = Settings("bho", "Deva")

MORTAL = """
import os, time
from boli.corpus import cleaning, worker

clean = cleaning.Cleaner.clean

def mortal(self, documents, *rest):
    print("a library that prints")
    for document in documents:
        if "DEATH" in document.text:
            os._exit(1)
        if "SLEEP" in document.text:
            time.sleep(600)
    return clean(self, documents, *rest)

cleaning.Cleaner.clean = mortal
worker.main()
"""


def batches(lines: list[str], size: int) -> Iterator[Batch]:
    for first in range(0, len(lines), size):
        part = lines[first : first + size]
        documents = [Document(f"a.txt#{first + k}", text) for k, text in enumerate(part)]
        yield Batch(tuple(documents), (0,) * len(part))


def sources(cleaned: list[Cleaned]) -> list[str]:
    return [name for each in cleaned for name in each.records["source"].to_pylist()]


def test_results_come_in_the_order_of_the_batches(made_up_lines: Lines) -> None:
    lines = made_up_lines("bho", 120)
    here = [clean_here(Cleaner(SETTINGS), batch) for batch in batches(lines, 7)]
    there = list(Workers(SETTINGS, 3).clean(batches(lines, 7)))
    assert sources(there) == sources(here)
    assert all(a.records.equals(b.records) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("word", ["DEATH", "SLEEP"])
def test_a_document_that_ends_its_worker_is_dropped_alone(
    made_up_lines: Lines, tmp_path: Path, word: str
) -> None:
    script = tmp_path / "mortal.py"
    script.write_text(MORTAL)
    lines = made_up_lines("bho", 40)
    lines[13] = f"{word} {lines[13]}"
    workers = Workers(SETTINGS, 2, (sys.executable, str(script)), patience_seconds=5)
    cleaned = list(workers.clean(batches(lines, 20)))
    clean = list(Workers(SETTINGS, 2).clean(batches(lines[:13] + lines[14:], 20)))
    assert len(sources(cleaned)) == len(sources(clean))
    rows = [row for each in cleaned for row in each.dropped.to_pylist()]
    assert [row["source"] for row in rows if row["reason"] == FAILED] == ["a.txt#13"]


def test_what_breaks_a_step_costs_one_document(
    made_up_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = made_up_lines("bho", 20)
    from boli.corpus import cleaning

    real = cleaning.normalize_all

    def broken(texts: list[str], *rest: object) -> object:
        if lines[3] in texts:
            raise RecursionError("deep")
        return real(texts, *rest)

    monkeypatch.setattr(cleaning, "normalize_all", broken)
    (batch,) = batches(lines, 20)
    cleaned = clean_here(Cleaner(SETTINGS), batch)
    rows = [(r["source"], r["reason"], r["detail"]) for r in cleaned.dropped.to_pylist()]
    assert ("a.txt#3", FAILED, "RecursionError") in rows
    assert "deep" not in str(rows)


def test_a_stop_in_the_middle_ends_the_workers(made_up_lines: Lines) -> None:
    cleaned = Workers(SETTINGS, 2).clean(batches(made_up_lines("bho", 300), 10))
    next(cleaned)
    cleaned.close()  # joins their threads, or the test's time runs out


def test_a_worker_that_cannot_start_ends_it_with_an_error(made_up_lines: Lines) -> None:
    workers = Workers(SETTINGS, 2, ("false",))
    with pytest.raises(CorpusError, match="exit code 1"):
        list(workers.clean(batches(made_up_lines("bho", 40), 10)))


def test_facts_are_added_up_and_read_again() -> None:
    facts = Facts(documents=2)
    facts.dropped["too short"] = 1
    facts.add(facts)
    assert facts.documents == 4
    assert facts.dropped == {"too short": 2}
    assert Facts.from_json(facts.to_json()) == facts


GREEDY = """
from boli.corpus import cleaning, worker

clean = cleaning.Cleaner.clean

def greedy(self, documents, *rest):
    held = [bytearray(2 << 30) for document in documents if "GREED" in document.text]
    return clean(self, documents, *rest)

cleaning.Cleaner.clean = greedy
worker.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process maps")
def test_a_document_that_takes_all_memory_is_dropped_alone(made_up_lines: Lines) -> None:
    lines = made_up_lines("bho", 40)
    lines[17] += " GREED"
    workers = Workers(SETTINGS, 1, command=(sys.executable, "-c", GREEDY))
    cleaned = list(workers.clean(batches(lines, 20)))
    dropped = [row for each in cleaned for row in each.dropped.to_pylist()]
    assert [row["source"] for row in dropped if row["reason"] == FAILED] == ["a.txt#17"]
    assert len(sources(cleaned)) + len(dropped) == 40
