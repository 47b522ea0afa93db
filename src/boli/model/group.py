"""Several processes that hold one base together: how they meet, and how they share its layers out.

Source: Zhao et al. 2023, FSDP, https://arxiv.org/abs/2304.11277 (`fsdp`, in its second version);
Rajbhandari et al. 2020, ZeRO stage 3, https://arxiv.org/abs/1910.02054 (`zero`).
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed, nn

from boli.errors import ModelError, SiteError
from boli.model.adapter import LoraLinear
from boli.model.base import best_device

STEP_SECONDS = 600.0  # that one process waits within a step for another; the first may compile


@dataclass(frozen=True)
class Place:
    """One process among those of a node; the node itself has rank 0."""

    rank: int
    size: int
    meeting: Path  # a file that all of them know, and nobody else can read

    def join(self) -> torch.device:
        """Meet the other processes; return the device of this one.

        Raises:
            SiteError: accelerate is not installed, or there are too few GPUs.
        """
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise SiteError(
                "several processes at a site need accelerate, which is not installed",
                "pip install 'boli[cluster]', or set the site's processes = 1",
            ) from error
        on_cpu = best_device().type == "cpu"
        if not on_cpu and self.size > torch.cuda.device_count():
            raise SiteError(
                f"the site's plan has {self.size} processes, and this machine "
                f"{torch.cuda.device_count()} GPUs",
                "lower the site's processes",
            )
        os.environ |= self._environment()
        state = PartialState(
            cpu=on_cpu,
            init_method=self.meeting.as_uri(),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=STEP_SECONDS),
        )
        return torch.device("cpu") if on_cpu else torch.device(state.device)

    @staticmethod
    def leave() -> None:
        """Part from the others, so that this process can meet others later; also before `join`."""
        if distributed.is_initialized():
            distributed.destroy_process_group()
        state = sys.modules.get("accelerate.state")
        if state is not None:  # it would take the next group for this one
            state.AcceleratorState._reset_state(reset_partial_state=True)

    def _environment(self) -> dict[str, str]:
        """Return what Accelerate reads of a process; a launcher would set the same."""
        found = {"RANK": self.rank, "LOCAL_RANK": self.rank}
        found |= {"WORLD_SIZE": self.size, "LOCAL_WORLD_SIZE": self.size}
        environment = {name: str(value) for name, value in found.items()}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        if loopback:  # gloo would listen where other machines can reach it
            environment["GLOO_SOCKET_IFNAME"] = loopback[0]
        return environment


def share_out(model: Any, sharding: Literal["fsdp", "zero"], device: torch.device) -> None:
    """Leave each process its share of the frozen layers; a layer is whole only while it computes.

    `model` has its adapter, and is in main memory still. The adapter's entries, the
    embeddings and the head stay whole everywhere. From here on the model computes only
    where all processes compute together.

    Raises:
        ModelError: transformers does not say what a layer of this model is.
        SiteError: deepspeed is not installed.
    """
    body, embedding = model.base_model, model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.release_base()
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    embedding.to(device)
    for module in model.children():
        if module is not body:
            module.to(device)
    if sharding == "fsdp":
        _fully_shard(model, body, embedding)
    else:
        _partition(model, body, embedding)


def _fully_shard(model: Any, body: Any, embedding: nn.Module) -> None:
    # Not through Accelerate's plugin: it has FSDP on no CPU, and so nothing to test it with.
    from torch.distributed.fsdp import fully_shard

    layers = set(model._no_split_modules or ())
    if not layers:
        raise ModelError(
            f"{type(model).__name__} does not say which of its modules is a layer",
            'set the site\'s sharding = "none", or choose a base of another family',
        )
    for module in list(body.modules()):
        if type(module).__name__ in layers:
            fully_shard(module)
    # The embedding's weight is often the head's as well, which is used outside of the body.
    fully_shard(body, ignored_params=set(embedding.parameters()))


def _partition(model: Any, body: Any, embedding: nn.Module) -> None:
    try:
        import deepspeed
    except ImportError as error:
        raise SiteError(
            'sharding = "zero" needs deepspeed, which is not installed',
            "pip install 'boli[zero]', or set the site's sharding = \"fsdp\"",
        ) from error
    from accelerate import Accelerator, DeepSpeedPlugin

    settings = {
        "train_micro_batch_size_per_gpu": 1,  # asked for, and without meaning here
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    body.set_input_embeddings(nn.Identity())  # so that it stays whole
    # First alone: the engine would take the whole body onto the device to begin with.
    deepspeed.zero.Init(module=body, config_dict_or_path=settings)
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings))
    # It undoes its work when it goes, so it has to live as long as the model.
    model.__dict__["engine"] = accelerator.prepare(body)
    body.set_input_embeddings(embedding)
