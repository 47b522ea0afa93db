"""One site of five sends every update with its sign turned, of an ordinary size.

No bound on norms notices it; what gives it away is that it works against the others.
"""

from __future__ import annotations

from pathlib import Path

from attack import Outcome
from liars import UNDEFENDED, Trial, times

PROMISE = (
    "A site whose updates point against those of the others is suspended after a few rounds, "
    "also if they are no larger than any other."
)
LIAR = "site-3"


def attack(folder: Path, *, fast: bool) -> Outcome:
    figures: dict[str, float | int | str] = {}
    worst, cost, suspended, framed = 0.0, 0.0, True, set()
    for codec in ("dense", "sparse"):
        clean = Trial(folder / f"clean {codec}", codec=codec, fast=fast).run()
        found = Trial(folder / codec, (LIAR,), times(-1.0), codec=codec, fast=fast).run()
        figures |= {
            f"clean, {codec}": round(clean.after, 4),
            f"flipped, {codec}": round(found.after, 4),
        }
        worst = max(worst, found.after / clean.after - 1)
        suspended &= LIAR in found.suspended
        framed |= set(clean.suspended) | set(found.suspended) - {LIAR}
        rounds = [one.version for one in found.weighed(LIAR)]
        figures[f"rounds until suspended, {codec}"] = max(rounds)
        open_ = Trial(
            folder / f"open {codec}",
            (LIAR,),
            times(-1.0),
            codec=codec,
            rounds=UNDEFENDED,
            fast=fast,
        ).run()
        figures[f"undefended, {codec}"] = round(open_.after, 4)
        cost = max(cost, open_.after / clean.after - 1)
    return Outcome(
        refused=worst < 0.1 and suspended and not framed,
        observed=f"suspended, nobody else is; {100 * worst:+.1f} % from the clean run",
        control=f"where nobody is suspended: {100 * cost:+.1f} %" if cost > worst else "",
        figures=figures,
    )
