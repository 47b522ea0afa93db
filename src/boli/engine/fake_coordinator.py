"""A coordinator that dies on the scripted engine, and goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from boli.engine.fake import CoordinatorKilled, FakeTransport
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.loop import Rounds
from boli.rounds.update import ServerState


class ScriptedCheckpoints(CheckpointStore):
    """Checkpoints of a coordinator that may die just before or just after it saves."""

    def __init__(self, engine: FakeTransport, inner: CheckpointStore) -> None:
        self._engine, self._inner = engine, inner

    def save(self, state: ServerState) -> None:
        self._engine.moment("before save")
        self._inner.save(state)
        self._engine.moment("saved")

    def load(self) -> tuple[ServerState, list[Path]] | None:
        return self._inner.load()


def run_through_kills(
    engine: FakeTransport,
    rounds: Callable[[], Rounds],
    state: ServerState,
    checkpoints: CheckpointStore,
    resumed: Callable[[ServerState, list[Path]], None] = lambda *_: None,
) -> ServerState:
    """Run to the end; where the script kills the coordinator, go on from its checkpoint.

    `resumed` gets the state that is gone on with and the corrupt files passed over.
    """
    died = False
    while True:
        try:
            if died:
                found = checkpoints.load()
                state, corrupt = found or (state, [])
                if found is not None:
                    state = state.welcome_back()
                    checkpoints.save(state)
                resumed(state, corrupt)
            return rounds().run(state)
        except CoordinatorKilled:
            engine.bury_coordinator()
            died = True
