from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from boli.model.layout import Layout, Nesting

Shapes = dict[str, tuple[tuple[int, ...], Nesting]]


@st.composite
def nested_shapes(draw: st.DrawFn) -> tuple[int, Shapes]:
    """Draw a rank and segments of every kind that have so many components."""
    rank = draw(st.integers(1, 6))
    shapes: Shapes = {}
    for name in draw(st.sets(st.text("abc.", min_size=1, max_size=4), max_size=6)):
        match draw(st.sampled_from(["rows", "shells", "whole"])):
            case "rows":
                shapes[name] = ((rank, draw(st.integers(1, 5))), "rows")
            case "shells":
                shapes[name] = ((rank, rank), "shells")
            case _:
                whole = draw(st.lists(st.integers(0, 4), max_size=3))
                shapes[name] = (tuple(whole), "whole")
    return rank, shapes


@given(nested_shapes(), st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_inverse(drawn: tuple[int, Shapes], seed: int) -> None:
    layout = Layout.of(drawn[1])
    bits = np.random.default_rng(seed).integers(0, 2**32, layout.size, np.uint32)
    vector = bits.view(np.float32)  # also NaN, infinity and subnormal numbers
    again = layout.pack(layout.unpack(vector))
    assert again.tobytes() == vector.tobytes()


@given(nested_shapes(), st.integers(1, 7), st.integers(1, 7))
def test_smaller_view_is_inside_the_larger_one(
    drawn: tuple[int, Shapes], one: int, other: int
) -> None:
    layout = Layout.of(drawn[1])
    small, large = (layout.view(rank) for rank in sorted((one, other)))
    covered = [set[int](), set[int]()]
    for view, entries in zip((small, large), covered, strict=True):
        for start, stop in view.spans:
            assert 0 <= start < stop <= layout.size
            entries.update(range(start, stop))
        assert len(entries) == view.size
        assert all(a[1] < b[0] for a, b in zip(view.spans, view.spans[1:], strict=False))
    assert covered[0] <= covered[1]


@given(nested_shapes(), st.integers(1, 7))
def test_view_unpacks_in_the_layout_of_the_smaller_rank(
    drawn: tuple[int, Shapes], rank: int
) -> None:
    full, shapes = drawn
    rank = min(rank, full)
    smaller: Shapes = {}
    for name, (shape, nesting) in shapes.items():
        cut = {"rows": (rank, *shape[1:]), "shells": (rank, rank), "whole": shape}[nesting]
        smaller[name] = (cut, nesting)
    layout, part_layout = Layout.of(shapes), Layout.of(smaller)
    vector = np.arange(layout.size, dtype=np.float32)
    arrays = layout.unpack(vector)
    part = part_layout.unpack(layout.view(rank).take(vector))
    for name, (shape, nesting) in smaller.items():
        whole = arrays[name]
        expected = whole if nesting == "whole" else whole[tuple(slice(n) for n in shape)]
        assert np.array_equal(part[name], expected)


@given(nested_shapes(), st.integers(1, 7))
def test_put_undoes_take_and_leaves_the_rest(drawn: tuple[int, Shapes], rank: int) -> None:
    layout = Layout.of(drawn[1])
    view = layout.view(rank)
    vector = np.arange(layout.size, dtype=np.float32)
    other = -1 - vector
    view.put(other, view.take(vector))
    assert np.array_equal(view.take(other), view.take(vector))
    untouched = other < 0
    assert untouched.sum() == layout.size - view.size
    view.put(other, view.take(-1 - vector))
    assert np.array_equal(other, -1 - vector)
