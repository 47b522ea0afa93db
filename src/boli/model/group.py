"""Several processes that hold one base together: how they meet, and how they share its layers out.

Source: Zhao et al. 2023, FSDP, https://arxiv.org/abs/2304.11277; the second version of it in torch.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

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


def shard(model: Any, device: torch.device) -> None:
    """Leave each process its share of the frozen layers; a layer is whole only while it computes.

    The adapter's entries and the embeddings stay whole everywhere. From here on the
    model computes only where all processes compute together.

    Raises:
        ModelError: transformers does not say what a layer of this model is.
    """
    from torch.distributed.fsdp import fully_shard

    model.to("cpu")
    layers = set(model._no_split_modules or ())
    if not layers:
        raise ModelError(
            f"{type(model).__name__} does not say which of its modules is a layer",
            'set the site\'s sharding = "none", or choose a base of another family',
        )
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.release_base()
    body = model.base_model
    for module in list(body.modules()):
        if type(module).__name__ in layers:
            fully_shard(module)
    # Its weight is often the output embedding's as well, which is used outside of the body.
    fully_shard(body, ignored_params=set(model.get_input_embeddings().parameters()))
    model.to(device)
