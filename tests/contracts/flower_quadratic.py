"""The quadratic job inside a Flower federation, and the same without Flower.

`flower_agent.py` makes a Flower app of it. As a program this is a site's node:
flower_quadratic.py DATA STATE RUN SITE.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quadratic import Job, LyingLink, write_job

from boli.durable import Generations
from boli.engine.flower_greeter import Post, Reply
from boli.engine.flower_node import FlowerLink, serve
from boli.engine.flower_site import answer
from boli.engine.wire import Line, pack_message, unpack_message
from boli.errors import TransportError
from boli.rounds.update import UpdateHeader
from boli.site.kit import Kit, SiteFolder
from boli.site.node import Node

Settings = Mapping[str, Any]  # of one SuperNode


def node_command(folder: SiteFolder, run: str) -> Sequence[str]:
    """Return the command that starts a node on the job that is in the site's data folder."""
    arguments = [str(folder.data), str(folder.state), run, folder.site]
    return [sys.executable, str(Path(__file__)), *arguments]


def leave_job(job: Job, data: Path, run: str) -> Kit:
    """Leave a job where the nodes find it; returns its run's kit."""
    write_job(job, data / run)
    return Kit(run=run, plan=json.loads(job.plan.model_dump_json()), origin="none")


class FlowerLyingLink(LyingLink):
    """Says what a liar makes of its update, also where that is no update at all."""

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        from boli.rounds.update import Update

        sent = self._lie(Update(header, payload), self._draw)
        if isinstance(sent, bytes):
            self._link._say(sent)
        else:
            self._link.send_update(sent.header, sent.payload)


def main(arguments: Sequence[str]) -> int:
    """Serve as one site's node until told to stop."""
    data, state, run, site = arguments
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # into node.log: see `stacks`
    job = Job(**json.loads((Path(data) / run / "job.json").read_text()))
    home = Path(state) / "runs" / run
    (home / "pid").write_text(str(os.getpid()))

    def open_node(link: FlowerLink) -> Node:
        used: Any = link
        if site in job.lies:
            from boli.engine.lies import LIES

            used = FlowerLyingLink(link, LIES[job.lies[site]]())
        return job.node(site, used, Generations(home), 0)

    return serve(home, open_node)


@dataclass
class LoopbackPost:
    """Carries messages to ClientApps that are threads here: one message at a time to each."""

    settings: Mapping[int, Settings]  # by node
    _replies: dict[str, Reply] = field(default_factory=dict)
    _queues: dict[int, queue.SimpleQueue[tuple[str, bytes]]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)
    lost: set[int] = field(default_factory=set)  # nodes whose messages and replies vanish

    def node_ids(self) -> set[int]:
        return set(self.settings)

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        if node not in self._queues:
            self._queues[node] = queue.SimpleQueue()
            threading.Thread(target=self._client_app, args=(node,), daemon=True).start()
        message = str(next(self._numbers))
        self._queues[node].put((message, data))
        return message

    def _client_app(self, node: int) -> None:
        while True:
            message, data = self._queues[node].get()
            try:
                reply = Reply(node, answer(data, self.settings[node], node_command))
            except TransportError as error:
                reply = Reply(node, problem=f"error 2: {error}")
            if node in self.lost:
                reply = Reply(node, problem="error 5: node unavailable")
            self._replies[message] = reply

    def fetch(self, message: str) -> Reply | None:
        return self._replies.pop(message, None)


@dataclass
class RemotePost:
    """The Grid of a ServerApp that runs elsewhere, over its socket."""

    path: Path

    def _ask(self, kind: str, body: dict[str, Any], data: bytes = b"") -> tuple[Any, bytes]:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(self.path))
            line: Line = Connection(end.detach())
        with contextlib.closing(line):
            line.send_bytes(pack_message(kind, body, data))
            _, answer, payload = unpack_message(line.recv_bytes())
        return answer.get("value"), payload

    def node_ids(self) -> set[int]:
        return {int(node) for node in self._ask("nodes", {})[0]}

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        return str(self._ask("send", {"node": str(node), "ttl": ttl_seconds}, data)[0])

    def fetch(self, message: str) -> Reply | None:
        value, data = self._ask("fetch", {"message": message})
        return None if value is None else Reply(int(value["node"]), data, value["problem"])


def lend(post: Post, path: Path) -> None:
    """Serve a RemotePost for ever."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        while True:
            end, _ = listener.accept()
            line: Line = Connection(end.detach())
            threading.Thread(target=_lend_once, args=(post, line), daemon=True).start()


def _lend_once(post: Post, line: Line) -> None:
    with contextlib.closing(line), contextlib.suppress(EOFError, OSError):
        kind, body, data = unpack_message(line.recv_bytes())
        value: Any = None
        payload = b""
        match kind:
            case "nodes":
                value = [str(node) for node in post.node_ids()]
            case "send":
                value = post.send(int(body["node"]), data, body["ttl"])
            case "fetch":
                reply = post.fetch(body["message"])
                if reply is not None:
                    value = {"node": str(reply.node), "problem": reply.problem}
                    payload = reply.data
        line.send_bytes(pack_message("answer", {"value": value}, payload))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: Sequence[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)


def stacks(run_folder: Path, pid: int) -> str:
    """Return the node's log, after it wrote into it where each of its threads stands."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    time.sleep(1.0)
    log = run_folder / "node.log"
    return f"{log}:\n{log.read_text(errors='replace')[-5000:]}" if log.exists() else "no log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
