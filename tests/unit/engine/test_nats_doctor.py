"""What the doctor says of a line and of a clock."""

from __future__ import annotations

import pytest

from boli.engine.nats_doctor import _clock_found, _line_found


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_ordinary_line_needs_no_advice() -> None:
    found = _line_found(0.08, 20.0, 5.0)
    assert (found.level, found.advice) == ("ok", "")
    assert plain(found.value) == "round trip 80 ms, 20 Mbit/s down, 5 Mbit/s up"


def test_thin_line_is_told_of_the_sparse_codec() -> None:
    found = _line_found(0.3, 2.0, 0.064)
    assert found.level == "warning"
    assert "0.064 Mbit/s up" in found.value
    assert 'codec.name = "sparse"' in found.advice


def test_long_line_is_told_of_more_local_steps() -> None:
    found = _line_found(10.0, 2.0, 2.0)
    assert found.level == "warning"
    assert "local_steps" in found.advice


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [
        (0.3, "ok", "0.3 s from the coordinator's"),
        (86400.0, "warning", "24 h 0 min ahead of the coordinator's"),
        (-90.0, "warning", "1 min 30 s behind the coordinator's"),
    ],
)
def test_clock_matters_from_a_minute_on(ahead: float, level: str, words: str) -> None:
    found = _clock_found(ahead)
    assert found.level == level
    assert plain(found.value) == words
    assert bool(found.advice) == (level != "ok")
