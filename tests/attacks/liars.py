"""A federation in one process, in which some sites lie: what the attacks on rounds share.

The coordinator's loop, its bounds, the nodes and the wire are the real ones; the
engine is the scripted one, on simulated time. In the fast form a site takes real
AdamW steps towards a target instead of training a model; in the full form it trains
a small model on the starter text.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boli.durable import Generations
from boli.engine.fake import FakeTransport
from boli.engine.script import Script
from boli.journal import (
    Evaluated,
    Event,
    Journal,
    SiteBenched,
    UpdateAccepted,
    UpdateRejected,
    UpdateWeighed,
    read_journal,
)
from boli.model.layout import Layout
from boli.plan import Plan
from boli.preparation import Prepared
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.transport import NodeLink
from boli.rounds.update import Judgement, Order, ServerState, SiteProgress
from boli.run import _rounds
from boli.site.node import Done, Node

UNDEFENDED = {
    "norm_multiple": math.inf,
    "step_multiple": math.inf,
    "most_share": 1.0,
    "suspend": False,
}
LANGUAGES = ("bho", "mag", "mai")
Lie = Callable[[Done], Done]


def honestly(done: Done) -> Done:
    """Change nothing."""
    return done


def times(factor: float) -> Lie:
    """Return the lie that multiplies what a site made."""

    def lie(done: Done) -> Done:
        assert done.pseudo_gradient is not None
        return Done(
            done.pseudo_gradient * np.float32(factor),
            done.local_steps,
            done.tokens,
            done.loss,
            done.train_seconds,
            done.evaluate_seconds,
            done.judgements,
        )

    return lie


@dataclass(frozen=True)
class Trial:
    """A federation, and who lies in it in which way."""

    folder: Path
    liars: Collection[str] = ()
    lie: Lie = honestly
    num_sites: int = 5
    rounds: Mapping[str, Any] = field(default_factory=dict)  # of the plan
    codec: str = "dense"
    step_seconds: Mapping[str, float] = field(default_factory=dict)  # by site
    fast: bool = True

    @property
    def sites(self) -> list[str]:
        return [f"site-{number}" for number in range(self.num_sites)]

    @property
    def plan(self) -> Plan:
        micro = {
            "vocabulary_size": 320,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 48,
            "steps": 200,
        }
        tables: dict[str, Any] = {
            "name": "liars",
            "model": {
                "base": {
                    "language": "hin",
                    "text": [{"starter": "hin", "lines": 2000}],
                    "micro": micro,
                },
                "adapter": {"rank": 4},
                "local_steps": {
                    "batch_sequences": 2,
                    "sequence_length": 32,
                    "learning_rate": 0.02 if self.fast else 0.005,
                },
            },
            "rounds": {"total": 16, "local_steps": 8, **self.rounds},
            "codec": {"name": self.codec},
            "evaluation": {"every_rounds": 100, "max_lines": 40},
            "site": [
                {
                    "name": name,
                    "language": LANGUAGES[number % 3],
                    "text": [{"starter": LANGUAGES[number % 3], "lines": 1000}],
                }
                for number, name in enumerate(self.sites)
            ],
        }
        return Plan.model_validate(tables)

    def run(self) -> Ending:
        """Carry it out; each trial in a folder of its own."""
        fsync, os.fsync = os.fsync, lambda _: None
        try:
            return self._run()
        finally:
            os.fsync = fsync

    def _run(self) -> Ending:
        plan, make = self.plan, _Targets() if self.fast else _Texts(self.plan)
        self.folder.mkdir(parents=True)

        def node(site: str, link: NodeLink, store: Generations, restarts: int) -> Node:
            work = make.work(plan, site)
            if site in self.liars:
                work = _Liar(work, self.lie)
            return Node.of(plan, site, link, work, store, restarts)

        sites = {name: SiteProgress() for name in self.sites}
        state = ServerState("run", make.layout.digest, make.first, sites)
        layouts = {name: make.layout.describe() for name in self.sites}
        prepared = Prepared("run", "none", make.layout.describe(), layouts, threads=1)
        engine = FakeTransport(node, Script(step_seconds=self.step_seconds))
        journal = Journal(self.folder / "journal.jsonl")
        checkpoints = CheckpointStore(self.folder / "checkpoints")
        loop = _rounds(plan, prepared, engine, checkpoints, journal, lambda _: None, lambda: False)
        loop.clock = lambda: engine.now
        try:
            state = loop.run(state)
        finally:
            engine.close()
            journal.close()
        events = [entry.event for entry in read_journal(self.folder / "journal.jsonl")]
        return Ending(self, state, events)


@dataclass(frozen=True)
class Ending:
    """What came of a trial."""

    trial: Trial
    state: ServerState
    events: Sequence[Event]

    def _judged(self, *, last: bool) -> float:
        total = self.trial.plan.rounds.total
        found = {
            event.site: event.bits / event.bytes
            for event in self.events
            if isinstance(event, Evaluated)
            if event.part == "test"
            if (event.version >= total) == last
            if event.site not in self.trial.liars
        }
        return float(np.mean(list(found.values())))

    @property
    def before(self) -> float:
        """Mean of the honest sites' judgements of version 0; smaller is better."""
        return self._judged(last=False)

    @property
    def after(self) -> float:
        """And of the last version."""
        return self._judged(last=True)

    @property
    def suspended(self) -> dict[str, str]:
        """Who was suspended, and why."""
        return {e.site: e.reason for e in self.events if isinstance(e, SiteBenched)}

    def weighed(self, site: str) -> list[UpdateWeighed]:
        return [e for e in self.events if isinstance(e, UpdateWeighed) if e.site == site]

    def accepted(self, site: str) -> list[UpdateAccepted]:
        return [e for e in self.events if isinstance(e, UpdateAccepted) if e.site == site]

    def rejected(self, site: str) -> list[str]:
        return [e.reason for e in self.events if isinstance(e, UpdateRejected) if e.site == site]


class _Liar:
    """A site's work, and what it says of it."""

    def __init__(self, work: Any, lie: Lie) -> None:
        self._work, self._lie = work, lie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

    def perform(self, *arguments: Any) -> Done | None:
        done: Done | None = self._work.perform(*arguments)
        return done if done is None or done.pseudo_gradient is None else self._lie(done)


class _Targets:
    """Sites that take AdamW steps towards targets of their own, alike but not the same."""

    def __init__(self) -> None:
        self.layout = Layout.of({"a": ((4, 300), "rows")})
        self.first = np.zeros(self.layout.size, np.float32)

    def work(self, plan: Plan, site: str) -> Any:
        return _TargetWork(plan, site, self.layout, self.first)


class _TargetWork:
    rank, copies = None, ()

    def __init__(self, plan: Plan, site: str, layout: Layout, first: Any) -> None:
        self.plan, self.layout, self.full_layout, self.first = plan, layout, layout, first
        self.num_lines: Mapping[str, Mapping[str, int]] = {"bho": {"train": 10}}
        common = np.random.default_rng(0).standard_normal(layout.size)
        self.draw = np.random.default_rng(plan.site[0].name == site or int(site[-1]) + 1)
        own = self.draw.standard_normal(layout.size)
        self.target = (0.8 * common + 0.3 * own).astype(np.float32)
        self.moments = np.zeros((2, layout.size), np.float32)
        self.steps = 0

    def perform(
        self,
        order: Order,
        theta: Any,
        start: Any,
        steps_wanted: Callable[[], int],
        after_step: Callable[[int, float, float], bool],
    ) -> Done | None:
        judged = tuple(
            Judgement(language="bho", part=part, bits=1000 * self.loss(theta), bytes=1000)
            for part in order.evaluate
        )
        if not order.local_steps:
            return Done(None, judgements=judged)
        section, local, done = self.plan.model.local_steps, start.copy(), 0
        while done < steps_wanted():
            noise = self.draw.standard_normal(local.size).astype(np.float32)
            gradient = local - self.target + noise
            self.steps += 1
            betas = np.array([[section.beta1], [section.beta2]], np.float32)
            new = np.stack([gradient, gradient**2])
            self.moments = betas * self.moments + (1 - betas) * new
            first, second = self.moments / (1 - betas**self.steps)
            rate = section.rate_at(order.position + done * order.position_step)
            local = local - np.float32(rate) * first / (np.sqrt(second) + np.float32(1e-8))
            done += 1
            if not after_step(done, self.loss(local), 1.0):
                return None
        tokens = done * section.batch_sequences * section.sequence_length
        return Done(start - local, done, tokens, self.loss(local), 0.1 * done, 0.0, judged)

    def loss(self, theta: Any) -> float:
        return float(np.mean(np.square(theta - self.target)))

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"moments": self.moments.copy()}, {"steps": self.steps}

    def restore(self, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.moments, self.steps = arrays["moments"].copy(), facts["steps"]

    def close(self) -> None:
        pass


class _Texts:
    """Sites that train a small model on the starter text."""

    def __init__(self, plan: Plan) -> None:
        from boli.model.adapter import adapter_layout, initial_vector
        from boli.preparation import open_base, prepare_base

        self.origin = prepare_base(plan)
        base = open_base(plan, self.origin, lambda _: None)
        self.layout = adapter_layout(base.model, plan.model.adapter)
        self.first = initial_vector(base.model, plan.model.adapter)

    def work(self, plan: Plan, site: str) -> Any:
        from boli.corpus.sources import read_split
        from boli.preparation import open_base
        from boli.site.work import TrainingWork

        section = next(one for one in plan.site if one.name == site)
        base = open_base(plan, self.origin, lambda _: None)
        return TrainingWork(plan, section, base, read_split(plan, section.text, section.language))
