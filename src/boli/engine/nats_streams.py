"""The streams of a site and their consumers, and what the server itself tells."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from boli.engine.identities import down_stream, room_of, up_stream
from boli.engine.nats_settings import PART_BYTES

DUPLICATE_SECONDS = 120.0  # in which the server knows a part again; the coordinator always does
KEPT_SECONDS = 30 * 86400.0
DOWN_PARTS, DOWN_ACK_SECONDS = 64, 120.0  # under way to a site; until they are sent again
UP_ACK_SECONDS = 600.0
CONNECTIONS_SECONDS = 60.0
ROOM_BYTES = 1 << 20  # of a stream, above what its largest messages need


def stream_room(largest_bytes: int) -> int:
    """Return the bytes that the server reserves for one stream of such messages."""
    return 3 * largest_bytes + ROOM_BYTES


async def create_streams(client: Client, site: str, run: str, largest_bytes: int) -> None:
    """Make a site's streams for a run, or find them; those of another run are emptied."""
    streams = client.jetstream()
    for name, subject in (
        (up_stream(site), f"boli.up.{site}"),
        (down_stream(site), f"boli.down.{site}"),
    ):
        config = StreamConfig(
            name=name,
            description=run,
            subjects=[subject],
            retention=RetentionPolicy.WORK_QUEUE,  # what was taken makes room
            discard=DiscardPolicy.NEW,  # a full stream refuses; nothing is dropped in silence
            storage=StorageType.FILE,
            max_bytes=stream_room(largest_bytes),
            max_msg_size=PART_BYTES + 1024,
            max_age=KEPT_SECONDS,
            duplicate_window=DUPLICATE_SECONDS,
        )
        try:
            found = await streams.stream_info(name)
        except nats.js.errors.NotFoundError:
            await streams.add_stream(config)
            continue
        if found.config.retention != config.retention:  # of an older boli; it cannot be changed
            await streams.delete_stream(name)
            await streams.add_stream(config)
            continue
        if found.config.description != run:
            await streams.purge_stream(name)
        await streams.update_stream(config)
    await _consume(client, up_stream(site), f"boli.arrived.{site}", largest_bytes // PART_BYTES)
    await _consume(client, down_stream(site), f"boli.deliver.{site}", 0)


async def _consume(client: Client, stream: str, subject: str, num_parts: int) -> None:
    """Let a stream be pushed to a subject; what was under way before is pushed again."""
    streams = client.jetstream()
    is_up = num_parts > 0 or subject.startswith("boli.arrived")
    with contextlib.suppress(nats.js.errors.NotFoundError):
        await streams.delete_consumer(stream, "boli")
    await streams.add_consumer(
        stream,
        ConsumerConfig(
            durable_name="boli",
            deliver_subject=subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=UP_ACK_SECONDS if is_up else DOWN_ACK_SECONDS,
            # A site's update is acknowledged as a whole, when a checkpoint holds it.
            max_ack_pending=3 * num_parts + 64 if is_up else DOWN_PARTS,
        ),
    )


async def empty_down(client: Client, site: str) -> None:
    """Empty the stream of what a site is sent."""
    await client.jetstream().purge_stream(down_stream(site))


async def note_comings(
    client: Client, site: str, came: Callable[[int], None], went: Callable[[int, str], None]
) -> None:
    """Let the server say when a site's connections come and go: number, reason."""

    async def note(message: Msg) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(message.data)
            number = int(body["client"]["id"])
            if message.subject.endswith(".CONNECT"):
                came(number)
            else:
                went(number, str(body.get("reason", "")))

    for event in ("CONNECT", "DISCONNECT"):
        await client.subscribe(f"$SYS.ACCOUNT.{room_of(site)}.{event}", cb=note)


async def connections_of(client: Client, site: str) -> set[int]:
    """Ask the server which connections a site has now."""
    asked = f"$SYS.REQ.ACCOUNT.{room_of(site)}.CONNZ"
    answer = await client.request(asked, b"{}", timeout=CONNECTIONS_SECONDS)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return {int(one["cid"]) for one in json.loads(answer.data)["data"]["connections"]}
    return set()


async def note_strangers(client: Client, went: Callable[[str], None]) -> None:
    """Let the server say, by its address, who left without having shaken hands.

    The server's log misses those who do not speak TLS at all.
    """

    async def note(message: Msg) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(message.data)
            if body["reason"].startswith("TLS"):
                went(str(body["client"].get("host", "")))

    await client.subscribe("$SYS.ACCOUNT.$G.DISCONNECT", cb=note)
