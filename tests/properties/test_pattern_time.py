"""No pattern that reads text of others takes more than linear time, on attacks made from it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from boli.corpus import lines, markup, pages, quality, residue

_SIZE = 20_000
_SOON = 0.05  # seconds; 20,000 ** 2 / 2 steps take longer
_SIGNS = " \n\ta1:;-='\"[(*#|\\/.,é"


def _patterns() -> dict[str, re.Pattern[str]]:
    found: dict[str, re.Pattern[str]] = {}
    for module in (lines, markup, pages, quality, residue):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                found[f"{module.__name__}.{name}"] = value
    for place, cut in enumerate(markup._cuts()):
        if isinstance(cut, markup._Cut):
            found[f"cut {place} {cut.needs}"] = cut.pattern
    for make in (residue._residue, residue._mojibake, residue._boilerplate):
        found[make.__name__] = make()
    return found


def _samples(op: Any, value: Any, groups: dict[int, str]) -> list[str]:
    """Return strings that one part of a parsed pattern matches, where that is easy to say."""
    name = str(op)
    if name == "LITERAL":
        return [chr(value)]
    if name in ("NOT_LITERAL", "IN", "ANY", "CATEGORY"):
        part = parser.SubPattern(parser.State(), [(op, value)])
        one = re._compiler.compile(part)  # type: ignore[attr-defined]
        fits = [sign for sign in _SIGNS if one.fullmatch(sign)]
        return fits or [sign for sign in map(chr, range(33, 0x2600)) if one.fullmatch(sign)][:1]
    if name == "BRANCH":
        return [_sample(branch, groups) for branch in value[1]][:12]
    if name == "SUBPATTERN":
        groups[value[0]] = _sample(value[3], groups)
        return [groups[value[0]]]
    if name == "ATOMIC_GROUP":
        return [_sample(value, groups)]
    if name == "GROUPREF":
        return [groups.get(value, "")]
    if name.endswith("REPEAT"):
        return [_sample(value[2], groups) * max(1, value[0])]
    return [""]


def _sample(parsed: Any, groups: dict[int, str]) -> str:
    return "".join(_samples(op, value, groups)[0] for op, value in parsed)


def _repeats(parsed: Any, before: str, groups: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Yield what stands before each part that may be there many times, and the part."""
    for op, value in parsed:
        name = str(op)
        if name.endswith("REPEAT"):
            inner = list(value[2])
            parts = _samples(*inner[0], groups) if len(inner) == 1 else [_sample(inner, groups)]
            yield from ((before, part) for part in parts)
            yield from _repeats(inner, before, groups)
        elif name == "SUBPATTERN":
            yield from _repeats(value[3], before, groups)
        elif name == "ATOMIC_GROUP":
            yield from _repeats(value, before, groups)
        elif name == "BRANCH":
            for branch in value[1]:
                yield from _repeats(branch, before, groups)
        before += _samples(op, value, groups)[0]
        if name != "LITERAL":
            yield before, " "
            yield before, "\n"


def _attacks(pattern: re.Pattern[str]) -> set[tuple[str, str]]:
    """Return what comes once and what comes again and again; the match fails at the end."""
    found: set[tuple[str, str]] = set()
    for before, part in _repeats(parser.parse(pattern.pattern, pattern.flags), "", {}):
        found |= {(before, part), ("", before + part), ("", before), (before + part, before)}
    return {(once, again) for once, again in found if again}


def _seconds(run: Callable[[str], object], once: str, again: str, size: int, times: int) -> float:
    text = once + again * (size // len(again)) + "क\x00"
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        run(text)
        best = min(best, time.process_time() - start)
    return best


def _assert_linear(run: Callable[[str], object], once: str, again: str, size: int = _SIZE) -> None:
    if _seconds(run, once, again, size, 1) < _SOON:
        return
    single = _seconds(run, once, again, size, 3)
    double = _seconds(run, once, again, 2 * size, 3)
    assert double < 3 * single or double < 4 * _SOON, (once, again, single, double)


@pytest.mark.parametrize("name", _patterns())
@pytest.mark.timeout(240)
def test_pattern_takes_linear_time(name: str) -> None:
    pattern = _patterns()[name]
    for once, again in sorted(_attacks(pattern)):
        _assert_linear(lambda text: pattern.sub("", text), once, again)
