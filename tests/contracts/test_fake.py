"""The scripted fake itself: what it does, and that the suites over it notice real faults.

A test that cannot fail proves nothing: each control here breaks one promise on
purpose, and the check that guards it must say so.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratic import Job, Ledger, Tap, counted_once, synchronous_reference, unaccounted

from boli.durable import Generations
from boli.engine.fake import CoordinatorKilled, FakeTransport
from boli.engine.fake_coordinator import ScriptedCheckpoints, run_through_kills
from boli.engine.fake_node import MemoryStore
from boli.engine.lies import LIES
from boli.engine.script import Script
from boli.errors import StorageError, TransportError, public_words
from boli.journal import Journal
from boli.rounds.buffer import BufferedStrategy, Rejection
from boli.rounds.loop import Rounds
from boli.rounds.transport import Delivery, Failed, Joined, Left, Malformed
from boli.rounds.update import Order, Release, ServerState

JOB = Job()
ASYNCHRONOUS = Job(
    rounds={
        "mode": "asynchronous",
        "buffer_size": 2,
        "max_staleness": 1,
        "total": 100_000,
        "norm_multiple": 1e9,
    }
)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass
class Play:
    """One run over one script, with what can be checked about it."""

    job: Job
    script: Script
    folder: Path
    stores: dict[str, Generations] = field(default_factory=dict)
    ledger: Ledger | None = None
    versions: int = 10**9  # stop there
    change: Callable[[Rounds], Rounds] = lambda rounds: rounds

    def run(self) -> ServerState:
        ledger = self.ledger = self.ledger or Ledger(self.folder / "checkpoints")
        self.folder.mkdir(exist_ok=True)
        journal = Journal(self.folder / "journal.jsonl")
        self.engine = FakeTransport(self.job.node, self.script, self.stores)
        self.tap = Tap(self.engine)
        checkpoints = ScriptedCheckpoints(self.engine, ledger)

        def should_stop() -> bool:
            return bool(ledger.history) and ledger.history[-1].version >= self.versions

        def rounds() -> Rounds:
            return self.change(self.job.loop(self.tap, checkpoints, journal, should_stop))

        try:
            self.state = run_through_kills(self.engine, rounds, self.job.first_state(), checkpoints)
        finally:
            self.engine.close()
            journal.close()
        return self.state

    def counts_once(self) -> bool:
        assert self.ledger is not None
        found = counted_once(self.job, self.ledger.history, self.tap)
        return found.tobytes() == self.state.theta.tobytes()

    def keeps_all(self) -> bool:
        assert self.ledger is not None
        stores = self.engine.stores
        return unaccounted(self.job, self.ledger.history, self.tap, stores) < 1e-4


# What the fake does


def test_same_script_goes_wrong_in_the_same_way(tmp_path: Path) -> None:
    script = Script.drawn(3, list(JOB.ranks))
    plays = [Play(JOB, script, tmp_path / str(number)) for number in range(2)]
    logs = [(play.run(), play.engine.log)[1] for play in plays]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 40


def test_other_seed_goes_wrong_in_another_way(tmp_path: Path) -> None:
    plays = [Play(JOB, Script(seed=n, jitter=1.0), tmp_path / str(n)) for n in range(2)]
    logs = [(play.run(), play.engine.log)[1] for play in plays]
    assert logs[0] != logs[1]


def test_time_is_simulated_and_nothing_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    play = Play(JOB, Script(step_seconds=dict.fromkeys(JOB.ranks, 1000.0)), tmp_path)
    play.run()  # hours
    assert play.engine.now > 4 * 4 * 1000
    assert not slept


def test_no_thread_outlives_the_transport(tmp_path: Path) -> None:
    Play(JOB, Script(kill_share=0.1), tmp_path).run()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("node ")]


def arrivals_of(play: Play, words: str) -> list[float]:
    return [float(line.split()[0]) for line in play.engine.log if words in line]


def test_delay_outage_and_loss_show_in_the_times(tmp_path: Path) -> None:
    plain = Play(JOB, Script(), tmp_path / "plain")
    late = Play(JOB, Script(delay={"gaya": (2.0, 5.0)}), tmp_path / "late")
    down = Play(JOB, Script(outages=[("gaya", 0.2, 50.0)]), tmp_path / "down")
    lossy = Play(JOB, Script(lose=0.5, retry_seconds=20.0), tmp_path / "lossy")
    for play in (plain, late, down, lossy):
        play.run()
    update = "gaya -> update 1"
    assert arrivals_of(plain, update)[0] == pytest.approx(3 * 0.01 + 4 * 0.1)
    assert arrivals_of(late, update)[0] == pytest.approx(5.0 + 2.0 + 4 * 0.1 + 5.0)
    assert 50 < arrivals_of(down, update)[0] < 51
    assert lossy.engine.now > 20
    assert all(play.state.version == 4 for play in (plain, late, down, lossy))


def test_duplicates_come_and_overtaking_happens(tmp_path: Path) -> None:
    play = Play(JOB, Script(duplicate=1.0), tmp_path / "twice")
    play.run()
    assert len(arrivals_of(play, "gaya <- order 1.0")) == 2
    assert len(arrivals_of(play, "gaya -> update 1")) >= 2
    play = Play(JOB, Script(reorder=True, jitter=0.3), tmp_path / "reorder")
    play.run()
    lines = [line.split(maxsplit=1)[1] for line in play.engine.log]
    overtaken = [
        lines.index(f"{site} <- {n} accepted ") > lines.index(f"{site} <- order {n + 1}.0: {rest}")
        for site in JOB.ranks
        for n, rest in ((1, "4 steps from 1"), (2, "4 steps from 2"))
    ]
    assert any(overtaken)


def test_versions_keep_their_order_and_orders_wait_for_them(tmp_path: Path) -> None:
    script = Script(reorder=True, jitter=2.0, lose=0.3, duplicate=0.3)
    play = Play(JOB, script, tmp_path)
    play.run()
    for site in JOB.ranks:
        held, seen = 0, [line.split()[1:] for line in play.engine.log]
        for words in seen:
            if words[:2] == [site, "<-"] and words[2] in ("delta", "snapshot"):
                assert int(words[3]) >= held
                held = int(words[3])
            elif words[:3] == [site, "<-", "order"]:
                assert int(words[-1]) <= held


@pytest.mark.parametrize("moment", ["joining", "received", "step", "before save", "saved", "sent"])
def test_node_dies_at_the_moment_that_is_named(tmp_path: Path, moment: str) -> None:
    play = Play(JOB, Script(kill=[("gaya", moment, 2)], duplicate=0.0), tmp_path)
    if moment == "joining":
        play.script = Script(kill=[("gaya", 3), ("gaya", moment, 2)])
    play.run()
    assert any(line.endswith(f"gaya dies: {moment} 2") for line in play.engine.log)
    assert [arrival for arrival in play.tap.arrivals if isinstance(arrival, Left)]


@pytest.mark.parametrize(
    "moment", ["start", "receive", "publish", "answer", "send order", "before save", "saved"]
)
def test_coordinator_dies_at_the_moment_that_is_named(tmp_path: Path, moment: str) -> None:
    play = Play(JOB, Script(kill=[("coordinator", moment, 1)]), tmp_path)
    play.run()
    assert play.engine.deaths == {"coordinator": 1}
    with pytest.raises(CoordinatorKilled):
        FakeTransport(JOB.node, Script(kill=[("coordinator", 1)])).publish(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("durable", [True, False])
def test_nodes_outlive_the_coordinator_only_where_lines_are_durable(
    tmp_path: Path, durable: bool
) -> None:
    script = Script(kill=[("coordinator", "answer", 4)], durable=durable)
    play = Play(JOB, script, tmp_path)
    play.run()
    joined = [line for line in play.engine.log if "joined" in line]
    assert len(joined) == (3 if durable else 6)


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_alters_what_arrives(lie: str) -> None:
    engine = FakeTransport(JOB.node, Script(lies={"gaya": LIES[lie]()}))
    theta = JOB.first_state().theta
    engine.start({"gaya": (None, ((0, theta.size),))}, Release(0, JOB.first_state().layout, theta))
    orders = [_order(1), _order(2)]
    found: list[Any] = []
    for order in orders:
        engine.send_order(order)
        for _ in range(5):
            arrived = engine.receive(0.5)
            found += [a for a in arrived if isinstance(a, Delivery | Malformed)]
            if any(isinstance(a, Joined) for a in arrived):
                engine.send_order(order)
    engine.close()
    honest = FakeTransport(JOB.node)
    assert honest.now == 0
    assert found
    if lie == "replay":
        assert found[-1].update.header.sequence == 1
    elif isinstance(found[0], Delivery):
        plain = _honest_answer(orders[0], theta)
        header = found[0].update.header
        same = header.model_copy(update={"work_seconds": 0.0, "idle_seconds": 0.0})
        assert (same, found[0].update.payload) != plain


def _order(sequence: int) -> Order:
    return Order(
        order=f"run-gaya-{sequence}",
        site="gaya",
        sequence=sequence,
        base_version=0,
        layout=JOB.first_state().layout,
        local_steps=4,
        at_most=4,
    )


def _honest_answer(order: Any, theta: Any) -> tuple[Any, bytes]:
    engine = FakeTransport(JOB.node)
    engine.start({"gaya": (None, ((0, theta.size),))}, Release(0, order.layout, theta))
    while not any(isinstance(a, Joined) for a in engine.receive(0.5)):
        pass
    engine.send_order(order)
    while not (found := [a for a in engine.receive(0.5) if isinstance(a, Delivery)]):
        pass
    engine.close()
    header = found[0].update.header.model_copy(update={"work_seconds": 0.0, "idle_seconds": 0.0})
    return header, found[0].update.payload


def test_stuck_run_says_so_instead_of_going_on_for_ever(tmp_path: Path) -> None:
    script = Script(outages=[("gaya", 0.3, 1e9)], longest_seconds=200.0)
    with pytest.raises(TransportError, match="simulated seconds"):
        Play(JOB, script, tmp_path).run()


def test_node_that_fails_with_an_error_of_ours_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    class Full(MemoryStore):
        def save(self, arrays: Any, facts: Any) -> Path:
            raise StorageError("no space left", "free some")

    play = Play(JOB, Script(), tmp_path, stores={"gaya": Full()})
    play.run()
    (failed,) = (arrival for arrival in play.tap.arrivals if isinstance(arrival, Failed))
    assert (failed.site, failed.problem, failed.hint) == ("gaya", *public_words("storage"))
    honest = Job(ranks={"arrah": None, "darbhanga": None})
    assert play.state.theta.tobytes() == synchronous_reference(honest).tobytes()


def test_node_that_fails_otherwise_is_a_mistake_that_shows(tmp_path: Path) -> None:
    class Wrong(MemoryStore):
        def save(self, arrays: Any, facts: Any) -> Path:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Play(JOB, Script(), tmp_path, stores={"gaya": Wrong()}).run()


# Negative controls: a broken promise must be noticed


class Forgetful(MemoryStore):
    """A disk that is empty after every restart."""

    def load(self) -> None:
        return None


class LateStore(MemoryStore):
    """A disk that brings a save to safety only with the save after it."""

    def load(self) -> Any:
        self.saved = self.saved[:-1] or self.saved
        return super().load()


def test_control_node_that_forgets_ends_with_other_bits(tmp_path: Path) -> None:
    kill = [("gaya", "sent", 2)]
    kept = Play(JOB, Script(kill=kill), tmp_path / "kept")
    lost = Play(JOB, Script(kill=kill), tmp_path / "lost", {"gaya": Forgetful()})
    assert kept.run().theta.tobytes() == synchronous_reference(JOB).tobytes()
    assert lost.run().theta.tobytes() != synchronous_reference(JOB).tobytes()


def test_control_node_that_sends_before_its_save_is_on_the_disk_is_noticed(tmp_path: Path) -> None:
    play = Play(JOB, Script(kill=[("gaya", "sent", 3)]), tmp_path, {"gaya": LateStore()})
    assert play.run().theta.tobytes() != synchronous_reference(JOB).tobytes()


def test_control_forgotten_residual_is_noticed_as_lost_work(tmp_path: Path) -> None:
    """The site is always late; it dies when it has just taken its first update back."""
    late = {"gaya": (0.0, 2.0)}

    def play(name: str, store: MemoryStore) -> Play:
        script = Script(delay=late, kill=[("gaya", "saved", 2)])
        return Play(ASYNCHRONOUS, script, tmp_path / name, {"gaya": store}, versions=30)

    class NoResidual(MemoryStore):
        def load(self) -> Any:
            found = super().load()
            if found is not None:
                found[0].pop("residual", None)
            return found

    kept, lost = play("kept", MemoryStore()), play("lost", NoResidual())
    kept.run()
    lost.run()
    assert any(verdict.keep for verdict in kept.tap.verdicts)
    assert kept.engine.deaths["gaya"] == lost.engine.deaths["gaya"] == 1
    assert kept.keeps_all()
    assert not lost.keeps_all()


class LateCheckpoints(Ledger):
    """A coordinator that acknowledges first: what it saves is on the disk one turn later."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.waiting: list[ServerState] = []

    def save(self, state: ServerState) -> None:
        for earlier in self.waiting:
            super().save(earlier)
        self.waiting[:] = [state]

    def load(self) -> Any:
        self.waiting.clear()
        return super().load()


def _rough_with_kills(seed: int) -> Script:
    return Script(
        seed=seed,
        coordinator_kill_share=0.1,
        most_kills=8,
        duplicate=0.3,
        jitter=0.3,
        reorder=True,
    )


def test_control_coordinator_that_acknowledges_before_its_checkpoint_is_noticed(
    tmp_path: Path,
) -> None:
    def is_sound(seed: int, ledger: Ledger) -> bool:
        folder = ledger.folder.parent
        play = Play(ASYNCHRONOUS, _rough_with_kills(seed), folder, ledger=ledger, versions=6)
        try:
            play.run()
            if isinstance(ledger, LateCheckpoints):
                ledger.history.extend(ledger.waiting)
            return play.counts_once() and play.keeps_all()
        except (AssertionError, TransportError):
            return False

    folders = [tmp_path / str(seed) for seed in range(100)]
    seed = next(
        (n for n, f in enumerate(folders) if not is_sound(n, LateCheckpoints(f / "late"))), None
    )
    assert seed is not None, "a hundred scripts and nobody noticed"
    assert is_sound(seed, Ledger(folders[seed] / "in time"))


def test_control_coordinator_that_checks_no_sequence_is_noticed(tmp_path: Path) -> None:
    """Each copy of an update is folded in: the sum holds more than the checkpoints took in."""

    class Trusting(BufferedStrategy):
        def _check(self, state: ServerState, delivery: Delivery) -> Rejection | None:
            return None

    def trusting(rounds: Rounds) -> Rounds:
        fields = dataclasses.fields(rounds.strategy)
        rounds.strategy = Trusting(**{f.name: getattr(rounds.strategy, f.name) for f in fields})
        return rounds

    script = Script(duplicate=1.0, retry_seconds=0.2)
    careful = Play(ASYNCHRONOUS, script, tmp_path / "careful", versions=5)
    careful.run()
    assert careful.counts_once()
    play = Play(ASYNCHRONOUS, script, tmp_path / "trusting", versions=5, change=trusting)
    play.run()
    assert not play.counts_once()


def test_control_bits_of_a_version_that_was_missed_are_noticed(tmp_path: Path) -> None:
    """A line that swallows one delta: the node stays behind, and the run stands still."""

    class Swallowing(FakeTransport):
        swallowed = 0

        def publish(self, release: Release) -> None:
            if release.version == 2 and not self.swallowed:
                self.swallowed = 1
                assert self._versions is not None
                self._versions.publish(release)
                return
            super().publish(release)

    ledger, journal = Ledger(tmp_path / "checkpoints"), Journal(tmp_path / "journal.jsonl")
    engine = Swallowing(JOB.node)
    with pytest.raises(TransportError):
        JOB.loop(engine, ledger, journal).run(JOB.first_state())
    engine.close()
    journal.close()


def test_reference_of_the_reference_is_not_the_start() -> None:
    """The yardstick moves: a run that did nothing could not pass for one that did."""
    moved = synchronous_reference(JOB) - JOB.first_state().theta
    assert np.abs(moved).max() > 0.1


def _drawn(seeds: Sequence[int]) -> list[Script]:
    return [Script.drawn(seed, list(JOB.ranks)) for seed in seeds]


def test_drawn_scripts_cover_every_kind_of_trouble() -> None:
    scripts = _drawn(range(60))
    for name in ("lose", "duplicate", "reorder", "kill_share", "coordinator_kill_share", "jitter"):
        values = [bool(getattr(script, name)) for script in scripts]
        assert any(values), name
        assert not all(values), name
