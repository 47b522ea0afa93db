"""A site's work without a model, and a whole run around it: min ||theta - target||^2.

`QuadraticWork` needs numpy only, so that a node's process is there in a quarter of
a second. Its momentum, its noise and its own bookkeeping make work that was lost,
repeated or saved by halves show in the bits. As a program it is the node of one
site under the local engine: quadratic.py FOLDER SITE DESCRIPTOR RESTARTS.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boli.codec.codec import decode_frame
from boli.durable import Generations
from boli.model.layout import Layout, Vector
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.transport import Arrival, Delivery, NodeLink, Transport
from boli.rounds.update import (
    Copy,
    Judgement,
    Order,
    Release,
    ServerState,
    SiteProgress,
    Spans,
    Update,
    UpdateHeader,
    Verdict,
)
from boli.site.node import Done, Node

if TYPE_CHECKING:
    from boli.journal import Journal
    from boli.plan import Plan
    from boli.rounds.loop import Rounds

TOKENS_A_STEP = 8
LENIENT = "min_tokens = 1\nmin_judged_lines = 1\n"  # limits of sites in tests: jobs are tiny
WIDTH = int(os.environ.get("QUADRATIC_WIDTH", "6"))  # thousands make an update of 100s of kB
NESTINGS: dict[str, Any] = {"a": "rows", "core": "shells", "norm": "whole"}


def layout_of(rank: int | None = None) -> Layout:
    """Return the layout that a site of this rank trains: three segments, nested like LoRA."""
    r = rank or 4
    shapes = {"a": (r, WIDTH), "core": (r, r), "norm": (5,)}
    return Layout.of({name: (shape, NESTINGS[name]) for name, shape in shapes.items()})


LAYOUT = layout_of()
FIRST = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)  # version 0


class QuadraticWork:
    """Local steps of momentum towards the site's own target, with noise from a cursor."""

    def __init__(
        self,
        site: str,
        rank: int | None = None,
        step_seconds: float = 0.0,
        copies: Sequence[Copy] = (),
    ) -> None:
        self.copies = copies
        self.begin: Callable[[Order], None] = lambda order: None  # before the work on an order
        self.truthful = False  # judges by the loss
        self.rank, self.layout, self.step_seconds = rank, layout_of(rank), step_seconds
        self.full_layout = LAYOUT
        self.num_lines: Mapping[str, Mapping[str, int]] = {"bho": {"train": 10}}
        self.seed = zlib.crc32(site.encode())
        target = np.random.default_rng(self.seed).standard_normal(LAYOUT.size, np.float32)
        self.target = LAYOUT.view(rank).take(target)
        self.first = LAYOUT.view(rank).take(FIRST)
        self.momentum = np.zeros_like(self.target)
        self.made = np.zeros(self.target.size)  # sum of all pseudo-gradients of whole orders
        self.cursor = 0  # steps taken
        self.told = 0  # steps of whole orders

    def close(self) -> None:
        pass

    def perform(
        self,
        order: Order,
        theta: Vector,
        start: Vector,
        steps_wanted: Callable[[], int],
        after_step: Callable[[int, float, float], bool],
    ) -> Done | None:
        self.begin(order)
        if self.cursor != self.told:
            raise AssertionError(f"{self.cursor} steps taken, but {self.told} in whole orders")
        judgements = tuple(
            Judgement(
                language="bho",
                part=part,
                bits=self.judged(order, theta),
                bytes=1000,
            )
            for part in order.evaluate
        )
        if not order.local_steps:
            return Done(None, judgements=judgements)
        local, done = start.copy(), 0
        while done < steps_wanted():
            noise = np.random.default_rng((self.seed, self.cursor))
            gradient = local - self.target
            gradient += np.float32(0.1) * noise.standard_normal(local.size, np.float32)
            self.momentum = np.float32(0.9) * self.momentum + gradient
            local -= np.float32(0.05) * self.momentum
            self.cursor, done = self.cursor + 1, done + 1
            if self.step_seconds:
                time.sleep(self.step_seconds)
            if not after_step(done, self.loss(local), 1.0):
                return None
        self.told += done
        moved = start - local
        self.made += moved
        return Done(
            moved, done, done * TOKENS_A_STEP, self.loss(local), 0.1 * done, 0.0, judgements
        )

    def judged(self, order: Order, theta: Vector) -> float:
        if not self.truthful:  # each version better than the one before: none is restored
            return 1000 * 0.99 ** (0 if order.first else order.base_version)
        return self.loss(self.first if order.first else theta) * 1000

    def loss(self, theta: Vector) -> float:
        return float(np.mean(np.square(theta - self.target)))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays = {"momentum": self.momentum.copy(), "made": self.made.copy()}
        return arrays, {"cursor": self.cursor, "told": self.told}

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        self.momentum, self.made = arrays["momentum"].copy(), arrays["made"].copy()
        self.cursor, self.told = facts["cursor"], facts["told"]


@dataclass(frozen=True)
class Job:
    """A run to be made, small enough for JSON."""

    ranks: Mapping[str, int | None] = field(
        default_factory=lambda: {"arrah": None, "darbhanga": None, "gaya": None}
    )
    rounds: Mapping[str, Any] = field(default_factory=dict)  # of the plan
    every_rounds: int = 2  # between judgements
    truthful: bool = False  # judgements tell the loss, so that an earlier version may be restored
    dtype: str = "fp32"
    codec: Mapping[str, Any] = field(default_factory=dict)  # of the plan
    step_seconds: Mapping[str, float] = field(default_factory=dict)  # really slept, by site
    lies: Mapping[str, str] = field(default_factory=dict)  # of the local engine's nodes
    copies: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # by site
    mortal: Sequence[str] = ()  # sites whose node's process ends itself at every order
    limits: Mapping[str, str] = field(default_factory=dict)  # by site, a file: see `limit`

    @property
    def plan(self) -> Plan:
        from boli.plan import Plan

        text = ({"starter": "bho"},)
        return Plan.model_validate(
            {
                "name": "quadratic",
                "model": {
                    "base": {"path": "none", "language": "hin"},
                    "adapter": {"rank": 4},
                    "local_steps": {"batch_sequences": 1, "sequence_length": TOKENS_A_STEP},
                },
                # The work is no AdamW, and its references know of no bounds.
                "rounds": {
                    "total": 4,
                    "local_steps": 4,
                    "step_multiple": math.inf,
                    "norm_multiple": math.inf,
                    "suspend": False,
                    **self.rounds,
                },
                "codec": {"dtype": self.dtype, **self.codec},
                "evaluation": {"every_rounds": self.every_rounds},
                "site": [
                    {"name": name, "language": "bho", "text": text, "rank": rank}
                    for name, rank in self.ranks.items()
                ],
            }
        )

    @property
    def views(self) -> dict[str, tuple[int | None, Spans]]:
        return {name: (rank, LAYOUT.view(rank).spans) for name, rank in self.ranks.items()}

    def work(self, site: str) -> QuadraticWork:
        copies = [Copy.model_validate(copy) for copy in self.copies.get(site, ())]
        work = QuadraticWork(site, self.ranks[site], self.step_seconds.get(site, 0.0), copies)
        work.truthful = self.truthful
        return work

    def node(self, site: str, link: NodeLink, store: Generations, restarts: int) -> Node:
        work = self.work(site)
        work.begin = partial(self._begin, site)
        return Node.of(self.plan, site, link, work, store, restarts)

    def _begin(self, site: str, order: Order) -> None:
        """Die at an order, or wait before it, where the job says so."""
        if site in self.mortal:
            os.kill(os.getpid(), signal.SIGKILL)
        if site in self.limits:
            path = Path(self.limits[site])
            while path.exists() and order.sequence > int(path.read_text() or 0):
                time.sleep(0.02)

    def limit(self, last: int) -> None:
        """Let the sites with a limit begin their orders up to this one, and no other."""
        for path in set(self.limits.values()):
            Path(path).write_text(str(last))

    def first_state(self) -> ServerState:
        sites = {name: SiteProgress(rank=rank) for name, rank in self.ranks.items()}
        return ServerState("run", LAYOUT.digest, FIRST, sites)

    def loop(
        self,
        transport: Transport,
        checkpoints: CheckpointStore,
        journal: Journal,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Rounds:
        """Return the loop as a run builds it; over the fake, its clock is the simulated one."""
        from boli.preparation import Prepared
        from boli.run import _rounds

        layouts = {name: layout_of(rank).describe() for name, rank in self.ranks.items()}
        prepared = Prepared("run", "none", LAYOUT.describe(), layouts, threads=1)
        rounds = _rounds(
            self.plan, prepared, transport, checkpoints, journal, lambda _: None, should_stop
        )
        engine = getattr(transport, "inner", transport)
        if hasattr(engine, "now"):
            rounds.clock = lambda: engine.now
        return rounds


class Killed(BaseException):
    """The coordinator's process ends here."""


class Tap:
    """A transport around another one: notes what passes, and can end the coordinator there."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.updates: dict[str, tuple[UpdateHeader, bytes]] = {}  # by order
        self.changed: list[str] = []  # orders that were answered in two ways
        self.verdicts: list[Verdict] = []
        self.arrivals: list[Arrival] = []
        self.calls = 0
        self.dies_at = 0  # call of `publish`, `send_order` or `answer`
        self.after_arrival: Callable[[int], None] = lambda count: None

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed

    def start(self, views: Mapping[str, tuple[int | None, Spans]], release: Release) -> None:
        self.inner.start(views, release)

    def publish(self, release: Release) -> None:
        self._call()
        self.inner.publish(release)

    def send_order(self, order: Order) -> None:
        self._call()
        self.inner.send_order(order)

    def receive(self, timeout_seconds: float) -> list[Arrival]:
        arrivals = self.inner.receive(timeout_seconds)
        for arrival in arrivals:
            self.arrivals.append(arrival)
            if isinstance(arrival, Delivery):
                update = arrival.update
                found = self.updates.setdefault(
                    update.header.order, (update.header, update.payload)
                )
                if found != (update.header, update.payload):
                    self.changed.append(update.header.order)
            self.after_arrival(len(self.arrivals))
        return arrivals

    def answer(self, verdict: Verdict) -> None:
        self._call()
        self.verdicts.append(verdict)
        self.inner.answer(verdict)

    def bytes_down(self, site: str) -> int:
        return self.inner.bytes_down(site)

    def close(self) -> None:
        self.inner.close()


def synchronous_reference(job: Job) -> Vector:
    """Return the last version of a synchronous run with plain SGD, computed without any of it."""
    plan, works = job.plan, {name: job.work(name) for name in job.ranks}
    theta = job.first_state().theta
    for _ in range(plan.rounds.total):
        sums, covered = np.zeros(theta.size, np.int64), np.zeros(theta.size)
        for name, rank in job.ranks.items():
            view = LAYOUT.view(rank)
            order = Order(
                order="",
                site=name,
                sequence=1,
                base_version=0,
                layout=LAYOUT.digest,
                local_steps=plan.rounds.local_steps,
            )
            done = works[name].perform(
                order,
                view.take(theta),
                view.take(theta),
                lambda: plan.rounds.local_steps,
                lambda *_: True,
            )
            assert done is not None
            assert done.pseudo_gradient is not None
            entries = np.concatenate([np.arange(*span) for span in view.spans])
            sums[entries] += np.rint(done.pseudo_gradient.astype(np.float64) * 2.0**40).astype(int)
            covered[entries] += 1
        theta = theta - (sums / (np.maximum(covered, 1) * 2.0**40)).astype(np.float32)
    return theta


class Ledger(CheckpointStore):
    """Checkpoints that keep all of their history in memory, for the count below."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.history: list[ServerState] = []

    def save(self, state: ServerState) -> None:
        super().save(state)
        self.history.append(state)


def accepted_orders(job: Job, history: Sequence[ServerState]) -> list[tuple[str, int]]:
    """Return site and sequence of every update that the checkpoints took in.

    Raises:
        AssertionError: one was taken in twice.
    """
    return [pair for _, pairs in _turns(job, history) for pair in pairs]


def _turns(
    job: Job, history: Sequence[ServerState]
) -> Iterator[tuple[ServerState, list[tuple[str, int]]]]:
    """Yield the state before each turn, and what the turn took in."""
    before, seen = job.first_state(), set()
    for state in history:
        found = [
            (name, sequence)
            for name in state.sites
            for sequence in state.sites[name].accepted
            if sequence not in before.sites[name].accepted
        ]
        if seen & set(found):
            raise AssertionError(f"taken in twice: {seen & set(found)}")
        seen |= set(found)
        yield before, found
        before = state


def counted_once(job: Job, history: Sequence[ServerState], tap: Tap) -> Vector:
    """Return the version that follows if each update that was taken in counts once.

    Plain SGD, and weights from the tokens: computed from what the sites sent and
    from what the checkpoints say was taken in, without any of the coordinator.
    """
    theta, rounds = job.first_state().theta, job.plan.rounds
    versions = {0: theta}
    waiting: dict[str, list[int]] = {name: [] for name in job.ranks}  # sequences, by site
    for (before, found), after in zip(_turns(job, history), history, strict=True):
        for name, sequence in found:
            if tap.updates[f"run-{name}-{sequence}"][0].local_steps:
                waiting[name].append(sequence)
        restored = after.version if after.version > before.version else -1
        earlier = after.selection.restored.get(restored)
        made = 0 if earlier is not None else after.version - before.version
        for version, names in enumerate(after.recent[-made:] if made else (), before.version):
            sums, weights = np.zeros(theta.size, np.int64), np.zeros(theta.size)
            for name in names:
                if not waiting[name]:  # versions hold more than the checkpoints took in
                    return np.full_like(theta, np.nan)
                header, payload = tap.updates[f"run-{name}-{waiting[name].pop(0)}"]
                view = LAYOUT.view(job.ranks[name])
                vector = decode_frame(payload, LAYOUT.digest, view.size).vector
                weight = np.rint(header.tokens / TOKENS_A_STEP / rounds.local_steps * 2**20) / 2**20
                factor = weight / np.sqrt(1 + version - header.base_version)
                entries = np.concatenate([np.arange(*span) for span in view.spans])
                sums[entries] += np.rint(vector.astype(float) * (factor * 2.0**40)).astype(int)
                weights[entries] += weight
            theta = theta - (sums / (np.where(weights, weights, 1) * 2.0**40)).astype(np.float32)
            versions[version + 1] = theta
        if earlier is not None:
            theta = versions[earlier]
    return theta


def unaccounted(
    job: Job, history: Sequence[ServerState], tap: Tap, stores: Mapping[str, Generations]
) -> float:
    """Return the largest entry of any site's work that is neither counted nor kept.

    What a site made is either in the updates that were taken in, or in its
    residual, or in its last answer; whatever was lost or is there twice shows.
    """
    accepted, largest = set(accepted_orders(job, history)), 0.0
    for name, rank in job.ranks.items():
        found, size = stores[name].load(), layout_of(rank).size
        if found is None:
            continue
        arrays, facts, _ = found
        rest = arrays["work.made"] - arrays.get("residual", np.zeros(size))
        answer, payload = facts["answer"], arrays["payload"].tobytes()
        for site, sequence in accepted:
            sent = tap.updates[f"run-{site}-{sequence}"][1]
            if site == name and sent:
                rest = rest - decode_frame(sent, LAYOUT.digest, size).vector
        if payload and (name, answer["sequence"]) not in accepted:
            rest = rest - decode_frame(payload, LAYOUT.digest, size).vector
        largest = max(largest, float(np.abs(rest).max()))
    return largest


class LyingLink:
    """A link whose node sends something else than its work."""

    def __init__(self, link: Any, lie: Any) -> None:
        import random

        self._link, self._lie, self._draw = link, lie, random.Random(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        sent = self._lie(Update(header, payload), self._draw)
        if isinstance(sent, bytes):
            self._link._line.send_bytes(sent)
        else:
            self._link.send_update(sent.header, sent.payload)


def write_job(job: Job, folder: Path) -> None:
    """Leave a job where the nodes' processes find it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)))


def main(arguments: Sequence[str]) -> None:
    """Serve as one site's node until told to stop."""
    from boli.engine.local_node import LocalLink

    folder, site = Path(arguments[0]), arguments[1]
    job = read_job(folder)
    home = folder / "sites" / site
    home.mkdir(parents=True, exist_ok=True)
    (home / "pid").write_text(str(os.getpid()))
    link: Any = LocalLink(int(arguments[2]))
    job.node(site, truly(job, site, link), Generations(home), int(arguments[3])).run()


def read_job(folder: Path) -> Job:
    """Return what `write_job` left."""
    return Job(**json.loads((folder / "job.json").read_text()))


def truly(job: Job, site: str, link: Any) -> Any:
    """Return the link, or one that lies where the job says so."""
    if site not in job.lies:
        return link
    from boli.engine.lies import LIES

    return LyingLink(link, LIES[job.lies[site]]())


if __name__ == "__main__":
    main(sys.argv[1:])
