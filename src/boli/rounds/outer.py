"""Outer optimizers: from a mean pseudo-gradient to a step that the coordinator descends.

Each is a set of settings with one pure function; its moments live in
`ServerState.outer`.

Source: McMahan et al. 2017 (sgd), https://arxiv.org/abs/1602.05629; Douillard et
al. 2023, DiLoCo (nesterov), https://arxiv.org/abs/2311.08105; Liu et al. 2024,
Algorithm 3 (delayed_nesterov), https://arxiv.org/abs/2401.09135; Reddi et al.
2021, Algorithm 2 (adam, yogi), https://arxiv.org/abs/2003.00295.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from boli.plan_rounds import OuterPlan
from boli.rounds.update import Vector

Moments = Mapping[str, Vector]


class OuterOptimizer(Protocol):
    """Turns a mean pseudo-gradient into a step; theta - step is the next version."""

    def step(self, mean: Vector, moments: Moments, index: int) -> tuple[Vector, Moments]:
        """Return the (d,) step and the next moments; `index` counts rounds from 0."""
        ...


@dataclass(frozen=True)
class Sgd:
    """theta -= learning_rate * mean; with learning_rate 1 this is federated averaging."""

    learning_rate: np.float32

    def step(self, mean: Vector, moments: Moments, index: int) -> tuple[Vector, Moments]:  # noqa: ARG002
        return self.learning_rate * mean, moments


@dataclass(frozen=True)
class Nesterov:
    """Sgd with Nesterov momentum, as torch defines it."""

    learning_rate: np.float32
    momentum: np.float32

    def step(self, mean: Vector, moments: Moments, index: int) -> tuple[Vector, Moments]:  # noqa: ARG002
        velocity = self.momentum * moments.get("velocity", np.zeros_like(mean)) + mean
        return self.learning_rate * (mean + self.momentum * velocity), {"velocity": velocity}


@dataclass(frozen=True)
class DelayedNesterov:
    """Momentum moves once in `delay` rounds, over their mean: made for asynchronous arrival."""

    learning_rate: np.float32
    momentum: np.float32
    delay: int
    activation: np.float32  # c, share of momentum in the rounds between

    def step(self, mean: Vector, moments: Moments, index: int) -> tuple[Vector, Moments]:
        velocity = moments.get("velocity", np.zeros_like(mean))
        gathered = moments.get("gathered", np.zeros_like(mean)) + mean
        share = self.activation
        if (index + 1) % self.delay == 0:
            velocity = self.momentum * velocity + gathered / np.float32(self.delay)
            gathered = np.zeros_like(mean)
            share = np.float32(1) - self.activation * np.float32(self.delay - 1)
        step = share * self.momentum * velocity + mean / np.float32(self.delay)
        return self.learning_rate * step, {"velocity": velocity, "gathered": gathered}


@dataclass(frozen=True)
class Adaptive:
    """FedAdam, or FedYogi where the second moment moves by its sign; no bias correction."""

    learning_rate: np.float32
    beta1: np.float32
    beta2: np.float32
    epsilon: np.float32
    yogi: bool

    def step(self, mean: Vector, moments: Moments, index: int) -> tuple[Vector, Moments]:  # noqa: ARG002
        one = np.float32(1)
        square = mean * mean
        first = moments.get("first", np.zeros_like(mean))
        second = moments.get("second", np.full_like(mean, self.epsilon * self.epsilon))
        first = self.beta1 * first + (one - self.beta1) * mean
        if self.yogi:
            second = second - (one - self.beta2) * square * np.sign(second - square)
        else:
            second = self.beta2 * second + (one - self.beta2) * square
        step = self.learning_rate * first / (np.sqrt(second) + self.epsilon)
        return step.astype(np.float32, copy=False), {"first": first, "second": second}


def outer_optimizer(plan: OuterPlan) -> OuterOptimizer:
    """Return the optimizer that a plan names."""
    rate = np.float32(plan.learning_rate)
    match plan.name:
        case "sgd":
            return Sgd(rate)
        case "nesterov":
            return Nesterov(rate, np.float32(plan.momentum))
        case "delayed_nesterov":
            return DelayedNesterov(
                rate, np.float32(plan.momentum), plan.delay, np.float32(plan.activation)
            )
        case "adam" | "yogi":
            return Adaptive(
                rate,
                np.float32(plan.beta1),
                np.float32(plan.beta2),
                np.float32(plan.epsilon),
                yogi=plan.name == "yogi",
            )


@dataclass(frozen=True)
class Averaging:
    """Makes the last version the mean of the last so many, itself as it would have been included.

    It goes the way of any version, and is judged like one: where sites find an earlier one
    better, that one is exported.

    Source: Izmailov et al. 2018, stochastic weight averaging, https://arxiv.org/abs/1803.05407;
    Kaddour 2022, of the latest weights, https://arxiv.org/abs/2209.14981.
    """

    versions: int = 1
    total: int = 0  # rounds; 0: there is no last version

    def _place(self, version: int) -> int:
        """Return which of the averaged versions this one is, from 1; below 1: none of them."""
        return version - (self.total - self.versions) if self.versions > 1 and self.total else 0

    def mean(
        self,
        theta: Vector,  # (d,) of a new version
        before: Vector | None,  # (d,) mean of those before it
        version: int,
    ) -> Vector | None:
        """Return the mean of the versions so far; None where none of them counts, or all came."""
        place = self._place(version)
        if not 1 <= place < self.versions:
            return None
        return theta if before is None else before + (theta - before) / np.float32(place)

    def step(
        self,
        step: Vector,  # (d,) from the version before to the one that is made
        theta: Vector,  # (d,) of the version before
        before: Vector | None,  # (d,) mean of those that count
        version: int,
    ) -> Vector:
        """Return the step to the version that is made: to the mean, where it is the last one."""
        if before is None or version != self.total:
            return step
        last = theta - step
        return theta - (before + (last - before) / np.float32(self.versions))
