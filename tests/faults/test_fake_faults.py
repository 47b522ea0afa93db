"""The whole loop over hundreds of scripts in which anything goes wrong, and directed attacks.

Synchronous runs must end with the bits of the undisturbed formula; asynchronous
ones must count every accepted update once, lose no site's work, and leave every
node with the coordinator's own bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratic import (
    LAYOUT,
    Job,
    Ledger,
    QuadraticWork,
    Tap,
    accepted_orders,
    counted_once,
    synchronous_reference,
    unaccounted,
)

from boli.durable import Generations
from boli.engine.fake import FakeTransport
from boli.engine.fake_coordinator import ScriptedCheckpoints, run_through_kills
from boli.engine.lies import Lie, lie_in_header
from boli.engine.script import Script
from boli.evaluation.told import Lane, Told
from boli.journal import (
    Evaluated,
    Event,
    Journal,
    OrderSent,
    RunResumed,
    SiteBenched,
    UpdateAccepted,
    UpdateRejected,
    read_journal,
)
from boli.rounds.transport import Delivery, Joined
from boli.rounds.update import Judgement, Order, Release, ServerState, Update, take
from boli.site.node import Node

SYNCHRONOUS = Job(ranks={"arrah": None, "darbhanga": 1, "gaya": 3}, rounds={"total": 3})
ASYNCHRONOUS = Job(
    rounds={
        "mode": "asynchronous",
        "buffer_size": 2,
        "max_staleness": 1,
        "total": 5,
        "norm_multiple": 1e9,
    }
)
NUM_SCRIPTS = 160  # of each kind
SITES = list(ASYNCHRONOUS.ranks)


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@dataclass
class Play:
    """One run over one script; `stops_at` a version, or at its end."""

    job: Job
    script: Script
    folder: Path
    stops_at: int | None = None
    make_ledger: Callable[[Path], Ledger] = Ledger
    make_node: Callable[..., Node] | None = None
    nodes: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # held at the end

    def run(self) -> Play:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "journal.jsonl"
        self.ledger, self.journal = self.make_ledger(self.folder / "checkpoints"), Journal(path)
        self.engine = FakeTransport(self.make_node or self.job.node, self.script)
        self.tap = Tap(self.engine)
        checkpoints = ScriptedCheckpoints(self.engine, self.ledger)
        try:
            self.state = run_through_kills(
                self.engine,
                lambda: self.job.loop(self.tap, checkpoints, self.journal, self._should_stop),
                self.job.first_state(),
                checkpoints,
                self._resumed,
            )
            for site, node in self.engine.nodes.items():
                if node.theta is not None:
                    self.nodes[site] = (node.version, node.theta.tobytes())
        finally:
            self.engine.close()
            self.journal.close()
            entries = read_journal(path)
            self.events: list[Event] = [entry.event for entry in entries]
            self.told = Told({site: Lane() for site in self.job.ranks})
            for entry in entries:
                self.told.tell(entry)
        return self

    def _resumed(self, state: ServerState, corrupt: list[Path]) -> None:
        names = [path.name for path in corrupt]
        self.journal.append(RunResumed(state.version, names, state.journal_seq))

    def _should_stop(self) -> bool:
        history = self.ledger.history
        return self.stops_at is not None and history[-1].version >= self.stops_at

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def accepted_tokens(self) -> dict[str, int]:
        """Return tokens by order, as the report reads them out of the journal."""
        return {update.order: update.tokens for update in self.told.updates}

    def falsely_told(self) -> set[str]:
        """Return the orders whose acceptance is journaled, but neither remembered nor open."""
        pairs = accepted_orders(self.job, self.ledger.history)
        taken = {f"run-{site}-{sequence}" for site, sequence in pairs}
        opened = {site.outstanding.order for site in self.state.sites.values() if site.outstanding}
        return set(self.accepted_tokens()) - taken - opened

    def check_counts(self) -> None:
        """Check that what was accepted counts once, and that nodes hold the very same bits."""
        counted = counted_once(self.job, self.ledger.history, self.tap)
        assert counted.tobytes() == self.state.theta.tobytes()
        assert not self.tap.changed, "one order was answered in two ways"
        told = self.accepted_tokens()
        pairs = accepted_orders(self.job, self.ledger.history)
        taken = {f"run-{site}-{sequence}" for site, sequence in pairs}
        assert sum(told[order] for order in taken & set(told)) == self.state.tokens
        for site, (version, theta) in self.nodes.items():
            if version == self.state.version:
                spans = self.job.views[site][1]
                assert theta == take(self.state.theta, spans).tobytes(), site

    def check_keeps_all(self) -> None:
        """Check that a run which is not over has every site's work counted or kept."""
        stores = self.engine.stores
        assert unaccounted(self.job, self.ledger.history, self.tap, stores) < 1e-4


# Random scripts


def _explain(play: Play, seed: int) -> str:
    return f"seed {seed}: {play.script}\n" + "\n".join(play.engine.log[-40:])


@pytest.mark.parametrize("part", range(4))
def test_synchronous_runs_end_with_the_bits_of_the_formula(tmp_path: Path, part: int) -> None:
    expected = synchronous_reference(SYNCHRONOUS).tobytes()
    for seed in range(part, NUM_SCRIPTS, 4):
        play = Play(SYNCHRONOUS, Script.drawn(seed, SITES), tmp_path / str(seed)).run()
        assert play.state.theta.tobytes() == expected, _explain(play, seed)
        play.check_counts()


@pytest.mark.parametrize("part", range(4))
def test_asynchronous_runs_count_every_accepted_update_once(tmp_path: Path, part: int) -> None:
    """Run over a cut and not to the end: what the last orders displace is no site's loss."""
    for seed in range(part, NUM_SCRIPTS, 4):
        script = Script.drawn(seed, SITES)
        job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 1000})
        play = Play(job, script, tmp_path / str(seed), stops_at=5).run()
        try:
            play.check_counts()
            play.check_keeps_all()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{_explain(play, seed)}") from error


def test_asynchronous_runs_come_to_their_end(tmp_path: Path) -> None:
    for seed in range(100):
        play = Play(ASYNCHRONOUS, Script.drawn(seed, SITES), tmp_path / str(seed)).run()
        play.check_counts()
        assert play.state.version == 5


# Every single moment


@pytest.mark.parametrize("durable", [True, False])
def test_node_may_die_at_each_of_its_moments(tmp_path: Path, durable: bool) -> None:
    expected = synchronous_reference(SYNCHRONOUS).tobytes()
    for number in range(1, 37):
        script = Script(kill=[("gaya", number), ("gaya", number + 3)], durable=durable)
        play = Play(SYNCHRONOUS, script, tmp_path / str(number)).run()
        assert play.engine.deaths["gaya"] >= 1
        assert play.state.theta.tobytes() == expected, number


@pytest.mark.parametrize("durable", [True, False])
def test_coordinator_may_die_at_each_of_its_moments(tmp_path: Path, durable: bool) -> None:
    expected = synchronous_reference(SYNCHRONOUS).tobytes()
    for number in range(1, 100):
        script = Script(kill=[("coordinator", number)], durable=durable)
        play = Play(SYNCHRONOUS, script, tmp_path / str(number)).run()
        assert play.state.theta.tobytes() == expected, number
        if not play.engine.deaths:
            break
    assert 30 < number < 99


@pytest.mark.parametrize("victim", ["gaya", "coordinator"])
def test_late_site_and_deaths_lose_no_work(tmp_path: Path, victim: str) -> None:
    """The site's updates come too late and are refused: they live in its residual."""
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 1000})
    refused = 0
    for number in range(1, 40):
        script = Script(
            delay={"gaya": (0.0, 1.7)}, kill=[(victim, number)], durable=bool(number % 2)
        )
        play = Play(job, script, tmp_path / str(number), stops_at=12).run()
        play.check_counts()
        play.check_keeps_all()
        refused += sum(verdict.keep for verdict in play.tap.verdicts)
    assert refused > 20


# Directed attacks


def test_verdict_that_is_lost_with_its_node_is_made_good_by_the_next_order(
    tmp_path: Path,
) -> None:
    """The node dies with the refusal in its hands, before it could save."""
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 1000})
    script = Script(delay={"gaya": (0.0, 2.0)}, kill=[("gaya", "before save", 2)])
    play = Play(job, script, tmp_path, stops_at=20).run()
    assert play.engine.deaths["gaya"] == 1
    assert [verdict for verdict in play.tap.verdicts if verdict.keep]
    play.check_keeps_all()
    play.check_counts()


def test_release_in_the_middle_of_training_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "max_staleness": 9})
    script = Script(step_seconds={"gaya": 0.3})
    play = Play(job, script, tmp_path).run()
    play.check_counts()
    assert max(fact.staleness for fact in play.of(UpdateAccepted) if fact.site == "gaya") >= 2


def test_site_that_was_away_goes_on_from_the_version_that_it_gets(tmp_path: Path) -> None:
    """Its order was for a version that is long past when it comes back."""
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 12})
    script = Script(kill=[("gaya", "step", 2)], restart_seconds=2.0)
    play = Play(job, script, tmp_path).run()
    play.check_counts()
    assert [fact for fact in play.of(OrderSent) if fact.site == "gaya" and fact.attempt]
    assert [fact for fact in play.of(UpdateAccepted) if fact.site == "gaya"]


def test_update_that_crosses_with_a_shorter_attempt_is_welcome(
    tmp_path: Path,
) -> None:
    job = replace(SYNCHRONOUS, rounds={"total": 3, "deadline_seconds": 1.0})
    play = Play(job, Script(outages=[("gaya", 0.2, 3.0)]), tmp_path).run()
    assert [fact for fact in play.of(OrderSent) if fact.attempt]
    assert not play.of(UpdateRejected)
    assert {fact.local_steps for fact in play.of(UpdateAccepted) if fact.site == "gaya"} == {4}


def test_site_that_waited_for_the_others_gets_a_whole_order(tmp_path: Path) -> None:
    """Its last order was sent longer ago than the deadline, and answered long since."""
    job = replace(SYNCHRONOUS, rounds={"total": 3, "deadline_seconds": 1.0})
    play = Play(job, Script(outages=[("gaya", 0.2, 3.0)]), tmp_path).run()
    assert {fact.local_steps for fact in play.of(UpdateAccepted)} == {4}


def test_order_that_waits_for_its_site_to_join_is_not_cut_shorter(tmp_path: Path) -> None:
    job = replace(SYNCHRONOUS, rounds={"total": 3, "deadline_seconds": 1.0})
    play = Play(job, Script(outages=[("gaya", 0.0, 5.0)]), tmp_path).run()
    first = next(fact for fact in play.of(UpdateAccepted) if fact.site == "gaya")
    assert first.local_steps == 4


@pytest.mark.parametrize("job", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_rounds_of_many_hours_end_as_well_as_short_ones(tmp_path: Path, job: Job) -> None:
    script = Script(step_seconds=dict.fromkeys(SITES, 1000.0), patience_seconds=10_000.0)
    play = Play(job, script, tmp_path).run()
    assert not play.of(SiteBenched)
    assert play.state.version == job.plan.rounds.total


def test_shorter_attempt_is_heard_in_the_middle_of_training(
    tmp_path: Path,
) -> None:
    job = replace(SYNCHRONOUS, rounds={"total": 3, "local_steps": 8, "deadline_seconds": 2.0})
    play = Play(job, Script(step_seconds={"gaya": 1.0}), tmp_path).run()
    steps = [fact.local_steps for fact in play.of(UpdateAccepted) if fact.site == "gaya"]
    assert len(steps) == 3
    assert max(steps) < 8


def at_hand(script: Script | None = None, job: Job = ASYNCHRONOUS) -> tuple[FakeTransport, Any]:
    """Return an engine whose node gaya has joined and holds version 0, and its order maker."""
    engine = FakeTransport(job.node, script)
    state = job.first_state()
    engine.start({"gaya": job.views["gaya"]}, Release(0, state.layout, state.theta))
    while not any(isinstance(arrival, Joined) for arrival in engine.receive(0.5)):
        pass

    def order(sequence: int, **values: Any) -> Order:
        return Order(
            order=f"run-gaya-{sequence}",
            site="gaya",
            sequence=sequence,
            base_version=0,
            layout=state.layout,
            local_steps=5,
            at_most=5,
        ).model_copy(update=values)

    return engine, order


def answers(engine: FakeTransport, seconds: float = 10.0) -> list[int]:
    """Return the sequences of the updates that arrive within a time."""
    found, end = [], engine.now + seconds
    while engine.now < end:
        arrived = [a for a in engine.receive(0.5) if isinstance(a, Delivery)]
        found += [delivery.update.header.sequence for delivery in arrived]
    engine.close()
    return found


def test_older_order_that_comes_again_does_not_displace_the_newer_one() -> None:
    engine, order = at_hand()
    for sequence, steps in ((1, 5), (2, 0), (1, 5)):
        engine.send_order(order(sequence, local_steps=steps))
    assert 2 in answers(engine)


def test_order_that_a_newer_version_overtook_is_answered_all_the_same() -> None:
    engine, order = at_hand()
    theta = ASYNCHRONOUS.first_state().theta
    engine.publish(Release(1, LAYOUT.digest, theta - np.float32(1), np.ones_like(theta)))
    engine.send_order(order(1))
    assert answers(engine) == [1]


def test_order_that_overtook_its_version_waits_for_it() -> None:
    engine, order = at_hand()
    theta = ASYNCHRONOUS.first_state().theta
    engine.send_order(order(1, base_version=1))
    engine.receive(1.0)
    engine.publish(Release(1, LAYOUT.digest, theta - np.float32(1), np.ones_like(theta)))
    assert answers(engine) == [1]


class TornLedger(Ledger):
    """Checkpoints whose newest file is torn whenever the coordinator dies."""

    def load(self) -> Any:
        paths = Generations(self.folder).paths()
        if len(paths) > 1:
            paths[0].write_bytes(paths[0].read_bytes()[:100])
            self.history.pop()
        return super().load()


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("job", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_coordinator_that_falls_back_by_one_checkpoint_asks_anew_and_counts_once(
    tmp_path: Path, job: Job, durable: bool
) -> None:
    """In turns of 2 s the nodes have answered the next order by the time the coordinator dies."""
    for number in range(2, 6):
        kill = [("coordinator", "receive", number), ("coordinator", "receive", number + 3)]
        script = Script(coordinator_seconds=2.0, kill=kill, durable=durable)
        play = Play(job, script, tmp_path / str(number), make_ledger=TornLedger).run()
        assert play.engine.deaths["coordinator"] >= 1
        play.check_counts()
        assert play.state.version == job.plan.rounds.total


def test_runs_come_to_their_end_though_each_death_tears_the_newest_checkpoint(
    tmp_path: Path,
) -> None:
    for seed in range(120):
        job = SYNCHRONOUS if seed % 2 else ASYNCHRONOUS
        script = replace(Script.drawn(seed, SITES), coordinator_kill_share=0.05)
        play = Play(job, script, tmp_path / str(seed), make_ledger=TornLedger).run()
        play.check_counts()


def test_checkpoint_may_be_torn_again_after_a_fall_back(tmp_path: Path) -> None:
    store = Ledger(tmp_path)
    for _ in range(2):
        store.save(SYNCHRONOUS.first_state())
    for _ in range(2):
        newest = Generations(tmp_path).paths()[0]
        newest.write_bytes(newest.read_bytes()[:100])
        assert store.load() is not None
        store.save(SYNCHRONOUS.first_state())


@pytest.mark.parametrize("seconds", [5e-324, 1e-308])
def test_site_that_boasts_of_its_speed_ends_no_run(tmp_path: Path, seconds: float) -> None:
    rounds = {**ASYNCHRONOUS.rounds, "speed_aware": True}
    lies = {"gaya": lie_in_header(train_seconds=seconds)}
    Play(replace(ASYNCHRONOUS, rounds=rounds), Script(lies=lies), tmp_path).run()


def test_site_that_says_it_took_more_steps_than_asked_is_refused(tmp_path: Path) -> None:
    def boast(update: Update, _: Any) -> Update:
        steps = update.header.local_steps * 1000
        return Update(update.header.model_copy(update={"local_steps": steps}), update.payload)

    play = Play(SYNCHRONOUS, Script(lies={"gaya": boast}), tmp_path).run()
    assert [fact.site for fact in play.of(SiteBenched)] == ["gaya"]


def judged(play: Play) -> set[tuple[str, int]]:
    return {(fact.site, fact.version) for fact in play.of(Evaluated)}


def test_judgement_of_the_first_version_is_a_fact_also_when_the_update_is_stale(
    tmp_path: Path,
) -> None:
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 20})
    play = Play(job, Script(outages=[("gaya", 0.1, 3.0)]), tmp_path).run()
    assert [fact.reason for fact in play.of(UpdateRejected)] == ["stale"]
    assert {(site, 0) for site in SITES} <= judged(play)


def test_site_that_answers_only_after_the_end_has_judged_the_first_version_too(
    tmp_path: Path,
) -> None:
    play = Play(ASYNCHRONOUS, Script(delay={"gaya": (0.0, 1.5)}), tmp_path).run()
    assert {(site, 0) for site in SITES} <= judged(play)


def test_answer_to_an_order_that_never_was_judges_nothing(tmp_path: Path) -> None:
    """A made-up figure of a version to come would be the last one in the report."""
    made_up = (Judgement(language="bho", part="test", bits=0.0, bytes=1000),)
    lie = lie_in_header(sequence=10**6, base_version=10**6, judgements=made_up)
    play = Play(ASYNCHRONOUS, Script(lies={"gaya": lie}), tmp_path, stops_at=5).run()
    assert {fact.reason for fact in play.of(UpdateRejected)} == {"superseded"}
    assert max(fact.version for fact in play.of(Evaluated)) <= play.state.version


class Bursting(QuadraticWork):
    """Its first order ends in an entry that no sum can hold."""

    def perform(self, *arguments: Any) -> Any:
        first = self.told == 0
        done = super().perform(*arguments)
        if first and done is not None and done.pseudo_gradient is not None:
            done.pseudo_gradient[0] = 1e12
        return done


def bursting_node(site: str, *arguments: Any) -> Node:
    node = SYNCHRONOUS.node(site, *arguments)
    if site == "gaya":
        node.work = Bursting(site, SYNCHRONOUS.ranks[site])
    return node


@pytest.mark.parametrize("duplicate", [0.0, 1.0])
def test_unsound_update_does_not_come_back_through_its_second_copy(
    tmp_path: Path, duplicate: float
) -> None:
    """One burst costs one update, and not the site."""
    script = Script(duplicate=duplicate, retry_seconds=0.05, delay={"gaya": (0.1, 0.01)})
    play = Play(SYNCHRONOUS, script, tmp_path, make_node=bursting_node).run()
    assert [fact.reason for fact in play.of(UpdateRejected)][:1] == ["too large"]
    assert not play.of(SiteBenched)


def test_site_that_never_comes_back_does_not_keep_an_asynchronous_run_from_its_end(
    tmp_path: Path,
) -> None:
    script = Script(kill=[("gaya", 6)], restart_seconds=1e7, patience_seconds=10_000.0)
    play = Play(ASYNCHRONOUS, script, tmp_path).run()
    assert play.state.version == 5
    assert [fact.site for fact in play.of(SiteBenched)] == ["gaya"]
    play.check_counts()


def replay_of_the_first() -> Lie:
    from boli.engine.lies import LIES

    return LIES["replay"]()


def test_site_that_replays_its_first_update_counts_once_and_stops_nobody(tmp_path: Path) -> None:
    script = Script(lies={"gaya": replay_of_the_first()}, patience_seconds=10_000.0)
    play = Play(ASYNCHRONOUS, script, tmp_path).run()
    play.check_counts()


def test_replayed_update_counts_once_in_the_versions_that_the_others_make(tmp_path: Path) -> None:
    script = Script(lies={"gaya": replay_of_the_first()})
    play = Play(ASYNCHRONOUS, script, tmp_path, stops_at=5).run()
    orders = accepted_orders(ASYNCHRONOUS, play.ledger.history)
    assert [sequence for site, sequence in orders if site == "gaya"] == [1]
    assert sum(play.accepted_tokens().values()) == play.state.tokens


def test_idle_coordinator_leaves_its_checkpoint_alone(tmp_path: Path) -> None:
    far = dict.fromkeys(SITES, (30.0, 30.0))
    play = Play(SYNCHRONOUS, Script(delay=far), tmp_path).run()
    assert play.engine.now > 3 * 60
    turns = len(play.of(UpdateAccepted)) + 10
    assert len(play.ledger.history) < turns


def test_journal_tells_no_acceptance_that_the_checkpoints_do_not_know(tmp_path: Path) -> None:
    """The coordinator dies between the two, and the site is cut off until the run is over."""
    for number in range(3, 16):
        script = Script(
            kill=[("coordinator", "before save", number)],
            step_seconds={"arrah": 0.1, "darbhanga": 0.13, "gaya": 0.17},
            durable=False,
        )
        play = Play(ASYNCHRONOUS, script, tmp_path / str(number)).run()
        (death,) = (float(line.split()[0]) for line in play.engine.log if "dies" in line)
        for site in SITES:
            cut = replace(script, outages=[(site, death + 0.001, death + 20)])
            play = Play(ASYNCHRONOUS, cut, tmp_path / f"{number}-{site}").run()
            play.check_counts()
            assert not play.falsely_told(), (number, site)


def test_copy_that_comes_much_later_does_not_unsay_what_was_accepted(tmp_path: Path) -> None:
    """By then the site's sequence is no longer among those that the coordinator remembers."""
    job = replace(ASYNCHRONOUS, rounds={**ASYNCHRONOUS.rounds, "total": 50})
    play = Play(job, Script(duplicate=0.3, retry_seconds=30.0), tmp_path).run()
    play.check_counts()
    assert sum(play.accepted_tokens().values()) == play.state.tokens


def states_by_version(history: Sequence[ServerState]) -> dict[int, bytes]:
    return {state.version: state.theta.tobytes() for state in history}


def test_batches_of_arrivals_do_not_change_the_bits(tmp_path: Path) -> None:
    one = Play(SYNCHRONOUS, Script(jitter=0.3), tmp_path / "one").run()
    many = Play(SYNCHRONOUS, Script(coordinator_seconds=5.0), tmp_path / "many").run()
    assert states_by_version(one.ledger.history) == states_by_version(many.ledger.history)
