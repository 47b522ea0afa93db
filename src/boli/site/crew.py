"""A node's further processes, each with a device of its own, that take a share of every batch.

They hold the base and nothing else: each step brings them the adapter's vector
and their rows, and takes the gradient back. Text, moments, cursor and the number
of steps are the node's alone, so that there is nothing on which processes could
disagree, and a site's state does not depend on how many there are.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from boli.errors import SiteError, WorkerLostError
from boli.model.group import Place
from boli.model.local_steps import OwnGradient, Tokens
from boli.plan import Plan, SitePlan

if TYPE_CHECKING:
    Line = Connection[Any, Any]
else:
    Line = Connection

LAST_WORD_SECONDS = 5.0  # in which a process that broke a step says why, or ends


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    line: Line
    said: queue.SimpleQueue[dict[str, Any] | None] = field(default_factory=queue.SimpleQueue)

    def listen(self, on_end: Callable[[], None]) -> None:
        """Pass on what the worker says; None where it ended."""
        try:
            while True:
                self.said.put(json.loads(self.line.recv_bytes()))
        except (EOFError, OSError):
            self.said.put(None)
            on_end()

    def check(self, wait_seconds: float | None) -> None:
        """Wait for the worker's word, which is that it is ready; None waits until it comes.

        Raises:
            SiteError: it said that it cannot go on.
            WorkerLostError: it ended.
        """
        try:
            said = self.said.get(timeout=wait_seconds)
        except queue.Empty:
            return
        if said is None:
            code = self.process.wait()
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerLostError(
                f"process {self.rank} of the site ended ({reason})",
                "the site's log has its last words; its memory, or its GPU's, may be too small",
            )
        if "problem" in said:
            problem = f"process {self.rank} of the site: {said['problem']}"
            raise SiteError(problem, said["hint"], said["code"])


class Crew:
    """The node's side: starts the workers, hands out the rows, adds up the gradients."""

    def __init__(self, plan: Plan, site: SitePlan, origin: str) -> None:
        self.sharded = site.sharding != "none"
        self.device = torch.device("cpu")  # until the processes have met
        self._closing = False
        self._folder = tempfile.TemporaryDirectory(prefix="boli-", ignore_cleanup_errors=True)
        self._size = site.processes
        self._told = {
            "plan": json.loads(plan.model_dump_json()),
            "site": site.name,
            "origin": origin,
            "size": site.processes,
            "meeting": str(Path(self._folder.name) / "meeting"),
            "threads": max(1, torch.get_num_threads() // site.processes),
        }
        self._workers: list[_Worker] = []
        self._own: OwnGradient | None = None

    def start(self) -> torch.device:
        """Start the workers and meet them; they load the base while this process does.

        Raises:
            SiteError: a worker cannot do its part, or ended.
        """
        torch.set_num_threads(self._told["threads"])
        for rank in range(1, self._size):
            self._spawn(rank)
        for worker in self._workers:
            worker.check(None)
        with self.watched():
            self.device = Place(0, self._size, Path(self._told["meeting"])).join()
        return self.device

    def _spawn(self, rank: int) -> None:
        mine, theirs = socket.socketpair()
        threads = str(self._told["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "boli.site.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the node; its end is theirs
            )
        worker = _Worker(rank, process, Connection(mine.detach()))
        listen = threading.Thread(target=worker.listen, args=(self._ended,), daemon=True)
        listen.start()
        self._workers.append(worker)  # whatever comes now, `close` ends it
        with suppress(OSError):  # it has ended: `check` says so
            worker.line.send_bytes(json.dumps({**self._told, "rank": rank}).encode())

    def _ended(self) -> None:
        # gloo notices by itself; what waits on a GPU would wait for STEP_SECONDS.
        group = distributed.group.WORLD
        if group is not None and self.device.type != "cpu" and not self._closing:
            group.abort()

    def ready(self, own: OwnGradient) -> None:
        """Wait until every worker has loaded its base; `own` is this process's part of a step.

        Raises:
            SiteError: a worker cannot do its part, or ended.
        """
        self._own = own
        for worker in self._workers:
            worker.check(None)
        if self.sharded:
            body = own.model.base_model
            # In front of what gathers its layers, for which the workers have to be there.
            body.register_forward_pre_hook(
                self._forward_with_workers, prepend=True, with_kwargs=True
            )

    def of(self, batch: Tokens, number: int, draw: int) -> Tensor:
        """Set the adapter's gradient to the whole batch's; see Gradient.

        Raises:
            WorkerLostError: a worker ended.
        """
        assert self._own is not None
        adapter = self._own.adapter
        with self.watched():
            for worker in self._workers:
                self._send(
                    worker, "step", batch[worker.rank :: self._size], number, draw + worker.rank
                )
            distributed.broadcast(adapter.flat, 0)
            total = self._own.of(batch[:: self._size], number, draw)
            distributed.reduce(adapter.gradient, 0)
            distributed.reduce(total, 0)
            # Where a worker ended on a GPU, this returns with anything; `watched` looks.
            return total.cpu()

    def _forward_with_workers(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        """Let the workers compute what is judged as well: layers are whole only together."""
        if not torch.is_grad_enabled():
            tokens = given["input_ids"].cpu().numpy()
            for worker in self._workers:
                self._send(worker, "forward", tokens, 0, 0)
            assert self._own is not None
            distributed.broadcast(self._own.adapter.flat, 0)

    def _send(self, worker: _Worker, task: str, rows: Tokens, number: int, draw: int) -> None:
        header = {"task": task, "shape": rows.shape, "number": number, "draw": draw}
        worker.line.send_bytes(json.dumps(header).encode())
        worker.line.send_bytes(rows.tobytes())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what a lost worker breaks within this into the error that says so.

        Raises:
            SiteError: a worker said that it cannot go on.
            WorkerLostError: a worker ended.
        """
        try:
            yield
        except (RuntimeError, OSError):
            deadline = time.monotonic() + LAST_WORD_SECONDS
            while time.monotonic() < deadline:
                for worker in self._workers:
                    worker.check(0.05)
            raise
        for worker in self._workers:
            worker.check(0)

    def close(self) -> None:
        """End the workers; they would also end with this process."""
        self._closing = True
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        Place.leave()
        self._folder.cleanup()
