"""Thin, lossy, broken lines between network namespaces of this machine.

A site is a network namespace, joined to a hub's by two TUN devices. A process of its own moves IP
packets between the two, and imposes bit rate, delay, jitter, loss and a queue that overflows. It
needs no queueing discipline of the kernel. Up is from the site to the hub.

    with Line("village", hub="town", up_bps=5e5, down_bps=2e6, delay_s=0.075, loss=0.02) as line:
        line.popen(line.site, ["curl", f"http://{line.hub_ip}:8000/"])

Needs root, the command ip and /dev/net/tun. Where the process that made a line dies, the line's
own process removes the namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NETNS = Path("/run/netns")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
CLONE_NEWNET = 0x40000000  # sched.h
LONGEST_PACKET_BYTES = 1 << 16
IDLE_SECONDS = 0.05


_numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)  # of lines, by hub


class LineError(RuntimeError):
    """A line cannot be made."""


def why_not() -> str | None:
    """Return why this machine cannot have such lines; None where it can."""
    if os.geteuid() != 0:
        return "not root: lines are made of network namespaces"
    if shutil.which("ip") is None:
        return "needs the command ip (package iproute2)"
    if not Path("/dev/net/tun").exists():
        return "no device /dev/net/tun"
    return None


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Put this thread into a network namespace; sockets that are opened meanwhile stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home, (NETNS / namespace).open() as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise LineError(f"cannot enter {namespace}: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


@dataclass(frozen=True)
class Shape:
    """What a line does to packets, and between whom."""

    site: str
    hub: str
    number: int  # of the line at its hub, from 0
    up_bps: float  # bits a second, of whole IP packets
    down_bps: float
    delay_s: float  # each way
    jitter_s: float  # more or less than that, at random; packets keep their order
    loss: float  # share of packets, each way
    queue_bytes: int  # each way
    mtu: int
    seed: int


class Line:
    """A line while its block lasts."""

    def __init__(
        self,
        site: str,
        *,
        hub: str,
        up_bps: float = 5e6,
        down_bps: float = 20e6,
        delay_s: float = 0.04,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        queue_bytes: int = 256_000,
        mtu: int = 1400,
        seed: int = 1,
    ) -> None:
        number = next(_numbers[hub])
        ways = (up_bps, down_bps, delay_s, jitter_s, loss, queue_bytes)
        self._shape = Shape(site, hub, number, *ways, mtu, seed)
        self.site, self.hub = site, hub
        self.hub_ip, self.site_ip = f"10.77.{number}.1", f"10.77.{number}.2"
        self._relay: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Line:
        reason = why_not()
        if reason:
            raise LineError(reason)
        command = [sys.executable, __file__, json.dumps(asdict(self._shape))]
        self._relay = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._relay.stdout is not None
        if self._relay.stdout.readline() != "ready\n":
            self.__exit__()
            raise LineError(f"no line to {self.site}; the reason is on standard error")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._relay is not None
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.close()  # it ends what runs at the site, and removes the namespaces
        self._relay.wait(30)
        self._relay.stdout.close()

    def down(self) -> None:
        """Let nothing through any more, whichever way."""
        self._ask("down")

    def up(self) -> None:
        """End an outage."""
        self._ask("up")

    def stats(self) -> dict[str, Any]:
        """Return packets and bytes of IP by what happened to them, for "up" and "down"."""
        return self._ask("stats")

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._relay is not None
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        with self._lock:
            self._relay.stdin.write(f"{word}\n")
            self._relay.stdin.flush()
            answer: dict[str, Any] = json.loads(self._relay.stdout.readline())
        return answer

    def popen(self, namespace: str, command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
        """Start a command at the site or at the hub."""
        return subprocess.Popen(["ip", "netns", "exec", namespace, *command], **more)


# In the process that moves the packets


class Way:
    """One way over the line: a queue, then the bit rate, then loss, then the delay."""

    def __init__(self, source: int, target: int, bps: float, shape: Shape, seed: int) -> None:
        self.source, self._target = source, target
        self._bytes_per_second, self._shape = bps / 8, shape
        self._draw = random.Random(seed)
        self._free_at = self._last_due = 0.0  # monotonic seconds
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._late: deque[float] = deque(maxlen=4096)
        self._packets: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    @property
    def due(self) -> float:
        """When the next packet is to arrive."""
        return self._under_way[0][0] if self._under_way else float("inf")

    def take(self, now: float, is_cut: bool) -> None:
        """Take the packets that wait at the source."""
        with suppress(BlockingIOError):
            for _ in range(64):
                self._accept(os.read(self.source, LONGEST_PACKET_BYTES), now, is_cut)

    def _accept(self, packet: bytes, now: float, is_cut: bool) -> None:
        shape = self._shape
        self._count("offered", packet)
        waiting = max(0.0, self._free_at - now) * self._bytes_per_second
        if is_cut or waiting + len(packet) > shape.queue_bytes:
            self._count("cut" if is_cut else "overflowed", packet)
            return
        self._free_at = max(self._free_at, now) + len(packet) / self._bytes_per_second
        if self._draw.random() < shape.loss:  # it has taken its time on the line all the same
            self._count("lost", packet)
            return
        delay = shape.delay_s + self._draw.uniform(-shape.jitter_s, shape.jitter_s)
        self._last_due = max(self._last_due, self._free_at + max(0.0, delay))
        self._under_way.append((self._last_due, packet))

    def deliver(self, now: float, is_cut: bool) -> None:
        """Hand over the packets that are due."""
        while self.due <= now:
            due, packet = self._under_way.popleft()
            if is_cut:
                self._count("cut", packet)
                continue
            try:
                os.write(self._target, packet)
            except OSError:  # the kernel does not take it
                self._count("overflowed", packet)
                continue
            self._late.append(now - due)
            self._count("delivered", packet)

    def _count(self, fate: str, packet: bytes) -> None:
        self._packets[fate] += 1
        self._bytes[fate] += len(packet)

    def stats(self) -> dict[str, float]:
        fates = ("offered", "delivered", "cut", "overflowed", "lost")
        late = sorted(self._late) or [0.0]
        return {
            **{f"{fate}_packets": self._packets[fate] for fate in fates},
            **{f"{fate}_bytes": self._bytes[fate] for fate in fates},
            "late_p99_ms": round(late[int(len(late) * 0.99)] * 1e3, 3),
        }


def relay(shape: Shape) -> None:
    """Move packets until the process that made the line closes it, or dies."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # keep time on a busy machine
    network = f"10.77.{shape.number}"
    hub = open_tun(shape.hub, f"line{shape.number}", f"{network}.1/30", shape.mtu)
    site = open_tun(shape.site, "uplink", f"{network}.2/30", shape.mtu)
    ip("-n", shape.site, "route", "add", "default", "via", f"{network}.1")
    try:
        move_packets(site, hub, shape)
    finally:
        os.close(site)
        os.close(hub)


def move_packets(site: int, hub: int, shape: Shape) -> None:
    up = Way(site, hub, shape.up_bps, shape, shape.seed)
    down = Way(hub, site, shape.down_bps, shape, shape.seed + 1)
    is_cut = False
    say("ready")
    while True:
        wait = min(up.due, down.due) - time.monotonic()
        ready, _, _ = select.select([site, hub, 0], [], [], min(max(wait, 0.0), IDLE_SECONDS))
        now = time.monotonic()
        for way in (up, down):
            way.deliver(now, is_cut)
            if way.source in ready:
                way.take(now, is_cut)
        if 0 in ready:
            words = os.read(0, 1000).decode().split()
            if not words:
                return
            for word in words:
                is_cut = {"down": True, "up": False}.get(word, is_cut)
                say(json.dumps({"up": up.stats(), "down": down.stats()}))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LineError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def add_namespace(name: str) -> None:
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    # Without IPv6, whose own messages would be counted.
    off = "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"
    ip("netns", "exec", name, "sh", "-c", f"! [ -e /proc/sys/net/ipv6 ] || {off}")


def open_tun(namespace: str, device: str, address: str, mtu: int) -> int:
    with inside(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI)
        fcntl.ioctl(descriptor, TUNSETIFF, request)
    ip("-n", namespace, "address", "add", address, "dev", device)
    ip("-n", namespace, "link", "set", device, "up", "mtu", str(mtu), "txqueuelen", "1000")
    return descriptor


def remove_namespace(name: str) -> None:
    """End what runs in a namespace, and remove it; nothing where it is gone."""
    with suppress(LineError):
        for process in map(int, ip("netns", "pids", name).split()):
            if process not in (os.getpid(), os.getppid()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        ip("netns", "delete", name)


def main(shape: Shape) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    add_namespace(shape.site)
    try:
        if not (NETNS / shape.hub).exists():
            add_namespace(shape.hub)
        relay(shape)
    finally:
        remove_namespace(shape.site)
        with suppress(LineError):  # another line has removed the hub
            if ": line" not in ip("-n", shape.hub, "-o", "link", "show"):
                remove_namespace(shape.hub)


if __name__ == "__main__":
    main(Shape(**json.loads(sys.argv[1])))
