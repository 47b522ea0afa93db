"""What the nats engine itself costs on a line: sites whose work takes no time.

As a program it is one such site's agent: engine_lines.py FOLDER SITE ENTRIES.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.durable import Generations
from boli.engine.identities import Address, Invitation, write_invitation
from boli.engine.nats import NatsTransport
from boli.engine.nats_node import Agent
from boli.engine.nats_server import Server
from boli.model.layout import Layout, Vector
from boli.plan import Plan
from boli.rounds.transport import Delivery, Joined, NodeLink
from boli.rounds.update import Order, Release, UpdateHeader, Verdict
from boli.site.kit import Kit, SiteFolder
from boli.site.node import Done, Node
from links import LOOPBACK, PRESETS, Links, end, free_port

SITES = ("bhojpur", "gaya", "raipur")
SMALL = 64  # entries of the adapter: 256 bytes
Figures = dict[str, Any]


def layout_of(entries: int) -> Layout:
    return Layout.of({"all": ((entries,), "whole")})


def noise(entries: int, seed: int) -> Vector:
    """Return what no codec makes smaller."""
    return np.random.default_rng(seed).standard_normal(entries, np.float32)


def plan_of(sites: tuple[str, ...]) -> Plan:
    text = ({"starter": "bho"},)
    return Plan.model_validate(
        {
            "name": "bare",
            "model": {"base": {"path": "none", "language": "hin"}},
            "codec": {"dtype": "fp32"},
            "site": [{"name": name, "language": "bho", "text": text} for name in sites],
        }
    )


class BareWork:
    """Has its answer ready."""

    rank = None
    num_lines: Mapping[str, Mapping[str, int]] = {"bho": {"train": 1}}
    copies = ()  # of pools

    def __init__(self, entries: int) -> None:
        self.layout = self.full_layout = layout_of(entries)
        self.first = np.zeros(entries, np.float32)
        self.answer = noise(entries, 1)

    def perform(
        self,
        order: Order,
        theta: Vector,  # noqa: ARG002
        start: Vector,  # noqa: ARG002
        steps_wanted: Callable[[], int],  # noqa: ARG002
        after_step: Callable[[int, float, float], bool],  # noqa: ARG002
    ) -> Done:
        return Done(self.answer if order.local_steps else None, order.local_steps)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {}, {}

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class BareFolder(SiteFolder):
    """A site without text and base."""

    entries: int = SMALL

    def open_node(self, kit: Kit, link: NodeLink, restarts: int = 0) -> Node:
        home = self.run_folder(kit)
        home.mkdir(parents=True, exist_ok=True)
        work, plan = BareWork(self.entries), plan_of((self.site,))
        return Node.of(plan, self.site, link, work, Generations(home), restarts)


class Federation:
    """A coordinator's side, with the server up and agents on their lines."""

    def __init__(self, transport: NatsTransport, layout: Layout, version: int) -> None:
        self.transport, self.layout, self.version = transport, layout, version
        self._sequence = 0

    def wait_for(self, is_it: Callable[[Any], bool]) -> Any:
        """Return the first arrival that it is."""
        while True:
            for arrival in self.transport.receive(600.0):
                if is_it(arrival):
                    return arrival

    def wait_for_sites(self) -> None:
        missing = set(SITES[: len(self.transport._seats)])
        while missing:
            missing.discard(self.wait_for(lambda it: isinstance(it, Joined)).site)

    def ask(self, site: str, local_steps: int) -> tuple[float, UpdateHeader]:
        """Send an order; return the seconds until its update is here, and the update's header."""
        self._sequence += 1
        order = Order(
            order=f"bare-{site}-{self._sequence}",
            site=site,
            sequence=self._sequence,
            base_version=self.version,
            layout=self.layout.digest,
            local_steps=local_steps,
        )
        started = time.monotonic()
        self.transport.send_order(order)
        arrival: Delivery = self.wait_for(lambda it: isinstance(it, Delivery))
        seconds = time.monotonic() - started
        header = arrival.update.header
        self.transport.answer(
            Verdict(order=order.order, site=site, sequence=header.sequence, accepted=True)
        )
        return seconds, header


@contextlib.contextmanager
def federation(links: Links, entries: int = SMALL, version: int = 0) -> Iterator[Federation]:
    """Bring up sites that hold version 0, and a coordinator that holds `version`."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port, layout = Path(name), free_port(), layout_of(entries)
        server = Server(folder / "coordinator", Address("0.0.0.0", port))
        for site in links.sites:
            address = Address(links.hub_address(site), port)
            write_invitation(server.identities.invite(site, address), folder / f"{site}.boli")
        server.write_settings()
        server.start()
        stack.callback(server.stop)
        transport = NatsTransport(
            server.identities.access(server.address),
            Kit(run="bare", plan={}),
            watcher=server.identities.access(server.address, "system"),
        )
        stack.enter_context(contextlib.closing(transport))
        theta = noise(entries, 2) if version else np.zeros(entries, np.float32)
        views = dict.fromkeys(links.sites, (None, ((0, entries),)))
        transport.start(views, Release(version, layout.digest, theta))
        for site in links.sites:
            words = [sys.executable, __file__, folder, site, entries]
            stack.callback(end, links.start(site, words, folder / f"{site}.log"))
        yield Federation(transport, layout, version)


def overhead(preset: str, times: int = 60) -> Figures:
    """Measure order to update, less the work, one order after the other."""
    with Links(preset, SITES[:1]).up() as links, federation(links) as found:
        found.wait_for_sites()
        extra = []
        for _ in range(times):
            seconds, header = found.ask(SITES[0], local_steps=1)
            extra.append(seconds - header.work_seconds)
        late = links.late_p99_ms()
    middle, *_, worst = statistics.quantiles(extra, n=20)[9:]
    figures = {
        "times": times,
        "median_ms": round(middle * 1e3, 2),
        "p95_ms": round(worst * 1e3, 2),
        "least_ms": round(min(extra) * 1e3, 2),
        "late_p99_ms": late,
    }
    if preset != LOOPBACK:
        round_trip = 2 * PRESETS[preset]["delay_s"]
        figures["round_trips_median"] = round(middle / round_trip, 3)
    return figures


def idle(preset: str, seconds: float) -> Figures:
    """Count what sites cost that have sent 100 kB each, and are asked for nothing more."""
    with Links(preset, SITES).up() as links, federation(links, 25_000) as found:
        found.wait_for_sites()
        for site in SITES:
            found.ask(site, local_steps=1)
        time.sleep(15.0)
        before, started = links.counted(), time.monotonic()
        time.sleep(seconds)
        after, lasted = links.counted(), time.monotonic() - started
    rates = [
        ((after[site][0] - up) / lasted, (after[site][1] - down) / lasted)
        for site, (up, down) in before.items()
    ]
    up, down = (statistics.fmean(rate) for rate in zip(*rates, strict=True))
    return {
        "seconds": round(lasted),
        "up_bytes_per_second": round(up, 2),
        "down_bytes_per_second": round(down, 2),
        "bytes_per_second": round(up + down, 2),
    }


def large(preset: str, entries: int) -> Figures:
    """Send an adapter down as a snapshot, and its update up, both dense in float32."""
    site, payload = SITES[0], 4 * entries
    limits = PRESETS[preset]
    with Links(preset, (site,)).up() as links, federation(links, entries, version=1) as found:
        start = links.counted()[site]
        found.wait_for_sites()
        joined = time.monotonic()
        _, header = found.ask(site, local_steps=0)  # answered when the snapshot is there
        down = time.monotonic() - joined - header.work_seconds
        middle = links.counted()[site]
        up, header = found.ask(site, local_steps=1)
        up -= header.work_seconds
        last = links.counted()[site]
        late = links.late_p99_ms()

    def way(seconds: float, wire_bytes: int, bps: float) -> Figures:
        return {
            "seconds": round(seconds, 2),
            "payload_share_of_rate": round(payload * 8 / seconds / bps, 4),
            "wire_share_of_rate": round(wire_bytes * 8 / seconds / bps, 4),
            "wire_per_payload": round(wire_bytes / payload, 4),
        }

    return {
        "payload_bytes": payload,
        "up": way(up, last[0] - middle[0], limits["up_bps"]),
        "down": way(down, middle[1] - start[1], limits["down_bps"]),
        "late_p99_ms": late,
    }


def heal(preset: str, entries: int, cut_seconds: float = 20.0) -> Figures:
    """Cut the line when 40 % of an update is through; tell what that costs once it is mended."""
    site, payload = SITES[0], 4 * entries
    rate = PRESETS[preset]["up_bps"] / 8
    with Links(preset, (site,)).up() as links, federation(links, entries) as found:
        found.wait_for_sites()
        before = links.counted()[site][0]

        def sent() -> int:
            return links.counted()[site][0] - before

        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            asked = pool.submit(found.ask, site, 1)
            while sent() < 0.4 * payload:
                time.sleep(0.02)
            links.cut(site)
            left = (payload - sent()) / rate
            time.sleep(cut_seconds)
            links.mend(site)
            mended = time.monotonic()
            seconds, _ = asked.result()
        wire = sent()
        late = links.late_p99_ms()
    after = started + seconds - mended
    return {
        "payload_bytes": payload,
        "cut_seconds": cut_seconds,
        "seconds_after_the_cut": round(after, 2),
        "seconds_of_the_rest_at_the_rate": round(left, 2),
        "late_seconds": round(after - left, 2),
        "wire_per_payload": round(wire / payload, 4),
        "late_p99_ms": late,
    }


def heal_often(preset: str, entries: int, cut_seconds: float, times: int) -> Figures:
    """Return the median of several cuts, by how late the update is, and what each came to."""
    found = [heal(preset, entries, cut_seconds) for _ in range(times)]
    keys = ("late_seconds", "wire_per_payload")
    each = {f"{key}_of_each": [one[key] for one in found] for key in keys}
    return sorted(found, key=lambda one: one["late_seconds"])[times // 2] | each


def main(folder: Path, site: str, entries: int) -> None:
    """Be one site's agent until told to stop."""
    state = folder / "sites" / site
    state.mkdir(parents=True, exist_ok=True)
    place = BareFolder(site, folder, state, entries=entries)
    Agent(Invitation.read(folder / f"{site}.boli").access, place, print).serve()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
