from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from boli.errors import ModelError
from boli.plan import Plan
from boli.site import personal
from boli.site.personal import CHECKS, PATIENCE, _personalized, personalize
from boli.site.work import open_work


def work_with(curve: list[float]) -> Any:
    """Return a work whose vector is the number of its check, and whose tuning text says `curve`."""
    work = SimpleNamespace(splits={}, base=None, theta=np.zeros(1, np.float32), runs=0)
    text = SimpleNamespace(per_pass=CHECKS * 10)

    def run(count: Callable[[], int], position: float, step: float) -> None:
        assert position == pytest.approx(work.runs / CHECKS)
        assert count() * step == pytest.approx(1 / CHECKS)
        work.runs += 1
        work.theta = np.full(1, work.runs, np.float32)

    work.steps = SimpleNamespace(text=text, plan=SimpleNamespace(batch_sequences=1), run=run)
    work.adapter = SimpleNamespace(
        load=lambda theta: setattr(work, "theta", theta), read=lambda: work.theta.copy()
    )
    work.curve = curve
    return work


@pytest.mark.parametrize(
    ("curve", "best", "runs"),
    [
        ([5, 4, 3, 2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3], 10, CHECKS),
        ([5, 4, 3, 3.5, 3.6, 3.7, 1, 1, 1, 1, 1], 2, 2 + PATIENCE),
        ([5, 4, 4.1, 4.2, 3, 3.1, 3.2, 3.3, 1, 1, 1], 4, 4 + PATIENCE),
        ([5, 6, 7, 8, 1, 1, 1, 1, 1, 1, 1], 0, PATIENCE),
    ],
    ids=["all passes", "overfits", "recovers once", "no better at all"],
)
def test_best_of_the_tuning_text_is_kept_and_a_curve_that_turns_ends_it(
    monkeypatch: pytest.MonkeyPatch, curve: list[float], best: int, runs: int
) -> None:
    work = work_with(curve)
    monkeypatch.setattr(personal, "_tuning", lambda w: w.curve[w.runs])
    made = _personalized(work, np.zeros(1, np.float32), 1.0, lambda *_: None)
    assert made.theta[0] == best
    assert made.steps == best * 10
    assert work.runs == runs
    assert work.theta[0] == best  # what is judged at the end
    assert made.overfits == (best < runs)


def test_version_of_another_base_is_refused(
    tiny_plan: Callable[..., Plan], micro_base: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path)
    with pytest.raises(ModelError, match="the version has 3 entries"):
        personalize(plan, plan.site[0], str(micro_base), np.zeros(3, np.float32), 1.0)


def test_own_model_of_a_version_begins_with_what_that_version_gives(
    tiny_plan: Callable[..., Plan], micro_base: Path, tmp_path: Path
) -> None:
    plan = tiny_plan(tmp_path)
    work = open_work(plan, plan.site[0], str(micro_base))
    theta, first = work.first, work.score("bho", "test")
    assert first is not None
    made = personalize(plan, plan.site[0], str(micro_base), theta, 1.0)
    (test,) = made.tests
    assert test.against_version.b == pytest.approx(first.line_bits().total.per_byte, rel=1e-6)
    assert [steps for steps, _ in made.curve] == sorted({steps for steps, _ in made.curve})
