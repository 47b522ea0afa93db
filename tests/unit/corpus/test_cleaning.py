"""One document on its way: pages, recordings, languages, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from boli.corpus import speech
from boli.corpus.cleaning import Cleaner, Settings
from boli.corpus.documents import Document
from boli.corpus.language import Answer
from boli.corpus.speech import Segment

TEXT = "आज बाजार में बहुत भीड़ बा, सब लोग आइल बाड़न आ खूब खरीदारी करत बाड़न।"


class Known:
    """An identifier that answers the same for every text."""

    labels = ("bho", "hin", "mag")

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def identify(self, lines: list[str]) -> list[Answer]:
        return [self.answer] * len(lines)


def cleaner(**parts: Any) -> Cleaner:
    made = Cleaner(Settings("bho", "Deva", recognizer="given"))
    vars(made).update(parts)
    return made


def outcome(made: Cleaner, *documents: Document) -> tuple[list[Any], list[Any]]:
    records, _, dropped, _ = made.clean(documents, [0] * len(documents))
    return records, dropped


def test_a_page_gives_its_running_text(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(f"<nav>होम</nav><p>{TEXT}</p><script>x</script>", encoding="utf-8")
    records, _ = outcome(cleaner(), Document("a.html#0", str(path), "html"))
    assert [(record.source, record.text) for record in records] == [("a.html#1", TEXT)]


def test_a_recording_gives_a_record_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_up_lines: Callable[[str, int], list[str]]
) -> None:
    def heard(*_: Any) -> Iterator[Segment]:
        for number, text in enumerate(made_up_lines("bho", 4)):
            yield Segment(25.0 * number, 25.0 * number + 20, text, 0.9)

    monkeypatch.setattr(speech, "transcribe_file", heard)
    (tmp_path / "a.wav").touch()
    made = cleaner(recognizer=object(), activity=object())
    records, _ = outcome(made, Document("a.wav#0", str(tmp_path / "a.wav"), "recording"))
    assert [record.source for record in records] == ["a.wav#t=0.0,45.0", "a.wav#t=50.0,95.0"]


@pytest.mark.parametrize("data", [b"", b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\x07" * 500, b"text"])
def test_a_damaged_recording_is_told_and_the_rest_goes_on(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    made = cleaner(recognizer=object())
    records, dropped = outcome(
        made, Document("a.wav#0", str(path), "recording"), Document("b.txt#1", TEXT)
    )
    assert [record.source for record in records] == ["b.txt#1"]
    assert [(row.source, row.reason) for row in dropped] == [("a.wav#0", "unreadable")]


def test_a_recording_without_a_recognizer_says_what_is_missing(tmp_path: Path) -> None:
    made = Cleaner(Settings("bho", "Deva"))
    _, dropped = outcome(made, Document("a.wav#0", str(tmp_path / "a.wav"), "recording"))
    assert [(row.reason, row.detail) for row in dropped] == [
        ("recording", "there is no recognizer: see --speech")
    ]


@pytest.mark.parametrize(
    ("answer", "confidence"),
    [
        (Answer("bho", 0.9, "bho", ""), 0.9),
        (Answer("mag", 0.99, "mag", ""), 0.0),
        (Answer("und", 0.4, "bho", "unsure"), 0.0),
    ],
)
def test_a_record_is_as_sure_as_its_own_language(answer: Answer, confidence: float) -> None:
    records, _ = outcome(cleaner(identifier=Known(answer)), Document("a.txt#1", TEXT))
    assert [record.confidence for record in records] == [confidence]


def test_addresses_say_nothing_of_the_rest() -> None:
    text = f"लिखीं: somebody.with.a.long.name@example.org {TEXT[:25]}"
    records, dropped = outcome(cleaner(), Document("a.txt#1", text))
    assert dropped == []
    assert "<EMAIL_1>" in records[0].text


def test_placeholders_do_not_make_a_text() -> None:
    few, enough = "9876543210 ravi@example.org नाम", "फोन करीं 9876543210 पर"
    records, dropped = outcome(cleaner(), Document("a#1", few), Document("a#2", enough))
    assert [record.text for record in records] == ["फोन करीं <PHONE_1> पर"]
    assert [row.reason for row in dropped] == ["too short"]
