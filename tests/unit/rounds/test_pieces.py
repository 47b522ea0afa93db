"""What the coordinator does before the first round: ask each site once, and keep what it sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from boli.corpus.pieces import pack_pieces
from boli.errors import CorpusError, RunError, SiteError
from boli.rounds.pieces import Gathering, read_gathered
from boli.rounds.transport import Arrival, Delivery, Failed, Joined, Left, Malformed
from boli.rounds.update import Order, Update, UpdateHeader, Verdict
from boli.site.pieces import LAYOUT

GAYA, ARRAH = {" राम": 16, "काम": 11}, {" नाम": 23}
MOST = 100


class Script:
    """A transport on which what arrives was written down before."""

    def __init__(self, *arrivals: Sequence[Arrival]) -> None:
        self.arrivals: Iterator[Sequence[Arrival]] = iter(arrivals)
        self.orders: list[Order] = []
        self.verdicts: list[Verdict] = []
        self.now = 0.0

    def start(self, views: Any, release: Any) -> None:
        self.views, self.release = views, release

    def receive(self, timeout_seconds: float) -> Sequence[Arrival]:
        self.now += timeout_seconds
        return next(self.arrivals, ())

    def send_order(self, order: Order) -> None:
        self.orders.append(order)

    def answer(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)


def joined(site: str) -> Joined:
    return Joined(site, LAYOUT.describe(), {}, 0)


def answer(site: str, content: bytes, **values: Any) -> Delivery:
    facts = {
        "order": f"r-pieces-{site}-1",
        "site": site,
        "sequence": 1,
        "base_version": 0,
        "layout": LAYOUT.digest,
        "local_steps": 0,
        "tokens": 0,
    }
    return Delivery(site, Update(UpdateHeader.model_validate(facts | values), content))


def gather(folder: Path, script: Script, **values: Any) -> bool:
    found = Gathering(
        script,  # type: ignore[arg-type]
        folder,
        "r-pieces",
        LAYOUT.digest,
        ("arrah", "gaya"),
        MOST,
        10.0,
        clock=lambda: script.now,
        **values,
    )
    return found.run_to_the_end()


def test_every_site_is_asked_once_and_what_it_sent_is_kept(tmp_path: Path) -> None:
    script = Script(
        [joined("gaya"), joined("arrah")],
        [answer("gaya", pack_pieces(GAYA))],
        [joined("gaya"), answer("gaya", pack_pieces(GAYA))],
        [answer("arrah", pack_pieces(ARRAH))],
    )
    assert gather(tmp_path, script)
    assert [order.site for order in script.orders] == ["gaya", "arrah"]
    assert all(order.local_steps == 0 and not order.evaluate for order in script.orders)
    assert [verdict.accepted for verdict in script.verdicts] == [True, True, True]
    found = read_gathered(tmp_path, MOST)
    assert found is not None
    assert found.counts == {"arrah": ARRAH, "gaya": GAYA}
    assert found.sent["gaya"].num_pieces == 2
    assert found.sent["gaya"].bytes == (tmp_path / "gaya").stat().st_size
    assert not found.without


def test_coordinator_that_was_killed_asks_the_others_only(tmp_path: Path) -> None:
    first = Script([joined("gaya"), joined("arrah")], [answer("gaya", pack_pieces(GAYA))])
    assert not gather(tmp_path, first, should_stop=lambda: bool(first.verdicts))
    assert read_gathered(tmp_path, MOST) is None
    second = Script([joined("gaya"), joined("arrah")], [answer("arrah", pack_pieces(ARRAH))])
    assert gather(tmp_path, second)
    assert [order.site for order in second.orders] == ["arrah"]
    found = read_gathered(tmp_path, MOST)
    assert found is not None
    assert set(found.counts) == {"arrah", "gaya"}


def test_file_that_was_cut_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "gaya").write_bytes(pack_pieces(GAYA)[:-2])
    script = Script(
        [joined("gaya"), joined("arrah")],
        [answer("gaya", pack_pieces(GAYA)), answer("arrah", pack_pieces(ARRAH))],
    )
    assert gather(tmp_path, script)
    assert [order.site for order in script.orders] == ["gaya", "arrah"]


@pytest.mark.parametrize(
    "arrivals",
    [
        pytest.param([Failed("gaya", "its people said no")], id="refuses"),
        pytest.param([answer("gaya", b"\xff" * 99)], id="sends what is none"),
        pytest.param([answer("gaya", pack_pieces(GAYA), layout="x")] * 3, id="for another layout"),
        pytest.param([Malformed("gaya", "no message")] * 3, id="sends no messages"),
        pytest.param([Left("gaya", "the line was lost")], id="is gone"),
    ],
)
def test_run_goes_on_without_a_site_that_sends_none(
    tmp_path: Path, arrivals: list[Arrival]
) -> None:
    script = Script(
        [joined("gaya"), joined("arrah")], arrivals, [answer("arrah", pack_pieces(ARRAH))]
    )
    assert gather(tmp_path, script)
    found = read_gathered(tmp_path, MOST)
    assert found is not None
    assert set(found.counts) == {"arrah"}
    assert set(found.without) == {"gaya"}
    refused = [verdict for verdict in script.verdicts if verdict.site == "gaya"]
    assert not any(verdict.accepted or verdict.keep for verdict in refused)


def test_site_that_comes_back_is_asked_after_all(tmp_path: Path) -> None:
    script = Script(
        [joined("gaya"), Failed("gaya", "its disk is full")],
        [joined("gaya"), answer("gaya", pack_pieces(GAYA))],
        [joined("arrah"), answer("arrah", pack_pieces(ARRAH))],
    )
    assert gather(tmp_path, script)
    assert not json.loads((tmp_path / "gathered.json").read_text())["without"]


def test_nobody_sends_any(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"arrah: no.*gaya: never"):
        gather(tmp_path, Script([Failed("gaya", "never"), Failed("arrah", "no")]))
    assert read_gathered(tmp_path, MOST) is None


def test_coordinator_waits_for_people_who_are_asked_until_the_first_answers(
    tmp_path: Path,
) -> None:
    script = Script(*[()] * 100, [joined("gaya"), answer("gaya", pack_pieces(GAYA))])
    assert gather(tmp_path, script)
    assert 60 < script.now < 65  # patience: 10 s
    found = read_gathered(tmp_path, MOST)
    assert found is not None
    assert found.without == {"arrah": "it did not answer in time"}


def test_what_was_kept_and_altered_is_not_taken(tmp_path: Path) -> None:
    script = Script([answer("gaya", pack_pieces(GAYA)), answer("arrah", pack_pieces(ARRAH))])
    assert gather(tmp_path, script)
    (tmp_path / "gaya").write_bytes(b"altered")
    with pytest.raises(CorpusError, match="pieces of site gaya"):
        read_gathered(tmp_path, MOST)
    (tmp_path / "gaya").unlink()
    with pytest.raises(RunError, match="cannot read"):
        read_gathered(tmp_path, MOST)
