"""A site is honest until three rounds before the end, and then trains the model backwards.

Each of its updates is as large as an honest one times nine, and below any bound that the plan
sets here: nothing is refused. The rounds that could heal what it did never come. So whoever
exports the last version exports the ruin.
"""

from __future__ import annotations

import random
from pathlib import Path

from attack import Outcome
from hostile_node import altered, simulated, trained

from boli.rounds.update import Update

PROMISE = "What the last rounds ruin is not exported: the best version before is."
TOTAL, LAST = 9, 3
NEVER = 1000  # rounds between judgements: only the last version is judged then


def lie(update: Update, _: random.Random) -> Update:
    """Train honestly, and backwards in the last rounds; judge as everybody does."""
    header = update.header
    hostile = header.local_steps and header.base_version >= TOTAL - LAST
    return altered(update, -9.0) if hostile else update


def attack(folder: Path, *, fast: bool) -> Outcome:
    if fast:
        kept = simulated(folder / "kept", ["gaya"], lie, TOTAL)
        ruined = simulated(folder / "ruined", ["gaya"], lie, TOTAL, NEVER)
    else:
        kept = trained(folder / "kept", ["gaya"], __name__, TOTAL)
        ruined = trained(folder / "ruined", ["gaya"], __name__, TOTAL, NEVER)
    # Sites that do not wait for each other hold, and judge, different versions.
    mixed = simulated(folder / "mixed", ["gaya"], lie, TOTAL, mode="asynchronous")
    before, mixed_before = kept.bits[TOTAL - LAST], mixed.bits[TOTAL - LAST]
    return Outcome(
        kept.exported <= 1.001 * before and mixed.exported <= 1.001 * mixed_before,
        f"{kept}; asynchronously (simulated), {mixed}",
        f"where only the last version is judged, {ruined}"
        if ruined.exported > 1.1 * before
        else "",
        {
            "exported": kept.exported,
            "last": kept.bits[TOTAL],
            "undefended": ruined.exported,
            "exported_asynchronous": mixed.exported,
        },
    )
