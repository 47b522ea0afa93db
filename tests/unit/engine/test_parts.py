"""Messages in parts, and what comes of them when two of them are mixed up."""

from __future__ import annotations

import pytest

from boli.engine.nats_settings import PART_BYTES
from boli.engine.parts import Assembler, Label, parts_of
from boli.errors import TransportError

LARGE = 4 * PART_BYTES


def test_message_comes_out_whole_with_the_handles_of_its_parts() -> None:
    message = bytes(range(256)) * (2 * PART_BYTES // 256) + b"end"
    assembler = Assembler(LARGE)
    found = [assembler.add(label, part, label.index) for label, part in parts_of(message)]
    assert found == [(None, []), (None, []), (message, [0, 1, 2])]


def test_late_part_of_the_message_before_does_not_spoil_this_one() -> None:
    old, new = list(parts_of(b"o" * LARGE)), list(parts_of(b"n" * LARGE))
    assembler = Assembler(LARGE)
    assert assembler.add(*old[0], "o0") == (None, [])
    assert assembler.add(*new[0], "n0") == (None, [])
    assert assembler.add(*old[1], "o1") == (None, [])  # over a connection that was given up
    for number in (1, 2):
        assert assembler.add(*new[number], f"n{number}") == (None, [])
    whole, done = assembler.add(*new[3], "n3")
    assert whole == b"n" * LARGE
    assert done == ["o0", "o1", "n0", "n1", "n2", "n3"]


def test_message_that_is_whole_late_does_not_end_the_next() -> None:
    old, new = list(parts_of(b"o" * LARGE)), list(parts_of(b"n" * LARGE))
    assembler = Assembler(LARGE)
    for index in (0, 1, 2):
        assembler.add(*old[index], index)
    assembler.add(*new[0], 10)
    assert assembler.add(*old[3], 3) == (b"o" * LARGE, [0, 1, 2, 3])
    assert [assembler.add(*new[i], 10 + i)[0] for i in (1, 2, 3)] == [None, None, b"n" * LARGE]


def test_no_more_than_two_messages_are_kept() -> None:
    assembler = Assembler(LARGE)
    done = [assembler.add(Label(f"{n:012x}", 0, 2), b"x", n)[1] for n in range(5)]
    assert done == [[], [], [0], [1], [2]]


@pytest.mark.parametrize("counts", [(6, 2), (2, 6)])
def test_parts_that_disagree_on_their_number_make_no_message(counts: tuple[int, int]) -> None:
    assembler, name = Assembler(8 * PART_BYTES), "0123456789ab"
    for count in counts:
        assert assembler.add(Label(name, count - 1, count), b"x", None)[0] is None
    assert assembler.add(Label(name, 0, 2), b"y", None)[0] == b"yx"


def test_too_large_a_message_is_refused_before_it_is_kept() -> None:
    assembler = Assembler(PART_BYTES)
    with pytest.raises(TransportError, match="too large"):
        assembler.add(Label("0123456789ab", 0, 3), b"x", None)
    with pytest.raises(TransportError, match="too large"):
        assembler.add(Label("0123456789ab", 0, 1), b"x" * (PART_BYTES + 1), None)
