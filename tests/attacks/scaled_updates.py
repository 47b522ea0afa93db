"""One site of five sends its updates the wrong way round, and many times as large.

Without bounds the version goes wherever that site likes, from the first round on.
"""

from __future__ import annotations

from pathlib import Path

from attack import Outcome
from liars import UNDEFENDED, Trial, times

PROMISE = (
    "An update adds at most 1.5 times what the median site's adds, from the first version on, "
    "and a site whose updates are out of all proportion is suspended."
)
LIAR = "site-0"


def attack(folder: Path, *, fast: bool) -> Outcome:
    clean = Trial(folder / "clean", fast=fast).run()
    figures: dict[str, float | int | str] = {
        "before": round(clean.before, 4),
        "clean": round(clean.after, 4),
    }
    worst, suspended, fair = 0.0, True, {"dense": clean}
    for factor in (-9.0, -100.0):
        for codec in ("dense",) if fast else ("dense", "sparse"):
            name = f"{factor:.0f} times, {codec}"
            if codec not in fair:
                fair[codec] = Trial(folder / codec, codec=codec, fast=fast).run()
            here = fair[codec]
            found = Trial(folder / name, (LIAR,), times(factor), codec=codec, fast=fast).run()
            figures[name] = round(found.after, 4)
            worst = max(worst, found.after / here.after - 1)
            suspended &= set(found.suspended) == {LIAR}
    open_ = Trial(folder / "open", (LIAR,), times(-9.0), rounds=UNDEFENDED, fast=fast).run()
    figures["undefended, -9 times"] = round(open_.after, 4)
    ruined = open_.after > open_.before
    return Outcome(
        refused=worst < 0.1 and suspended,
        observed=f"at most {100 * worst:+.1f} % from the clean run; the site is suspended",
        control=f"without bounds the loss goes from {open_.before:.3f} to {open_.after:.3f}"
        if ruined
        else "",
        figures=figures,
    )
