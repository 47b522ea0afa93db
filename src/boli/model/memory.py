"""How much memory a step takes, and how to take less: parts of a batch, and layers computed again.

What is decided here depends on the plan, the model and the kind of device alone, not on what is
free just now: a step's parts say in which order numbers are added, and a run that is resumed has
to add them in the same order.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost,
https://arxiv.org/abs/1604.06174 (`recompute`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from boli.plan import LocalStepsPlan

# Values kept for the way back, for each value that goes into or comes out of a linear layer. As
# autograd counts them: 1.02 of Llama, 1.14 of Qwen 3 and BLOOM, 1.25 of Gemma 3 with its norms.
KEPT_SHARE = 1.25
ACTIVATION_BYTES = 240_000_000  # of the parts of a batch that are computed at once, on a CPU
PASSING_SHARE = 0.25  # of the base's bytes: what comes and goes within a step, measured
LOGITS_COPIES = 4  # as they are, in float32, their logarithms, and the gradient
GPU_SHARE = 0.25  # of a GPU's memory, likewise


# Of glibc: blocks from this size on go back to the system as soon as they are free.
LARGE_BLOCK_BYTES = 1 << 20
LARGE_BASE_BYTES = 200_000_000  # below it pages that are made anew cost more than they save
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Needs:
    """What a step keeps for its way back, and so how it is computed."""

    sequences: int  # of a batch, at a time
    recomputes: bool  # keep what goes into each layer, and compute the rest again
    activation_bytes: int  # of these sequences


def needs_of(model: Any, plan: LocalStepsPlan, width: int, device: torch.device) -> Needs:
    """Return how a model's steps are computed; `width` is the bytes of one activation."""
    whole = width * plan.sequence_length * values_a_token(model)
    kept = width * plan.sequence_length * _values_between_layers(model)
    most = _most_bytes(device)
    recomputes = plan.checkpointing == "on" or (plan.checkpointing == "auto" and whole > most)
    a_sequence = kept if recomputes else whole
    sequences = plan.micro_sequences or max(1, most // max(1, a_sequence))
    sequences = min(sequences, plan.batch_sequences)
    # What is computed again is there for one layer at a time.
    again = whole // max(1, len(_layers(model))) * sequences if recomputes else 0
    return Needs(sequences, recomputes, a_sequence * sequences + again)


def _most_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return ACTIVATION_BYTES


def values_a_token(model: Any) -> int:
    """Return how many values a token leaves behind in a model's layers for the way back."""
    head = model.get_output_embeddings()
    linear = sum(
        module.in_features + module.out_features
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return int(KEPT_SHARE * linear)


def head_bytes(
    model: Any,
    tokens: int,  # computed at once
    trained: bool,  # the head itself too
) -> int:
    """Return the bytes that logits, and a head's own gradient, take at most."""
    from boli.model.local_steps import LOGITS_AT_ONCE, has_plain_head

    weight = model.get_output_embeddings().weight
    logits = tokens * weight.shape[0]
    if has_plain_head(model):
        logits = min(logits, LOGITS_AT_ONCE)
    return 4 * int(LOGITS_COPIES * logits + (weight.numel() if trained else 0))


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _values_between_layers(model: Any) -> int:
    layers = len(_layers(model))
    if not layers:  # nothing that could be computed again
        return values_a_token(model)
    return int(layers * model.get_input_embeddings().embedding_dim)


def return_what_is_free(model: Any) -> bool:
    """Let this process give freed memory back at once, where its base is large; tell whether.

    glibc keeps blocks of up to 32 MB for later, and takes more beside them: a quarter of a
    gigabyte over a step of Gemma 3 270M. On other systems nothing is done.
    """
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if held < LARGE_BASE_BYTES or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        and mallopt(_M_TRIM_THRESHOLD, LARGE_BLOCK_BYTES)
    )


def recompute(model: Any) -> list[Any]:
    """Let a model's layers be computed again on the way back, within `recomputing`; return them."""
    again = functools.partial(
        torch.utils.checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False
    )
    layers = _layers(model)
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = again
    return layers


@contextlib.contextmanager
def recomputing(layers: Sequence[Any]) -> Iterator[None]:
    """Make layers look as in training, which transformers asks for; what they hold stays as it is.

    So that nothing is dropped out: that would need torch's random state kept with the site's.
    """
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
