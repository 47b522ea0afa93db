from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boli.model.adapter import Adapter, attach
from boli.model.layout import Layout
from boli.model.local_steps import LocalSteps, PackedText
from boli.model.optimizers import InnerOptimizer, hidden_matrices, orthogonalize
from boli.plan import AdapterPlan, LocalStepsPlan

Load = Callable[[Path], Any]
SHAPES = {"a": (3, 5), "b": (4,), "c": (5, 3), "d": (3, 5), "e": (6, 4)}


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


def made_up_adapter(seed: int = 0) -> Adapter:
    layout = Layout.of({name: (shape, "whole") for name, shape in SHAPES.items()})
    draw = torch.Generator().manual_seed(seed)
    flat = torch.randn(layout.size, generator=draw)
    return Adapter(layout, flat, torch.randn(layout.size, generator=draw))


def plan_of(**values: Any) -> LocalStepsPlan:
    return LocalStepsPlan(**({"precision": "fp32", "compile": "off"} | values))


def matrices_of(adapter: Adapter, *names: str) -> tuple[Any, ...]:
    return tuple(segment for segment in adapter.layout.segments if segment.name in names)


def test_every_direction_of_an_orthogonalized_matrix_counts_about_the_same() -> None:
    draw = torch.Generator().manual_seed(1)
    low_rank = torch.randn(2, 8, 3, generator=draw) @ torch.randn(2, 3, 20, generator=draw)
    matrices = low_rank + 0.05 * torch.randn(2, 8, 20, generator=draw)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3  # boli.rounds.bounds takes no more for honest


def test_zero_gradient_moves_no_matrix() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_muon_of_stacked_shapes_is_muon_of_each_matrix_by_itself() -> None:
    """Against the plain form, a matrix at a time, as in the source."""
    adapter = made_up_adapter()
    plan = plan_of(optimizer="muon", muon_learning_rate=0.1, weight_decay=0.2)
    matrices = matrices_of(adapter, "a", "c", "d", "e")
    optimizer = InnerOptimizer(adapter, plan, matrices)
    expected, momenta = adapter.layout.unpack(adapter.read()), {}
    for number in range(3):
        gradients = adapter.layout.unpack(adapter.gradient.numpy().copy())
        rate = 0.1 * (0.5 if number else 1.0)
        optimizer.step(plan.learning_rate * (0.5 if number else 1.0))
        for segment in matrices:
            name, gradient = segment.name, torch.from_numpy(gradients[segment.name].copy())
            momentum = momenta.get(name, torch.zeros_like(gradient)).lerp(gradient, 0.05)
            momenta[name] = momentum
            ahead = gradient.lerp(momentum, 0.95)
            tall = ahead.shape[0] > ahead.shape[1]
            wide = (ahead.T if tall else ahead)[None]
            direction = orthogonalize(wide)[0].T if tall else orthogonalize(wide)[0]
            scale = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
            moved = expected[name] * (1 - rate * 0.2) - rate * scale * direction.numpy()
            expected[name] = moved.astype(np.float32)
        adapter.gradient.mul_(-0.3).add_(0.1)
    found = adapter.layout.unpack(adapter.read())
    for segment in matrices:
        np.testing.assert_allclose(found[segment.name], expected[segment.name], atol=2e-6)


def test_what_is_no_hidden_matrix_has_adamw_as_without_muon() -> None:
    one, other = made_up_adapter(), made_up_adapter()
    both = [
        InnerOptimizer(one, plan_of(optimizer="muon"), matrices_of(one, "a", "c", "d")),
        InnerOptimizer(other, plan_of()),
    ]
    for _ in range(4):
        for optimizer in both:
            optimizer.step(1e-2)
    found, expected = (a.layout.unpack(a.read()) for a in (one, other))
    for name in ("b", "e"):
        assert np.array_equal(found[name], expected[name])
    assert not np.allclose(found["a"], expected["a"])
    # Of matrices only the momentum is kept.
    assert both[0].arrays()["second_moment"].size == 4 + 24


def test_one_flat_adamw_is_the_adamw_of_torch() -> None:
    adapter = made_up_adapter()
    parameter = nn.Parameter(adapter.flat.clone())
    parameter.grad = adapter.gradient
    plan = plan_of(weight_decay=0.1)
    reference = torch.optim.AdamW(
        [parameter], lr=1e-2, betas=(plan.beta1, plan.beta2), weight_decay=0.1
    )
    optimizer = InnerOptimizer(adapter, plan)
    for _ in range(5):
        reference.step()
        optimizer.step(1e-2)
    torch.testing.assert_close(adapter.flat, parameter.detach())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_muon_trains_matrices_but_no_embedding_head_or_norm(
    kind: str, llama: Path, load_tiny: Load
) -> None:
    model = load_tiny(llama).model
    adapter = attach(model, AdapterPlan(kind=kind, rank=3))  # type: ignore[arg-type]
    names = {segment.name for segment in hidden_matrices(model, adapter.layout)}
    everything = {segment.name for segment in adapter.layout.segments}
    if kind == "lora":
        assert names == everything
    else:
        others = ("norm", "embed_tokens", "lm_head")
        assert everything - names == {n for n in everything if any(o in n for o in others)}
        assert any("q_proj" in name for name in names)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_muon_with_dropout_resumes_bit_for_bit(kind: str, llama: Path, load_tiny: Load) -> None:
    plan = plan_of(optimizer="muon", dropout=0.2, batch_sequences=2, sequence_length=16)
    draw = np.random.default_rng(1)
    lines = [draw.integers(0, 320, 12).astype(np.uint32) for _ in range(40)]

    def steps() -> LocalSteps:
        model = load_tiny(llama).model
        adapter = attach(model, AdapterPlan(kind=kind, rank=3))  # type: ignore[arg-type]
        return LocalSteps(model, adapter, PackedText(lines, 16, 5), plan)

    whole, first, second = steps(), steps(), steps()
    whole.run(lambda: 5, 0.1, 0.02)
    first.run(lambda: 2, 0.1, 0.02)
    second.adapter.load(first.adapter.read())
    second.restore(first.arrays(), first.facts())
    torch.rand(7)  # nothing hangs on the process's random state
    second.run(lambda: 3, 0.14, 0.02)
    assert np.array_equal(second.adapter.read(), whole.adapter.read())
    for name, array in whole.arrays().items():
        assert np.array_equal(array, second.arrays()[name])
    assert second.facts() == whole.facts()
