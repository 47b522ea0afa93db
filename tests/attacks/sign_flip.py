"""One site of five sends every update with its sign turned, of an ordinary size.

No bound on norms notices it; what gives it away is that it works against the others. That shows
where the others agree. Short updates of a small model under their own top-k hardly do: their
directions are within the noise, nobody is suspended, and the bounds alone hold what is lost.
"""

from __future__ import annotations

from pathlib import Path

from attack import Outcome
from liars import UNDEFENDED, Trial, times

PROMISE = (
    "A site whose updates point against those of the others is suspended after a few rounds where "
    "the others agree, also if they are no larger than any other; elsewhere it costs a few percent."
)
LIAR = "site-3"
CODECS = ("dense", "sparse")


def attack(folder: Path, *, fast: bool) -> Outcome:
    figures: dict[str, float | int | str] = {}
    worst, gain, framed = 0.0, 0.0, set()
    noticed: dict[str, str] = {}
    for codec in CODECS:
        clean = Trial(folder / f"clean {codec}", codec=codec, fast=fast).run()
        found = Trial(folder / codec, (LIAR,), times(-1.0), codec=codec, fast=fast).run()
        figures |= {
            f"clean, {codec}": round(clean.after, 4),
            f"flipped, {codec}": round(found.after, 4),
        }
        worst = max(worst, found.after / clean.after - 1)
        noticed[codec] = "suspended" if LIAR in found.suspended else "not suspended"
        framed |= set(clean.suspended) | set(found.suspended) - {LIAR}
        rounds = [one.version for one in found.weighed(LIAR)]
        figures[f"rounds it took part in, {codec}"] = max(rounds)
        open_ = Trial(
            folder / f"open {codec}",
            (LIAR,),
            times(-1.0),
            codec=codec,
            rounds=UNDEFENDED,
            fast=fast,
        ).run()
        figures[f"undefended, {codec}"] = round(open_.after, 4)
        gain = max(gain, open_.after / found.after - 1)
    told = ", ".join(f"{what} ({codec})" for codec, what in noticed.items())
    # The fast form's targets agree under either codec.
    suspended = all(noticed[codec] == "suspended" for codec in (CODECS if fast else CODECS[:1]))
    return Outcome(
        refused=worst < 0.1 and suspended and not framed,
        observed=f"{told}, nobody else is; at most {100 * worst:+.1f} % from the clean run",
        control=f"where nobody is suspended: {100 * gain:+.1f} % more" if gain > 0 else "",
        figures=figures,
    )
