"""Runs in which the attacker owns a site: the node there is a program of its own.

Each attack has `lie(update, draw)`: what the site sends in place of an update. In the full
form the real command trains, and the hostile node's process alters what it sends; in the
fast one the coordinator's own loop and nodes run on the scripted engine, on work that needs
no model: each site pulls the same vector towards a target of its own.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from attack import HERE, boli, load

from boli.codec.codec import DenseCodec, decode_frame, encode_frame
from boli.plan_rounds import RoundsPlan
from boli.rounds.update import Update

sys.path.insert(0, str(HERE.parent / "contracts"))

Lie = Callable[[Update, random.Random], Update]
PLAN = HERE.parents[1] / "plans" / "first.toml"
SITES = ("bhojpur", "darbhanga", "gaya")  # of that plan
SMALL = {"learning_rate": 0.2}  # of the simulated run: so that each round helps
# No other defence is in the way: what is tried here has to hold by itself.
UNBOUNDED = {
    key: value
    for key, value in {"norm_multiple": 1e9, "step_multiple": 1e9, "suspend": False}.items()
    if key in RoundsPlan.model_fields
}
# Read by Python as it starts, in every process of the run; only the hostile nodes heed it.
SITECUSTOMIZE = """\
import sys
if "boli.engine.local_node" in sys.orig_argv and set(sys.orig_argv) & {hostile!r}:
    sys.path.insert(0, {folder!r})
    from hostile_node import take_over
    take_over({name!r})
"""


@dataclass(frozen=True)
class Trained:
    """What a run ended with."""

    made: int  # the round that made the exported version
    last: int  # the last round
    bits: Mapping[int, float]  # by version: the honest sites' mean of bits ÷ bits under the base
    code: int = 0  # exit code

    @property
    def exported(self) -> float:
        """Return the exported version's bits."""
        return self.bits[self.made]

    def __str__(self) -> str:
        said = f"version {self.made} of {self.last} is exported, at {percent(self.exported)}"
        if self.made != self.last:
            said += f"; the last is at {percent(self.bits[self.last])}"
        return f"{said} (exit code {self.code})" if self.code else said


def percent(bits: float) -> str:
    """Return bits beside the base's, in words."""
    return f"{100 * (bits - 1):+.1f} % of the base's bits"


def altered(update: Update, factor: float) -> Update:
    """Multiply the pseudo-gradient of an update; below zero, it climbs where others descend."""
    header = update.header
    length = int.from_bytes(update.payload[36:44], "little")
    moved = decode_frame(update.payload, header.layout, length).vector * factor
    frame = encode_frame(DenseCodec(), moved, header.layout, header.rank, header.base_version)
    return replace(update, payload=frame)


def simulated(
    folder: Path,
    hostile: Sequence[str],
    lie: Lie,
    total: int,
    every_rounds: int = 1,
    mode: str = "synchronous",
) -> Trained:
    """Run the loop and three nodes on the scripted engine, without a model."""
    from quadratic import Job, Ledger, QuadraticWork

    from boli.engine.fake import FakeTransport
    from boli.engine.script import Script
    from boli.journal import Journal

    folder.mkdir(parents=True)
    job = Job(
        ranks=dict.fromkeys(SITES),
        rounds={"total": total, "outer": SMALL, "mode": mode, **UNBOUNDED},
        every_rounds=every_rounds,
        truthful=True,
    )
    engine = FakeTransport(job.node, Script(lies=dict.fromkeys(hostile, lie)))
    journal, ledger = Journal(folder / "journal.jsonl"), Ledger(folder / "checkpoints")
    state = job.loop(engine, ledger, journal).run(job.first_state())
    engine.close()
    journal.close()
    works = [QuadraticWork(site) for site in SITES if site not in hostile]

    def bits(theta: Any) -> float:
        return fmean(work.loss(theta) / work.loss(work.first) for work in works)

    versions = {kept.version: bits(kept.theta) for kept in ledger.history}
    return Trained(state.selection.made(state.version), total, versions)


def trained(
    folder: Path, hostile: Sequence[str], name: str, total: int, every_rounds: int = 1
) -> Trained:
    """Carry out the demo's plan with the real command, and the nodes of some sites our own."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(
        SITECUSTOMIZE.format(hostile=set(hostile), folder=str(HERE), name=name)
    )
    settings = {
        "rounds.total": total,
        "rounds.local_steps": 6,
        "evaluation.every_rounds": every_rounds,
        "evaluation.max_lines": 30,
        "model.base.micro.steps": 80,
        "model.base.micro.vocabulary_size": 512,
        "model.base.micro.hidden_size": 48,
        "model.base.micro.num_layers": 2,
        "model.base.micro.intermediate_size": 96,
        "model.adapter.kind": "lora",
        "model.local_steps.optimizer": "adamw",
        "model.local_steps.batch_sequences": 4,
        "model.local_steps.sequence_length": 64,
        "codec.name": "dense",
        **{f"rounds.{key}": json.dumps(value) for key, value in UNBOUNDED.items()},
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = boli(
        *("train", PLAN, *sets, "--runs", folder / "runs"),
        home=folder.parent / "home",
        seconds=900,
        PYTHONPATH=str(folder),
    )
    (report,) = (folder / "runs").glob("*/report.json")
    figures = json.loads(report.read_text(encoding="utf-8"))
    honest = [site for site in SITES if site not in hostile]
    judged = {each["made"]: each["sites"] for each in figures["judged_versions"]}
    bits = {made: fmean(sites[site] for site in honest) for made, sites in judged.items()}
    return Trained(figures["exported"]["made"], total, bits, done.returncode)


# In the process of a hostile node


class HostileLink:
    """The line of a node that sends something else than its work."""

    def __init__(self, link: Any, lie: Lie) -> None:
        self._link, self._lie, self._draw = link, lie, random.Random(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send_update(self, header: Any, payload: bytes) -> None:
        sent = self._lie(Update(header, payload), self._draw)
        self._link.send_update(sent.header, sent.payload)


def take_over(name: str) -> None:
    """Let the node of this process send what the attack of that name has to send."""
    from boli.site.node import Node

    lie, honest = load(name).lie, Node.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, plan: Any, site: str, link: Any, *more: Any) -> Any:
        return honest(cls, plan, site, HostileLink(link, lie), *more)

    Node.of = classmethod(of)  # type: ignore[assignment]
