from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from over_nats import free_port

from boli.engine import nats_settings
from boli.engine.identities import Address
from boli.engine.nats_admission import AdmissionControl, Unauthenticated, network_of, surplus
from boli.engine.nats_server import Server
from boli.engine.nats_way import abandon, enter

MOST = nats_settings.LEAST_CONNECTIONS


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb:cccc:dddd:eeee", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("not an address", "not an address"),
    ],
)
def test_ipv4_address_and_ipv6_64_count_as_one(address: str, network: str) -> None:
    assert network_of(address) == network


@st.composite
def crowds(draw: st.DrawFn) -> list[Unauthenticated]:
    owners = draw(st.lists(st.integers(0, 12), max_size=120))
    numbers = draw(st.permutations(range(len(owners))))
    shaken = draw(st.lists(st.booleans(), min_size=len(owners), max_size=len(owners)))
    return [
        Unauthenticated(hands, number, f"10.0.0.{owner}")
        for hands, number, owner in zip(shaken, numbers, owners, strict=True)
    ]


@given(crowds(), st.integers(0, 60))
def test_no_network_loses_any_that_has_fewer_than_another_keeps(
    crowd: list[Unauthenticated], keep: int
) -> None:
    dropped = surplus(crowd, keep)
    assert len(set(dropped)) == len(dropped)
    kept = set(crowd) - set(dropped)
    assert len(kept) <= max(keep, 0)
    if len(crowd) <= keep:
        assert not dropped
    left = Counter(one.network for one in kept)
    most = max(left.values(), default=0)
    for network in {one.network for one in dropped}:
        assert left[network] >= most - 1 or most <= 1
        # The oldest went first, and the silent ones before those that have shaken hands.
        assert max(one for one in dropped if one.network == network) < min(
            (one for one in kept if one.network == network), default=Unauthenticated(True, 999, "")
        )
    # Nor are more dropped than has to be: each network keeps what an equal share would be.
    networks = len({one.network for one in crowd})
    if dropped and networks:
        assert len(kept) >= min(keep, len(crowd)) - networks


def test_one_that_waits_alone_is_not_dropped_for_a_crowd_elsewhere() -> None:
    crowd = [Unauthenticated(False, number, "198.51.100.9") for number in range(10, 500)]
    site = Unauthenticated(False, 0, "203.0.113.7")  # a slow line: it waits for longest
    dropped = surplus([site, *crowd], 100)
    assert site not in dropped
    assert len(dropped) >= 390


@pytest.mark.parametrize(
    ("hard", "limit"), [(256, 256), (2000, 976), (1 << 20, nats_settings.MOST_CONNECTIONS)]
)
def test_limit_leaves_files_for_the_streams(
    monkeypatch: pytest.MonkeyPatch, hard: int, limit: int
) -> None:
    monkeypatch.setattr(nats_settings.resource, "getrlimit", lambda _: (100, hard))
    assert nats_settings.most_connections() == limit


def test_silent_connections_are_dropped_and_those_with_a_key_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_settings, "MOST_CONNECTIONS", MOST)
    server = Server(tmp_path, Address("127.0.0.1", free_port()))
    server.identities.make()
    site = server.identities.invite("gaya", server.address).access
    server.write_settings()
    server.start()
    dropped: list[tuple[int, str]] = []

    async def scene() -> None:
        clients: set = set()
        system = await enter(server.identities.access(server.address, "system"), [], clients)
        ours = await enter(site, [], clients)
        with contextlib.ExitStack() as stack:

            def come(source: str) -> socket.socket:
                where = server.address.host, server.address.port
                return stack.enter_context(socket.create_connection(where, 5.0, (source, 0)))

            alone = come("127.0.0.9")
            crowd = [come("127.0.0.8") for _ in range(MOST // 2 + 20)]
            control = AdmissionControl(lambda number, where: dropped.append((number, where)))
            task = asyncio.ensure_future(control.run(system.client))
            for _ in range(200):
                await asyncio.sleep(0.05)
                if dropped and ended(crowd) >= dropped[0][0]:
                    break
            assert ended([alone]) == 0
            assert ended(crowd) == dropped[0][0] == len(crowd) - MOST // 4 + 1
            # The newest are left; the server may number some that come at once in another order.
            assert ended(crowd[:50]) == 50
            assert ended(crowd[-20:]) < 10
            assert not ours.ended
            assert await ours.client.flush(10) is None
            # They come again: there is always a place for a site.
            crowd += [come("127.0.0.8") for _ in range(100)]
            again = await enter(site, [], clients)
            await abandon(again.client, clients)
            task.cancel()
        for way in (ours, system):
            await abandon(way.client, clients)

    try:
        asyncio.run(scene())
    finally:
        server.stop()
    assert {where for _, where in dropped} == {"127.0.0.8"}


def ended(connections: list[socket.socket]) -> int:
    """Return how many of these the server has ended."""
    found = 0
    for one in connections:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                found += one.recv(1) == b""
            except ConnectionResetError:
                found += 1
    return found


def test_full_server_of_a_killed_coordinator_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_settings, "MOST_CONNECTIONS", MOST)
    monkeypatch.setattr("boli.engine.nats_server.TAKEN_SECONDS", 1.0)
    first = Server(tmp_path, Address("127.0.0.1", free_port()))
    first.identities.make()
    first.write_settings()
    first.start()
    first._stopping.set()  # its coordinator is killed: nobody watches it any more
    pid = int((tmp_path / "server.pid").read_text())
    assert first._process is not None
    where = first.address.host, first.address.port
    second = Server(tmp_path, first.listen)
    with contextlib.ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(socket.create_connection(where, 5.0))
        second.start()
    try:
        assert int((tmp_path / "server.pid").read_text()) != pid
        assert first._process.poll() is not None
    finally:
        second.stop()
