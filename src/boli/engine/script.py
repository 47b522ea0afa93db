"""What goes wrong on the scripted engine, and who may die there: the test says it, or a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from boli.engine.lies import Lie

COORDINATOR = "coordinator"  # as a victim; the others are sites
Kill = tuple[str, int] | tuple[str, str, int]


@dataclass(frozen=True)
class Script:
    """What goes wrong in a run; the same script goes wrong in the same way every time.

    `kill` names a victim (a site, or "coordinator") and its n-th moment, counted
    over all its lives: `("gaya", 7)`, or `("gaya", "saved", 2)` for the second time
    that it has just saved. A node's moments are joining, received, step, "before
    save", saved and sent; the coordinator's are start, receive, publish, answer,
    "send order", "before save" and saved (the last two by `ScriptedCheckpoints`).
    """

    seed: int = 0
    delay: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)  # s; down, up
    jitter: float = 0.0  # up to so many seconds more, for each message
    lose: float = 0.0  # share of messages that are lost; each comes `retry_seconds` later
    retry_seconds: float = 1.0
    duplicate: float = 0.0  # share that comes a second time, up to `retry_seconds` later
    reorder: bool = False  # messages may overtake, but versions overtake nothing
    overtake: bool = False  # an order may even come before the version that it is for
    step_seconds: Mapping[str, float] = field(default_factory=dict)  # 0.1 where not named
    coordinator_seconds: float = 0.0  # of each of its turns
    kill: Sequence[Kill] = ()
    kill_share: float = 0.0  # of all moments of nodes, at random
    coordinator_kill_share: float = 0.0
    most_kills: int = 5  # at random, of each victim
    restart_seconds: float = 0.5
    outages: Sequence[tuple[str, float, float]] = ()  # site, from, until: its line is down
    lies: Mapping[str, Lie] = field(default_factory=dict)  # by site; alters what it sends
    durable: bool = True  # lines and nodes outlive the other end, as with a broker; else a socket
    patience_seconds: float = 60.0  # without any event, until the run counts as stuck
    longest_seconds: float = 100_000.0

    @classmethod
    def drawn(cls, seed: int, sites: Sequence[str], *, coordinator: bool = True) -> Script:
        """Draw a script in which anything may go wrong, short of lies."""
        draw = random.Random(f"script {seed}")
        often = draw.choice([0.0, 0.1, 0.3])
        start = draw.uniform(0, 5)
        return cls(
            seed=seed,
            delay={site: (draw.uniform(0, 0.5), draw.uniform(0, 0.5)) for site in sites},
            jitter=draw.choice([0.0, 0.3]),
            lose=draw.choice([0.0, often]),
            duplicate=draw.choice([0.0, often]),
            reorder=draw.random() < 0.5,
            step_seconds={site: draw.choice([0.02, 0.1, 0.4]) for site in sites},
            coordinator_seconds=draw.choice([0.0, 0.0, 0.3]),
            kill_share=draw.choice([0.0, 0.02, 0.1]),
            coordinator_kill_share=draw.choice([0.0, 0.02, 0.1]) if coordinator else 0.0,
            outages=[(draw.choice(sites), start, start + draw.uniform(1, 10))],
            durable=draw.random() < 0.5,
        )
