"""The protocols that every engine implements: the coordinator's side and a node's side."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from boli.codec.codec import HEADER_BYTES, DenseCodec
from boli.durable import read_tensors, write_tensors
from boli.errors import CorruptFileError
from boli.rounds.update import (
    Copy,
    Order,
    Release,
    Spans,
    Update,
    UpdateHeader,
    Vector,
    Verdict,
    take,
)

PayloadBytes = Callable[[int], int]  # the most bytes of an update of so many entries
DENSE: PayloadBytes = DenseCodec().payload_bytes


@dataclass(frozen=True)
class Joined:
    """A node is there, for the first time or again."""

    site: str
    layout: Sequence[Sequence[Any]]  # the segments it trains
    num_lines: Mapping[str, Mapping[str, int]]  # language to part to lines
    held_version: int  # -1: none
    held_digest: int = 0  # of its bits
    restarts: int = 0
    copies: Sequence[Copy] = ()  # of pools, that it reads


@dataclass(frozen=True)
class Left:
    """A node is gone; it may come back."""

    site: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """A node says that it cannot do its work, or ended too often; it will not come back."""

    site: str
    problem: str
    hint: str = ""


@dataclass(frozen=True)
class Malformed:
    """A site sent something that is not an update."""

    site: str
    detail: str


@dataclass(frozen=True)
class Refused:
    """The engine turned away what nobody may do."""

    kind: str  # of few
    site: str  # whose key it was, or is; empty: nobody's
    count: int  # at least
    detail: str  # of the last one


@dataclass(frozen=True)
class Delivery:
    """An update, from the site that the engine knows it to be from."""

    site: str
    update: Update


@dataclass(frozen=True)
class Measurement:
    """A node's live figures, best effort."""

    site: str
    values: Mapping[str, float]


Arrival = Joined | Left | Failed | Malformed | Refused | Delivery | Measurement


@dataclass(frozen=True)
class Version:
    """A version on its way to a node: a delta on the one before, or a snapshot."""

    version: int
    snapshot: bool
    frame: bytes


def held_digest(theta: Vector | None) -> int:
    """Return a checksum of a version's bits: the same number may come from another history."""
    return 0 if theta is None else zlib.crc32(np.ascontiguousarray(theta).view(np.uint8).data)


def _room(spans: Spans) -> int:
    """Return the bytes of a snapshot."""
    return HEADER_BYTES + 4 * sum(stop - start for start, stop in spans)


@dataclass
class VersionLog:
    """What an engine needs to bring a node to the current version: O(d), whatever the run's length.

    The last few steps are kept while they are together no larger than a snapshot,
    also in `folder`, if there is one: a coordinator that is started again needs no snapshots.
    """

    views: Mapping[str, tuple[int | None, Spans]]  # by site
    release: Release
    folder: Path | None = None
    _frames: dict[tuple[int | None, int], bytes] = field(default_factory=dict)  # rank, version
    _digests: dict[tuple[int | None, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._note(self.release)
        if self.folder is not None:
            self._read(self.folder)

    def _note(self, release: Release) -> None:
        for rank, spans in dict(self.views.values()).items():
            self._digests[rank, release.version] = held_digest(take(release.theta, spans))

    def _read(self, folder: Path) -> None:
        """Take up the steps that lead to the release; of another history none fit."""
        for version in range(self.release.version, 0, -1):
            try:
                arrays, facts = read_tensors(folder / f"{version:09d}.safetensors")
            except CorruptFileError:
                return
            for key, (before, after) in facts["digests"].items():
                rank = int(key) or None
                if self._digests.get((rank, version)) == after:
                    self._digests[rank, version - 1] = before
                    self._frames[rank, version] = arrays[key].tobytes()

    def _write(self, folder: Path) -> None:
        """Write down the last step if it is smaller than a snapshot; drop those no view keeps."""
        version, ranks = self.release.version, dict(self.views.values())
        if all(len(self._frames[rank, version]) >= _room(ranks[rank]) for rank in ranks):
            return
        write_tensors(
            folder / f"{version:09d}.safetensors",
            {
                str(rank or 0): np.frombuffer(self._frames[rank, version], np.uint8)
                for rank in ranks
            },
            {"digests": {str(rank or 0): self._digests_around(rank, version) for rank in ranks}},
        )
        oldest = min(kept for _, kept in self._frames)
        for path in folder.glob("[0-9]*.safetensors"):
            if not oldest <= int(path.stem) <= version:
                path.unlink(missing_ok=True)

    def _digests_around(self, rank: int | None, version: int) -> tuple[int, int]:
        return self._digests[rank, version - 1], self._digests[rank, version]

    def publish(self, release: Release) -> None:
        """Take in the next version.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.release = release
        if release.step is None:  # it is an earlier version again, and goes out as a snapshot
            self._frames, self._digests = {}, {}
            self._note(release)
            return
        self._note(release)
        for rank, spans in dict(self.views.values()).items():
            frame = release.delta_frame(rank, spans)
            self._frames[rank, release.version] = frame
            room = _room(spans)
            for version in range(release.version, -1, -1):
                room -= len(self._frames.get((rank, version), b""))
                if room < 0 and version < release.version:
                    self._frames.pop((rank, version), None)
                    self._digests.pop((rank, version - 1), None)
                    break
        if self.folder is not None:
            self._write(self.folder)

    def step_for(self, site: str) -> Version:
        """Return the last step, for a node that holds the version before; or the whole version."""
        rank, _ = self.views[site]
        version = self.release.version
        frame = self._frames.get((rank, version))
        return self.snapshot_for(site) if frame is None else Version(version, False, frame)

    def snapshot_for(self, site: str) -> Version:
        """Return the whole version, for a node that missed some."""
        frame = self.release.snapshot_frame(*self.views[site])
        return Version(self.release.version, True, frame)

    def catch_up(self, joined: Joined) -> list[Version]:
        """Return the steps that a node missed, or a snapshot where that is smaller or needed."""
        rank, _ = self.views[joined.site]
        now, held = self.release.version, joined.held_version
        known = self._digests.get((rank, held)) == joined.held_digest
        steps = [self._frames.get((rank, version)) for version in range(held + 1, now + 1)]
        if 0 <= held <= now and known and None not in steps:
            return [Version(held + 1 + i, False, step) for i, step in enumerate(steps) if step]
        return [self.snapshot_for(joined.site)]


class Transport(Protocol):
    """The coordinator's side of an engine.

    Orders are delivered at least once, updates at least once until they are
    answered, versions in order or as a snapshot. Nothing here blocks on a
    site: a slow or dead one never delays the others.
    """

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        """Bring up the nodes; each will hold `release`, cut to its view."""
        ...

    def publish(self, release: Release) -> None:
        """Send a new version to every node."""
        ...

    def send_order(self, order: Order) -> None:
        """Send an order; sending it again is harmless."""
        ...

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        """Return what arrived, at once if there is something; empty after the timeout."""
        ...

    def answer(self, verdict: Verdict) -> None:
        """Tell a site what became of its update, so that it can forget it."""
        ...

    def bytes_down(self, site: str) -> int:
        """Return the bytes of versions and orders sent to a site so far."""
        ...

    def close(self) -> None:
        """Ask every node to stop and wait for it; harmless when repeated."""
        ...


@dataclass(frozen=True)
class Stop:
    """The node is to end."""


@dataclass(frozen=True)
class Rejoin:
    """The node is to say again that it is there and what it holds: its line was lost."""


Instruction = Order | Version | Verdict | Stop | Rejoin


class NodeLink(Protocol):
    """A node's side of an engine."""

    def join(self, joined: Joined) -> None:
        """Say that the node is there and what it holds."""
        ...

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        """Return the next instruction; None after the timeout, and wait for ever without one."""
        ...

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        """Send an update; it may be sent again until a verdict on it arrives."""
        ...

    def measure(self, values: Mapping[str, float]) -> None:
        """Send live figures, or drop them."""
        ...
