"""What a site tells of the copies of pools that its text lies in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boli.codec.facts import pack_facts
from boli.engine.wire import Joining, joining_facts
from boli.errors import SiteError
from boli.plan import Plan
from boli.rounds.transport import Joined
from boli.site.copies import copies_of

PIN = {
    "pool": "a" * 32,
    "url": "s3://texts/bhojpuri?endpoint=https://secret.example.org",
    "version": 7,
    "taken": "b" * 32,
    "language": "bho",
    "region": "IN-BR",
    "rows": 9,
    "digest": "c" * 64,
}
TOLD = {name: PIN[name] for name in ("pool", "version", "taken", "rows", "digest")}


@pytest.fixture
def copies(tiny_plan: Callable[..., Plan], tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a function (pin, sources) → the copies that the site tells of."""

    def tell(pin: Any, *sources: Any) -> list[Any]:
        (tmp_path / "copy" / "records").mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / "pool.json").write_text(json.dumps(pin))
        section = {"name": "arrah", "language": "bho", "text": list(sources)}
        plan = tiny_plan(tmp_path, site=[section])
        return [copy.model_dump() for copy in copies_of(plan, plan.site[0])]

    return tell


def test_site_tells_of_the_copy_that_its_text_lies_in(copies: Callable[..., list[Any]]) -> None:
    assert copies(PIN, "bho.txt", {"starter": "bho"}) == []
    text = "copy/records/bho.parquet"
    assert copies(PIN, text, "copy/records/mag.parquet", "bho.txt") == [TOLD]
    assert copies(PIN, {"path": "bho.txt", "held_out_by": text}) == [TOLD]


@pytest.mark.parametrize(
    "altered",
    [
        {"pool": "../../etc"},
        {"version": "seven"},
        {"version": "7"},
        {"rows": True},
        {"version": -1},
        {"taken": "B" * 32},
        {"rows": 2**60},
        {"digest": None},
    ],
)
def test_site_does_not_train_where_it_could_not_tell(
    copies: Callable[..., list[Any]], altered: dict[str, Any]
) -> None:
    (name,) = altered
    with pytest.raises(SiteError, match=f"was altered: its {name}"):
        copies(PIN | altered, "copy/records/bho.parquet")


def test_site_without_copies_says_what_older_coordinators_know(
    copies: Callable[..., list[Any]],
) -> None:
    joined = Joined("arrah", [], {}, -1)
    assert joining_facts(joined).keys() == {"layout", "num_lines", "held_version", "held_digest"}
    assert Joining.model_validate(joining_facts(joined)).joined("arrah", 0).copies == ()


def test_what_is_told_names_no_place_and_takes_few_bytes() -> None:
    found = Joining.model_validate(
        {"layout": [], "num_lines": {}, "held_version": 0, "held_digest": 0, "copies": [TOLD]}
    ).joined("arrah", 2)
    said = json.dumps(joining_facts(found))
    assert not [word for word in ("url", "secret", "IN-BR") if word in said]
    alone = Joined("arrah", [], {}, 0)
    more = len(pack_facts(joining_facts(found))) - len(pack_facts(joining_facts(alone)))
    assert more < 200
