from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn import functional

from boli.errors import ModelError, SiteError, WorkerLostError
from boli.model.layout import Vector
from boli.plan import Plan
from boli.rounds.update import Order
from boli.site.crew import Crew
from boli.site.work import TrainingWork, open_work

pytest.importorskip("accelerate", reason="needs the extra boli[cluster]")

Open = Callable[..., TrainingWork]
STEPS = 4
# DeepSpeed can be begun once in a process, so that one test is all there can be.
NEEDS_DEEPSPEED = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="needs DeepSpeed, which is built against the torch that is there",
)
OF_DEEPSPEED = pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor")
ZERO = pytest.param("zero", marks=[NEEDS_DEEPSPEED, OF_DEEPSPEED])


def order(sequence: int = 1, **values: Any) -> Order:
    return Order(
        order=f"run-arrah-{sequence}",
        site="arrah",
        sequence=sequence,
        base_version=0,
        layout="0" * 32,
        local_steps=STEPS,
        at_most=STEPS,
        position_step=0.02,
        **values,
    )


def perform(work: TrainingWork, theta: Vector, asked: Order | None = None) -> Any:
    return work.perform(asked or order(), theta, theta, lambda: STEPS, lambda *_: True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crew")


@pytest.fixture(scope="module")
def plan_with(tiny_plan: Callable[..., Plan], folder: Path) -> Callable[..., Plan]:
    """Return a function (processes, sharding, family's folder) → plan of one site."""

    def plan_of(processes: int, sharding: str, origin: Path | None = None) -> Plan:
        site = {"name": "arrah", "language": "bho", "text": ["bho.txt"]}
        site |= {"processes": processes, "sharding": sharding}
        base = {"path": origin, "micro": None} if origin else {}
        steps = {"batch_sequences": 3, "precision": "fp32", "compile": "off"}
        return tiny_plan(folder, site=[site], model={"base": base, "local_steps": steps})

    return plan_of


@pytest.fixture
def opened(plan_with: Callable[..., Plan], micro_base: Path) -> Iterator[Open]:
    """Return a function (processes, sharding, base=…) → a site's work; its processes end after."""
    crews: list[Crew] = []
    environment, linear = dict(os.environ), functional.linear

    def work_of(processes: int, sharding: str = "none", origin: Path | None = None) -> TrainingWork:
        plan = plan_with(processes, sharding, origin)
        work = open_work(plan, plan.site[0], str(origin or micro_base))
        if work._crew is not None:
            crews.append(work._crew)
        return work

    yield work_of
    for crew in crews:
        crew.close()
    functional.linear = linear  # DeepSpeed puts its own in
    os.environ.clear()
    os.environ.update(environment)


def theta_of(work: TrainingWork) -> Vector:
    """Return a vector at which every gradient is there: at version 0 those of A are zero."""
    noise = np.random.default_rng(0).normal(0, 0.05, work.first.size)
    return work.first + noise.astype(np.float32)


@pytest.mark.parametrize("sharding", ["none", "fsdp", ZERO])
def test_two_processes_train_and_judge_as_one_would(opened: Open, sharding: str) -> None:
    """Of three sequences one process takes two: shares need not be even."""
    alone, together = opened(1), opened(2, sharding)
    theta = theta_of(alone)
    both = order(evaluate=("tuning", "test"))
    expected, found = (perform(work, theta, both) for work in (alone, together))
    largest = np.abs(expected.pseudo_gradient).max()
    assert np.abs(found.pseudo_gradient - expected.pseudo_gradient).max() < 1e-4 * largest
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.local_steps, found.tokens) == (expected.local_steps, expected.tokens)
    for mine, its in zip(found.judgements, expected.judgements, strict=True):
        assert mine.bits == pytest.approx(its.bits, rel=1e-6)
    # AdamW would hide a gradient of another scale; its moments do not.
    (arrays, facts), (reference, same) = together.state(), alone.state()
    assert facts == same
    for name, array in reference.items():
        np.testing.assert_allclose(array, arrays[name], atol=1e-4 * np.abs(array).max())
    check_layers_held(together.base.model, sharding)


def check_layers_held(model: Any, sharding: str) -> None:
    """Frozen layers are whole, or half of each is in either process; nothing trained is shared."""
    held = {"none": lambda p: p, "fsdp": lambda p: p.to_local(), "zero": lambda p: p.ds_tensor}
    whole = {"none": lambda p: p, "fsdp": lambda p: p, "zero": lambda p: np.empty(p.ds_shape)}
    frozen = [p for name, p in model.named_parameters() if "embed" not in name]
    if sharding == "none":
        frozen = [p for p in frozen if not p.requires_grad]
    assert not any(p.requires_grad for p in frozen)
    entries = sum(math.prod(whole[sharding](p).shape) for p in frozen)
    share = sum(math.prod(held[sharding](p).shape) for p in frozen) / entries
    assert share == pytest.approx(1.0 if sharding == "none" else 0.5, rel=0.05)


def test_sharded_base_of_another_family_trains_as_a_whole_one(
    opened: Open, family_folder: Callable[[str], Path]
) -> None:
    """Its head is a module of its own, and its layers have biases."""
    origin = family_folder("bloom")
    alone, together = opened(1, "none", origin), opened(2, "fsdp", origin)
    theta = theta_of(alone)
    expected, found = (perform(work, theta).pseudo_gradient for work in (alone, together))
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_state_says_all_also_with_several_processes(opened: Open) -> None:
    work = opened(2)
    theta = theta_of(work)
    perform(work, theta)
    between = work.state()
    expected, after = perform(work, theta, order(2)), work.state()
    work.restore(*between)
    again = perform(work, theta, order(2))
    assert np.array_equal(again.pseudo_gradient, expected.pseudo_gradient)
    for name, array in after[0].items():
        assert np.array_equal(work.state()[0][name], array)


def test_abandoned_and_shortened_orders_leave_no_process_behind(opened: Open) -> None:
    work = opened(2, "fsdp")
    theta, begin = theta_of(work), work.state()
    whole = perform(work, theta)
    work.restore(*begin)
    assert work.perform(order(), theta, theta, lambda: STEPS, lambda done, *_: done < 2) is None
    work.restore(*begin)
    wanted = iter([STEPS, STEPS, 2])
    short = work.perform(order(), theta, theta, lambda: next(wanted), lambda *_: True)
    assert short is not None
    assert short.local_steps == 2
    work.restore(*begin)
    assert np.array_equal(perform(work, theta).pseudo_gradient, whole.pseudo_gradient)


@pytest.mark.parametrize(("sharding", "local_steps"), [("none", STEPS), ("fsdp", 0)])
def test_node_says_which_process_was_lost(opened: Open, sharding: str, local_steps: int) -> None:
    work = opened(2, sharding)
    assert work._crew is not None
    (worker,) = work._crew._workers
    asked = order(evaluate=("tuning",)).model_copy(update={"local_steps": local_steps})

    def kill(done: int, *_: float) -> bool:
        if done == 2:
            os.kill(worker.process.pid, signal.SIGKILL)
        return True

    if not local_steps:  # while it is judged
        os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"process 1 of the site ended \(signal 9\)"):
        work.perform(asked, work.first, work.first, lambda: STEPS, kill)


def test_next_run_of_the_same_process_has_processes_of_its_own(opened: Open) -> None:
    first = opened(2)
    theta = theta_of(first)
    done = perform(first, theta)
    first.close()
    again = perform(opened(2), theta)
    assert np.array_equal(again.pseudo_gradient, done.pseudo_gradient)


def test_base_that_cannot_be_loaded_leaves_no_process_behind(
    plan_with: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, crews = plan_with(2, "none"), []
    real = Crew.start

    def start(crew: Crew) -> Any:
        crews.append(crew)
        return real(crew)

    monkeypatch.setattr(Crew, "start", start)
    with pytest.raises(ModelError):
        open_work(plan, plan.site[0], str(tmp_path / "nowhere"))
    ((worker,),) = [crew._workers for crew in crews]
    assert worker.process.poll() is not None


def test_process_that_cannot_load_the_base_says_why(
    opened: Open, plan_with: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_with(2, "none")
    crew = Crew(plan, plan.site[0], str(tmp_path / "nowhere"))
    crew.start()
    with pytest.raises(SiteError, match="process 1 of the site: there is no base model at") as told:
        crew.ready(opened(1).steps._gradient)  # type: ignore[arg-type]
    crew.close()
    assert "model.base.path" in told.value.hint
    assert not isinstance(told.value, WorkerLostError)  # again would not help
