"""What a site says of a version on its own text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from boli.plan import Plan
from boli.rounds.update import Order
from boli.site.work import WORST_BITS, open_work


@pytest.mark.parametrize("entry", [np.nan, 0.0])
def test_version_that_gives_no_number_is_judged_and_is_no_failure(
    tiny_plan: Callable[..., Plan], micro_base: Path, tmp_path: Path, entry: float
) -> None:
    plan = tiny_plan(tmp_path)
    work = open_work(plan, plan.site[0], str(micro_base))
    theta = np.full(work.layout.size, entry, np.float32)
    order = Order(
        order="run-arrah-1",
        site="arrah",
        sequence=1,
        base_version=1,
        layout=work.full_layout.digest,
        local_steps=0,
        evaluate=("tuning", "test"),
    )
    done = work.perform(order, theta, theta, lambda: 0, lambda *_: True)
    assert done is not None
    worst = [each.bits == WORST_BITS * each.bytes for each in done.judgements]
    assert worst == [bool(np.isnan(entry))] * 2
