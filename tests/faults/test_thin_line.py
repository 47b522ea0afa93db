"""The tool that makes thin lines: packets take their time, are lost, and stop where it is cut."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import thin_line
from thin_line import Line, inside

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(thin_line.why_not()), reason=str(thin_line.why_not())),
]
HUB, SITE = f"th{os.getpid()}", f"ts{os.getpid()}"
PACKET_BYTES = 1000
ON_THE_LINE = PACKET_BYTES + 28  # headers of IP and UDP


@contextmanager
def ends(line: Line) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give a socket at the site that sends to one at the hub."""
    with inside(line.hub):
        hub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(line.site):
        site = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with hub, site:
        hub.bind((line.hub_ip, 0))
        hub.settimeout(5)
        site.connect(hub.getsockname())
        yield site, hub


def send(socket: socket.socket, count: int, pause_seconds: float = 0.0) -> None:
    for _ in range(count):
        socket.send(bytes(PACKET_BYTES))
        time.sleep(pause_seconds)


def settled(line: Line, offered: int) -> dict[str, float]:
    """Return what happened on the way up once every packet that was offered has met its fate."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        up: dict[str, float] = line.stats()["up"]
        fates = ("delivered", "cut", "overflowed", "lost")
        if up["offered_packets"] == offered == sum(up[f"{fate}_packets"] for fate in fates):
            return up
        time.sleep(0.05)
    raise AssertionError(line.stats())


def test_packets_arrive_late_and_whole() -> None:
    with Line(SITE, hub=HUB, delay_s=0.3) as line, ends(line) as (site, hub):
        started = time.monotonic()
        send(site, 1)
        assert hub.recv(2000) == bytes(PACKET_BYTES)
        assert time.monotonic() - started >= 0.3
        assert settled(line, 1)["delivered_bytes"] == ON_THE_LINE


def test_line_takes_the_time_that_its_bit_rate_asks_for() -> None:
    rate_bps = 200_000
    with Line(SITE, hub=HUB, up_bps=rate_bps, delay_s=0.0) as line, ends(line) as (site, hub):
        started = time.monotonic()
        send(site, 20)
        for _ in range(20):
            hub.recv(2000)
        assert time.monotonic() - started >= 19 * ON_THE_LINE * 8 / rate_bps


def test_share_of_packets_is_lost() -> None:
    with Line(SITE, hub=HUB, loss=0.3, delay_s=0.0) as line, ends(line) as (site, _):
        send(site, 300, 0.001)
        assert 50 < settled(line, 300)["lost_packets"] < 130


def test_queue_that_is_full_drops_the_rest() -> None:
    with (
        Line(SITE, hub=HUB, up_bps=80_000, queue_bytes=5 * ON_THE_LINE) as line,
        ends(line) as (site, _),
    ):
        send(site, 50)
        assert settled(line, 50)["overflowed_packets"] >= 30


def test_cut_line_lets_nothing_through_until_it_is_mended() -> None:
    with Line(SITE, hub=HUB, delay_s=0.0) as line, ends(line) as (site, hub):
        line.down()
        send(site, 10)
        assert settled(line, 10)["cut_packets"] == 10
        line.up()
        send(site, 1)
        assert hub.recv(2000) == bytes(PACKET_BYTES)


def test_lines_of_one_hub_have_networks_of_their_own() -> None:
    with Line(SITE, hub=HUB) as one, Line(f"{SITE}b", hub=HUB) as other:
        assert one.hub_ip != other.hub_ip
        for line in (one, other):
            with ends(line) as (site, hub):
                send(site, 1)
                assert hub.recv(2000)
    assert not any(Path(f"/run/netns/{name}").exists() for name in (HUB, SITE, f"{SITE}b"))


def test_nothing_is_left_where_the_process_that_made_a_line_dies() -> None:
    names = [f"{SITE}x", f"{SITE}y"]
    making = f"""
import sys, time
sys.path.insert(0, {str(Path(thin_line.__file__).parent)!r})
from thin_line import Line
with Line({names[0]!r}, hub={HUB!r}) as line, Line({names[1]!r}, hub={HUB!r}):
    line.popen(line.site, ["sleep", "600"])
    print("made", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", making], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        spaces = [Path("/run/netns") / name for name in (*names, HUB)]
        assert all(space.exists() for space in spaces)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(space.exists() for space in spaces):
        assert time.monotonic() < deadline, [space.name for space in spaces if space.exists()]
        time.sleep(0.05)
