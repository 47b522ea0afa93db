"""A curious coordinator asks a site for updates computed from a few tokens each, and reads them.

It plans to train every weight (kind "full") in orders of one local step over eight tokens. The
embedding rows that change in such an update are those of the tokens that the site trained on.
The fast form uses the site's own code in this process; the full one `boli coordinator` and
`boli join` over loopback.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
from attack import Outcome, boli
from one_site import (
    LENIENT,
    CuriousLink,
    bring_base,
    end,
    kit_for_gaya,
    make_base,
    order,
    plan_of,
    site_in,
    start,
    wait_for,
)

from boli.errors import LimitError
from boli.model.layout import Layout
from boli.site.limits import Limits

PROMISE = (
    "With the usual limits a site computes no update from so few tokens that they can be named, "
    "and says so before anything is fetched."
)
ORDERS = 5
ROWS = "embed_tokens"


def attack(folder: Path, *, fast: bool) -> Outcome:
    base = make_base(folder / "base")
    plan = plan_of(base)
    figures: dict[str, float | int | str] = {}
    refused, observed = True, ""
    # What the coordinator tries, one after the other: the plan as it is, and others that a site
    # may take for more harmless.
    for name, sections in {
        "full, 8 tokens": {},
        "lora, 8 tokens": {"model": plan.model.model_dump() | {"adapter": {"kind": "lora"}}},
    }.items():
        site = site_in(folder, Limits(), name.replace(" ", "-"))
        try:
            site.admit(kit_for_gaya(plan_of(base, **sections), base), lambda _words, _no: True)
        except LimitError as error:
            observed = error.problem
        else:
            refused, observed = False, f"the plan {name!r} was taken"
    named, all_of_them = _read(folder, base, LENIENT, ORDERS)
    figures |= {"tokens_named_without_limits": named, "tokens_trained_on": all_of_them}
    if not fast:
        # What the limits do not hide, where a site allows kind "full": which tokens occur at all.
        allowed = LENIENT.model_copy(update={"min_tokens": 4096, "min_tokens_full": 4096})
        named_of_many, distinct = _read(folder, base, allowed, 1, batch=16, steps=32)
        figures |= {"distinct_named_of_4096_and_more": named_of_many, "distinct_there": distinct}
        said, tokens = _real_commands(folder, base)
        refused = (
            refused and "an update of every weight would be computed from fewer tokens" in said
        )
        observed = f"the coordinator's journal: {said}"
        figures["tokens_named_over_the_wire_without_limits"] = tokens
    control = f"where a site allows it, {named} of {all_of_them} tokens are named"
    return Outcome(refused, observed, control if named == all_of_them else "", figures)


def _read(
    folder: Path, base: Path, limits: Limits, orders: int, batch: int = 1, steps: int = 1
) -> tuple[int, int]:
    """Return how many tokens a site's updates name, and how many it trained on."""
    model = plan_of(base).model.model_dump()
    model["local_steps"] |= {"batch_sequences": batch}
    plan = plan_of(base, model=model, rounds={"total": 5, "local_steps": steps})
    kit, site = kit_for_gaya(plan, base), site_in(folder, limits, f"control-{batch}")
    site.admit(kit, lambda _words, _no: True)
    bring_base(site, kit, base)
    link = CuriousLink()
    node = site.open_node(kit, link)
    link.waiting[:0] = [order(n + 1, node.full_digest, local_steps=steps) for n in range(orders)]
    text = _text_of(node)
    node.run()
    named, there = 0, 0
    layout = Layout.from_description(link.layout)
    for header, payload in link.answers:
        inputs = set(text.take(batch * header.local_steps)[:, :-1].reshape(-1).tolist())
        found = _rows(layout, node, payload)
        named += len(found & inputs) if found <= inputs else 0
        there += len(inputs)
    return named, there


def _text_of(node: Any) -> Any:
    """Return the site's text from its beginning: what the attacker wants, and we check against."""
    import copy

    return copy.deepcopy(node.work.steps.text)


def _rows(layout: Layout, node: Any, payload: bytes) -> set[int]:
    """Return the tokens whose embedding rows an update changes."""
    from boli.codec.codec import decode_frame

    update = decode_frame(payload, node.full_digest, layout.size).vector
    place = 0
    for name, shape, _ in layout.describe():
        size = int(np.prod(shape))
        if ROWS in name:
            rows = update[place : place + size].reshape(shape)
            return set(np.flatnonzero(np.abs(rows).sum(axis=1)).tolist())
        place += size
    raise AssertionError(f"no {ROWS} in the layout")


def _real_commands(folder: Path, base: Path) -> tuple[str, int]:
    """Run the plan with the real commands: under the usual limits, and under none.

    Returns what the coordinator's journal says of the site, and how many tokens the result names.
    """
    from safetensors.numpy import load_file

    usual, without = folder / "usual", folder / "without"
    _run(usual, _plan_toml(base), "")
    journal = next(usual.glob("runs/*/journal.jsonl")).read_text()
    rows = [json.loads(line) for line in journal.splitlines()]
    benched = [row["reason"] for row in rows if row["event"] == "site_benched"]
    if list(usual.glob("state/bases/*/*")):
        benched = ["the base was fetched"]
    _run(without, _plan_toml(base), _as_toml())
    (result,) = without.glob("runs/*/adapter/model.safetensors")
    before, after = load_file(base / "model.safetensors"), load_file(result)
    key = next(key for key in before if ROWS in key)
    named = int((np.abs(after[key] - before[key]).sum(axis=1) > 0).sum())
    return benched[0] if benched else "it was served", named


def _run(place: Path, plan: str, limits: str) -> None:
    """Let a coordinator and a site on loopback carry out a plan, or fail to."""
    place.mkdir()
    site_in(place, Limits())
    (place / "limits.toml").write_text(limits)
    (place / "plan.toml").write_text(plan)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ("coordinator", "plan.toml", "--listen", address)
    coordinator = start(*words, home=place, log=place / "coordinator.log")
    wait_for((place / "coordinator" / "server.conf").exists)
    invited = ("--folder", place / "coordinator", "--out", place / "gaya.boli")
    boli("invite", "gaya", "--address", address, *invited, home=place / "home")
    words = ("join", "gaya.boli", "--data", "text", "--state", "state", "--accept")
    joined = start(*words, "--limits", "limits.toml", home=place, log=place / "join.log")
    wait_for(lambda: coordinator.poll() is not None, 240)
    end(coordinator)
    end(joined)


def _as_toml() -> str:
    facts = LENIENT.model_dump()
    return "".join(
        f"{key} = {json.dumps(facts[key])}\n"
        for key in ("adapters", "min_tokens", "min_tokens_full", "min_judged_lines", "text")
    )


def _plan_toml(base: Path) -> str:
    return f"""
name = "curious"
[model.base]
path = "{base}"
language = "hin"
[model.adapter]
kind = "full"
[model.local_steps]
batch_sequences = 1
sequence_length = 8
keep_moments = false
schedule = "constant"
warmup = 0.0
[rounds]
total = {ORDERS}
local_steps = 1
[[site]]
name = "gaya"
language = "mag"
text = ["mag.txt"]
"""
