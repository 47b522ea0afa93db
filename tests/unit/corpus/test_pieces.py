from __future__ import annotations

import random
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boli.corpus.pieces import (
    LARGEST_TEXT_BYTES,
    LONGEST_PIECE,
    Floors,
    as_text,
    count_pieces,
    is_piece,
    pack_pieces,
    read_pieces,
    rounded,
    words_of,
)
from boli.corpus.sources import BLOCK_LINES, read_documents, read_split
from boli.errors import CorpusError
from boli.plan_file import load_plan

FLOORS = Floors(10, 3)
FREQUENT = [(f"रउआ गाँव में बानी {i % 7}", f"d{i % 5}") for i in range(60)]


def counted(lines: list[tuple[str, str]], floors: Floors = FLOORS) -> dict[str, int]:
    """Count lines whose documents are their blocks too."""
    return count_pieces([(text, name, name) for text, name in lines], floors)


def sent(extra: list[tuple[str, str]], floors: Floors = FLOORS) -> str:
    """Return all that leaves a site with these lines and some ordinary ones."""
    return as_text(counted([*FREQUENT, *extra], floors))


# --- what leaves


def test_frequent_words_leave_with_rounded_numbers_of_lines() -> None:
    pieces = counted(FREQUENT)
    assert pieces[" गाँव"] == rounded(60)
    assert list(pieces.values()) == sorted(pieces.values(), reverse=True)


@pytest.mark.parametrize(
    ("lines", "documents"),
    [
        pytest.param(50, 1, id="often in one document"),
        pytest.param(50, 2, id="often in two documents"),
        pytest.param(3, 3, id="once in three documents"),
        pytest.param(9, 9, id="one line short"),
    ],
)
def test_rare_string_never_leaves(lines: int, documents: int) -> None:
    secret = "ZebulonQuixworth"
    found = sent([(f"नाम {secret} बा {i}", f"x{i % documents}") for i in range(lines)])
    assert not any(part in found for part in ("Zeb", "Quix", "worth"))


def test_string_that_many_documents_hold_leaves() -> None:
    found = sent([(f"नाम Zebulon बा {i}", f"x{i}") for i in range(10)])
    assert " Zebulon\n" in found


def test_words_without_support_leave_only_the_parts_that_they_share() -> None:
    tail = [(f"लिख{chr(0x905 + i)}वाइब", f"x{i}") for i in range(12)]
    found = counted(tail)
    assert found == {"लिख": rounded(12), "वाइब": rounded(12)}


def test_part_counts_only_the_words_that_were_broken_into_it() -> None:
    # Whole, the word leaves; what it holds says nothing more of the lines that hold it.
    whole = [("लिखवाइब", f"d{i}") for i in range(40)]
    rare = [(f"लिख{chr(0x905 + i)}", f"x{i}") for i in range(4)]
    assert counted([*whole, *rare]) == {"लिखवाइब": rounded(40)}


def test_phone_number_in_many_documents_never_leaves() -> None:
    lines = [(f"फोन 9876543210 पर करीं {i}", f"x{i}") for i in range(40)]
    pieces = counted(lines)
    assert "फोन" in pieces
    assert all(not piece.strip().isdigit() or len(piece.strip()) == 1 for piece in pieces)
    assert "8" not in pieces  # of the phone number alone


def test_address_in_many_documents_never_leaves() -> None:
    lines = [("लिखीं ramkumar.yadav@example.org पर", f"x{i}") for i in range(40)]
    assert set(counted(lines)) == {"लिखीं", " पर"}


def test_long_string_never_leaves_whole() -> None:
    long = "क" * 300
    pieces = counted([(long, f"x{i}") for i in range(40)])
    assert all(len(piece) <= LONGEST_PIECE for piece in pieces)


def test_plan_that_calls_every_line_a_document_gets_nothing_more() -> None:
    secret = [(f"नाम Zebulon बा {i}", f"line {i}", f"block {i // BLOCK_LINES}") for i in range(40)]
    assert count_pieces(secret, FLOORS) == {}
    assert " Zebulon" in count_pieces(secret, Floors(10, 2))


def test_most_pieces_keeps_the_most_frequent() -> None:
    pieces = counted([*FREQUENT, *[("बानी", f"y{i}") for i in range(99)]], Floors(10, 3, 2))
    assert len(pieces) == 2
    assert max(pieces, key=lambda piece: pieces[piece]) == "बानी"


def test_order_of_lines_changes_nothing() -> None:
    lines = [*FREQUENT, *[(f"लिख{chr(0x905 + i)}वाइब", f"x{i}") for i in range(12)]]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert counted(lines) == counted(shuffled)


@given(
    st.lists(
        st.tuples(st.text("कखगि ab", min_size=1, max_size=8), st.sampled_from("123")), max_size=30
    )
)
def test_whatever_leaves_has_support(lines: list[tuple[str, str]]) -> None:
    pieces = counted(lines, Floors(3, 2))
    for piece in pieces:
        holding = [(i, name) for i, (text, name) in enumerate(lines) if piece in f"{text}"]
        assert len({i for i, _ in holding}) >= 3
        assert len({name for _, name in holding}) >= 2


@given(st.integers(1, 10**6))
def test_rounded_count_stays_near_and_is_a_fixed_point(count: int) -> None:
    assert rounded(rounded(count)) == rounded(count)
    assert 0.7 < rounded(count) / count < 1.42


def test_words_put_together_are_the_line() -> None:
    line = "मैं  गया था। 12 रुपया (ABC-12)"
    assert "".join(words_of(line)) == line


# --- documents


def plan_of(folder: Path, lines: list[str], keys: list[str] | None) -> Any:
    (folder / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "keys").write_text("\n".join(keys or []) + "\n", encoding="utf-8")
    by = ', held_out_by = "keys"' if keys else ""
    (folder / "p.toml").write_text(
        'name = "p"\n[model.base]\nlanguage = "hin"\npath = "x"\n[[site]]\nname = "s"\n'
        f'language = "bho"\ntext = [{{ path = "a.txt"{by} }}]\n'
    )
    return load_plan(folder / "p.toml")


@pytest.mark.parametrize("named", [True, False])
def test_training_lines_are_those_of_the_split_and_have_documents(
    tmp_path: Path, named: bool
) -> None:
    lines = [f"पंक्ति {'क' * (i % 17 + 1)} {i}" for i in range(400)]
    plan = plan_of(tmp_path, lines, [f"article {i // 40}" for i in range(400)] if named else None)
    text = plan.site[0].text
    found = read_documents(plan, text, "bho")
    assert [line for line, *_ in found] == read_split(plan, text, "bho")["bho"].train
    sizes = Counter(document for _, document, _ in found)
    assert max(sizes.values()) == 40 if named else max(sizes.values()) <= BLOCK_LINES


# --- what a coordinator reads


@given(st.dictionaries(st.sampled_from([" राम", "काम", "a", "1", "।", " x"]), st.integers(1, 9999)))
def test_what_is_packed_is_read_again(counts: dict[str, int]) -> None:
    pieces = {piece: rounded(count) for piece, count in counts.items()}
    if pieces:
        assert read_pieces(pack_pieces(pieces), 10, "x") == pieces


def test_pack_leaves_out_the_rarest_where_all_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("boli.corpus.pieces.LARGEST_BYTES", 9000)
    draw = random.Random(0)
    letters = "कखगघचछजझटठडढतथदधनपफबभमयरलवशषसह"
    pieces = {"".join(draw.choices(letters, k=20)): rounded(1 + i) for i in range(2000)}
    packed = pack_pieces(pieces)
    assert 8000 < len(packed) <= 9000
    kept = read_pieces(packed, 2000, "x")
    assert min(kept.values()) > min(pieces.values())


def text(*lines: str) -> bytes:
    return zlib.compress("".join(f"{line}\n" for line in lines).encode())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(zlib.compress(b""), id="no pieces"),
        pytest.param(b"not packed", id="not packed"),
        pytest.param(text("5\ta")[:-3], id="cut"),
        pytest.param(text("4\ta") + b"more", id="more behind"),
        pytest.param(zlib.compress(b"4\t\xff\xfe\n"), id="no UTF-8"),
        pytest.param(zlib.compress(b"4\ta\n" * LARGEST_TEXT_BYTES), id="a bomb"),
        pytest.param(text(*(f"4\t{chr(0x4E00 + i)}" for i in range(101))), id="too many"),
        pytest.param(text("4\tb", "4\ta"), id="not sorted"),
        pytest.param(text("4\ta", "4\ta"), id="twice"),
        pytest.param(text("4\t" + "क" * (LONGEST_PIECE + 1)), id="a long piece"),
        pytest.param(text("4\ta b"), id="two words"),
        pytest.param(text("4\t12"), id="a number"),
        pytest.param(text("4\ta\x1b[2J"), id="control characters"),
        pytest.param(text("4\t\u2028"), id="a line end"),
        pytest.param(text("4\t "), id="a space"),
        pytest.param(text("4"), id="no piece"),
        pytest.param(text("0\ta"), id="a count of 0"),
        pytest.param(text("-4\ta"), id="a negative count"),
        pytest.param(text("5\ta"), id="a count that is not rounded"),
        pytest.param(text("1e30\ta"), id="no whole count"),
        pytest.param(text("1" + "0" * 30 + "\ta"), id="a huge count"),
        pytest.param(text("४\ta"), id="digits that are not ASCII"),
    ],
)
def test_what_no_site_sends_is_refused(data: bytes) -> None:
    with pytest.raises(CorpusError, match="the pieces of gaya cannot be used"):
        read_pieces(data, 100, "gaya")


def test_control_and_unassigned_characters_are_in_no_piece() -> None:
    assert is_piece("\u200dष")
    for piece in ("a\x00", "\ue000", "\U000e0fff", "\ud800", "a\n", ""):
        assert not is_piece(piece)
