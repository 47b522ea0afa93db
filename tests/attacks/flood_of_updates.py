"""An asynchronous site answers every order at once, while the others work for theirs.

Where a version is made of the updates that come first, all of them are its own.
"""

from __future__ import annotations

from pathlib import Path

from attack import Outcome
from liars import UNDEFENDED, Ending, Trial, times

PROMISE = (
    "No site has more than one update in a version, nor more than 1.5 times its equal share of "
    "the updates of any ten versions, however fast it answers."
)
LIAR = "site-2"


def places(found: Ending) -> tuple[int, int, int]:
    """Return the liar's updates in versions, all of them, and the most in any ten versions."""
    mine = [one.version for one in found.weighed(LIAR)]
    everybody = sum(len(found.weighed(site)) for site in found.trial.sites)
    most = max((sum(v <= one < v + 10 for one in mine) for v in mine), default=0)
    return len(mine), everybody, most


def attack(folder: Path, *, fast: bool) -> Outcome:
    rounds = {"mode": "asynchronous", "total": 30 if fast else 60, "local_steps": 4}
    seconds = {f"site-{n}": 1.0 for n in range(5)} | {LIAR: 1e-4}
    honest = Trial(folder / "honest", rounds=rounds, step_seconds=seconds, fast=fast).run()
    # Turned round, and as large as it may be: what it gets through counts against the others.
    flood = times(-9.0)
    closed = Trial(
        folder / "closed", (LIAR,), flood, rounds={**rounds, "suspend": False},
        step_seconds=seconds, fast=fast,
    ).run()  # fmt: skip
    open_ = Trial(
        folder / "open", (LIAR,), times(-1.0), rounds=rounds | UNDEFENDED,
        step_seconds=seconds, fast=fast,
    ).run()  # fmt: skip
    mine, everybody, window = places(closed)
    taken, of, _ = places(open_)
    versions = {one.version for one in closed.weighed(LIAR)}
    share, equal = mine / everybody, 1 / 5
    fair = share <= 1.5 * equal + 0.01 and len(versions) == mine
    improved = closed.after < closed.before
    return Outcome(
        refused=fair and improved and not honest.suspended,
        observed=f"{mine} of {everybody} places, {window} in any ten versions; "
        f"loss {closed.before:.3f} to {closed.after:.3f}",
        control=f"where a plan allows it: {taken} of {of} places, "
        f"loss {open_.before:.3f} to {open_.after:.3f}"
        if taken > 0.9 * of
        else "",
        figures={
            "share": round(share, 3),
            "share undefended": round(taken / of, 3),
            "honest fast site": round(places(honest)[0] / places(honest)[1], 3),
            "after, honest": round(honest.after, 4),
        },
    )
