"""The process of one site in a Flower federation: python -m boli.engine.flower_node.

It is started by the first message of a run, holds the model, and listens on a
socket in the site's state folder. It ends when it is told to stop, or when it
had nothing to do for long; the next message starts it again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import ValidationError

from boli.durable import locked
from boli.engine.flower_site import socket_path
from boli.engine.flower_wire import MESSAGES_AT_ONCE, Asked, Told, pack, split
from boli.engine.wire import (
    Line,
    failing_facts,
    instruction_of,
    joining_facts,
    pack_message,
    unpack_message,
)
from boli.errors import BoliError, SiteError, TransportError
from boli.rounds.transport import Instruction, Joined, Stop
from boli.rounds.update import UpdateHeader
from boli.site.kit import Kit, SiteFolder
from boli.site.limits import site_limits
from boli.site.node import Node

IDLE_SECONDS = 3600.0  # with nothing to do; then the memory is worth more than a quick start
STOP_SECONDS = 20.0
LOCK_SECONDS = 5.0  # a process before may need a moment to end


class _JoinAgain:
    """Whatever was said may be lost: say anew what is held."""


class FlowerLink:
    """A node's side: keeps what it has to say until an exchange fetches it."""

    def __init__(self) -> None:
        self.node: Node | None = None  # set before it runs
        self.life = secrets.token_hex(8)
        self._arrived: queue.SimpleQueue[Instruction | _JoinAgain] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards all below
        self._line = 0
        self._to_say: list[bytes] = []
        self._figures = b""  # the last measurement
        self._has_joined = False
        self._ended = False
        self._num_waiting = 0  # exchanges

    # What the node calls

    def join(self, joined: Joined) -> None:
        with self._changed:
            self._has_joined = True
        self._say(pack_message("join", joining_facts(joined)))

    def receive(self, timeout_seconds: float | None) -> Instruction | None:
        while True:
            try:
                if timeout_seconds == 0:
                    found = self._arrived.get_nowait()
                else:
                    found = self._arrived.get(timeout=timeout_seconds or IDLE_SECONDS)
            except queue.Empty:
                if timeout_seconds is not None:
                    return None
                with self._changed:
                    if self._num_waiting:
                        continue
                return Stop()
            if not isinstance(found, _JoinAgain):
                return found
            self._join_again()

    def send_update(self, header: UpdateHeader, payload: bytes) -> None:
        self._say(pack_message("update", header.facts(), payload))

    def measure(self, values: Mapping[str, float]) -> None:
        with self._changed:
            self._figures = pack_message("measure", dict(values))

    def fail(self, error: BoliError) -> None:
        """Say that this node cannot go on, by a code why, and wait until that is fetched."""
        self._say(pack_message("failed", failing_facts(error)))
        with self._changed:
            self._changed.wait_for(lambda: not self._to_say, IDLE_SECONDS)

    def _say(self, message: bytes) -> None:
        with self._changed:
            self._to_say.append(message)
            self._changed.notify_all()

    def _join_again(self) -> None:
        """Say what is held now; between two instructions, so that it is one version."""
        assert self.node is not None
        self.join(self.node.joined())

    # What an exchange calls

    def exchange(self, asked: Asked, messages: list[bytes]) -> bytes:
        """Take in a bundle, wait for something to say, and return it."""
        with self._changed:
            if asked.line < self._line:
                return pack("told", Told(line=self._line, life=self.life))
            if asked.line > self._line:
                self._line = asked.line
                self._to_say.clear()
                if self._has_joined:
                    self._arrived.put(_JoinAgain())
            self._num_waiting += 1
            self._changed.notify_all()
        stopping = False
        if asked.life in ("", self.life):  # or else it was meant for a process before
            for message in messages:
                stopping |= self._take(message)
        hold_seconds = STOP_SECONDS if stopping else asked.hold_seconds
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._ended or self._line > asked.line or (bool(self._to_say) and not stopping)
                ),
                hold_seconds,
            )
            self._num_waiting -= 1
            if self._line > asked.line:  # nobody waits for this answer any more
                return pack("told", Told(line=self._line, life=self.life))
            most = MESSAGES_AT_ONCE - 1
            said = [*self._to_say[:most], *filter(None, [self._figures])]
            self._to_say, self._figures = self._to_say[most:], b""
            self._changed.notify_all()
            return pack("told", Told(line=self._line, life=self.life), said)

    def _take(self, message: bytes) -> bool:
        """Pass an instruction to the node; tells whether it is to end."""
        try:
            instruction = instruction_of(message)
        except TransportError as error:
            sys.stderr.write(f"a message that cannot be read: {error}\n")
            return False
        self._arrived.put(instruction)
        return isinstance(instruction, Stop)

    def end(self) -> None:
        """Let every exchange that waits go home with what there is."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        """Answer exchanges on a socket while the block runs, and finish those that were begun."""
        path.unlink(missing_ok=True)  # of a process that was killed: the folder is locked
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen()
            begun: list[threading.Thread] = []
            threading.Thread(target=self._accept, args=(listener, begun), daemon=True).start()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # who comes now starts the next process
                self.end()
                for thread in begun:
                    thread.join(STOP_SECONDS)

    def _accept(self, listener: socket.socket, begun: list[threading.Thread]) -> None:
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            line: Line = Connection(end.detach())
            begun[:] = [thread for thread in begun if thread.is_alive()]
            thread = threading.Thread(target=self._answer, args=(line,), daemon=True)
            thread.start()
            begun.append(thread)  # not before: who is not started cannot be joined

    def _answer(self, line: Line) -> None:
        """Carry out one exchange; a ClientApp that vanished costs nothing: a new line follows."""
        with contextlib.closing(line), contextlib.suppress(EOFError, OSError):
            kind, body, payload = unpack_message(line.recv_bytes())
            if kind == "asked":
                with contextlib.suppress(BoliError, ValidationError):
                    asked = Asked.model_validate(body)
                    line.send_bytes(self.exchange(asked, split(asked.sizes, payload)))


def serve(run_folder: Path, open_node: Callable[[FlowerLink], Node]) -> int:
    """Open the site's node and serve until it is told to stop; returns the exit code."""
    link = FlowerLink()
    path = socket_path(run_folder)
    with locked(run_folder, "the site folder", LOCK_SECONDS), link.listening(path):
        try:
            link.node = open_node(link)
            link.node.run()
        except BoliError as error:
            print_problem(error)
            link.fail(error)
            return error.exit_code
        except Exception:
            traceback.print_exc()
            link.fail(SiteError("the node failed unexpectedly", code="unexpected"))
            return SiteError.exit_code
    return 0


def print_problem(error: BoliError) -> None:
    """Leave the reason in the node's log."""
    sys.stderr.write(f"{time.strftime('%F %T')} {error}\n")


def main(arguments: list[str]) -> int:
    """Run the node of one site for one run."""
    run, site, data, state, *optional = arguments
    base, limits = (Path(path) if path else None for path in optional)
    os.umask(0o077)  # also for what libraries write
    allowed = site_limits(Path(state), limits)
    folder = SiteFolder(site, Path(data), Path(state), base, allowed, limits)
    run_folder = folder.state / "runs" / run

    def open_node(link: FlowerLink) -> Node:
        kit = Kit.model_validate_json((run_folder / "kit.json").read_bytes())
        return folder.open_node(kit, link)

    return serve(run_folder, open_node)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
