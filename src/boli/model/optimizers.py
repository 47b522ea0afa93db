"""The inner optimizers: AdamW, and Muon for the matrices of the hidden layers.

Muon replaces the momentum of a matrix by the nearest orthogonal one, so that every
direction of the matrix is trained at the same rate. Vectors, embeddings and the output
head have AdamW in both.

All state is two flat tensors, whatever the plan chooses: they travel to the disk and
back as they are.

Source: Loshchilov & Hutter 2019, AdamW, https://arxiv.org/abs/1711.05101; Jordan et al.
2024, Muon, https://kellerjordan.github.io/posts/muon/, with the coefficients of its
Newton-Schulz iteration; Thérien et al. 2025, MuLoCo, Muon as the inner optimizer of
DiLoCo, https://arxiv.org/abs/2505.23725.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boli.model.adapter import Adapter
from boli.model.layout import Layout, Segment
from boli.plan import LocalStepsPlan

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration: steep at zero, within 0.7 to 1.2
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix of each of (n, rows, columns), rows ≤ columns.

    Singular values end between 0.7 and 1.2, which serves as well as 1.
    """
    a, b, c = COEFFICIENTS
    found: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = torch.bmm(found, found.mT)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        found = torch.baddbmm(found, polynomial, found, beta=a)
    return found


def hidden_matrices(model: Any, layout: Layout) -> tuple[Segment, ...]:
    """Return the segments that Muon trains: matrices, but no embedding and no output head."""
    outside = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outside |= set() if head is None else set(head.parameters())
    names = {name for name, parameter in model.named_parameters() if parameter in outside}
    return tuple(s for s in layout.segments if len(s.shape) == 2 and s.name not in names)


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape: they are made orthogonal together."""

    entries: tuple[Tensor, ...]  # each (rows, columns), views of the flat vector
    gradients: tuple[Tensor, ...]
    momenta: tuple[Tensor, ...]


class InnerOptimizer:
    """AdamW over an adapter's flat vector, or Muon for its matrices and AdamW for the rest."""

    def __init__(
        self,
        adapter: Adapter,
        plan: LocalStepsPlan,
        matrices: Sequence[Segment] = (),  # that Muon trains
        dtype: torch.dtype = torch.float32,  # that matrices are made orthogonal in
    ) -> None:
        self.plan, self._dtype = plan, dtype
        flat, gradient = adapter.flat, adapter.gradient
        spans = _between(matrices, flat.numel())
        self.num_steps = 0
        self._first = torch.zeros_like(flat)
        self._second = flat.new_zeros(sum(stop - start for start, stop in spans))
        self._adamw = None
        if spans:
            self._rest = [nn.Parameter(flat[start:stop]) for start, stop in spans]
            for parameter, (start, stop) in zip(self._rest, spans, strict=True):
                parameter.grad = gradient[start:stop]
            self._adamw = torch.optim.AdamW(
                self._rest,
                lr=plan.learning_rate,
                betas=(plan.beta1, plan.beta2),
                weight_decay=plan.weight_decay,
                fused=True,
            )
            self._share_state(spans)
        self._stacks = [
            _Stack(*(tuple(_view(t, s) for s in group) for t in (flat, gradient, self._first)))
            for group in _by_shape(matrices)
        ]

    def _share_state(self, spans: Sequence[tuple[int, int]]) -> None:
        assert self._adamw is not None
        position = 0
        for parameter, (start, stop) in zip(self._rest, spans, strict=True):
            self._adamw.state[parameter] = {
                "step": torch.zeros((), device=self._first.device),
                "exp_avg": self._first[start:stop],
                "exp_avg_sq": self._second[position : position + stop - start],
            }
            position += stop - start

    def step(self, rate: float) -> None:
        """Move the vector by its gradient, at a learning rate of AdamW; Muon's falls alike."""
        if self._adamw is not None:
            self._adamw.param_groups[0]["lr"] = rate
            self._adamw.step()
        share = rate / self.plan.learning_rate
        with torch.no_grad():
            for stack in self._stacks:
                self._step_matrices(stack, share * self.plan.muon_learning_rate)
        self.num_steps += 1

    def _step_matrices(self, stack: _Stack, rate: float) -> None:
        beta = self.plan.muon_momentum
        momenta, gradients = list(stack.momenta), list(stack.gradients)
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        looked_ahead = torch.stack(torch._foreach_lerp(gradients, momenta, beta))
        rows, columns = looked_ahead.shape[1:]
        wide = looked_ahead.mT if rows > columns else looked_ahead
        directions = orthogonalize(wide.to(self._dtype)).to(looked_ahead.dtype)
        directions = directions.mT if rows > columns else directions
        entries = list(stack.entries)
        if self.plan.weight_decay:
            torch._foreach_mul_(entries, 1 - rate * self.plan.weight_decay)
        scale = max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(entries, list(directions.unbind()), alpha=-rate * scale)

    def reset(self) -> None:
        """Forget all moments."""
        self._first.zero_()
        self._second.zero_()
        self._set_steps(0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the moments, as copies; the second one only of what AdamW trains."""
        return {
            "first_moment": self._first.cpu().numpy().copy(),
            "second_moment": self._second.cpu().numpy().copy(),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], num_steps: int) -> None:
        """Go back to moments that `arrays` gave, after so many steps."""
        self._first.copy_(torch.from_numpy(arrays["first_moment"]))
        self._second.copy_(torch.from_numpy(arrays["second_moment"]))
        self._set_steps(num_steps)

    def _set_steps(self, num_steps: int) -> None:
        self.num_steps = num_steps
        if self._adamw is not None:
            for parameter in self._rest:
                self._adamw.state[parameter]["step"].fill_(float(num_steps))


def _view(vector: Tensor, segment: Segment) -> Tensor:
    return vector[segment.offset : segment.offset + segment.size].view(segment.shape)


def _by_shape(segments: Sequence[Segment]) -> list[list[Segment]]:
    ordered = sorted(segments, key=lambda segment: segment.shape)
    return [list(group) for _, group in groupby(ordered, key=lambda segment: segment.shape)]


def _between(segments: Sequence[Segment], size: int) -> list[tuple[int, int]]:
    """Return the spans of a vector of this size that no segment covers."""
    spans, position = [], 0
    for segment in sorted(segments, key=lambda segment: segment.offset):
        if segment.offset > position:
            spans.append((position, segment.offset))
        position = segment.offset + segment.size
    return [*spans, (position, size)] if position < size else spans
