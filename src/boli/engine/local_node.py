"""The process of one site under the local engine: python -m boli.engine.local_node.

`LocalLink` is its end of the line to the coordinator.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from boli.durable import Generations, locked, make_private
from boli.engine.wire import Line, failing_facts, instruction_of, joining_facts, pack_message
from boli.errors import BoliError, TransportError, WorkerLostError
from boli.rounds.transport import Instruction, Joined
from boli.rounds.update import UpdateHeader

LOCK_SECONDS = 5.0  # a node of the process before may need a moment to end


class LocalLink:
    """A node's side: a thread reads all the time, so that the coordinator never waits."""

    def __init__(self, descriptor: int) -> None:
        self._line: Line = Connection(descriptor)
        self._arrived: queue.SimpleQueue[Instruction] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="from coordinator", daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = self._line.recv_bytes()
            except (EOFError, OSError):
                # The coordinator is gone. Nothing unfinished counts, so nothing is saved.
                os._exit(0)
            try:
                self._arrived.put(instruction_of(data))
            except TransportError as error:
                sys.stderr.write(f"a message that cannot be read: {error}\n")

    def join(self, joined: Joined) -> None:
        self._line.send_bytes(pack_message("join", joining_facts(joined)))

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        try:
            if timeout_seconds == 0:
                return self._arrived.get_nowait()
            return self._arrived.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self._line.send_bytes(pack_message("update", header.facts(), payload))

    def measure(self, values: Mapping[str, float]) -> None:
        self._line.send_bytes(pack_message("measure", dict(values)))

    def fail(self, error: BoliError) -> None:
        """Say that this node cannot go on, and by a code why."""
        self._line.send_bytes(pack_message("failed", failing_facts(error)))


def serve_pieces(run_folder: Path, site_name: str, link: LocalLink, restarts: int) -> None:
    """Answer with a site's pieces of words, before there is a base."""
    from boli.plan_file import plan_from_tables
    from boli.site.node import Node
    from boli.site.pieces import PieceWork, floors_of, pieces_file

    plan = plan_from_tables(json.loads((run_folder / "plan.json").read_text()))
    site = next(site for site in plan.site if site.name == site_name)
    folder, floors = run_folder / "sites" / site_name / "pieces", floors_of(plan.model.base.pieces)
    work = PieceWork(plan, site, floors, pieces_file(folder, floors))
    Node.of(plan, site_name, link, work, Generations(folder), restarts).run()


def serve(run_folder: Path, site_name: str, link: LocalLink, restarts: int) -> None:
    """Open a site's text, base and state, and serve orders until told to stop."""
    import torch

    from boli.plan_file import plan_from_tables
    from boli.site.node import Node
    from boli.site.work import open_work

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan = plan_from_tables(json.loads((run_folder / "plan.json").read_text()))
    site = next(site for site in plan.site if site.name == site_name)
    origin = json.loads((run_folder / "run.json").read_text())["base"]
    work = open_work(plan, site, origin)
    store = Generations(run_folder / "sites" / site_name)
    Node.of(plan, site_name, link, work, store, restarts).run()


def main(arguments: list[str]) -> int:
    """Run the node; tell the coordinator why, where it cannot go on."""
    folder, site, descriptor, restarts, asks = arguments
    link = LocalLink(int(descriptor))
    site_folder = Path(folder) / "sites" / site
    try:
        make_private(site_folder, sorted(path.name for path in site_folder.glob("*")))
        with locked(site_folder, "the site folder", LOCK_SECONDS):
            answer = serve_pieces if asks else serve
            answer(Path(folder), site, link, int(restarts))
    except WorkerLostError as error:
        # As if the node had been killed: it is started again, a few times.
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except BoliError as error:
        sys.stderr.write(f"{error}\n")
        link.fail(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
