from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boli.errors import LayoutError, ModelError
from boli.model.adapter import (
    Adapter,
    LoraLinear,
    _MergedProduct,
    _singular_vectors,
    adapter_layout,
    attach,
    initial_vector,
    target_modules,
)
from boli.model.layout import Vector
from boli.model.local_steps import summed_loss
from boli.plan import AdapterPlan

KINDS = ("lora", "frozen_a", "core", "full")
Load = Callable[..., Any]
TOKENS = torch.arange(3, 3 + 2 * 12).view(2, 12) * 13 % 320


def plan_of(kind: str, **values: Any) -> AdapterPlan:
    return AdapterPlan(**({"kind": kind, "rank": 4, "alpha": 6.0} | values))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


def random_vector(size: int, seed: int = 0, scale: float = 0.2) -> Vector:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=size) * scale).astype(np.float32)


# --- version 0


@pytest.mark.parametrize("kind", KINDS)
def test_model_at_version_0_answers_as_its_base(family: Path, load_tiny: Load, kind: str) -> None:
    base = load_tiny(family, kind)
    before = logits(base.model)
    vector = initial_vector(base.model, plan_of(kind))
    adapter = attach(base.model, plan_of(kind))
    assert adapter.read().tobytes() == vector.tobytes()  # what attach starts from is version 0
    adapter.load(vector)
    assert torch.equal(logits(base.model), before)
    assert before.std() > 0.1  # the comparison means something
    adapter.load(vector + random_vector(vector.size))
    assert (logits(base.model) - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "frozen_a", "core"])
def test_rank_of_a_site_starts_from_its_part_of_version_0(
    family: Path, load_tiny: Load, kind: str
) -> None:
    base = load_tiny(family, kind)
    full, vector = (
        adapter_layout(base.model, plan_of(kind)),
        initial_vector(base.model, plan_of(kind)),
    )
    adapter = attach(base.model, plan_of(kind), 3)
    assert adapter.layout.size == full.view(3).size
    assert adapter.read().tobytes() == full.view(3).take(vector).tobytes()


@pytest.mark.parametrize("kind", ["lora", "frozen_a", "core"])
def test_lower_rank_equals_the_full_one_with_the_other_components_zero(
    family: Path, load_tiny: Load, kind: str
) -> None:
    plan = plan_of(kind)
    full, part = load_tiny(family), load_tiny(family)
    view = adapter_layout(full.model, plan).view(2)
    whole, small = attach(full.model, plan), attach(part.model, plan, 2)
    vector = np.zeros(whole.layout.size, np.float32)
    view.put(vector, random_vector(view.size))
    whole.load(vector)
    small.load(view.take(vector))
    assert torch.allclose(logits(full.model), logits(part.model), rtol=1e-4, atol=1e-4)
    # And nowhere near it where they are not.
    whole.load(vector + random_vector(vector.size, 1) * (vector == 0))
    assert not torch.allclose(logits(full.model), logits(part.model), rtol=1e-2, atol=1e-2)


# --- what is trained


@pytest.mark.parametrize("kind", KINDS)
def test_backward_fills_the_flat_gradient_and_nothing_of_the_base(
    family: Path, load_tiny: Load, kind: str
) -> None:
    base = load_tiny(family, kind)
    frozen = {id(p): p.detach().clone() for p in base.model.parameters()}
    adapter = attach(base.model, plan_of(kind))
    adapter.load(adapter.read() + random_vector(adapter.layout.size))
    loss, _ = summed_loss(base.model, TOKENS)
    loss.backward()
    for segment in adapter.layout.segments:
        part = adapter.gradient[segment.offset : segment.offset + segment.size]
        assert part.isfinite().all()
        if not segment.name.endswith("k_proj.bias"):  # softmax does not see a shift of all keys
            assert part.abs().max() > 0, segment.name
    if kind != "full":
        for parameter in base.model.parameters():
            if id(parameter) in frozen:
                assert not parameter.requires_grad
                assert parameter.grad is None
                assert torch.equal(parameter, frozen[id(parameter)])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_flat_vector_predicts_the_loss(
    family: Path, load_tiny: Load, kind: str
) -> None:
    base = load_tiny(family, kind)
    adapter = attach(base.model, plan_of(kind))
    start = adapter.read() + random_vector(adapter.layout.size, scale=0.05)
    adapter.load(start)
    summed_loss(base.model, TOKENS)[0].backward()
    gradient = adapter.gradient.numpy().astype(np.float64)
    direction = gradient / np.linalg.norm(gradient)
    found = []
    step = 3e-3
    for sign in (1, -1):
        adapter.load((start + sign * step * direction).astype(np.float32))
        with torch.no_grad():
            found.append(float(summed_loss(base.model, TOKENS)[0].double()))
    slope = (found[0] - found[1]) / (2 * step)
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.03)


def test_every_kind_trains_its_own_segments(llama: Path, load_tiny: Load) -> None:
    model = load_tiny(llama).model
    names = list(target_modules(model, plan_of("lora")))
    assert len(names) == 2 * 7
    wanted = {
        "lora": {f"{name}.{end}" for name in names for end in ("lora_A", "lora_B")},
        "frozen_a": {f"{name}.lora_B" for name in names},
        "core": {f"{name}.core" for name in names},
        "full": {name for name, _ in model.named_parameters()},
    }
    for kind, expected in wanted.items():
        layout = adapter_layout(model, plan_of(kind))
        assert {segment.name for segment in layout.segments} == expected
        nesting = {"core": "shells", "full": "whole"}.get(kind, "rows")
        assert {segment.nesting for segment in layout.segments} == {nesting}


def test_sizes_of_kinds_are_what_the_layers_say(llama: Path, load_tiny: Load) -> None:
    model = load_tiny(llama).model
    layers = target_modules(model, plan_of("lora")).values()
    sizes = {kind: adapter_layout(model, plan_of(kind)).size for kind in KINDS}
    assert sizes["lora"] == sum(4 * (m.in_features + m.out_features) for m in layers)
    assert sizes["frozen_a"] == sum(4 * m.out_features for m in layers)
    assert sizes["core"] == 16 * len(layers)
    assert sizes["full"] == sum(p.numel() for p in model.parameters())


def test_tied_embedding_is_trained_once(family_folder: Any, load_tiny: Load) -> None:
    base = load_tiny(family_folder("qwen3"), "full")
    adapter = attach(base.model, plan_of("full"))
    names = [segment.name for segment in adapter.layout.segments]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    vector = initial_vector(base.model, plan_of("full"))
    adapter.load(vector * 2)
    assert torch.equal(base.model.lm_head.weight, base.model.model.embed_tokens.weight)
    assert torch.allclose(
        base.model.lm_head.weight.flatten()[:8],
        adapter.flat[:0].new_tensor(
            adapter.layout.unpack(vector * 2)["model.embed_tokens.weight"].reshape(-1)[:8]
        ),
    )


def test_layout_needs_no_weights(family: Path, load_tiny: Load) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(family)
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    model = load_tiny(family).model
    for kind in KINDS:
        here, there = adapter_layout(model, plan_of(kind)), adapter_layout(empty, plan_of(kind))
        here.check(there, "loaded", "on meta")


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


# --- which layers


def test_output_embedding_gets_no_adapter(family: Path, load_tiny: Load) -> None:
    model = load_tiny(family).model
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    assert all(module is not head for module in target_modules(model, plan_of("lora")).values())


def test_targets_are_ends_of_names(llama: Path, load_tiny: Load) -> None:
    model = load_tiny(llama).model
    found = target_modules(model, plan_of("lora", targets=("q_proj", "mlp.up_proj")))
    assert sorted(found) == sorted(
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    )
    one = target_modules(model, plan_of("lora", targets=("model.layers.1.mlp.up_proj",)))
    assert list(one) == ["model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize("target", ["proj", "q_prj", "up_proj_", "lm_head", ""])
def test_target_that_names_no_layer_lists_those_there_are(
    llama: Path, load_tiny: Load, target: str
) -> None:
    with pytest.raises(ModelError, match=repr(target)) as caught:
        target_modules(load_tiny(llama).model, plan_of("lora", targets=("q_proj", target)))
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in caught.value.hint


def test_only_targets_are_replaced(llama: Path, load_tiny: Load) -> None:
    model = load_tiny(llama).model
    attach(model, plan_of("lora", targets=("v_proj",)))
    replaced = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert replaced == ["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]


def test_base_without_linear_layers_is_refused() -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ModelError):
        attach(transformers.GPT2LMHeadModel(config), plan_of("lora"))


# --- what is fixed


def test_fixed_rows_depend_on_layer_and_seed_alone(llama: Path, load_tiny: Load) -> None:
    def rows(rank: int, full: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
        model = load_tiny(llama).model
        attach(model, plan_of("frozen_a", rank=full, seed=seed), rank)
        return {n: m.a for n, m in model.named_modules() if isinstance(m, LoraLinear)}

    mine, again, lower, other = rows(4), rows(4), rows(2), rows(4, seed=1)
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    assert all(torch.equal(mine[name][:2], lower[name]) for name in mine)
    assert not any(torch.equal(mine[name], other[name]) for name in mine)
    same_shape = [a.numpy().tobytes() for a in mine.values() if a.shape == (4, 32)]
    assert len(same_shape) > 2
    assert len(set(same_shape)) == len(same_shape)  # no two layers alike
    for a in mine.values():
        assert a.abs().max() <= a.shape[1] ** -0.5
        assert a.abs().max() > 0.8 * a.shape[1] ** -0.5


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_singular_vectors_are_those_of_the_weight(shape: tuple[int, int]) -> None:
    module = nn.Linear(shape[1], shape[0])
    a, b = _singular_vectors(module, 5)
    assert torch.allclose(a @ a.t(), torch.eye(5), atol=1e-5)
    assert torch.allclose(b @ b.t(), torch.eye(5), atol=1e-5)
    values = torch.linalg.svdvals(module.weight)[:5]
    assert torch.allclose(b @ module.weight @ a.t(), torch.diag(values), atol=1e-5)
    assert all(row[row.abs().argmax()] > 0 for row in a)  # so that all sites agree on signs
    small_a, small_b = _singular_vectors(module, 2)
    assert torch.equal(small_a, a[:2])
    assert torch.equal(small_b, b[:2])


def test_core_turns_the_leading_singular_vectors(llama: Path, load_tiny: Load) -> None:
    base = load_tiny(llama)
    name = "model.layers.0.mlp.up_proj"
    weight = base.model.get_submodule(name).weight.detach().clone()
    adapter = attach(base.model, plan_of("core", targets=(name,), alpha=4.0))  # scale 1
    core = torch.arange(16.0).view(4, 4)
    adapter.load(adapter.layout.pack({f"{name}.core": core.numpy()}))
    layer = base.model.get_submodule(name)
    x = torch.randn(3, 32)
    u, _, vh = torch.linalg.svd(weight.double())
    signs = torch.sign(vh.gather(1, vh.abs().argmax(1, keepdim=True)))[:4]
    left, right = u[:, :4] * signs.t(), vh[:4] * signs
    expected = x.double() @ (weight.double() + left @ core.double() @ right).t()
    assert torch.allclose(layer(x).double(), expected, rtol=1e-4, atol=1e-3)
    a, b = layer.factors()
    assert (a.shape, b.shape) == ((4, 32), (48, 4))
    assert torch.allclose((b @ a).double(), left @ core.double() @ right, rtol=1e-4, atol=1e-4)


def test_core_above_the_smaller_side_of_a_layer_is_refused(llama: Path, load_tiny: Load) -> None:
    with pytest.raises(ModelError, match=r"rank 17 .* \(16, 32\)") as caught:
        attach(load_tiny(llama).model, plan_of("core", rank=17))
    assert "at most 16" in caught.value.hint


# --- the merged product


def plain_product(
    x: torch.Tensor, w: torch.Tensor, bias: Any, a: torch.Tensor, b: torch.Tensor, s: float
) -> torch.Tensor:
    return nn.functional.linear(x, w, bias) + (x @ a.t()) @ b * s


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_merged_product_has_value_and_gradients_of_the_plain_form(
    shape: tuple[int, ...], with_bias: bool
) -> None:
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    w, bias = torch.randn(5, 7, **double), torch.randn(5, **double) if with_bias else None
    x, a, b = (torch.randn(*s, **double) for s in (shape, (3, 7), (3, 5)))
    leaves = [t.requires_grad_() for t in (x, a, b)]
    merged = _MergedProduct.apply(x, w, bias, a, b, 1.7)
    plain = plain_product(x, w, bias, a, b, 1.7)
    assert torch.allclose(merged, plain, rtol=1e-12, atol=1e-12)
    towards = torch.randn_like(plain)
    mine = torch.autograd.grad(merged, leaves, towards)
    theirs = torch.autograd.grad(plain, leaves, towards)
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_merged_product_passes_the_numerical_check_of_gradients() -> None:
    torch.manual_seed(1)
    w, bias = torch.randn(4, 6).double(), torch.randn(4).double()
    x, a, b = (torch.randn(*s).double().requires_grad_() for s in ((2, 3, 6), (2, 6), (2, 4)))
    assert torch.autograd.gradcheck(
        lambda x, a, b: _MergedProduct.apply(x, w, bias, a, b, 0.6), (x, a, b)
    )


def test_merged_product_takes_turned_inputs_and_gradients() -> None:
    w, a, b = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3, 5)
    x = torch.randn(7, 4, 2).transpose(0, 2).requires_grad_()  # (2, 4, 7), not contiguous
    merged = _MergedProduct.apply(x, w, None, a, b, 2.0)
    towards = torch.randn(5, 4, 2).transpose(0, 2)
    (mine,) = torch.autograd.grad(merged, x, towards)
    (theirs,) = torch.autograd.grad(plain_product(x, w, None, a, b, 2.0), x, towards)
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "frozen_a", "core"])
def test_model_trains_the_same_merged_or_not(family: Path, load_tiny: Load, kind: str) -> None:
    found = []
    for merges in (True, False):
        base = load_tiny(family)
        adapter = attach(base.model, plan_of(kind))
        layers = [m for m in base.model.modules() if isinstance(m, LoraLinear)]
        assert all(layer._merges for layer in layers)  # float32 on plain linear layers
        for layer in layers:
            layer._merges = merges
        adapter.load(adapter.read() + random_vector(adapter.layout.size))
        loss, _ = summed_loss(base.model, TOKENS)
        loss.backward()
        found.append((float(loss.detach()), adapter.gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    scale = found[0][1].abs().max()
    assert (found[0][1] - found[1][1]).abs().max() < 1e-3 * scale


def test_half_precision_and_large_weights_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(2, 6))
    assert LoraLinear(nn.Linear(8, 6), a, b, 1.0)._merges
    half = LoraLinear(nn.Linear(8, 6).bfloat16(), a, b, 1.0)
    assert not half._merges
    x = torch.randn(3, 8).bfloat16()
    assert half(x).dtype == torch.bfloat16
    expected = half.base(x).float() + x.float() @ a.t() @ b
    assert torch.allclose(half(x).float(), expected, rtol=0.05, atol=0.1)
    monkeypatch.setattr("boli.model.adapter.LARGEST_MERGED", 47)
    assert not LoraLinear(nn.Linear(8, 6), a, b, 1.0)._merges


# --- the vector


def test_loaded_vector_is_read_back_and_is_a_copy(llama: Path, load_tiny: Load) -> None:
    adapter = attach(load_tiny(llama).model, plan_of("lora"))
    vector = random_vector(adapter.layout.size)
    adapter.load(vector)
    found = adapter.read()
    assert found.tobytes() == vector.tobytes()
    found[:] = 0
    vector[:] = 0
    assert adapter.read().any()


@pytest.mark.parametrize("change", [-1, 1])
def test_vector_of_another_length_is_refused(llama: Path, load_tiny: Load, change: int) -> None:
    adapter: Adapter = attach(load_tiny(llama).model, plan_of("lora"))
    before = adapter.read()
    with pytest.raises(LayoutError, match=r"is not \(\d+,\)"):
        adapter.load(np.zeros(adapter.layout.size + change, np.float32))
    assert np.array_equal(adapter.read(), before)


def test_attaching_twice_to_copies_shares_nothing(llama: Path, load_tiny: Load) -> None:
    model = load_tiny(llama).model
    other = copy.deepcopy(model)
    one, two = attach(model, plan_of("lora")), attach(other, plan_of("lora"))
    one.load(random_vector(one.layout.size))
    assert not np.array_equal(one.read(), two.read())
