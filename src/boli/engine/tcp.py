"""TCP for lines that lose much: options of a socket, and what the kernel knows of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from dataclasses import dataclass

from boli.engine.identities import Address

SILENT_SECONDS = 2.5  # without a word on what was sent, at least, until another line is tried
LONGEST_RETRY_SECONDS = 3.0  # between the kernel's tries, on a line of ordinary delay
_CONGESTION, _THIN_LINEAR_TIMEOUTS, _RTO_MAX_MS = 13, 16, 44  # options of Linux, the last of 6.15
# struct tcp_info of Linux: 8 bytes, then counters of 32 and 64 bits; times in ms, rtt in µs.
_TCP_INFO = struct.Struct("8B24I4Q2I")


@dataclass(frozen=True)
class TcpInfo:
    """The kernel's counters of one connection."""

    unacked: int  # packets
    last_ack_seconds: float  # since the other end was heard
    rtt_seconds: float
    rtt_variance_seconds: float
    resent: int  # packets so far
    sent: int  # packets so far, those sent again as well

    @property
    def loses_much(self) -> bool:
        """Whether the line itself loses packets, and not only a cut of it did."""
        return self.resent > 10 and self.resent > 0.25 * self.sent

    @property
    def patience_seconds(self) -> float:
        """How long an answer may take: far longer than a round trip."""
        return max(SILENT_SECONDS, 3 * self.rtt_seconds + 4 * self.rtt_variance_seconds)

    @property
    def is_silent(self) -> bool:
        """Whether something was sent, and nothing heard for too long."""
        return self.unacked > 0 and self.last_ack_seconds > self.patience_seconds


def tcp_info(opened: socket.socket) -> TcpInfo | None:
    """Return the kernel's counters; nothing where it has none, or the socket is closed."""
    if sys.platform != "linux":
        return None
    try:
        data = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        found = _TCP_INFO.unpack(data)[8:]
        times = found[12] / 1e3, found[15] / 1e6, found[16] / 1e6
    except (OSError, struct.error):
        return None
    return TcpInfo(found[4], *times, found[23], found[28])


def moves(opened: list[socket.socket]) -> bool:
    """Tell whether a handshake goes on: one side or the other is due to speak all the time."""
    found = tcp_info(opened[0]) if opened else None
    return found is not None and found.last_ack_seconds < found.patience_seconds


async def dial(address: Address) -> socket.socket:
    """Return a TCP connection."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, where = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set(opened, _CONGESTION, b"bbr")  # it does not take every loss for congestion
        _set(opened, _THIN_LINEAR_TIMEOUTS, 1)  # the tries of a quiet line do not grow apart
        _set(opened, _RTO_MAX_MS, int(1000 * LONGEST_RETRY_SECONDS))  # nor those of a busy one
        await loop.sock_connect(opened, where)
    except BaseException:
        opened.close()
        raise
    return opened


def _set(opened: socket.socket, option: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            opened.setsockopt(socket.IPPROTO_TCP, option, value)


def limit_retries(opened: socket.socket, found: TcpInfo) -> None:
    """Let the kernel wait longer between its tries where a round trip takes seconds."""
    round_trip = found.rtt_seconds + 4 * found.rtt_variance_seconds
    _set(opened, _RTO_MAX_MS, int(1000 * max(LONGEST_RETRY_SECONDS, min(120.0, 2 * round_trip))))
