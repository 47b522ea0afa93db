"""Connections that have shown no key: how many the server holds, and which are dropped first.

nats-server has one limit for all connections, and waits for a minute until it gives up on one
that is silent, as a site on a poor line needs. So a stranger who opens many and says nothing
would keep every site out. Here the server is asked now and then which connections have shown no
key; when all of its places but half are taken, they are dropped until they have a quarter.
Who holds most loses first: an address that waits with few loses none as long as another has more,
however many sites share it. Connections with a key are never dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from nats.aio.client import Client

from boli.engine.identities import inbox_of
from boli.engine.nats_settings import most_connections
from boli.engine.nats_way import QUIET_ERRORS

CALM_SECONDS, BUSY_SECONDS = 1.0, 0.25  # between two looks
ANSWER_SECONDS = 30.0
SITE_PREFIX = 64  # bits of an IPv6 address that whoever has one has all of


@dataclass(frozen=True, order=True)
class Unauthenticated:
    """A connection that has shown no key; less than another: it is dropped before it."""

    has_shaken_hands: bool
    number: int  # the server counts up
    network: str


def network_of(address: str) -> str:
    """Return what counts as one address: of IPv6 a /64, whose owner has all of them."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), SITE_PREFIX), strict=False))


def surplus(waiting: Sequence[Unauthenticated], keep: int) -> list[Unauthenticated]:
    """Return which to drop so that at most `keep` are left: of who has most, the oldest.

    No network loses any that has fewer than another has left.
    """
    by_network: dict[str, list[Unauthenticated]] = defaultdict(list)
    for one in sorted(waiting):
        by_network[one.network].append(one)
    level, left = 0, keep  # what each network may keep, and what is not given out yet
    sizes = sorted(map(len, by_network.values()))
    for position, size in enumerate(sizes):
        share = left // (len(sizes) - position)
        if size > share:
            level = share
            break
        level, left = size, left - size
    dropped = [one for every in by_network.values() for one in every[: max(0, len(every) - level)]]
    if level == 0:  # more networks than places: the newest have them, one each
        newest = sorted(every.pop() for every in by_network.values())
        dropped = [*chain.from_iterable(by_network.values()), *newest[: max(0, len(newest) - keep)]]
    return dropped


@dataclass(frozen=True)
class AdmissionControl:
    """Drops strangers where there are too many; `dropped` hears how many, and one's address."""

    dropped: Callable[[int, str], None]

    async def run(self, client: Client) -> None:
        """Look and drop as long as this connection of the system account lasts."""
        server = str(client._server_info["server_id"])
        most = most_connections()
        with contextlib.suppress(*QUIET_ERRORS, ValueError, KeyError, TypeError):
            most = int((await _ask(client, server, "VARZ"))["max_connections"])
        while not client.is_closed:
            busy = False
            with contextlib.suppress(*QUIET_ERRORS, ValueError, KeyError, TypeError):
                held = int((await _ask(client, server, "CONNZ", limit=1))["total"])
                busy = held > most // 4
                if held > most // 2:
                    await self._drop(client, server, held, most // 4)
            await asyncio.sleep(BUSY_SECONDS if busy else CALM_SECONDS)

    async def _drop(self, client: Client, server: str, held: int, keep: int) -> None:
        told = await _ask(client, server, "CONNZ", auth=True, limit=2 * held)
        waiting = [
            Unauthenticated("tls_version" in one, int(one["cid"]), network_of(str(one["ip"])))
            for one in told["connections"]
            if not one.get("account")
        ]
        dropped = surplus(waiting, keep)
        nowhere = f"{inbox_of('coordinator')}.dropped"  # the server obeys only who wants an answer
        for one in dropped:
            number = json.dumps({"cid": one.number}).encode()
            await client.publish(f"$SYS.REQ.SERVER.{server}.KICK", number, reply=nowhere)
        await client.flush(int(ANSWER_SECONDS))
        if dropped:
            self.dropped(len(dropped), dropped[-1].network)


async def _ask(client: Client, server: str, what: str, **options: Any) -> dict[str, Any]:
    subject = f"$SYS.REQ.SERVER.{server}.{what}"
    answer = await client.request(subject, json.dumps(options).encode(), timeout=ANSWER_SECONDS)
    found: dict[str, Any] = json.loads(answer.data)["data"]
    return found
