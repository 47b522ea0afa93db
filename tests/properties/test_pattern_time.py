"""No pattern that reads text of others takes more than linear time, on attacks made from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import patterns
import pytest

_SIZE = 10_000
_SOON = 0.03  # seconds; 10,000 ** 2 / 2 steps take longer
_SIGNS = " \n\ta1:;-='\"[(*#|\\/.,é"
_CALLS = [
    call for call in patterns.calls() if call.file.startswith(("boli/corpus/", "boli/engine/"))
]  # which read what others wrote


@cache
def _compiled() -> dict[str, list[tuple[str, re.Pattern[Any]]]]:
    """Return the patterns of each call and what it does with them."""
    files = {call.file for call in _CALLS}
    # A process of its own: in this one, modules are loaded and functions called already.
    command = [sys.executable, patterns.__file__, *files]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[str, re.Pattern[Any]]]] = {}
    for name, operation, text, flags, is_bytes in json.loads(printed):
        compiled = re.compile(text.encode("latin-1") if is_bytes else text, flags)
        found.setdefault(name, []).append((operation, compiled))
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
        rare = (sign for sign in map(chr, range(33, sys.maxunicode)) if one.fullmatch(sign))
        return fits or [next(rare, "")]
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


def _attacks(pattern: re.Pattern[Any]) -> set[tuple[str, str]]:
    """Return what comes once and what comes again and again; the match fails at the end."""
    text = (
        pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    )
    found: set[tuple[str, str]] = set()
    for before, part in _repeats(parser.parse(text, pattern.flags & ~re.UNICODE), "", {}):
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


def _assert_linear(run: Callable[[str], object], once: str, again: str) -> None:
    if _seconds(run, once, again, _SIZE, 1) < _SOON:
        return
    for length in (_SIZE // 4, _SIZE // 2, _SIZE, 2 * _SIZE):  # short ones fail sooner
        if _seconds(run, once, again, length, 1) < 4 * _SOON:
            continue
        half, whole = (_seconds(run, once, again, n, 3) for n in (length // 2, length))
        assert whole < 3 * half or whole < 4 * _SOON, (once, again, half, whole)


def _use(operation: str, pattern: re.Pattern[Any]) -> Callable[[str], object]:
    """Return what is done with a text; a pattern that is kept may be looked for everywhere."""
    if operation in ("match", "fullmatch"):
        run = getattr(pattern, operation)
    else:
        empty = pattern.pattern[:0]
        run = lambda text: pattern.sub(empty, text)  # noqa: E731
    if isinstance(pattern.pattern, bytes):
        return lambda text: run(text.encode("utf-8"))
    return run


@pytest.mark.parametrize("call", _CALLS, ids=lambda call: call.name)
@pytest.mark.timeout(240)
def test_pattern_takes_linear_time(call: patterns.Call) -> None:
    found = _compiled().get(call.name)
    assert found, f"{call.name}: say in patterns.py how to get at what it compiles"
    for operation, pattern in found:
        for once, again in sorted(_attacks(pattern)):
            _assert_linear(_use(operation, pattern), once, again)


@pytest.mark.parametrize("pattern", [r"\s+$", "x.*y"])
def test_control_pattern_that_takes_longer_is_caught(pattern: str) -> None:
    compiled = re.compile(pattern)

    def try_all() -> None:
        for once, again in sorted(_attacks(compiled)):
            _assert_linear(_use("compile", compiled), once, again)

    with pytest.raises(AssertionError):
        try_all()
