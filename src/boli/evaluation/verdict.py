"""Which row of a report needs the fewest bits, by how much, and whether that is noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from boli.evaluation.paired import ENOUGH_DOCUMENTS as ENOUGH
from boli.evaluation.paired import Comparison
from boli.evaluation.units import SPACE, bits, count, listed, percent
from boli.journal import DifferenceJudged

RIVALS = {  # rows that a model is held against, in the order of a report
    "base": "the untouched base",
    "six_gram": "a 6-gram",
    "ppmd": "PPMd",
}
SLACK = 2e-4  # of a change, by which rounding may put it outside of its interval
SAME = 5e-4  # a change that is none


class Coded(Protocol):
    """What some text takes under one row."""

    @property
    def bits(self) -> float: ...
    @property
    def bytes(self) -> int: ...


def beside(a: Coded, b: Coded, told: DifferenceJudged | None) -> Comparison | None:
    """Return one site's test part under two rows, with the interval that the site sent.

    None: a row is empty, or the rows are of different text. An interval that does not hold the
    change of the sums is not believed.
    """
    if min(a.bits, b.bits, a.bytes) <= 0 or a.bytes != b.bytes:
        return None
    change = a.bits / b.bits - 1
    if told is None:
        return Comparison(a.bits / a.bytes, b.bits / b.bytes, change, None, None, 0)
    low, high = told.low, told.high
    if low is None or high is None or not low - SLACK <= change <= high + SLACK:
        low = high = None
    return Comparison(a.bits / a.bytes, b.bits / b.bytes, change, low, high, told.documents)


def facts(found: Comparison) -> dict[str, Any]:
    """Return what report.json says of a difference."""
    sides = {"A": "a", "B": "b", None: None}
    return {
        "change_percent": 100 * found.change,
        "low_percent": None if found.low is None else 100 * found.low,
        "high_percent": None if found.high is None else 100 * found.high,
        "documents": found.num_documents or None,
        "better": sides[found.better],
    }


def verdict(found: Mapping[str, Comparison]) -> str:
    """Say in words which row wins over the same lines, and which differences are noise.

    `found` has the model as A and, by the keys of `RIVALS`, each rival as B. Empty: nothing to say.
    """
    if not found:
        return ""
    nearest = _nearest(found)
    rest = [f"{_change(found[name])} {RIVALS[name]} ({_told(found[name])})" for name in found]
    if len(found) == 1:
        return f"{_headline(found)} {_noise(found)}"
    others = [said for name, said in zip(found, rest, strict=True) if name != nearest]
    return f"{_headline(found)} The model needs {listed(others)}. {_noise(found)}"


def winner(found: Mapping[str, Comparison]) -> dict[str, Any] | None:
    """Return which row wins, and whether its lead may be noise: over the next row, or the model."""
    if not found:
        return None
    lead = found[_nearest(found)]
    noise = None if lead.low is None else lead.better is None
    row = "model" if lead.change < 0 else _nearest(found)
    tag = {True: ", which may be noise", False: ", not noise", None: ""}[noise]
    return {"row": row, "noise": noise, "sentence": f"{_headline(found)[:-1]}{tag}."}


def _nearest(found: Mapping[str, Comparison]) -> str:
    """Return the rival that needs the fewest bits."""
    return min(found, key=lambda name: found[name].b)


def _headline(found: Mapping[str, Comparison]) -> str:
    name = _nearest(found)
    first, rival = found[name], RIVALS[name]
    if abs(first.change) < SAME:
        return f"The model and {rival} need the same: {bits(first.a)} bits per byte."
    if first.change < 0:
        return (
            f"The model wins: {bits(first.a)} bits per byte, {_change(first)} {rival} "
            f"({_told(first)})."
        )
    return (
        f"{rival[0].upper()}{rival[1:]} wins: {bits(first.b)} bits per byte; the model needs "
        f"{bits(first.a)}, {_change(first)} it{_interval(first)}."
    )


def _change(found: Comparison) -> str:
    if abs(found.change) < SAME:
        return "as much as"
    word = "less" if found.change < 0 else "more"
    return f"{percent(100 * abs(found.change))} {word} than"


def _told(found: Comparison) -> str:
    """Return a rival's bits, with the interval of the change where one is known."""
    if found.low is None or found.high is None:
        return bits(found.b)
    return f"{bits(found.b)}; {span(100 * found.low, 100 * found.high)}"


def _interval(found: Comparison) -> str:
    if found.low is None or found.high is None:
        return ""
    return f" ({span(100 * found.low, 100 * found.high)})"


def span(low: float, high: float) -> str:  # percent
    """Return an interval, without signs where both ends lie on one side of zero."""
    if low * high >= 0:
        low, high = sorted((abs(low), abs(high)))
    return f"{low:.1f} to {high:.1f}{SPACE}%".replace("-", "−")


def _noise(found: Mapping[str, Comparison]) -> str:
    known = {name: one for name, one in found.items() if one.low is not None}
    if not known:
        reason = next(iter(found.values())).unknown()
        return reason[0].upper() + reason[1:] + "."
    doubtful = [RIVALS[name] for name, one in known.items() if one.better is None]
    over = f"Over {count(max(one.num_documents or 0 for one in known.values()))} documents"
    if doubtful:
        said = f"{over} the difference to {listed(doubtful)} may be noise"
    else:
        said = f"{over} {'this is not' if len(known) == 1 else 'none of this is'} noise"
    silent = [RIVALS[name] for name in found if name not in known]
    if silent:
        said += f"; to {listed(silent)} no interval was told"
    return said + "."


def comparison_notes(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the rows of a run's report do not say by themselves."""
    ours = {code: one for code, one in figures["languages"].items() if one["role"] == "site"}
    few = [f"{c} {n}" for c, one in ours.items() if 0 < (n := one["documents"] or 0) < ENOUGH]
    if few:
        yield (
            f"A test part of fewer than {ENOUGH} documents ({listed(few)}) gives wide "
            "intervals: small differences do not show. Raise corpus.held_out.test_percent."
        )
    if figures["without_ppmd"]:
        yield (
            f"PPMd has no figures of {listed(figures['without_ppmd'])}: pyppmd is not installed "
            "there (pip install 'boli[proof]'), or their boli is older than this one."
        )


def by_language(figures: Mapping[str, Any]) -> str:
    """Say in a few words which row wins in each language; empty where there is only one."""
    words = {True: ", which may be noise", False: ", not noise", None: ""}
    # Of a rival it is the model whose distance is known, not the next rival's.
    names = {"model": "the model wins"} | {
        row: f"{name} beats the model" for row, name in RIVALS.items()
    }
    codes: dict[tuple[str, str], list[str]] = {}
    for code, one in figures["languages"].items():
        won = one.get("winner")
        if won is not None:
            codes.setdefault((names[won["row"]], words[won["noise"]]), []).append(code)
    if sum(map(len, codes.values())) < 2:
        return ""
    said = [f"{name} in {listed(those)}{tag}" for (name, tag), those in codes.items()]
    return f"By language: {'; '.join(said)}."
