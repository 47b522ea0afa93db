"""A site claims more tokens, steps and speed than it has, so that its updates weigh more.

An update's weight is its tokens, and a fast site is asked for four times the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from attack import Outcome
from liars import UNDEFENDED, Ending, Lie, Trial

from boli.site.node import Done

PROMISE = (
    "Tokens count only with the steps that they take, and no update weighs more than 1.5 times "
    "what the median site's weighs, whatever speed a site claims."
)
LIAR = "site-1"


def claiming(change: Callable[[Done], Done]) -> Lie:
    """Return the lie that does nothing but claims."""

    def lie(done: Done) -> Done:
        assert done.pseudo_gradient is not None
        return change(replace(done, pseudo_gradient=-done.pseudo_gradient))

    return lie


def weight_of(found: Ending) -> float:
    """Return the share of the weight of the versions that the liar's updates have."""
    mine = sum(one.weight for one in found.weighed(LIAR))
    return mine / sum(one.weight for site in found.trial.sites for one in found.weighed(site))


def attack(folder: Path, *, fast: bool) -> Outcome:
    few_steps = claiming(lambda done: replace(done, local_steps=1))
    found = Trial(folder / "tokens", (LIAR,), few_steps, fast=fast).run()
    refused = found.rejected(LIAR) == ["tokens"] * 3 and not found.accepted(LIAR)
    rounds = {
        "mode": "asynchronous", "speed_aware": True, "total": 24, "local_steps": 4,
        "suspend": False,
    }  # fmt: skip
    seconds = {f"site-{n}": 0.1 for n in range(5)} | {LIAR: 0.001}
    instant = claiming(lambda done: replace(done, train_seconds=1e-9))
    arms = {}
    for name, more in (("closed", {}), ("open", UNDEFENDED)):
        arms[name] = Trial(
            folder / name, (LIAR,), instant, rounds=rounds | more, step_seconds=seconds, fast=fast
        ).run()
    heaviest = max(one.weight for one in arms["closed"].weighed(LIAR))
    asked = max(one.local_steps for one in arms["closed"].accepted(LIAR))
    share, unbounded = weight_of(arms["closed"]), weight_of(arms["open"])
    # 1.5 times the weight in 1.5 times its equal share of the updates.
    # Honest sites are asked for more than 4 steps, too, where they are faster than the median.
    honest = [site for site in arms["closed"].trial.sites if site != LIAR]
    heavy = max(one.weight for site in honest for one in arms["closed"].weighed(site))
    bounded = share <= 1.5 * 1.5 / 5 + 0.02 and heaviest <= 1.5 * 1.01 * heavy
    return Outcome(
        refused=bool(refused and bounded and np.isfinite(arms["closed"].after)),
        observed=f"tokens without steps are refused; asked for {asked} steps instead of 4, its "
        f"updates weigh {heaviest:.2f} (an honest one {heavy:.2f}), {100 * share:.0f} % in all",
        control=f"where a plan allows it: {100 * unbounded:.0f} % of the weight"
        if unbounded > share + 0.2
        else "",
        figures={"weight share": round(share, 3), "undefended": round(unbounded, 3)},
    )
