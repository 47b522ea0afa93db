"""Nobody gets in: whatever strangers and sites gone bad do is refused and journaled.

A real server with TLS, a coordinator's process, honest sites; the run goes on, and
server and coordinator stay small.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import nats.errors
import pytest
from quadratic import Job, layout_of
from strangers import Fort, Guest, answer_to, as_message, flood, in_background, knock, trust

from boli.codec.codec import HEADER_BYTES
from boli.codec.facts import _WORDS
from boli.engine.lies import LIES
from boli.engine.nats_server import readmit
from boli.engine.parts import PART_BYTES
from boli.engine.wire import pack_message
from boli.journal import (
    AttemptsRefused,
    Event,
    RoundStepped,
    SiteBenched,
    SiteJoined,
    UpdateAccepted,
    UpdateRejected,
)
from boli.rounds.loop import REJECTIONS_BORNE
from boli.rounds.refusals import LINES_BORNE
from boli.rounds.update import Order, Update

MOST_GROWTH = 64 << 20  # bytes, of the server's memory and of the coordinator's
HONEST = ("arrah", "gaya")


def slow_job(rounds: int, *others: str) -> Job:
    return Job(
        ranks=dict.fromkeys([*HONEST, *others]),
        rounds={"total": rounds},
        step_seconds=dict.fromkeys(HONEST, 0.1),
    )


def refused(events: list[Event], kind: str, site: str = "") -> int:
    """Return how often something was refused, as the journal has it."""
    return sum(
        event.count
        for event in events
        if isinstance(event, AttemptsRefused) and (event.kind, event.site) == (kind, site)
    )


# --- Sites that have a key, and send what they may not


def lying(name: str) -> Callable[[Order], list[bytes]]:
    lie = LIES[name]()

    def act(order: Order) -> list[bytes]:
        told = lie(Update(*answer_to(order)), Random(1))
        return [told if isinstance(told, bytes) else as_message(told.header, told.payload)]

    return act


@functools.cache
def bomb() -> bytes:
    """Return half a gigabyte of JSON in a small message; to make it takes a while."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    start = deflate.compress(b'{"kind":"failed","hint":"","problem":"')
    body = b"".join(deflate.compress(b"x" * (1 << 20)) for _ in range(512))
    facts = b"\x01" + start + body + deflate.compress(b'"}') + deflate.flush()
    return len(facts).to_bytes(4, "little") + facts


def facts_bomb(_: Order) -> list[bytes]:
    return [bomb()]


def wide_facts(_: Order) -> list[bytes]:
    """JSON that becomes a million objects."""
    return [pack_message("update", {"order": [[] for _ in range(1_000_000)]})]


def frame_bomb(order: Order) -> list[bytes]:
    """A frame that says it holds a terabyte."""
    header, payload = answer_to(order)
    start = payload[:36] + (1 << 38).to_bytes(8, "little") + payload[44 : HEADER_BYTES - 4]
    rest = payload[HEADER_BYTES:]
    checksum = zlib.crc32(rest, zlib.crc32(start)).to_bytes(4, "little")
    return [as_message(header, start + checksum + rest)]


def half_a_letter(_: Order) -> list[bytes]:
    """Text that can be read, but not be written into any journal."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    text = deflate.compress(rb'{"kind":"failed","problem":"\ud800","hint":""}') + deflate.flush()
    facts = b"\x01" + text
    return [len(facts).to_bytes(4, "little") + facts]


def forged(order: Order) -> list[bytes]:
    header, payload = answer_to(order)
    return [as_message(header.model_copy(update={"site": "arrah"}), payload)]


BAD: dict[str, Callable[[Order], list[bytes]]] = {
    "nan": lying("nan"),
    "infinite": lying("infinite"),
    "other-layout": lying("other layout"),
    "longer": lying("longer"),
    "noise": lying("noise"),
    "not-a-message": lying("not a message"),
    "forged": forged,
    "facts-bomb": facts_bomb,
    "wide-facts": wide_facts,
    "frame-bomb": frame_bomb,
    "half-a-letter": half_a_letter,
}
OTHERS = ("oversized", "flooding", "wrong-join", "absurd-join", "noisy")
GOOD = ("sound", "replayed")
ROUNDS = 12


async def be_bad(fort: Fort, site: str) -> None:
    """Answer every order with something bad, until there are no more."""
    guest = Guest(fort.access(site))
    await guest.enter()
    await guest.join()
    for _ in range(REJECTIONS_BORNE):
        order = await asyncio.wait_for(guest.orders.get(), 120)
        for message in BAD[site](order):
            await guest.send(message)
    await guest.leave()


async def be_good(fort: Fort, site: str, others: Awaitable[Any]) -> None:
    """Answer every order well; maybe send the first answer again in place of all others.

    The last round waits until the others are through: the run is not over before.
    """
    guest = Guest(fort.access(site))
    await guest.enter()
    await guest.join()
    first = b""
    while True:
        order = await asyncio.wait_for(guest.orders.get(), 120)
        if order.sequence == ROUNDS:
            await others
        message = as_message(*answer_to(order))
        first = first or message
        if site == "replayed" and message is not first:
            await guest.send(first)
        await guest.send(message)
        if not order.local_steps:
            break
    await guest.leave()


async def be_oversized(guest: Guest) -> None:
    """Begin messages that are larger than any may be."""
    for number in range(REJECTIONS_BORNE):
        await guest.send_part(f"{number:012x}.0.999999", b"x" * PART_BYTES)


async def be_flooding(guest: Guest) -> None:
    """Begin messages and never end them, until the stream's own room is full."""
    refusals = 0
    for number in range(400):
        with contextlib.suppress(nats.errors.TimeoutError):
            answer = await guest.client.request(
                f"boli.up.{guest.access.name}",
                b"x" * PART_BYTES,
                timeout=20,
                headers={"Nats-Msg-Id": f"{number % 7:012x}.{number // 7}.60"},
            )
            refusals += b"error" in answer.data
    for _ in range(REJECTIONS_BORNE):
        await guest.send(b"\0")


async def be_noisy(guest: Guest) -> None:
    """Go on sending rubbish, far beyond being benched; come and go meanwhile."""
    for number in range(600):
        await guest.send(b"rubbish %d" % number)


async def misbehave(fort: Fort, site: str) -> None:
    guest = Guest(fort.access(site))
    await guest.enter()
    match site:
        case "wrong-join":
            await guest.join(layout=layout_of(2).describe())
        case "absurd-join":
            for shape in ([2**200], [-1], ["x"]):
                await guest.join(layout=[["a", shape, "rows"]])
            await guest.join(num_lines={f"{n}": {} for n in range(5000)})
            await guest.join(copies=[{"pool": "a" * 32, "version": 1, "taken": "../runs"}])
        case _:
            await guest.join()
    match site:
        case "oversized":
            await be_oversized(guest)
        case "flooding":
            await be_flooding(guest)
        case "noisy":
            await be_noisy(guest)
    await guest.leave()


async def be_guests(fort: Fort) -> list[Any]:
    """Be all that are not honest; return what each came to."""
    acts = [*(be_bad(fort, site) for site in BAD), *(misbehave(fort, site) for site in OTHERS)]
    others = asyncio.gather(*acts, return_exceptions=True)
    good = (be_good(fort, site, others) for site in GOOD)
    return [*await asyncio.gather(*good, return_exceptions=True), *await others]


@dataclass
class Story:
    """What came of a run."""

    events: list[Event]
    growth: dict[str, int]  # bytes
    journal_bytes: int
    results: list[Any]

    def of(self, site: str) -> list[Event]:
        return [event for event in self.events if getattr(event, "site", "") == site]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Return the journal of one run in which every site but two is bad in its own way."""
    folder = tmp_path_factory.mktemp("bad")
    job = slow_job(ROUNDS, *BAD, *OTHERS, *GOOD)
    bomb()  # now: the guests have one thread
    with Fort(folder, job, HONEST) as fort:
        fort.wait_for(lambda events: any(isinstance(e, SiteJoined) for e in events))
        before = fort.memory()
        after = before
        with in_background(partial(be_guests, fort)) as guests:
            while fort.processes["coordinator"].poll() is None:
                with contextlib.suppress(OSError, ValueError, KeyError):  # it has just ended
                    after = fort.memory()
                time.sleep(0.1)
        fort.finish()
        events = fort.events()
        size = (folder / "journal.jsonl").stat().st_size
    growth = {who: after[f"{who} at most"] - before[who] for who in ("coordinator", "server")}
    return Story(events, growth, size, guests[0])


def test_run_of_many_bad_sites_comes_to_its_end(story: Story) -> None:
    assert not [result for result in story.results if isinstance(result, Exception)]
    assert max(event.version for event in story.events if isinstance(event, RoundStepped)) == ROUNDS
    for site in HONEST:
        assert not [event for event in story.of(site) if isinstance(event, UpdateRejected)]


def test_bad_sites_cost_little_memory(story: Story) -> None:
    assert max(story.growth.values()) < MOST_GROWTH, story.growth


@pytest.mark.parametrize("site", [*BAD, "oversized", "flooding"])
def test_what_no_site_may_send_is_refused_and_the_site_benched(story: Story, site: str) -> None:
    told = story.of(site)
    assert not [event for event in told if isinstance(event, UpdateAccepted)]
    assert len([event for event in told if isinstance(event, UpdateRejected)]) >= 3
    assert [event for event in told if isinstance(event, SiteBenched)]


def test_sound_updates_of_the_same_kind_of_guest_are_taken(story: Story) -> None:
    told = story.of("sound")
    assert len([event for event in told if isinstance(event, UpdateAccepted)]) == ROUNDS
    assert not [event for event in told if isinstance(event, (UpdateRejected, SiteBenched))]


def test_replayed_update_counts_once_and_is_journaled(story: Story) -> None:
    told = story.of("replayed")
    orders = [event.order for event in told if isinstance(event, UpdateAccepted)]
    assert len(orders) == len(set(orders)) == ROUNDS
    assert refused(told, "sent again", "replayed") >= ROUNDS - 1


def test_site_that_joins_with_other_parameters_is_benched(story: Story) -> None:
    (benched,) = (event for event in story.of("wrong-join") if isinstance(event, SiteBenched))
    assert "do not train the same parameters" in benched.reason
    assert [e for e in story.of("absurd-join") if isinstance(e, (UpdateRejected, SiteBenched))]


def test_noisy_site_does_not_fill_the_journal(story: Story) -> None:
    told = story.of("noisy")
    counted = refused(told, "update_rejected", "noisy")
    alone = [event for event in told if isinstance(event, UpdateRejected)]
    assert counted + len(alone) >= 600
    assert len(told) < 2 * LINES_BORNE
    assert story.journal_bytes < 1 << 20


# --- Strangers, and keys in wrong hands


def test_strangers_are_refused_and_journaled_and_the_run_has_the_same_bits(
    tmp_path: Path,
) -> None:
    job = replace(slow_job(15), limits={"gaya": str(tmp_path / "limit")})
    job.limit(14)  # the last round waits until all is told
    with Fort(tmp_path, job, HONEST) as fort:
        access = fort.access("gaya")
        old = fort.access("arrah")
        fort.wait_for(lambda events: any(isinstance(e, RoundStepped) for e in events))

        async def at_the_door() -> None:
            context = trust(access)
            for how in ("garbage", "no key", "unknown key"):
                assert b"PONG" not in await knock(access, how, context)
            guest = Guest(access)
            await guest.enter()  # the right key: it opens
            await guest.client.publish("boli.up.arrah", b"hello")
            await guest.client.publish("$JS.API.STREAM.DELETE.UP_arrah", b"")
            await guest.client.publish("boli.deliver.arrah", b"hello")
            await guest.client.subscribe("boli.deliver.arrah")
            await guest.client.subscribe(">")
            await guest.client.publish("boli.live.gaya", b"hello")
            await guest.client.flush()
            await asyncio.sleep(0.2)
            assert len(guest.complaints) == 5, guest.complaints
            assert not [said for said in guest.complaints if "boli.live" in said]
            # More than any message may hold, whatever nats-py thinks of it.
            guest.client._max_payload = 1 << 30
            with contextlib.suppress(Exception):
                await guest.client.publish("boli.live.gaya", b"x" * (1 << 20))
                await guest.client.flush(5)
            await guest.leave()

        asyncio.run(at_the_door())
        asyncio.run(_with_revoked_key(fort, old.seed))
        wanted = {"no handshake": "", "no key": "", "unknown key": "", "revoked key": "arrah"}
        wanted |= {"not allowed": "gaya", "too large": "gaya"}
        fort.wait_for(
            lambda events: all(refused(events, kind, site) for kind, site in wanted.items())
        )
        assert refused(fort.events(), "not allowed", "gaya") >= 1
        # The site itself gets a new key, as its people would give it.
        job.limit(16)
        fort.processes["arrah"].kill()
        fort.processes["arrah"].wait()
        fort.start_site("arrah")
        fort.finish()
        fort.check_bits()


async def _with_revoked_key(fort: Fort, seed: str) -> None:
    """Come in while the key is good; then not any more."""
    from boli.engine.identities import write_invitation

    guest = Guest(fort.access("arrah"))
    await guest.enter(seed)
    new = fort.identities.invite("arrah", fort.address)
    write_invitation(new, fort.folder / "arrah.boli")
    await asyncio.to_thread(readmit, fort.folder / "coordinator")
    for _ in range(1200):
        if guest.client.is_closed:
            break
        await asyncio.sleep(0.1)
    assert guest.client.is_closed
    # Why, the journal has to say: the server's last word may be lost on its way.
    with pytest.raises((OSError, EOFError, nats.errors.Error)):
        await guest.enter(seed)
    await guest.enter(new.access.seed)
    await guest.leave()


@pytest.mark.parametrize(
    ("num", "at_once"),
    [
        pytest.param(600, 200, id="600"),
        pytest.param(10_000, 400, id="10000", marks=pytest.mark.slow),
    ],
)
def test_flood_of_strangers_changes_nothing(tmp_path: Path, num: int, at_once: int) -> None:
    """Its first round comes before them, some meanwhile; its last waits until they are gone."""
    rounds = num // 60
    job = replace(slow_job(rounds), limits={"gaya": str(tmp_path / "limit")})
    job.limit(1)
    with Fort(tmp_path, job, HONEST) as fort:
        access = fort.access("gaya")
        heard = Counter[str]()
        fort.wait_for(lambda events: num_steps(events) == 1)
        before = fort.memory()
        job.limit(rounds - 1)
        deadline = time.monotonic() + 120
        while not heard or num_steps(fort.events()) == 1:
            assert time.monotonic() < deadline, "the run stands still"
            heard += asyncio.run(flood(access, num, at_once))
        after = fort.memory()
        assert "PONG" not in heard
        assert sum(heard.values()) % num == 0
        growth = {who: after[f"{who} at most"] - before[who] for who in ("coordinator", "server")}
        assert max(growth.values()) < MOST_GROWTH, growth
        fort.wait_for(lambda events: refused(events, "no handshake"))
        job.limit(rounds + 1)
        fort.finish(120)
        fort.check_bits()
        told = [event for event in fort.events() if isinstance(event, AttemptsRefused)]
        assert sum(event.count for event in told) >= num // 4
        assert len(told) < 60


def num_steps(events: list[Event]) -> int:
    return sum(isinstance(event, RoundStepped) for event in events)
