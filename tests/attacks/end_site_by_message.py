"""A coordinator ends a site's program by a message that it does not expect.

Wrong types, huge and missing values, NaN, deep nesting, unknown fields, another protocol, and an
origin that is a path of the site's machine: in the kit first, then in orders, verdicts and
versions of a run that began honestly.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

from attack import Outcome
from rogue import Rogue, honest_kit, lines_of_text, tiny_base

from boli.engine.wire import pack_message
from boli.rounds.update import Order, Verdict

PROMISE = "No message of a coordinator ends boli join: it is refused with a reason, or ignored."

WRONG: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        2**70,
        10**400,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x" * 100_000,
        "\x1b[2J",
    ),
    *([], {}, [[[[[[[[[[]]]]]]]]]], {"a": {"b": {"c": [1, {"d": 0}]}}}, ["x"] * 1000, [0, 1]),
)
NAMED = {  # kits, and a word of what the site says of each
    "local origin": ({"origin": "/etc/passwd"}, "origin"),
    "other protocol": ({"protocol": 2}, "this boli speaks 1"),
    "no protocol": ({"protocol": "x" * 9999}, "speaks protocol an unknown one"),
    "twice": ({"files": "twice"}, "there twice"),
    "no files": ({"files": []}, "names no files"),
    "no table": ({"plan": {"corpus": 7}}, "not a table"),
}


def spoiled(facts: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a copy with one value, at any depth, replaced or removed."""
    copy = json.loads(json.dumps(facts))
    place: Any = copy
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = rng.choice(list(keys))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            place = inner
            continue
        if rng.random() < 0.15:
            del place[key]
        else:
            place[key] = rng.choice(WRONG)
        return dict(copy)


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Say everything wrong that can be said; then run honestly, with fields that are not known."""
    base, rng = tiny_base(folder / "base"), random.Random(5)
    (folder / "data").mkdir()
    (folder / "data" / "text.txt").write_text(lines_of_text(), encoding="utf-8")
    facts = honest_kit(base).facts()
    with Rogue(folder / "rogue", base) as rogue:
        rogue.join(folder / "data")
        named = dict(itertools.islice(NAMED.items(), 2)) if fast else NAMED
        for change, word in named.values():
            kit = {**facts, "run": "bad", **change}
            if change.get("files") == "twice":
                kit["files"] = [facts["files"][0]] * 2
            rogue.offer(kit, word)
        rogue.offer(b"[" * 60_000, "not valid")
        for _ in range(1 if fast else 25):
            rogue.offer(json.dumps(spoiled(facts, rng)).encode())
        served = rogue.serve_honestly()
        messages = flood(rogue, 200 if fast else 3000, rng)
        rogue.ask_for_a_step(3)
        wrong = "Traceback" in rogue.said or not rogue.is_alive
        observed = f"alive after {messages} messages; {served}, and another after them"
        control = without_care(facts)
    return Outcome(not wrong, observed, control, {"kits": rogue.asked, "messages": messages})


def flood(rogue: Rogue, count: int, rng: random.Random) -> int:
    """Send orders, verdicts and versions that are wrong, to a site that serves a run."""
    order = Order(
        order="o", site="gaya", sequence=2, base_version=0, layout=rogue.layout, local_steps=1
    ).facts()
    verdict = Verdict(order="o", site="gaya", sequence=2, accepted=True).facts()
    seat = rogue.transport._seats["gaya"]
    for number in range(count):
        kind, facts = rng.choice(
            [("order", order), ("verdict", verdict), ("delta", {"version": 1})]
        )
        wrong = spoiled({**facts, "kind": kind}, rng)
        kind = wrong.pop("kind", "order")
        body = json.loads(json.dumps(wrong, default=str))
        seat.sender.put(pack_message(kind, body, rng.randbytes(number % 40)), False)
    time.sleep(1.0)
    return count


def without_care(facts: dict[str, Any]) -> str:
    """Read a kit with an unknown field as boli did before: strictly, where nobody catches it."""
    from pydantic import ValidationError

    from boli.site.kit import Kit

    try:
        Kit.model_validate({**facts, "added_later": 1}, extra="forbid")
    except ValidationError as error:
        return f"read strictly, one unknown field raises {type(error).__name__}"
    return ""
