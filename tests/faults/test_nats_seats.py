"""The coordinator's side over a real server, against sites that are made by hand."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from over_nats import free_port
from strangers import Guest

from boli.codec.facts import _WORDS, FORMAT, pack_facts
from boli.engine.identities import Address, Identities
from boli.engine.nats import MEASURE_SECONDS, NatsTransport
from boli.engine.nats_seat import WRONG_BORNE
from boli.engine.nats_server import Server
from boli.engine.nats_streams import stream_room
from boli.rounds.transport import Arrival, Failed, Joined, Left, Malformed, Measurement
from boli.rounds.update import Order, Release
from boli.site.kit import Kit

ENTRIES = 200
VIEWS = dict.fromkeys(("arrah", "gaya"), (None, ((0, ENTRIES),)))


class Seats:
    """A server and a coordinator's transport, and whoever has a key."""

    def __init__(self, folder: Path) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.identities = Identities(folder / "coordinator")
        keys = {site: self.identities.invite(site, self.address) for site in VIEWS}
        self.access = {site: found.access for site, found in keys.items()}
        self.server = Server(folder / "coordinator", self.address)
        self.server.write_settings()
        self.server.start()
        self.transport = self.open()

    def open(self) -> NatsTransport:
        identities = self.identities
        transport = NatsTransport(
            identities.access(self.address),
            Kit(run="run", plan={}),
            watcher=identities.access(self.address, "system"),
            revoked=identities.revoked,
        )
        transport.start(VIEWS, Release(0, "0123456789abcdef", np.zeros(ENTRIES, np.float32)))
        return transport

    def wait_for(self, kind: type[Arrival], seconds: float = 20.0) -> list[Arrival]:
        """Return all that arrives until something of a kind is among it."""
        found: list[Arrival] = []
        deadline = time.monotonic() + seconds
        while not any(isinstance(one, kind) for one in found):
            assert time.monotonic() < deadline, found
            found += self.transport.receive(0.2)
        return found

    def num_kept(self) -> int:
        """Return how many messages of arrah the server holds."""

        async def ask() -> int:
            client = await self.transport._line.ready()
            streams = client.jetstream(timeout=60)
            return int((await streams.stream_info("UP_arrah")).state.messages)

        return int(self.transport._line.call(ask()).result(120))

    def play(self, act: Callable[[Guest], Awaitable[Any]], site: str = "arrah") -> Any:
        """Come in with a site's key, act, and leave."""

        async def whole() -> Any:
            guest = Guest(self.access[site])
            await guest.enter()
            try:
                return await act(guest)
            finally:
                await guest.leave()

        return asyncio.run(whole())


@pytest.fixture
def seats(tmp_path: Path) -> Iterator[Seats]:
    found = Seats(tmp_path)
    yield found
    found.transport.hang_up()
    found.server.stop()


def order(number: int) -> Order:
    return Order(
        order=f"run-arrah-{number}", site="arrah", sequence=number, base_version=0,
        layout="0123456789abcdef", local_steps=1,
    )  # fmt: skip


def test_site_that_takes_what_it_is_sent_is_sent_more_than_its_stream_holds(seats: Seats) -> None:
    seat = seats.transport._seats["arrah"]
    room = stream_room(seat.assembler.largest_bytes)

    async def take_all(guest: Guest) -> None:
        await guest.join()
        await asyncio.to_thread(seats.wait_for, Joined)
        filling = os.urandom(100_000)
        for _ in range(2 * room // len(filling)):
            seats.transport._send(seat, "filling", {}, filling)
        seats.transport.send_order(order(7))
        assert (await asyncio.wait_for(guest.orders.get(), 60)).sequence == 7

    seats.play(take_all)


def test_second_connection_of_a_site_that_ends_is_not_the_sites_end(seats: Seats) -> None:
    """As when boli doctor runs beside boli join, and the coordinator was started again."""

    async def stay(guest: Guest) -> None:
        seats.transport.hang_up()
        seats.transport = await asyncio.to_thread(seats.open)
        await guest.join()
        await asyncio.to_thread(seats.wait_for, Joined)
        await asyncio.sleep(0.5)
        other = Guest(seats.access["arrah"])
        await other.enter()
        await other.leave()
        await asyncio.sleep(0.5)
        assert not [one for one in seats.transport.receive(0.2) if isinstance(one, Left)]
        seats.transport.send_order(order(3))
        assert (await asyncio.wait_for(guest.orders.get(), 10)).sequence == 3

    seats.play(stay)
    assert isinstance(seats.wait_for(Left)[-1], Left)  # the only one that it had


def test_what_cannot_be_read_deafens_nobody(seats: Seats) -> None:
    async def speak_badly(guest: Guest) -> None:
        transport = guest.client._transport
        for subject in ("boli.live.arrah", "boli.fetch.arrah", "boli.join.arrah"):
            transport.write(f"HPUB {subject} 8 10\r\nNATS/1.0hi\r\n".encode())
            transport.write(f"PUB {subject} ".encode() + b"\xff\xfe 2\r\nhi\r\n")
        await transport.drain()
        await asyncio.sleep(0.3)

    async def come(guest: Guest) -> None:
        await guest.join()

    seats.play(speak_badly)
    seats.play(come, "gaya")
    assert seats.transport._line.num_connections == 1
    joined = [one for one in seats.wait_for(Joined) if isinstance(one, Joined)]
    assert [one.site for one in joined] == ["gaya"]


def test_flood_of_measurements_keeps_nothing_waiting(seats: Seats) -> None:
    text = json.dumps({f"step{number}": 1.0 for number in range(40_000)}).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    bomb = bytes([FORMAT]) + deflate.compress(text) + deflate.flush()
    small = bytes([FORMAT]) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    enough, over = threading.Event(), threading.Event()

    async def shout(guest: Guest) -> int:
        number = 0
        while not over.is_set():
            for data in (bomb[:120_000], small) * 50:
                await guest.client.publish("boli.live.arrah", data)
                number += 1
            await guest.client.flush()
            if number > 500:
                enough.set()
        return number

    async def come(guest: Guest) -> None:
        await guest.join()

    shouted: list[int] = []
    thread = threading.Thread(target=lambda: shouted.append(seats.play(shout)))
    thread.start()
    try:
        time.sleep(1.0)
        num_arrivals, started = 0, time.monotonic()
        while (taken := time.monotonic() - started) < 3.0:
            num_arrivals += len(seats.transport.receive(0.5))
        seats.play(come, "gaya")
        seats.wait_for(Joined)
        assert enough.wait(120)
    finally:
        over.set()
        thread.join()
    assert shouted[0] > 500
    assert num_arrivals <= taken / MEASURE_SECONDS + 5
    assert seats.transport._arrived.qsize() < 100


def test_what_is_wrong_is_forgotten_ever_more_slowly(seats: Seats) -> None:
    """The server remembers every name for a while: a site shall not choose how many."""
    seat = seats.transport._seats["arrah"]
    seat_used_at = time.monotonic()
    seat.wrong_borne, seat.wrong_at = 10.0, seat_used_at  # has used the rest up

    async def send_rubbish(guest: Guest) -> None:
        for number in range(40):
            await guest.send_part(f"rubbish {number}", b"")

    seats.play(send_rubbish)
    told = 0
    deadline = time.monotonic() + 60
    while told < 40 and time.monotonic() < deadline:
        told += sum(isinstance(one, Malformed) for one in seats.transport.receive(0.2))
    assert told == 40
    while (num_kept := seats.num_kept()) > 30:
        time.sleep(0.1)
    assert 27 - (time.monotonic() - seat_used_at) < num_kept <= 30  # one more a second
    assert seat.wrong_borne < 0 < WRONG_BORNE


def test_site_whose_key_was_revoked_is_given_up_until_it_has_another(seats: Seats) -> None:
    seats.identities.revoke("gaya")
    failed = [one for one in seats.wait_for(Failed) if isinstance(one, Failed)]
    assert [(one.site, one.problem) for one in failed] == [("gaya", "its key was revoked")]
    time.sleep(1.2)
    assert not seats.transport.receive(1.5)  # told once
    seats.identities.invite("gaya", seats.address)
    time.sleep(1.2)
    assert not seats.transport.receive(1.5)
    seats.identities.revoke("gaya")
    assert seats.wait_for(Failed)

    async def come(guest: Guest) -> None:
        await guest.join()

    seats.play(come, "gaya")  # the server has not been told yet
    seats.wait_for(Joined)
    assert seats.wait_for(Failed)


def test_message_that_is_never_completed_is_forgotten_as_slowly(seats: Seats) -> None:
    seat = seats.transport._seats["arrah"]
    started = time.monotonic()
    seat.wrong_borne, seat.wrong_at = 5.0, started

    async def begin_many(guest: Guest) -> None:
        for number in range(30):
            await guest.send_part(f"{number:012x}.0.2", b"x")

    seats.play(begin_many)
    # The last two may still be completed; the others were counted, and one a second was pardoned.
    while 5.0 + (seat.wrong_at - started) - seat.wrong_borne < 27.5:
        seats.transport.receive(0.2)
    while (num_kept := seats.num_kept()) > 28:
        time.sleep(0.1)
    assert 22 - (time.monotonic() - started) < num_kept <= 28  # one more a second


def test_loop_gets_its_turn_however_much_arrives(seats: Seats) -> None:
    def slowly() -> Arrival:
        time.sleep(0.05)
        return Malformed("arrah", "more and more")

    for _ in range(100):
        seats.transport._arrived.put(slowly)
    assert 1 <= len(seats.transport.receive(0.3)) < 50


def test_measurement_arrives(seats: Seats) -> None:
    async def measure(guest: Guest) -> None:
        await guest.client.publish("boli.live.arrah", pack_facts({"step": 3}))
        await guest.client.flush()

    seats.play(measure)
    (found,) = (one for one in seats.wait_for(Measurement) if isinstance(one, Measurement))
    assert found == Measurement("arrah", {"step": 3.0})
