"""Who dies where: a script of kills, and what is kept of each victim and of the run.

Records lie beside the script. They survive kill -9, and a power cut does not reach
them: the disk that is cut holds the run's folder only.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from quadratic import Job

COORDINATOR = "coordinator"
# In the order in which a turn or an order passes them.
MOMENTS_OF_COORDINATOR = (
    "loaded",
    "started",
    "received",
    "half a line",
    "before save",
    "half written",
    "written",
    "saved",
    "between publish and answer",
    "between answers",
    "before send order",
)
MOMENTS_OF_NODE = (
    "joining",
    "received",
    "step",
    "before save",
    "half written",
    "written",
    "saved",
    "half sent",
    "sent",
)
ONCE_A_LIFE = ("loaded", "started", "joining")
MOST_TIMES = 3
ROUNDS = 32  # more than the kills of one victim need, each up to its third time
DENSE = Job(ranks={"arrah": None, "gaya": 3}, rounds={"total": ROUNDS})
THIN = {"name": "sparse", "density": 0.2, "value_bits": 4, "train_from_residual": True}
JOBS = {"dense": DENSE, "sparse": replace(DENSE, codec=THIN)}
Flaw = Literal[
    "",
    "sends before it saves",
    "answers before it saves",
    "no fsync of files",
    "no fsync of folders",
    "no fsync of the journal",
]
Kill = tuple[str, int]  # at the n-th time of a moment since the victim was killed last


def drawn_kills(seed: int, sites: Sequence[str]) -> dict[str, list[Kill]]:
    """Deal every moment of the coordinator and of a node once, in a seeded order.

    Sites take turns: none dies so often in a row that its coordinator would give it up.
    """
    draw = random.Random(seed)

    def times(moment: str) -> int:
        return 1 if moment in ONCE_A_LIFE else draw.randint(1, MOST_TIMES)

    kills: dict[str, list[Kill]] = {victim: [] for victim in (COORDINATOR, *sites)}
    for moment in draw.sample(MOMENTS_OF_COORDINATOR, len(MOMENTS_OF_COORDINATOR)):
        kills[COORDINATOR].append((moment, times(moment)))
    for number, moment in enumerate(draw.sample(MOMENTS_OF_NODE, len(MOMENTS_OF_NODE))):
        kills[sites[(seed + number) % len(sites)]].append((moment, times(moment)))
    return kills


@dataclass(frozen=True)
class Script:
    """A job, who dies where, and what is built wrongly on purpose."""

    job: Job
    kills: Mapping[str, Sequence[Kill]] = field(default_factory=dict)  # by victim
    flaw: Flaw = ""

    def write(self, path: Path) -> None:
        """Leave the script where all processes of the run find it."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Script:
        """Return what `write` left."""
        found = json.loads(path.read_text())
        return cls(Job(**found["job"]), found["kills"], found["flaw"])


class Fate:
    """Ends this process at the moments that the script names, counted over all its lives."""

    def __init__(self, script_path: Path, victim: str, kills: Sequence[Kill] = ()) -> None:
        self._path = script_path.with_name(victim)
        self._kills = kills
        self._passed: list[str] | None = None  # moments since the last kill
        self._survived = 0  # kills

    def moment(self, name: str, last_act: Callable[[], object] = lambda: None) -> None:
        """Die here, if the script says so, after `last_act`."""
        if not self._kills:
            return
        if self._passed is None:  # read late: a life before may only just have ended
            lives = list(_lives(self._path))
            self._survived, self._passed = len(lives) - 1, lives[-1]
        self._passed.append(name)
        due = self._kills[self._survived] if self._survived < len(self._kills) else ("", 0)
        dies = (name, self._passed.count(name)) == tuple(due)
        with self._path.open("a") as record:
            record.write(f"{name}\nKILLED\n" if dies else f"{name}\n")
        if dies:
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)


def _lives(record: Path) -> Iterator[list[str]]:
    """Yield the moments between kills; the last list is of the life that goes on."""
    passed: list[str] = []
    for line in record.read_text().splitlines() if record.exists() else ():
        if line == "KILLED":
            yield passed
            passed = []
        else:
            passed.append(line)
    yield passed


def killed_at(script_path: Path, victim: str) -> list[str]:
    """Return the moments at which a victim was killed, in order."""
    return [passed[-1] for passed in list(_lives(script_path.with_name(victim)))[:-1]]


class Facts:
    """What the coordinator saw, in all its lives: states saved or loaded, updates, verdicts."""

    def __init__(self, script_path: Path) -> None:
        self._path = script_path.with_name("facts")

    def note(self, fact: object) -> None:
        """Add one fact."""
        with self._path.open("ab") as file:
            file.write(pickle.dumps(fact))

    def read(self) -> Iterator[Any]:
        """Yield the facts, oldest first."""
        with self._path.open("rb") as file, contextlib.suppress(EOFError):
            while True:
                yield pickle.load(file)
