from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boli.errors import LayoutError
from boli.model.layout import Layout, Nesting, Segment, shell_order

SHAPES: dict[str, tuple[tuple[int, ...], Nesting]] = {
    "b.lora_B": ((4, 6), "rows"),
    "a.core": ((4, 4), "shells"),
    "c.norm": ((5,), "whole"),
    "d.embedding": ((3, 2, 2), "whole"),
}


def numbered(layout: Layout) -> dict[str, NDArray[Any]]:
    """Return arrays whose entries all differ."""
    arrays, start = {}, 0
    for segment in layout.segments:
        entries = np.arange(start, start + segment.size, dtype=np.float32)
        arrays[segment.name] = entries.reshape(segment.shape)
        start += segment.size
    return arrays


def test_segments_lie_in_name_order_without_gaps() -> None:
    layout = Layout.of(SHAPES)
    assert [segment.name for segment in layout.segments] == sorted(SHAPES)
    assert [segment.offset for segment in layout.segments] == [0, 16, 40, 45]
    assert layout.size == 16 + 24 + 5 + 12


def test_order_of_the_mapping_does_not_matter() -> None:
    turned = dict(reversed(list(SHAPES.items())))
    assert Layout.of(turned).digest == Layout.of(SHAPES).digest


def test_arrays_come_back_exactly() -> None:
    layout = Layout.of(SHAPES)
    arrays = numbered(layout)
    again = layout.unpack(layout.pack(arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(again[name], array)
        assert again[name].shape == SHAPES[name][0]


def test_rows_and_whole_segments_keep_their_order_in_the_vector() -> None:
    layout = Layout.of({"m": ((2, 3), "rows"), "n": ((2, 2), "whole")})
    vector = layout.pack(
        {"m": np.arange(6.0).reshape(2, 3), "n": np.arange(6.0, 10.0).reshape(2, 2)}
    )
    assert vector.dtype == np.float32
    assert np.array_equal(vector, np.arange(10.0))


def test_unpacked_rows_are_views_so_that_writing_them_moves_the_vector() -> None:
    layout = Layout.of({"m": ((2, 3), "rows")})
    vector = np.zeros(6, np.float32)
    layout.unpack(vector)["m"][1, 2] = 7
    assert vector.tolist() == [0, 0, 0, 0, 0, 7]


def test_scalar_segment_takes_one_entry() -> None:
    layout = Layout.of({"scale": ((), "whole")})
    assert layout.size == 1
    assert layout.unpack(np.array([3], np.float32))["scale"] == 3


# --- ranks


def test_shells_of_a_small_core_lie_in_the_written_order() -> None:
    # The matrix   0 1 2
    #              3 4 5   has the borders (0), (1 3 4), (2 5 6 7 8).
    #              6 7 8
    assert shell_order(3).tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 16])
def test_every_top_left_block_is_a_prefix_in_its_own_shell_order(rank: int) -> None:
    matrix = np.arange(rank * rank).reshape(rank, rank)
    flat = matrix.reshape(-1)[shell_order(rank)]
    assert sorted(flat) == list(range(rank * rank))
    for smaller in range(1, rank + 1):
        block = matrix[:smaller, :smaller].reshape(-1)[shell_order(smaller)]
        assert np.array_equal(flat[: smaller * smaller], block)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_view_of_a_rank_holds_the_first_components_in_the_smaller_layouts_order(rank: int) -> None:
    layout = Layout.of(SHAPES)
    smaller = Layout.of(
        SHAPES | {"b.lora_B": ((rank, 6), "rows"), "a.core": ((rank, rank), "shells")}
    )
    arrays = numbered(layout)
    part = smaller.unpack(layout.view(rank).take(layout.pack(arrays)))
    assert layout.view(rank).size == smaller.size
    assert np.array_equal(part["b.lora_B"], arrays["b.lora_B"][:rank])
    assert np.array_equal(part["a.core"], arrays["a.core"][:rank, :rank])
    assert np.array_equal(part["c.norm"], arrays["c.norm"])
    assert np.array_equal(part["d.embedding"], arrays["d.embedding"])


def test_view_of_everything_is_one_span() -> None:
    layout = Layout.of(SHAPES)
    for rank in (None, 4, 9):
        assert layout.view(rank).spans == ((0, layout.size),)
        assert layout.view(rank).size == layout.size
    assert layout.view(None).name == "all"
    assert layout.view(2).name == "rank-2"


def test_spans_are_ascending_and_do_not_touch() -> None:
    spans = Layout.of(SHAPES).view(2).spans
    assert spans == ((0, 4), (16, 28), (40, 57))


def test_view_of_an_empty_layout_takes_nothing() -> None:
    view = Layout.of({}).view(2)
    assert view.spans == ()
    assert view.take(np.zeros(0, np.float32)).size == 0
    view.put(np.zeros(0, np.float32), np.zeros(0, np.float32))


def test_put_writes_back_what_take_took_and_nothing_else() -> None:
    layout = Layout.of(SHAPES)
    view = layout.view(2)
    vector = np.arange(layout.size, dtype=np.float32)
    part = view.take(vector)
    other = np.full(layout.size, -1, np.float32)
    view.put(other, part)
    assert np.array_equal(view.take(other), part)
    assert (other == -1).sum() == layout.size - view.size
    assert np.array_equal(other[other != -1], vector[other != -1])


def test_taken_entries_are_a_copy() -> None:
    layout = Layout.of(SHAPES)
    for rank in (None, 2):
        vector = np.zeros(layout.size, np.float32)
        layout.view(rank).take(vector)[:] = 1
        assert not vector.any()


def test_prefix_counts_the_entries_of_the_first_components() -> None:
    assert Segment("b", (4, 6), 0, "rows").prefix(3) == 18
    assert Segment("a", (4, 4), 0, "shells").prefix(3) == 9
    assert Segment("c", (4, 6), 0, "whole").prefix(3) == 24
    assert Segment("b", (4, 6), 0, "rows").prefix(5) == 24
    assert Segment("b", (4, 6), 0, "rows").prefix(None) == 24


# --- two sides


def test_digest_differs_where_any_segment_differs() -> None:
    variants: list[dict[str, tuple[tuple[int, ...], Nesting]]] = [
        SHAPES,
        SHAPES | {"c.norm": ((6,), "whole")},
        SHAPES | {"d.embedding": ((3, 4), "whole")},
        SHAPES | {"d.embedding": ((2, 3, 2), "whole")},
        SHAPES | {"b.lora_B": ((4, 6), "whole")},
        SHAPES | {"e": ((1,), "whole")},
        {name.replace("c.", "c_"): value for name, value in SHAPES.items()},
    ]
    digests = {Layout.of(shapes).digest for shapes in variants}
    assert len(digests) == len(variants)
    assert all(len(bytes.fromhex(digest)) == 16 for digest in digests)


def test_described_layout_is_the_same() -> None:
    layout = Layout.of(SHAPES)
    again = Layout.from_description(layout.describe())
    assert again == layout
    again.check(layout, "here", "there")


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (SHAPES | {"b.lora_B": ((2, 6), "rows")}, r"'b.lora_B' is \(4, 6\).*and \(2, 6\)"),
        (
            SHAPES | {"b.lora_B": ((2, 6), "rows"), "c.norm": ((1,), "whole")},
            r"'b.lora_B' is \(4, 6\)",
        ),
        ({n: s for n, s in SHAPES.items() if n != "a.core"}, "'a.core' is .* and missing in site"),
        (SHAPES | {"aa": ((1,), "whole")}, "'aa' is missing in run and .* in site"),
        (SHAPES | {"c.norm": ((5,), "rows")}, r"'c.norm' is \(5,\) \(whole\).*\(5,\) \(rows\)"),
    ],
)
def test_mismatch_names_the_first_segment_that_differs(
    theirs: dict[str, tuple[tuple[int, ...], Nesting]], says: str
) -> None:
    with pytest.raises(LayoutError, match=says) as caught:
        Layout.of(SHAPES).check(Layout.of(theirs), "run", "site")
    assert "same base model" in caught.value.hint


def test_array_that_is_missing_or_of_another_shape_is_refused() -> None:
    layout = Layout.of(SHAPES)
    arrays = numbered(layout)
    with pytest.raises(LayoutError, match=r"'c.norm' is \(5, 1\), not \(5,\)"):
        layout.pack(arrays | {"c.norm": np.zeros((5, 1))})
    del arrays["a.core"]
    with pytest.raises(LayoutError, match=r"'a\.core' is missing"):
        layout.pack(arrays)


@pytest.mark.parametrize("shape", [(56,), (58,), (57, 1), ()])
def test_vector_of_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match=r"is not \(57,\)"):
        Layout.of(SHAPES).unpack(np.zeros(shape, np.float32))
