"""The pages of a preparation: figures that may be shown around, examples that may not."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from boli.evaluation.prepared import may_leave, summary, write_pages

SHARED = {
    "purposes": ["training"],
    "expires": "",
    "licence": "CC0-1.0",
    "residency": "any",
    "region": "",
    "records": 700,
}
CLOSED = SHARED | {"licence": ""}
FIGURES: dict[str, Any] = {
    "language": "bho",
    "pipeline": "1",
    "sources": ["/srv/<archive>"],
    "files": 2,
    "bytes": 12345,
    "workers": 2,
    "documents": 1000,
    "characters": 70000,
    "kept": 700,
    "kept_characters": 50000,
    "dropped": {"near duplicate": 200, "too short": 99, "exact duplicate": 1},
    "lines": {"boilerplate": 3},
    "personal": {"PHONE": 5},
    "languages": {"bho": 690, "und": 10},
    "scripts": {"Deva": 700},
    "consents": [CLOSED],
    "nanoseconds": {"quality": 2_000_000_000, "markup": 500_000_000},
    "seconds": {"cleaning": 3.0, "duplicates": 0.5, "writing": 0.2},
}
SECRET = "एक बात <b>जो</b> यहीं रहे"
EXAMPLES = {
    "too short": [
        {"id": "0" * 32, "source": "a.txt#1", "detail": "", "excerpt": SECRET, "duplicate_of": ""}
    ]
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(FIGURES), encoding="utf-8")
    (tmp_path / "examples.json").write_text(json.dumps(EXAMPLES), encoding="utf-8")
    return tmp_path


def test_the_report_tells_numbers_and_no_text(out: Path) -> None:
    page = write_pages(out).read_text(encoding="utf-8")
    for told in ("700", "near duplicate", "too short", "PHONE", "boilerplate", "und", "Deva"):
        assert told in page
    assert "रहे" not in page
    assert "/srv/&lt;archive&gt;" in page
    assert page.index("near duplicate") < page.index("too short")  # most frequent first
    assert page.index(">markup<") < page.index(">quality<")  # in the order of the steps


def test_examples_are_escaped_and_for_their_owner_alone(out: Path) -> None:
    write_pages(out)
    page = (out / "examples.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;जो&lt;/b&gt;" in page
    assert "<b>" not in page
    assert stat.S_IMODE((out / "examples.html").stat().st_mode) == 0o600


def test_neither_page_asks_for_anything_elsewhere(out: Path) -> None:
    write_pages(out)
    for name in ("report.html", "examples.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert "default-src 'none'" in page
        assert "http://" not in page
        assert "https://" not in page


def test_the_summary_tells_shares_and_duplicates() -> None:
    told = " ".join(summary(FIGURES))
    assert "1,000 documents in 2 files, 700 (70.0" in told
    assert "201 said again" in told
    assert "Nothing of it may leave" in told


@pytest.mark.parametrize(
    ("consents", "told"),
    [
        ([CLOSED], "Nothing of it may leave this machine by its source.toml: no licence is named"),
        ([SHARED | {"expires": "2020-01-01"}], "consent has expired"),
        ([SHARED | {"residency": "state"}], "no region is named"),
        ([SHARED], "sharing all, as far as: any"),
        ([SHARED | {"records": 5}, CLOSED], "sharing 5 of them"),
        ([SHARED | {"residency": "premises"}], "Nothing of it may leave"),
    ],
)
def test_what_may_leave_is_told(consents: list[dict[str, Any]], told: str) -> None:
    assert told in " ".join(may_leave(FIGURES | {"consents": consents}))


def test_nothing_at_all_makes_a_page_too(out: Path) -> None:
    nothing = {"documents": 0, "kept": 0, "dropped": {}, "personal": {}, "nanoseconds": {}}
    (out / "report.json").write_text(json.dumps(FIGURES | nothing), encoding="utf-8")
    (out / "examples.json").write_text("{}", encoding="utf-8")
    assert "0 documents" in write_pages(out).read_text(encoding="utf-8")
