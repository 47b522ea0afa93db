from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boli.model import local_steps, memory
from boli.model.adapter import attach
from boli.model.local_steps import OwnGradient, PackedText, token_losses
from boli.plan import AdapterPlan, LocalStepsPlan

Load = Callable[..., Any]
CPU = torch.device("cpu")


def plan_of(**values: Any) -> LocalStepsPlan:
    settings: dict[str, Any] = {"batch_sequences": 4, "sequence_length": 16, "compile": "off"}
    return LocalStepsPlan(**(settings | values))


def gradient_of(base: Any, plan: LocalStepsPlan) -> tuple[float, torch.Tensor]:
    adapter = attach(base.model, AdapterPlan(rank=3, alpha=6.0))
    adapter.load(adapter.read() + 0.1)
    lines = [torch.arange(start, start + 90).numpy().astype("uint32") for start in (3, 50, 200)]
    batch = PackedText(lines, 16, 1).take(4)
    base.model.eval()
    total = OwnGradient(base.model, adapter, plan).of(batch, 60, 7)
    return float(total), adapter.gradient.clone()


@pytest.mark.parametrize("values", [{"micro_sequences": 1}, {"micro_sequences": 3}])
def test_parts_of_a_batch_add_up_to_its_gradient(
    family: Path, load_tiny: Load, values: dict[str, int]
) -> None:
    whole, expected = gradient_of(load_tiny(family), plan_of())
    parts, found = gradient_of(load_tiny(family), plan_of(**values))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_layers_computed_again_drop_the_same_entries(family: Path, load_tiny: Load) -> None:
    dropping = {"dropout": 0.3, "micro_sequences": 2}
    (total, expected), (again, found) = (
        gradient_of(load_tiny(family), plan_of(checkpointing=checkpointing, **dropping))
        for checkpointing in ("off", "on")
    )
    assert again == pytest.approx(total, rel=1e-6)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_layers_computed_again_give_the_same_gradient_and_keep_less(
    family: Path, load_tiny: Load
) -> None:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    sums = []
    for checkpointing in ("off", "on"):
        kept.clear()
        base = load_tiny(family)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sums.append((*gradient_of(base, plan_of(checkpointing=checkpointing)), sum(kept)))
        assert not any(module.training for module in base.model.modules())
    (total, expected, most), (again, found, least) = sums
    assert again == pytest.approx(total, rel=1e-6)
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()))
    assert least < most


def test_small_models_take_a_batch_at_once_and_large_ones_in_parts(
    family: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny(family).model
    needs = memory.needs_of(model, plan_of(), 4, CPU)
    assert (needs.sequences, needs.recomputes) == (4, False)
    a_sequence = needs.activation_bytes // 4
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 2 * a_sequence + 1)
    needs = memory.needs_of(model, plan_of(), 4, CPU)
    assert (needs.sequences, needs.recomputes) == (2, False)
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", a_sequence - 1)
    needs = memory.needs_of(model, plan_of(), 4, CPU)
    assert needs.recomputes
    assert memory.needs_of(model, plan_of(micro_sequences=64), 4, CPU).sequences == 4
    assert not memory.needs_of(model, plan_of(checkpointing="off"), 4, CPU).recomputes


@pytest.mark.parametrize("block", [1, 320 * 5, 1 << 22])
def test_blockwise_losses_are_those_of_all_logits(
    family: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(local_steps, "LOGITS_AT_ONCE", block)
    model = load_tiny(family).model.eval()
    tokens = torch.arange(36).view(3, 12)
    found = token_losses(model, tokens)
    logits = model(input_ids=tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    assert found.shape == (3, 11)
    assert torch.allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_softcapped_logits_are_no_plain_product(family: Path, load_tiny: Load) -> None:
    model = load_tiny(family).model
    assert local_steps.has_plain_head(model)
    model.config.final_logit_softcapping = 30.0
    assert not local_steps.has_plain_head(model)


def test_small_bases_leave_the_allocator_as_it_is(family: Path, load_tiny: Load) -> None:
    assert not memory.return_what_is_free(load_tiny(family).model)


def test_large_bases_give_back_what_is_free() -> None:
    script = (
        "import torch, platform; from boli.model import memory;"
        "model = torch.nn.Linear(8000, 8000);"
        "assert memory.return_what_is_free(model) == (platform.libc_ver()[0] == 'glibc')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
