from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from boli.plan_rounds import OuterPlan
from boli.rounds.outer import Averaging, outer_optimizer
from boli.rounds.update import Vector

RNG = np.random.default_rng(3)
START = RNG.normal(size=20).astype(np.float32)
MEANS = [RNG.normal(size=20).astype(np.float32) for _ in range(9)]


def steps(**plan: Any) -> list[Vector]:
    optimizer = outer_optimizer(OuterPlan(**plan))
    moments: Mapping[str, Vector] = {}
    found = []
    for index, mean in enumerate(MEANS):
        step, moments = optimizer.step(mean, moments, index)
        found.append(step)
    return found


def close(found: list[Vector], expected: list[Any]) -> bool:
    return all(
        np.allclose(f, e, rtol=1e-5, atol=1e-6) for f, e in zip(found, expected, strict=True)
    )


def test_sgd_is_the_mean_times_the_learning_rate() -> None:
    assert close(steps(name="sgd", learning_rate=0.4), [0.4 * mean for mean in MEANS])
    assert all(
        np.array_equal(step, mean)
        for step, mean in zip(steps(name="sgd", learning_rate=1), MEANS, strict=True)
    )


def test_sgd_keeps_no_moments() -> None:
    assert outer_optimizer(OuterPlan()).step(MEANS[0], {}, 0)[1] == {}


def test_nesterov_is_the_one_of_torch() -> None:
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(START.copy()))
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    theta = START.copy()
    for mean, step in zip(
        MEANS, steps(name="nesterov", learning_rate=0.7, momentum=0.9), strict=True
    ):
        parameter.grad = torch.from_numpy(mean.copy())
        reference.step()
        theta = theta - step
        assert np.allclose(theta, parameter.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_delayed_nesterov_by_hand() -> None:
    # lr 1, momentum 0.5, delay 2, activation 0.25; means 4, 8, 2, 6.
    optimizer = outer_optimizer(
        OuterPlan(name="delayed_nesterov", learning_rate=1, momentum=0.5, delay=2, activation=0.25)
    )
    moments: Mapping[str, Vector] = {}
    found = []
    for index, mean in enumerate([4.0, 8.0, 2.0, 6.0]):
        step, moments = optimizer.step(np.full(1, mean, np.float32), moments, index)
        found.append(float(step[0]))
    assert found == [
        4 / 2,  # no momentum yet
        0.75 * 0.5 * 6 + 8 / 2,  # m = (4 + 8) / 2 = 6, share 1 - 0.25
        0.25 * 0.5 * 6 + 2 / 2,  # m stays, share 0.25
        0.75 * 0.5 * 7 + 6 / 2,  # m = 0.5 * 6 + (2 + 6) / 2 = 7
    ]


def test_delayed_nesterov_without_delay_is_nesterov() -> None:
    plain = steps(name="nesterov", learning_rate=0.7, momentum=0.9)
    delayed = steps(name="delayed_nesterov", learning_rate=0.7, momentum=0.9, delay=1)
    assert close(delayed, plain)


def test_delayed_nesterov_without_momentum_is_sgd_with_a_smaller_rate() -> None:
    found = steps(name="delayed_nesterov", learning_rate=1, momentum=0, delay=4)
    assert close(found, [mean / 4 for mean in MEANS])


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_adaptive_optimizers_follow_their_formulas(name: str) -> None:
    rate, beta1, beta2, tau = 0.1, 0.8, 0.95, 0.05
    first, second = np.zeros(20), np.full(20, tau**2)
    expected = []
    for mean in MEANS:
        square = mean.astype(np.float64) ** 2
        first = beta1 * first + (1 - beta1) * mean
        if name == "adam":
            second = beta2 * second + (1 - beta2) * square
        else:
            second = second - (1 - beta2) * square * np.sign(second - square)
        expected.append(rate * first / (np.sqrt(second) + tau))
    found = steps(name=name, learning_rate=rate, beta1=beta1, beta2=beta2, epsilon=tau)
    assert close(found, expected)


def test_yogi_differs_from_adam_where_the_moment_is_far_above_the_square() -> None:
    optimizers = [outer_optimizer(OuterPlan(name=name)) for name in ("adam", "yogi")]
    ones = np.ones(1, np.float32)
    moments = {"first": ones, "second": ones * 100}
    seconds = [optimizer.step(ones, moments, 5)[1]["second"] for optimizer in optimizers]
    assert seconds[0] == pytest.approx(99.01, rel=1e-5)
    assert seconds[1] == pytest.approx(99.99, rel=1e-5)


PLANS = [
    {"name": "sgd"},
    {"name": "nesterov"},
    {"name": "delayed_nesterov", "delay": 2, "activation": 0.3},
    {"name": "adam"},
    {"name": "yogi"},
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["name"])
def test_step_changes_neither_mean_nor_moments_and_stays_float32(plan: dict[str, Any]) -> None:
    optimizer = outer_optimizer(OuterPlan(**plan))
    moments: Mapping[str, Vector] = {}
    for index in range(4):
        mean = MEANS[index].copy()
        before = {name: moment.copy() for name, moment in moments.items()}
        step, after = optimizer.step(mean, moments, index)
        assert np.array_equal(mean, MEANS[index])
        assert all(np.array_equal(moments[name], before[name]) for name in before)
        assert {array.dtype for array in (step, *after.values())} == {np.dtype(np.float32)}
        assert all(array.shape == mean.shape for array in (step, *after.values()))
        moments = after


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["name"])
def test_saved_moments_continue_bit_for_bit(plan: dict[str, Any]) -> None:
    reference = steps(**plan)
    moments: Mapping[str, Vector] = {}
    for index, mean in enumerate(MEANS):
        optimizer = outer_optimizer(OuterPlan(**plan))  # settings only, no progress
        step, moments = optimizer.step(mean, {k: v.copy() for k, v in moments.items()}, index)
        assert step.tobytes() == reference[index].tobytes()


@pytest.mark.parametrize("versions", [1, 2, 4, 9])
def test_last_version_is_the_mean_of_the_last_ones(versions: int) -> None:
    averaging = Averaging(versions, total=len(MEANS))
    theta, average, plain = START, None, [START]
    for version, step in enumerate(MEANS, 1):
        plain.append(plain[-1] - step)
        made = theta - averaging.step(step, theta, average, version)
        average = averaging.mean(made, average, version)
        theta = made
        if version < len(MEANS):
            assert np.array_equal(theta, plain[-1])
    assert np.allclose(theta, np.mean(plain[-versions:], axis=0), atol=1e-5)
    assert average is None  # nothing is left in the checkpoint


def test_run_without_an_end_averages_nothing() -> None:
    assert Averaging(4).mean(START, None, 3) is None
    assert np.array_equal(Averaging(4).step(MEANS[0], START, START, 3), MEANS[0])
