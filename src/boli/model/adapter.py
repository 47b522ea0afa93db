"""Adapters: LoRA, frozen-A, core-only, and every weight of a micro-LLM.

All trained entries of a site live in one flat tensor; the modules hold views
of it, so that loading a version, one optimizer step and the pseudo-gradient
are each one operation on one vector.

Averaging A and B separately is not averaging their product: `lora` accepts
that, `frozen_a` and `core` are exact under averaging.

Source: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685; Sun et al. 2024,
FFA-LoRA (frozen_a), https://arxiv.org/abs/2403.12313; Singhal et al. 2025, Fed-SB
(core), https://arxiv.org/abs/2502.15436, on the singular vectors of Bałazy et al.
2024, LoRA-XS, https://arxiv.org/abs/2405.17604.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from boli.errors import LayoutError, ModelError
from boli.model.layout import Layout, Nesting, Vector, shell_order
from boli.plan import AdapterPlan

LARGEST_MERGED = 1 << 22  # entries of a weight that is merged anew at every step


class _MergedProduct(torch.autograd.Function):
    """x (W + s·Bᵀ A)ᵀ with one large product each way, where x W and x Aᵀ B would take two.

    Worth it in float32 with many tokens to a weight; in bf16 the sum would round
    the adapter away. The merged weight is made again for the way back: kept, those of all
    layers would be a second base in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        merged = torch.addmm(weight, b.t(), a, alpha=scale)
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return functional.linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, a, b = ctx.saved_tensors
        needs_x, needs_a, needs_b = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        g = gradients[0].reshape(-1, weight.shape[0])
        flat = x.reshape(-1, weight.shape[1])
        grad_x = None
        if needs_x:
            grad_x = (g @ torch.addmm(weight, b.t(), a, alpha=ctx.scale)).view(x.shape)
        grad_a = ((g @ b.t()).mul_(ctx.scale).t() @ flat) if needs_a else None
        grad_b = ((flat @ a.t()).mul_(ctx.scale).t() @ g) if needs_b else None
        return grad_x, None, None, grad_a, grad_b, None


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank term; B is stored as (rank, out).

    With a core, the term is Bᵀ C A and only C (rank, rank) is trained; its
    entries lie in shell order, as in the layout.
    """

    def __init__(
        self, base: nn.Module, a: Tensor, b: Tensor, scale: float, core: Tensor | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.a, self.b, self.core = a, b, core
        self.scale = scale
        order = shell_order(0 if core is None else core.shape[0])
        self._matrix_order = torch.from_numpy(np.argsort(order)).to(a.device)
        weight: Any = base.weight
        self._merges = (
            type(base) is nn.Linear
            and weight.dtype == torch.float32
            and weight.numel() <= LARGEST_MERGED
        )

    def release_base(self) -> None:
        """Let the base's weight be shared out among processes: use it through its module only.

        Trained entries become plain attributes; as parameters they would be shared out too.
        """
        self._merges = False
        for name in list(self._parameters):
            self.__dict__[name] = self._parameters.pop(name)

    def _a(self) -> Tensor:
        if self.core is None:
            return self.a
        return self.core.reshape(-1)[self._matrix_order].view(self.core.shape) @ self.a

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (rank, in) and B (out, rank) of plain LoRA with the same effect."""
        return self._a(), self.b.t()

    def _pays(self, x: Tensor) -> bool:
        """Tell whether merging the weight takes less work than the low rank for each token."""
        out_features, in_features = self.base.weight.shape  # type: ignore[misc]
        tokens = x.numel() // in_features
        return bool(tokens * (in_features + out_features) >= in_features * out_features)

    def forward(self, x: Tensor) -> Tensor:
        a = self._a()
        if self._merges and x.dtype == torch.float32 and self._pays(x):
            base: Any = self.base
            return _MergedProduct.apply(x, base.weight, base.bias, a, self.b, self.scale)  # type: ignore[no-untyped-call, no-any-return]
        low = functional.linear(x, a.to(x.dtype))
        return self.base(x) + (low @ self.b.to(x.dtype)) * self.scale  # type: ignore[no-any-return]


@dataclass
class Adapter:
    """A base model whose trained entries are one flat vector."""

    layout: Layout  # of this site's rank
    flat: Tensor  # (m,) float32, every trained entry
    gradient: Tensor  # (m,) float32, where backward adds

    def load(self, vector: Vector) -> None:
        """Set the trained entries; the model changes with them.

        Raises:
            LayoutError: the vector has another length.
        """
        if vector.shape != (self.layout.size,):
            raise LayoutError(f"a vector of shape {vector.shape} is not ({self.layout.size},)")
        with torch.no_grad():
            self.flat.copy_(torch.from_numpy(vector))

    def read(self) -> Vector:
        """Return a copy of the trained entries."""
        copy: Vector = self.flat.detach().cpu().numpy().copy()
        return copy


def target_modules(model: nn.Module, plan: AdapterPlan) -> dict[str, nn.Linear]:
    """Return the linear layers that get an adapter, by name; never the output embedding.

    Raises:
        ModelError: a target of the plan names no layer.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not linear:
        raise ModelError(
            f"{type(model).__name__} has no linear layer that could get an adapter",
            "choose a base of another family, such as Llama, Qwen, Mistral or BLOOM",
        )
    if plan.targets == "all-linear":
        return linear
    for target in plan.targets:
        if not any(_ends(name, target) for name in linear):
            ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ModelError(
                f"model.adapter.targets: no linear layer is called {target!r}",
                f"this base has {', '.join(ends)}",
            )
    return {
        name: module
        for name, module in linear.items()
        if any(_ends(name, target) for target in plan.targets)
    }


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def adapter_layout(model: nn.Module, plan: AdapterPlan, rank: int | None = None) -> Layout:
    """Return the layout of a base's adapter, at the plan's rank or a lower one.

    `model` must not have an adapter attached yet; one on the meta device will do.
    """
    if plan.kind == "full":
        return Layout.of({name: (tuple(p.shape), "whole") for name, p in model.named_parameters()})
    rank = rank or plan.rank
    shapes: dict[str, tuple[tuple[int, ...], Nesting]] = {}
    for name, module in target_modules(model, plan).items():
        if plan.kind == "core":
            shapes[f"{name}.core"] = ((rank, rank), "shells")
            continue
        shapes[f"{name}.lora_B"] = ((rank, module.out_features), "rows")
        if plan.kind == "lora":
            shapes[f"{name}.lora_A"] = ((rank, module.in_features), "rows")
    return Layout.of(shapes)


def initial_vector(model: nn.Module, plan: AdapterPlan) -> Vector:
    """Return version 0 at the plan's full rank: the base unchanged."""
    layout = adapter_layout(model, plan)
    if plan.kind == "full":
        return layout.pack(
            {name: p.detach().float().cpu().numpy() for name, p in model.named_parameters()}
        )
    vector = np.zeros(layout.size, np.float32)
    arrays = layout.unpack(vector)
    for name, module in target_modules(model, plan).items():
        if plan.kind == "lora":
            arrays[f"{name}.lora_A"][:] = _fixed_a(name, module, plan, plan.rank).numpy()
    return vector


def _fixed_a(name: str, module: nn.Linear, plan: AdapterPlan, rank: int) -> Tensor:
    """Return the first rows of A, the same at every site: seeded by the layer's name."""
    seed = hashlib.sha256(f"{plan.seed}/{name}".encode()).digest()
    bound = 1.0 / math.sqrt(module.in_features)
    draw = np.random.Generator(np.random.PCG64(int.from_bytes(seed[:8], "big")))
    rows = draw.uniform(-bound, bound, (plan.rank, module.in_features))[:rank]
    return torch.from_numpy(rows.astype(np.float32))


def _singular_vectors(module: nn.Linear, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (rank, out), the leading singular vectors of the weight."""
    weight = module.weight
    if type(module) is not nn.Linear:
        raise ModelError(
            'adapter kind "core" needs the weights of the base, which are quantized',
            'set model.base.quantize = "none", or model.adapter.kind = "lora"',
        )
    if rank > min(weight.shape):
        raise ModelError(
            f"rank {rank} is above the smaller side of a {tuple(weight.shape)} layer",
            f"set model.adapter.rank to at most {min(weight.shape)}",
        )
    u, _, vh = torch.linalg.svd(weight.detach().double().cpu(), full_matrices=False)
    # Signs are arbitrary, and sites must agree on them.
    signs = torch.sign(vh.gather(1, vh.abs().argmax(1, keepdim=True)))
    a = (vh * signs)[:rank].float()
    b = (u * signs.t())[:, :rank].t().float()
    return a, b.contiguous()


def attach(
    model: nn.Module,
    plan: AdapterPlan,
    rank: int | None = None,
    device: torch.device | None = None,  # of the trained entries; by default the base's
) -> Adapter:
    """Freeze a base and put trained entries into it, at version 0's values.

    Raises:
        ModelError: a target names no layer, or the kind does not fit the base.
    """
    if plan.kind != "full":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    layout = adapter_layout(model, plan, rank)
    device = device or next(model.parameters()).device
    flat = torch.zeros(layout.size, dtype=torch.float32, device=device)
    gradient = torch.zeros_like(flat)
    trained = dict(_views(layout, flat, gradient))
    if plan.kind == "full":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                trained[name].copy_(parameter)
                parameter.data = trained[name].data
                parameter.grad = trained[name].grad
        return Adapter(layout, flat, gradient)
    for name, module in target_modules(model, plan).items():
        _replace(model, name, _lora_linear(name, module, plan, rank or plan.rank, trained))
    return Adapter(layout, flat, gradient)


def _views(layout: Layout, flat: Tensor, gradient: Tensor) -> Iterator[tuple[str, nn.Parameter]]:
    for segment in layout.segments:
        span = slice(segment.offset, segment.offset + segment.size)
        parameter = nn.Parameter(flat[span].view(segment.shape))
        parameter.grad = gradient[span].view(segment.shape)
        yield segment.name, parameter


def _lora_linear(
    name: str,
    module: nn.Linear,
    plan: AdapterPlan,
    rank: int,
    trained: Mapping[str, nn.Parameter],
) -> LoraLinear:
    device = next(iter(trained.values())).device
    scale = plan.alpha / plan.rank  # the plan's, so that a component means the same everywhere
    if plan.kind == "core":
        a, b = (t.to(device) for t in _singular_vectors(module, rank))
        return LoraLinear(module, a, b, scale, trained[f"{name}.core"])
    b_rows = trained[f"{name}.lora_B"]
    if plan.kind == "frozen_a":
        fixed = _fixed_a(name, module, plan, rank).to(device)
        return LoraLinear(module, fixed, b_rows, scale)
    a_rows = trained[f"{name}.lora_A"]
    with torch.no_grad():
        a_rows.copy_(_fixed_a(name, module, plan, rank))
    return LoraLinear(module, a_rows, b_rows, scale)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
