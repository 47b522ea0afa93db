from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratic import LAYOUT, QuadraticWork

from boli.codec.codec import Decay, DenseCodec, decode_frame
from boli.codec.public import PublicCodec
from boli.codec.sparse import SparseCodec
from boli.codec.support import Support
from boli.durable import Generations
from boli.rounds.transport import Joined, Stop
from boli.rounds.update import Copy, Order, UpdateHeader, Verdict, copies_digest
from boli.site.node import Node


class Line:
    """A NodeLink that hands out instructions; `during` comes between local steps."""

    def __init__(self, *instructions: Any, during: Mapping[int, Any] | None = None) -> None:
        self.waiting, self.during = deque([*instructions, Stop()]), dict(during or {})
        self.looks = 0
        self.joined: list[Joined] = []
        self.sent: list[tuple[UpdateHeader, bytes]] = []

    def join(self, joined: Joined) -> None:
        self.joined.append(joined)

    def receive(self, timeout_seconds: float | None) -> Any:
        if timeout_seconds == 0:
            self.looks += 1
            return self.during.pop(self.looks, None)
        return self.waiting.popleft()

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self.sent.append((header, payload))

    def measure(self, values: Mapping[str, float]) -> None:
        pass


class Noting(QuadraticWork):
    """Notes where each order's local steps start."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def perform(self, order: Order, theta: Any, start: Any, *rest: Any) -> Any:
        self.starts = [*getattr(self, "starts", []), start]
        return super().perform(order, theta, start, *rest)


def order(sequence: int, steps: int = 4) -> Order:
    return Order(
        order=f"run-gaya-{sequence}",
        site="gaya",
        sequence=sequence,
        base_version=0,
        layout=LAYOUT.digest,
        local_steps=steps,
        at_most=steps,
    )


def node(line: Line, folder: Path, copies: Sequence[Copy] = (), **values: Any) -> Node:
    work = Noting("gaya", copies=copies)
    made = Node("gaya", line, work, Generations(folder), LAYOUT.digest, **values)
    made.run()
    return made


def vector(payload: bytes) -> Any:
    return decode_frame(payload, LAYOUT.digest, LAYOUT.size).vector


def test_version_0_is_made_by_the_site_itself(tmp_path: Path) -> None:
    line = Line(order(1))
    made = node(line, tmp_path)
    assert line.joined[0].held_version == 0
    assert line.sent[0][0].base_version == 0
    assert np.array_equal(made.theta, made.work.first)
    assert made.work.closed


def test_old_order_that_comes_again_does_not_displace_a_newer_one_half_done(
    tmp_path: Path,
) -> None:
    line = Line(order(1), order(3), during={6: order(2)})
    node(line, tmp_path)
    assert [header.sequence for header, _ in line.sent] == [1, 3]


def test_newer_order_displaces_one_half_done(tmp_path: Path) -> None:
    line = Line(order(1), during={2: order(3)})
    node(line, tmp_path)
    assert [header.sequence for header, _ in line.sent] == [3]


def test_order_to_a_node_before_with_other_text_is_left_to_come_again(tmp_path: Path) -> None:
    """Whatever waited in a stream: nothing is trained on before the coordinator has noted it."""
    first, second = (Copy(pool="a" * 32, version=n, taken=f"{n:032x}") for n in (1, 2))

    def addressed(*copies: Copy) -> Order:
        return order(1).model_copy(update={"copies": copies_digest(copies)})

    line = Line(order(1), addressed(first), addressed(second, first))
    node(line, tmp_path / "a", copies=[first, second])
    assert len(line.sent) == 1
    for early in (order(1), addressed(first), addressed(second)):
        line = Line(early)
        node(line, tmp_path / "b", copies=[first, second])
        assert line.sent == []


def test_what_a_codec_leaves_goes_with_the_next_update(tmp_path: Path) -> None:
    line = Line(order(1), order(2))
    made = node(line, tmp_path, codec=SparseCodec(density=0.1))
    sent = sum(vector(payload) for _, payload in line.sent)
    assert 0 < np.count_nonzero(sent) < LAYOUT.size
    np.testing.assert_allclose(sent + made.residual, made.work.made, atol=1e-5)
    assert line.sent[1][0].residual_norm == pytest.approx(np.linalg.norm(made.residual), rel=1e-5)


def test_residual_fades_where_the_plan_says_so(tmp_path: Path) -> None:
    whole = node(Line(order(1), order(2)), tmp_path / "a", codec=SparseCodec(density=0.1))
    faded = node(
        Line(order(1), order(2)),
        tmp_path / "b",
        codec=SparseCodec(density=0.1),
        residual_decay=Decay(0.5, 0.5),
    )
    assert np.linalg.norm(faded.residual) < np.linalg.norm(whole.residual)


def test_refused_update_flows_back_and_nothing_is_lost(tmp_path: Path) -> None:
    refused = Verdict(
        order="run-gaya-1", site="gaya", sequence=1, accepted=False, reason="stale", keep=True
    )
    line = Line(order(1), refused, refused, order(2))
    made = node(line, tmp_path, codec=SparseCodec(density=0.1))
    np.testing.assert_allclose(vector(line.sent[1][1]) + made.residual, made.work.made, atol=1e-5)


def test_node_that_was_cut_off_sends_the_same_bytes_again(tmp_path: Path) -> None:
    first, again = Line(order(1)), Line(order(1), order(1))
    node(first, tmp_path, codec=DenseCodec("fp16"))
    node(again, tmp_path, codec=DenseCodec("fp16"))
    assert [payload for _, payload in again.sent] == [first.sent[0][1]] * 2


PUBLIC = PublicCodec(value_bits=4)


def of_cohort(sequence: int) -> Order:
    support = Support(seed=1, start=sequence, blocks=1, unit=-3)
    return order(sequence).model_copy(update={"support": support})


def read(asked: Order, payload: bytes) -> Any:
    """Return what the coordinator makes of a payload of the first version's cohort."""
    assert asked.support is not None
    still = np.zeros(LAYOUT.size, np.float32)
    codec = PUBLIC.on(asked.support, still, ((0, LAYOUT.size),), LAYOUT.size)
    return decode_frame(payload, LAYOUT.digest, LAYOUT.size, codec).vector


def test_public_update_is_its_cohorts_entries_and_the_rest_stays(tmp_path: Path) -> None:
    orders = [of_cohort(1), of_cohort(2)]
    line = Line(*orders)
    made = node(line, tmp_path, codec=PUBLIC)
    sent = [read(asked, payload) for asked, (_, payload) in zip(orders, line.sent, strict=True)]
    assert all(0 < np.count_nonzero(one) <= 16 for one in sent)
    np.testing.assert_allclose(sum(sent) + made.residual, made.work.made, atol=1e-5)


def test_public_node_that_was_cut_off_sends_the_same_bytes_again(tmp_path: Path) -> None:
    first, again = Line(of_cohort(1)), Line(of_cohort(1))
    node(first, tmp_path / "a", codec=PUBLIC)
    node(again, tmp_path / "b", codec=PUBLIC)
    assert first.sent[0][1] == again.sent[0][1]


def test_refused_public_update_flows_back_also_when_its_version_is_gone(tmp_path: Path) -> None:
    """By then the site no longer knows which entries they were; it kept them by themselves."""
    first, second = Line(of_cohort(1)), Line(of_cohort(3).model_copy(update={"returned": 1}))
    node(first, tmp_path, codec=PUBLIC)
    made = node(second, tmp_path, codec=PUBLIC)
    sent = read(of_cohort(3), second.sent[0][1])
    np.testing.assert_allclose(sent + made.residual, made.work.made, atol=1e-5)


@pytest.mark.parametrize("from_residual", [True, False])
def test_site_can_train_on_from_what_it_could_not_send(tmp_path: Path, from_residual: bool) -> None:
    line = Line(order(1), order(2))
    made = node(line, tmp_path, codec=SparseCodec(density=0.1), from_residual=from_residual)
    first, second = made.work.starts
    assert np.array_equal(first, made.work.first)
    moved = np.linalg.norm(second - first)
    assert (moved > 0) == from_residual
    sent = sum(vector(payload) for _, payload in line.sent)
    np.testing.assert_allclose(sent + made.residual, made.work.made, atol=1e-5)


def test_order_may_ask_for_fewer_entries(tmp_path: Path) -> None:
    thin = order(2).model_copy(update={"density": 0.05})
    line = Line(order(1), thin)
    node(line, tmp_path, codec=SparseCodec(density=0.5))
    many, few = (np.count_nonzero(vector(payload)) for _, payload in line.sent)
    assert 0 < few < many / 5


def test_momentum_goes_in_before_the_largest_are_chosen_and_ends_where_they_are_sent(
    tmp_path: Path,
) -> None:
    line = Line(order(1))
    made = node(line, tmp_path, codec=SparseCodec(density=0.1), momentum=0.5)
    sent = vector(line.sent[0][1])
    half = 0.5 * made.work.made
    np.testing.assert_allclose(sent + made.residual, half, atol=1e-6)
    np.testing.assert_allclose(made.velocity, np.where(sent == 0, half, 0), atol=1e-6)
    second = Line(order(2))
    again = node(second, tmp_path, codec=SparseCodec(density=0.1), momentum=0.5)
    moved = 0.5 * (again.work.made - made.work.made) + 0.5 * made.velocity
    total = vector(second.sent[0][1]) + again.residual
    np.testing.assert_allclose(total, made.residual + moved, atol=1e-5)


def test_node_that_was_cut_off_keeps_its_momentum(tmp_path: Path) -> None:
    whole, first, rest = Line(order(1), order(2)), Line(order(1)), Line(order(2))
    settings: dict[str, Any] = {"codec": SparseCodec(density=0.1), "momentum": 0.9}
    node(whole, tmp_path / "a", **settings)
    node(first, tmp_path / "b", **settings)
    node(rest, tmp_path / "b", **settings)
    assert whole.sent[1][1] == rest.sent[0][1]
