"""A coordinator whose plan was accepted sends orders that the plan does not ask for.

Orders without end, of one step, of many steps of which one alone moves anything, with rates
below zero, and an ordinary one that is cut to a single step while it is under way. In the fast
form the orders reach the site's own node in this process; in the full one a coordinator of the
attacker's own sends one over a real NATS server to `boli join`.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from attack import Outcome
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
from boli.rounds.update import Order
from boli.site.kit import Kit, SiteFolder
from boli.site.limits import Limits

PROMISE = (
    "An order beyond the limits is refused before any work, nothing of it is sent or kept, and "
    "the site does no more for that run until its people say so."
)
STEPS, TOKENS = 64, 64 * 8 * 16  # of an ordinary order
# Within every limit that counts nominal tokens: only the rate of the first step is not zero.
ONE_THAT_MOVES = {"local_steps": STEPS, "position": 0.5, "position_step": 1.0}
ROGUE = {
    "a thousand million steps": {"local_steps": 10**9},
    "one step": {"local_steps": 1},
    "many steps of which one moves": ONE_THAT_MOVES,
    "a rate below zero": {"local_steps": STEPS, "position": -3.0},
}


def attack(folder: Path, *, fast: bool) -> Outcome:
    base = make_base(folder / "base")
    kit = kit_for_gaya(_plan(base), base)
    taken = []
    names = list(ROGUE)[::2] if fast else list(ROGUE)
    for name in names:
        values = ROGUE[name]
        sent, refusal = _send(folder, base, kit, Limits(), name, values)
        if sent or not refusal:
            taken.append(name)
    # While an order is under way it may be cut short, but not to fewer tokens than the limits say.
    cut = {"local_steps": 1, "attempt": 1, "at_most": STEPS}
    sent, _ = _send(folder, base, kit, Limits(), "cut", {"local_steps": STEPS}, cut)
    steps = sent[0].local_steps if sent else 0
    if steps * 8 * 16 < Limits().min_tokens:
        taken.append(f"cut to {steps} steps")
    # The control: without limits each of them is carried out, but the one without end.
    harmful = [
        len(_send(folder, base, kit, LENIENT, f"control-{i}", values)[0])
        for i, values in enumerate(ROGUE[name] for name in names)
        if values["local_steps"] < 10**6 and values.get("position", 0) >= 0
    ]
    without, _ = _send(folder, base, kit, LENIENT, "control-cut", {"local_steps": STEPS}, cut)
    control = f"{sum(harmful)} of {len(harmful)} were answered without limits, cut to 1 step too"
    seen = all(harmful) and without[0].local_steps == 1
    observed = f"{len(names)} orders refused before any work; cut to 1 step, {steps} were taken"
    if not fast:
        reason, up_bytes = _over_nats(folder, base, kit)
        if "more local steps than the site allows" not in reason or up_bytes:
            taken.append(f"over NATS: {reason}")
        observed += f"; boli join: {reason}"
    observed = f"carried out: {', '.join(taken)}" if taken else observed
    figures = {"steps_of_the_order_that_was_cut_to_one": steps}
    return Outcome(not taken, observed, control if seen else "", figures)


def _plan(base: Path) -> object:
    model = plan_of(base).model.model_dump()
    model["adapter"] = {"kind": "lora", "rank": 4}
    model["local_steps"] |= {
        "batch_sequences": 16,
        "schedule": "linear",
        "final_learning_rate": 0.0,
    }
    return plan_of(base, model=model, rounds={"total": 20, "local_steps": STEPS})


def _send(
    folder: Path,
    base: Path,
    kit: Kit,
    limits: Limits,
    name: str,
    values: dict[str, object],
    later: dict[str, object] | None = None,
) -> tuple[list[object], str]:
    """Send an order to an honest site; return what it answered, and why it refused."""
    site = site_in(folder, limits, name.replace(" ", "-"))
    site.admit(kit, lambda _words, _no: True)
    bring_base(site, kit, base)
    link = CuriousLink()
    node = site.open_node(kit, link)
    ordinary = {"position": 0.1, "position_step": 1 / (20 * STEPS)}
    link.waiting[:0] = [order(1, node.full_digest, **{**ordinary, **values})]
    link.later = later and order(1, node.full_digest, **{**ordinary, **later})
    try:
        node.run()
    except LimitError as error:
        assert not link.answers, "half done"
        assert not list(site.run_folder(kit).glob("*.safetensors")), "something of it was kept"
        if not _is_closed(site, kit):
            return link.answers, ""
        return link.answers, error.problem
    return [header for header, _ in link.answers], ""


def _is_closed(site: SiteFolder, kit: Kit) -> bool:
    """Tell whether the site does no more for the run, as when boli join is started again."""
    try:
        site.open_node(kit, CuriousLink()).work.close()
    except LimitError:
        return True
    return False


def _over_nats(folder: Path, base: Path, kit: Kit) -> tuple[str, int]:
    """Be a coordinator of one's own; return why `boli join` says it takes no part, and updates."""
    from boli.engine.identities import Address, write_invitation
    from boli.engine.nats import NatsTransport
    from boli.engine.nats_server import Server
    from boli.model.adapter import adapter_layout, initial_vector
    from boli.model.base import best_device, load_base
    from boli.rounds.transport import Delivery, Failed, Joined
    from boli.rounds.update import Release

    plan = _plan(base)
    loaded = load_base(str(base), plan.model.base, plan.model.local_steps, "lora", best_device())
    layout = adapter_layout(loaded.model, plan.model.adapter)
    theta = initial_vector(loaded.model, plan.model.adapter)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", probe.getsockname()[1])
    place = folder / "over-nats"
    place.mkdir()
    site_in(place, Limits())
    server = Server(place / "coordinator", address)
    server.identities.make()
    server.write_settings()
    write_invitation(server.identities.invite("gaya", address), place / "gaya.boli")
    server.write_settings()
    server.start()
    transport = NatsTransport(server.identities.access(address), kit, base)
    words = ("join", "gaya.boli", "--data", "text", "--state", "state", "--accept")
    joined = start(*words, home=place, log=place / "join.log")
    reason, num_updates = "", 0
    try:
        transport.start({"gaya": (None, ((0, layout.size),))}, Release(0, layout.digest, theta))
        rogue = Order(
            order="curious-1-gaya-1",
            site="gaya",
            sequence=1,
            base_version=0,
            layout=layout.digest,
            local_steps=10**9,
            at_most=10**9,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not reason:
            for arrival in transport.receive(0.5):
                if isinstance(arrival, Joined):
                    transport.send_order(rogue)
                elif isinstance(arrival, Failed):
                    reason = arrival.problem
                num_updates += isinstance(arrival, Delivery)
        # It stays, and is not asked again: an answer of the site's own is in its file.
        wait_for(lambda: "refused" in (place / "state" / "answers.jsonl").read_text(), 20)
        if joined.poll() is not None:
            reason = f"boli join ended with {joined.returncode}"
    finally:
        end(joined)
        transport.close()
        server.stop()
    return reason, num_updates
