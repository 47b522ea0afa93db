"""The lines of the scripted engine: when a message is there, as what, and in what words."""

from __future__ import annotations

import random

from pydantic import ValidationError

from boli.codec.facts import pack_facts, unpack_facts
from boli.engine.script import Script
from boli.engine.wire import Joining, joining_facts
from boli.errors import CodecError
from boli.rounds.transport import Arrival, Delivery, Instruction, Joined, Malformed, Version
from boli.rounds.update import Order, Update, UpdateHeader, Verdict


def arrival_time(script: Script, now: float, site: str, draw: random.Random, way: int) -> float:
    """Return when a message that is sent now will be there."""
    delay = script.delay.get(site, 0.01)
    when = now + (delay if isinstance(delay, float | int) else delay[way])
    when += draw.random() * script.jitter
    while draw.random() < script.lose:
        when += script.retry_seconds
    for where, begin, end in script.outages:
        if where == site and begin <= when < end:
            when = end + when - now
    return when


def brief(message: Instruction | Arrival) -> str:
    """Return what the log says of a message."""
    match message:
        case Order():
            steps, base = message.local_steps, message.base_version
            return f"order {message.sequence}.{message.attempt}: {steps} steps from {base}"
        case Version():
            return f"{'snapshot' if message.snapshot else 'delta'} {message.version}"
        case Verdict():
            outcome = "accepted" if message.accepted else "refused"
            return f"{message.sequence} {outcome} {message.reason}{' keep' * message.keep}"
        case Delivery():
            header = message.update.header
            return (
                f"update {header.sequence}: {header.local_steps} steps from {header.base_version}"
            )
    return type(message).__name__.lower()


def heard(joined: Joined) -> Joined:
    """Return what the coordinator hears of what a node says of itself."""
    found = Joining.model_validate(unpack_facts(pack_facts(joining_facts(joined))))
    return found.joined(joined.site, joined.restarts)


def over_the_wire(site: str, sent: Update | bytes) -> Delivery | Malformed:
    """Return what comes out at the other end, checked as every engine checks it."""
    if isinstance(sent, bytes):
        return Malformed(site, f"not a message: {sent[:8].hex()}")
    try:
        header = UpdateHeader.model_validate(unpack_facts(pack_facts(sent.header.facts())))
    except (ValidationError, CodecError) as error:
        return Malformed(site, str(error).splitlines()[0])
    return Delivery(site, Update(header, sent.payload))
