"""The same plan inside a Flower federation: ServerApp and ClientApp, and how bytes travel there.

Flower starts both by name from a folder that `boli flower` writes. All that knows of
Flower is here; what the two say to each other is in the other `flower_*` modules.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from boli.engine.flower_greeter import Reply
from boli.engine.flower_seat import Pace
from boli.engine.flower_site import NodeCommand, answer, node_command
from boli.engine.flower_transport import FlowerTransport, log
from boli.errors import PlanError, TransportError
from boli.evaluation.card import WARNING, exported_sentences

if TYPE_CHECKING:
    from boli.preparation import Prepared
    from boli.rounds.transport import Transport
    from boli.run import Run

PART_BYTES = 256 << 10  # of one object: a slow uplink has to finish it in Flower's 180 s


def to_record(data: bytes) -> RecordDict:
    """Pack bytes for Flower: one value where they are few, else several that travel one by one."""
    parts = range(0, max(1, len(data)), PART_BYTES)
    return RecordDict(
        {str(i): ConfigRecord({"b": data[at : at + PART_BYTES]}) for i, at in enumerate(parts)}
    )


def from_record(record: RecordDict) -> bytes:
    """Return the bytes that `to_record` packed.

    Raises:
        TransportError: the record was made by something else.
    """
    parts = []
    for number in range(len(record)):
        part = record.get(str(number))
        found = part.get("b") if isinstance(part, ConfigRecord) else None
        if not isinstance(found, bytes):
            raise TransportError("a Flower message without the bytes of boli")
        parts.append(found)
    return b"".join(parts)


class GridPost:
    """Flower's Grid as the engine needs it."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._pushing = threading.Lock()

    def node_ids(self) -> set[int]:
        with _named():
            return set(self._grid.get_node_ids())

    def send(self, node: int, data: bytes, ttl_seconds: float) -> str:
        message = Message(to_record(data), node, "train", ttl=ttl_seconds)
        with _named(), self._pushing:
            ids = list(self._grid.push_messages([message]))
        return (ids[0] if ids else "") or ""

    def fetch(self, message: str) -> Reply | None:
        try:
            return self._fetched(message)
        except Exception as error:  # Flower also raises on objects that a node made up
            self.node_ids()  # raises where it is the SuperLink that does not answer
            problem = f"a reply that cannot be read: {type(error).__name__} {error}"
            return Reply(0, problem=problem[:200])

    def _fetched(self, message: str) -> Reply | None:
        found = list(self._grid.pull_messages([message]))
        if not found:
            return None
        reply = found[0]
        node = reply.metadata.src_node_id
        if reply.metadata.reply_to_message_id != message:
            return Reply(node, problem="the reply is to another message")
        if reply.has_error():
            return Reply(node, problem=f"error {reply.error.code}: {reply.error.reason}"[:200])
        try:
            return Reply(node, from_record(reply.content))
        except TransportError as error:
            return Reply(node, problem=error.problem)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Give one name to all that Flower's client raises, which differs by version."""
    try:
        yield
    except Exception as error:
        raise TransportError(
            f"the SuperLink does not answer: {type(error).__name__} {error}",
            "submit the app again once it does: the run goes on where it was",
        ) from error


def make_client_app(command: NodeCommand = node_command) -> ClientApp:
    """Return the ClientApp whose sites start their nodes with a command."""

    def train(message: Message, context: Context) -> Message:
        data = answer(from_record(message.content), context.node_config, command)
        return Message(to_record(data), reply_to=message)

    app = ClientApp()
    app.train()(train)
    return app


def main(grid: Grid, context: Context) -> None:
    """Carry out the app's run, or go on with it where it was."""
    # The one entry point below boli.run: Flower looks for it here.
    from boli.plan_file import plan_from_tables
    from boli.run import carry_out

    config = context.run_config
    folder = Path(str(config["runs"])) / str(config["run"])
    try:
        plan = plan_from_tables(json.loads(str(config["plan"])))
    except ValueError as error:
        raise PlanError(f"the app's plan is not JSON: {error}", "write the app anew") from error
    pace = Pace(**{name: float(config[name.replace("_", "-")]) for name in vars(Pace())})

    @contextlib.contextmanager
    def engine(run: Run, prepared: Prepared) -> Iterator[Transport]:
        from boli.pretrained import folder_of
        from boli.rounds.pieces import payload_bytes_of
        from boli.site.kit import kit_of, pieces_kit

        versions: Path | None = None
        if prepared.asks:
            base, kit = run.folder, pieces_kit(prepared.run, plan)  # no file of it is named
        else:
            base, versions = folder_of(prepared.base), run.folder / "versions"
            kit = kit_of(run.id, plan, base, prepared.base)
        payload_bytes = payload_bytes_of(plan, prepared.asks)
        transport = FlowerTransport(GridPost(grid), kit, base, versions, pace, payload_bytes)
        with contextlib.closing(transport):
            yield transport

    run = carry_out(folder, plan, engine, tell)
    log.info("the adapter is in %s", run.adapter)
    for sentence in exported_sentences(run.report()["exported"]):
        log.log(logging.WARNING if sentence.startswith(WARNING) else logging.INFO, sentence)


def tell(what: Any) -> None:
    """Show what happens in Flower's log, without the figures of every moment."""
    name = getattr(what, "name", "")
    if name in SHOWN:
        log.info("%s %s", name.replace("_", " "), _brief(vars(what)))


SHOWN = (
    *("run_started", "run_resumed", "run_finished", "run_failed"),
    *("pieces_taken", "pieces_missed"),
    *("site_joined", "site_left", "site_benched", "update_rejected", "round_stepped"),
    *("version_restored", "version_exported"),
)


def _brief(facts: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in facts.items() if value not in ("", {}))


client_app = make_client_app()
server_app = ServerApp()
server_app.main()(main)
