from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boli.evaluation.forecast import _notes_on_one_site
from boli.plan import Plan

ASYNCHRONOUS = {"mode": "asynchronous"}


@pytest.mark.parametrize(
    ("number", "changes", "told"),
    [
        (1, {}, []),
        (2, {}, ["nobody can tell which one is wrong"]),
        (3, {}, []),
        (3, {"codec": {"name": "sparse"}}, ["backdoor into entries that no other site sends"]),
        (3, {"rounds": {"norm_multiple": 2.0}}, ["lets one of 3 sites outweigh"]),
        (3, {"rounds": {"norm_multiple": math.inf}}, ["set it below 2"]),
        (3, {"rounds": {"norm_multiple": 1.9}}, []),
        (3, {"rounds": ASYNCHRONOUS}, []),
        (3, {"rounds": ASYNCHRONOUS | {"buffer_size": 3}}, ["waits for the slowest site"]),
        (3, {"rounds": ASYNCHRONOUS | {"buffer_size": 3, "most_share": 0.67}}, []),
        (3, {"rounds": ASYNCHRONOUS | {"most_share": 1.0}}, ["make every version alone"]),
    ],
)
def test_check_says_what_one_site_could_still_do(
    tiny_plan: Callable[..., Plan],
    tmp_path: Path,
    number: int,
    changes: dict[str, Any],
    told: list[str],
) -> None:
    site = {"language": "bho", "text": ["bho.txt"]}
    sites = [{"name": f"site-{i}", **site} for i in range(number)]
    notes = list(_notes_on_one_site(tiny_plan(tmp_path, site=sites, **changes)))
    assert len(notes) == len(told), notes
    assert all(part in note for part, note in zip(told, notes, strict=True))
