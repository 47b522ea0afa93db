"""A further process of a node: python -m boli.site.worker, started by its crew.

It answers steps with gradients until its node is gone.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from boli.errors import BoliError
from boli.site.crew import Line


@dataclass(frozen=True)
class Task:
    """One thing that all processes of a node compute together."""

    name: str  # step, forward
    rows: Any  # (n, length) int64 tokens
    number: int  # of predicted tokens in the whole batch
    draw: int  # seed of what dropout drops


class NodeLine:
    """The line to the node: a thread reads all the time, to notice the node's end at any moment."""

    def __init__(self, descriptor: int) -> None:
        self._line: Line = Connection(descriptor)
        self.told: dict[str, Any] = json.loads(self._line.recv_bytes())
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="from node", daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                header = json.loads(self._line.recv_bytes())
                rows = np.frombuffer(self._line.recv_bytes(), np.int64)
                rows = rows.reshape(header["shape"]).copy()
                self._tasks.put(Task(header["task"], rows, header["number"], header["draw"]))
        except (EOFError, OSError):
            # The node is gone, and with it everything that this process could be for.
            os._exit(0)

    def next_task(self) -> Task:
        return self._tasks.get()

    def say(self, **facts: str) -> None:
        """Say that the next stage is reached or, with a problem, that it cannot be."""
        self._line.send_bytes(json.dumps(facts).encode())


def serve(line: NodeLine) -> None:
    """Load the base and take part in whatever the node computes."""
    import torch
    from torch import distributed

    from boli.model.group import Place
    from boli.plan_file import plan_from_tables
    from boli.site.work import own_gradient, site_base

    told = line.told
    torch.set_num_threads(told["threads"])
    plan = plan_from_tables(told["plan"])
    site = next(site for site in plan.site if site.name == told["site"])
    line.say()
    device = Place(told["rank"], told["size"], Path(told["meeting"])).join()
    base = site_base(plan, site, told["origin"], device)
    own = own_gradient(plan, site, base, device)
    base.model.eval()
    line.say()
    while True:
        task = line.next_task()
        distributed.broadcast(own.adapter.flat, 0)
        if task.name == "step":
            total = own.of(task.rows, task.number, task.draw)
            distributed.reduce(own.adapter.gradient, 0)
            distributed.reduce(total, 0)
        else:
            tokens = torch.from_numpy(task.rows).to(device)
            with torch.no_grad():
                base.model.base_model(input_ids=tokens, use_cache=False)


def main(arguments: list[str]) -> int:
    """Serve a node; tell it why, where that is not possible."""
    line = NodeLine(int(arguments[0]))
    try:
        serve(line)
    except BoliError as error:
        line.say(problem=error.problem, hint=error.hint, code=error.code)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
