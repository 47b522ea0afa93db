"""A curious site reads all that its key lets it read, for the coordinator's paths and other sites.

It fetches what there is to do, the files of the base, an order and a version, and listens on
every subject that its key may hear; over a real NATS server on loopback, and as a node of a Flower
federation. The plan has canaries wherever it names what is nothing of this site's business. The
full form also takes the base that the attacked coordinator builds itself, `boli coordinator`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attack import Outcome, boli
from one_site import end, make_base, start, wait_for

from boli.engine.flower_greeter import Greeter, Reply
from boli.engine.flower_wire import Greeting, pack
from boli.engine.identities import Access, Address, Invitation, inbox_of, may_subscribe
from boli.engine.nats import NatsTransport
from boli.engine.nats_line import Line
from boli.engine.nats_server import Server
from boli.engine.parts import FETCH_BYTES
from boli.engine.wire import pack_message, unpack_message
from boli.errors import TransportError
from boli.model.layout import Layout
from boli.plan import Plan
from boli.rounds.transport import Joined
from boli.rounds.update import Order, Release
from boli.site.kit import kit_of

PROMISE = (
    "A site is told its own part of the plan and the number of sites: no path of the "
    "coordinator, and no name, text or path of another site."
)
CANARY, OWN = "canary", "gaya-sentences.txt"
LAYOUT = Layout.of({"a": ((2, 2), "whole")})
VIEW = (None, ((0, 4),))


def attack(folder: Path, *, fast: bool) -> Outcome:
    base = make_base(folder / f"{CANARY}-base")
    plan = _plan(base)
    kit = kit_of("curious-1", plan, base, str(base))
    held = json.dumps(kit.facts()).encode()
    received = {"NATS": _over_nats(folder, plan, base), "Flower": _over_flower(plan, base)}
    if not fast:
        received["boli coordinator"] = _real_coordinator(folder / f"{CANARY}-place")
    found = [name for name, content in received.items() if CANARY.encode() in content]
    blind = [name for name, content in received.items() if OWN.encode() not in content]
    blind += [] if b"curious-1-gaya-1" in received["NATS"] else ["the order"]
    total = sum(map(len, received.values()))
    observed = f"told by {found}" if found else f"nothing of them in {total:,} bytes"
    control = f"the coordinator's own words hold {held.count(CANARY.encode())} of them"
    seen = not blind and CANARY.encode() in held
    return Outcome(not found, observed, control if seen else "", {"bytes_read": total})


def _plan(base: Path) -> Plan:
    def site(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "language": "mag", "text": [{"path": path}]}

    others = [site(f"{CANARY}-{i}", f"{CANARY}/clinic-{i}.txt") for i in range(3)]
    return Plan.model_validate(
        {
            "name": "curious",
            "corpus": {"root": f"/srv/{CANARY}"},
            "model": {
                "base": {
                    "path": str(base),
                    "language": "hin",
                    "text": [{"path": f"{CANARY}-hindi.txt"}],
                }
            },
            "site": [*others, site("gaya", OWN)],
        }
    )


def _over_nats(folder: Path, plan: Plan, base: Path) -> bytes:
    """Return every byte that a key of gaya's can read."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", probe.getsockname()[1])
    server = Server(folder / "server", address)
    server.identities.make()
    access = server.identities.invite("gaya", address).access
    server.identities.invite(f"{CANARY}-0", address)
    server.write_settings()
    server.start()
    kit = kit_of("curious-1", plan, base, str(base))
    transport = NatsTransport(server.identities.access(address), kit, base)
    first = Release(0, LAYOUT.digest, np.zeros(4, np.float32))
    try:
        views = {"gaya": VIEW, f"{CANARY}-0": VIEW}
        transport.start(views, first)
        return _listen(access, lambda: _serve(transport))
    finally:
        transport.close()
        server.stop()


def _serve(transport: NatsTransport) -> None:
    """Give gaya an order and a version, once it has joined."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any(isinstance(one, Joined) for one in transport.receive(0.2)):
            break
    facts = {"site": "gaya", "sequence": 1, "base_version": 0, "layout": LAYOUT.digest}
    transport.send_order(
        Order.model_validate({"order": "curious-1-gaya-1", "local_steps": 1, **facts})
    )
    step = np.ones(4, np.float32)
    transport.publish(Release(1, LAYOUT.digest, -step, step))
    transport.receive(0.5)


def _listen(access: Access, meanwhile: Callable[[], None]) -> bytes:
    """Hear whatever the key lets one hear, ask for all there is to fetch, and join."""
    content: list[bytes] = []

    async def keep(message: Any) -> None:
        content.append(message.subject.encode() + bytes(message.data))
        content.append(repr(message.headers).encode())
        with contextlib.suppress(TransportError):  # facts are packed: open them
            content.append(repr(unpack_message(bytes(message.data))).encode())

    async def connected(client: Any) -> None:
        for subject in may_subscribe(access.name):
            if not subject.startswith(inbox_of(access.name)):
                await client.subscribe(subject, cb=keep)

    line = Line(access, connected)

    async def ask(wanted: dict[str, Any]) -> bytes:
        client = await line.ready()
        subject = f"boli.fetch.{access.name}"
        found = (await client.request(subject, json.dumps(wanted).encode(), timeout=20)).data
        content.append(bytes(found))
        return bytes(found)

    async def join() -> None:
        from boli.codec.facts import pack_facts

        said = {"layout": [], "num_lines": {}, "held_version": -1, "held_digest": 0}
        client = await line.ready()
        await client.request(f"boli.join.{access.name}", pack_facts(said), timeout=20)

    line.open()
    try:
        wait_for(lambda: line.client is not None, 30)
        told = json.loads(line.call(ask({"kit": True})).result(30))
        for wanted in ({"probe": 10}, *({"kit": True, "site": f"{CANARY}-0"},)):
            line.call(ask(wanted)).result(30)
        for file in told.get("files", ()):
            for offset in range(0, file["size"], FETCH_BYTES):
                line.call(ask({"file": file["sha256"], "offset": offset})).result(30)
        joining = line.call(join())
        meanwhile()
        joining.result(30)
        wait_for(lambda: len(content) > 3, 5)
    finally:
        line.close()
    return b"\n".join(content)


class Gaya:
    """A Flower node that says it is gaya, and keeps what it is sent."""

    def __init__(self, base: Path) -> None:
        self.content: list[bytes] = []
        self.base = base

    def node_ids(self) -> set[int]:
        return {1}

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        self.content.append(data)
        return "m"

    def fetch(self, message: str) -> Reply:
        kind, _, _ = unpack_message(self.content[-1])
        if kind == "hello":
            names = () if len(self.content) == 1 else (path.name for path in self.base.iterdir())
            have = dict.fromkeys(names, 0)
            return Reply(1, pack("greeting", Greeting(site="gaya", have=have)))
        have = {path.name: path.stat().st_size for path in self.base.iterdir()}
        return Reply(1, pack_message("had", {"have": have}))


def _over_flower(plan: Plan, base: Path) -> bytes:
    """Return every byte that a node is sent until it is ready for the run."""
    post = Gaya(base)
    Greeter(post, kit_of("r", plan, base, str(base)), base, 5, {"gaya"}.__contains__).greet(
        1, lambda: True
    )
    parts = [unpack_message(data) for data in post.content]
    return b"\n".join(repr(part).encode() + part[2] for part in parts)


def _real_coordinator(place: Path) -> bytes:
    """Return what gaya's key can read of a coordinator that builds its base from its own text."""
    place.mkdir()
    (place / f"{CANARY}.txt").write_text("\n".join(f"यह वाक्य {i} है" for i in range(500)))
    (place / "plan.toml").write_text(
        f"""
name = "curious"
[model.base]
language = "hin"
text = ["{CANARY}.txt"]
[model.base.micro]
vocabulary_size = 320
hidden_size = 32
num_layers = 1
num_heads = 2
intermediate_size = 32
steps = 3
[[site]]
name = "gaya"
language = "mag"
text = ["{OWN}"]
[[site]]
name = "{CANARY}-clinic"
language = "mag"
text = ["{CANARY}.txt"]
"""
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ("coordinator", "plan.toml", "--listen", address)
    coordinator = start(*words, home=place, log=place / "log")
    try:
        wait_for(lambda: "sites reach" in (place / "log").read_text(), 120)
        invited = ("--folder", place / "coordinator", "--out", place / "gaya.boli")
        boli("invite", "gaya", "--address", address, *invited, home=place / "home")
        return _listen(Invitation.read(place / "gaya.boli").access, lambda: time.sleep(2))
    finally:
        end(coordinator)
