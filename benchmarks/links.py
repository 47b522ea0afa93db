"""Thin links in network namespaces, for the benchmarks, and what was counted. They need root."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "faults"))

from thin_line import Line, inside  # noqa: E402

PRESETS: dict[str, dict[str, Any]] = {
    "4g": {
        "down_bps": 20e6,
        "up_bps": 5e6,
        "delay_s": 0.040,
        "jitter_s": 0.010,
        "loss": 0.01,
        "queue_bytes": 256_000,
    },
    "rural": {
        "down_bps": 2e6,
        "up_bps": 0.5e6,
        "delay_s": 0.075,
        "jitter_s": 0.015,
        "loss": 0.02,
        "queue_bytes": 64_000,
    },
    "broadband": {
        "down_bps": 50e6,
        "up_bps": 10e6,
        "delay_s": 0.010,
        "jitter_s": 0.002,
        "loss": 0.0,
        "queue_bytes": 512_000,
    },
}
for _name in ("4g", "rural"):
    PRESETS[f"{_name}, no loss"] = {**PRESETS[_name], "loss": 0.0}
LOOPBACK = "loopback"
Counted = Mapping[str, tuple[int, int]]  # site to bytes at its interface: up, down


class Links:
    """One link a site, all to one hub; without a preset they are all on this machine's loopback."""

    def __init__(self, preset: str, sites: tuple[str, ...]) -> None:
        self.preset, self.sites = preset, sites
        self._links: dict[str, Line] = {}
        self.hub = f"hub{os.getpid()}"

    @contextlib.contextmanager
    def up(self) -> Iterator[Links]:
        """Bring the links up; this thread, and those that it starts, are at the hub meanwhile."""
        with contextlib.ExitStack() as stack:
            if self.preset != LOOPBACK:
                for site in self.sites:
                    link = Line(f"{site}{os.getpid()}", hub=self.hub, **PRESETS[self.preset])
                    self._links[site] = stack.enter_context(link)
                stack.enter_context(inside(self.hub))
            yield self

    def hub_address(self, site: str) -> str:
        """Return where a site reaches the hub."""
        return str(self._links[site].hub_ip) if self._links else "127.0.0.1"

    def start(self, site: str, command: list[Any], log: Path, **more: Any) -> subprocess.Popen[Any]:
        """Start a process at a site."""
        words = list(map(str, command))
        if self._links:
            words = ["ip", "netns", "exec", self._links[site].site, *words]
        return start(words, log, **more)

    def cut(self, site: str) -> None:
        """Let nothing through any more, in either direction; needs a preset."""
        self._links[site].down()

    def mend(self, site: str) -> None:
        """End a cut."""
        self._links[site].up()

    def counted(self) -> Counted:
        """Return IP bytes that each site's interface sent and received so far."""
        found = {site: link.stats() for site, link in self._links.items()}
        return {
            site: (stats["up"]["offered_bytes"], stats["down"]["delivered_bytes"])
            for site, stats in found.items()
        }

    def late_p99_ms(self) -> float:
        """Return how late packets were; above 5 the machine was too busy for exact times."""
        found = [link.stats() for link in self._links.values()]
        return max((s[way]["late_p99_ms"] for s in found for way in ("up", "down")), default=0.0)


def start(command: list[Any], log: Path, **more: Any) -> subprocess.Popen[Any]:
    """Start a process with this source tree's boli."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more.pop("env", {}),
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            **more,
        )


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to stop, and wait for it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))
        return int(one.getsockname()[1])
