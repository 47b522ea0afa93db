"""A site says of a ruined version that it is perfect, and of all before it that they are terrible.

Which version is exported, the sites decide: each judges some versions on its tuning text, and
the coordinator sees nothing but their figures. The attacker owns one of three sites. It lets
the others train for a while, ruins the last rounds, and then lies so that the ruin is taken
for the best version that there ever was. In a second run, in which nobody ruins anything, it
lies so that the first version is taken for the best, and what was learned later is lost.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from attack import Outcome
from hostile_node import altered, simulated, trained

from boli.rounds.update import Update

PROMISE = "A minority of the sites cannot choose which version is exported, whatever it claims."
TOTAL, LAST = 9, 3
PERFECT, TERRIBLE = 1e-9, 1e12  # bits


def praise(favorite: int, update: Update, _: random.Random) -> Update:
    """Judge one version perfect, and all others but the base terrible."""
    header = update.header
    version = (
        0 if header.sequence == 1 else header.base_version
    )  # the first order asks for the base
    if not version:
        return update
    bits = PERFECT if version == favorite else TERRIBLE
    told = tuple(each.model_copy(update={"bits": bits}) for each in header.judgements)
    return Update(header.model_copy(update={"judgements": told}), update.payload)


def lie(update: Update, draw: random.Random) -> Update:
    """Train backwards in the last rounds, and praise what comes of it."""
    hostile = update.header.local_steps and update.header.base_version >= TOTAL - LAST
    return praise(TOTAL, altered(update, -9.0) if hostile else update, draw)


def attack(folder: Path, *, fast: bool) -> Outcome:
    one, two = ["gaya"], ["darbhanga", "gaya"]
    if fast:
        ruined = simulated(folder / "ruined", one, lie, TOTAL)
        bought = simulated(folder / "bought", two, lie, TOTAL)
        healthy = simulated(folder / "healthy", one, partial(praise, 1), TOTAL - LAST)
        chosen = healthy.made == 1
    else:
        ruined = trained(folder / "ruined", one, __name__, TOTAL)
        bought = trained(folder / "bought", two, __name__, TOTAL)
        chosen = False
    before = ruined.bits[TOTAL - LAST]
    return Outcome(
        ruined.exported <= 1.001 * before and not chosen,
        f"one liar of three: {ruined}",
        f"two liars of three: {bought}" if bought.exported > 1.1 * before else "",
        {"exported": ruined.exported, "last": ruined.bits[TOTAL], "before": before},
    )
