"""Every attack in its fast form is refused, and would have been seen to succeed."""

from __future__ import annotations

from pathlib import Path

import pytest
from attack import load, names


@pytest.mark.parametrize("name", names())
def test_attack_is_refused(name: str, tmp_path: Path) -> None:
    outcome = load(name).attack(tmp_path, fast=True)
    assert outcome.refused, outcome.observed
    assert outcome.control  # an attack that nothing could notice proves nothing


@pytest.mark.parametrize("name", names())
def test_attack_says_which_promise_it_tries_to_break(name: str) -> None:
    attack = load(name)
    assert attack.__doc__
    assert attack.PROMISE.endswith(".")
