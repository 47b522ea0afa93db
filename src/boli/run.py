"""One execution of a plan: prepare, train, export, report; and find and resume earlier ones.

A run's folder:

    plan.json       the whole plan, as validated
    run.json        what was prepared: base, layouts, and the base's own figures
    journal.jsonl   every fact, hash-chained
    journal.head    how far the journal was sealed, signed by this machine's key
    checkpoints/    the coordinator's last two states
    pieces/         what sites sent of their words, where they make or cut the tokenizer
    versions/       the last compressed steps, for sites that missed some
    sites/NAME/     each site's own state and log; on another machine, it stays there
    adapter/        the result, in PEFT's format (a whole model for adapter kind "full");
                    its README.md says which version it is, and whether it is better than the base
    personal/NAME/  a site's own adapter, trained on with its text alone
    report.html, report.json
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boli
from boli.durable import locked, storage_error, sync_tree, write_file
from boli.errors import BoliError, RunError, SiteError, StorageError
from boli.journal import (
    Journal,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunResumed,
    SiteForgiven,
    VersionExported,
    read_head,
)
from boli.model.layout import Layout, Vector
from boli.plan import Plan, VocabularyPlan
from boli.plan_file import plan_from_tables
from boli.preparation import (
    Observer,
    Prepared,
    Stage,
    check_text,
    cut_notes,
    first_state,
    gathered_pieces,
    ignore,
    judge_base,
    note_base,
    open_base,
    pieces_folder,
    prepare,
    prepare_base,
    read_json,
)
from boli.rounds.checkpoint import CheckpointStore, Found
from boli.rounds.integrity import Verification, verify
from boli.rounds.journaled import version_exported
from boli.rounds.loop import Rounds
from boli.rounds.transport import Joined, Transport
from boli.rounds.update import ServerState
from boli.signature import SigningKey, own_fingerprint, own_key

if TYPE_CHECKING:
    from boli.evaluation.forecast import Forecast
    from boli.site.personal import Personal


WAITING = "waiting for the sites"
FRAMES_KEPT_BYTES = 64 << 20  # of one round, for which its updates wait for each other
Engine = Callable[["Run", Prepared], AbstractContextManager[Transport]]


@dataclass(frozen=True)
class Run:
    """A run's folder, and what can be read from it."""

    folder: Path

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """Folder of the result; there once the run is finished."""
        return self.folder / "adapter"

    @property
    def plan(self) -> Plan:
        """The plan that the run follows."""
        return plan_from_tables(read_json(self.folder / "plan.json"))

    @property
    def finished(self) -> bool:
        """Tell whether the run went to its end."""
        return (self.adapter / "adapter_config.json").exists() or (
            self.adapter / "config.json"
        ).exists()

    def report(self) -> dict[str, Any]:
        """Return the figures of report.json, made anew from the journal.

        Raises:
            CorruptFileError: the journal is missing or was altered.
        """
        from boli.evaluation.report import figures

        return figures(self.folder)

    def verify(self, key: str | None = None) -> Verification:
        """Hold the journal against its signed head and against the newest checkpoint.

        `key` is the fingerprint of the key that must have signed; without it, this machine's.

        Raises:
            CorruptFileError: no checkpoint can be read, or this machine's key is not whole.
        """
        own = own_fingerprint()
        told, _, found = self._verified(own, key or own)
        if found is None or not found[1] or told.problem:
            return told
        names = ", ".join(path.name for path in found[1])
        return replace(
            told,
            problem=f"of the checkpoints in {self._checkpoints}, {names} was changed or not whole",
            hint=f"resuming goes on from the one before, of version {found[0].version}",
        )

    def _verified(
        self,
        own: str,
        signer: str,  # fingerprint
        key: SigningKey | None = None,  # that will sign the checkpoints to come
    ) -> tuple[Verification, CheckpointStore, Found | None]:
        """Look at all that is there; no checkpoint is looked at unless the journal holds."""
        told = verify(self.folder, None, own=own, signer=signer, checkpoint=False)
        head = None if told.problem else read_head(self._journal)
        checkpoints = CheckpointStore(self._checkpoints, key, head.key if head else "")
        if told.problem:
            return told, checkpoints, None
        found = checkpoints.load()
        return verify(self.folder, found, own=own, signer=signer), checkpoints, found

    def adopt(self) -> Verification:
        """Sign journal and checkpoint as they are with this machine's key, whoever signed before.

        For a run that was moved here, or whose key was lost: whoever asks for it vouches for
        what is there.

        Raises:
            CorruptFileError: something besides signatures does not hold.
        """
        with locked(self.folder, "run"):
            key = own_key()
            checkpoints = CheckpointStore(self._checkpoints, key)
            found = checkpoints.load()
            verify(self.folder, found, signature=False).check()
            with contextlib.closing(Journal(self._journal, key=key)) as journal:
                if found is not None:
                    checkpoints.save(found[0])
                self.seal(journal, found)
        return self.verify()

    def seal(self, journal: Journal, found: Found | None) -> None:
        """Seal a journal up to here; from now on its head asks for no newer checkpoint than this.

        Raises:
            StorageError: the head cannot be written.
        """
        run = str(read_json(self.folder / "run.json")["run"])
        version, saved = (found[0].version, found[0].journal_seq) if found else (0, -1)
        journal.seal(run, version, saved)

    def personalize(
        self,
        site: str,
        passes: float,
        observe: Callable[[int, int, float], None] = lambda *_: None,
    ) -> tuple[Personal, Path | None]:
        """Train the exported version on with one site's text, for that site alone.

        Returns what came out and its adapter's folder; None where the version is better.

        Raises:
            RunError: the run is not finished.
            BoliError: the site's text, the base or a checkpoint is not there or not whole.
        """
        from boli.site.personal import personalize, readme, site_of

        if not self.finished:
            raise RunError(f"run {self.id} is not finished", f"boli train --resume {self.id}")
        own = own_fingerprint()
        told, _, found = self._verified(own, own)
        told.check()
        assert found is not None  # a finished run has one
        plan, theta = self.plan, found[0].theta
        _let_threads_sleep()
        origin = Prepared(**read_json(self.folder / "run.json")).base
        made = personalize(plan, site_of(plan, site), origin, theta, passes, observe)
        if not made.steps:
            return made, None
        folder = self.folder / "personal" / site
        _export(
            folder, made.theta, plan, open_base(plan, origin, ignore), readme(self.id, site, made)
        )
        return made, folder

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def write_report(self) -> Path:
        """Write report.json and report.html; returns the page's path."""
        from boli.evaluation.report import write_report

        return write_report(self.folder)


def list_runs(folder: str | Path = "runs") -> list[Run]:
    """Return the runs in a folder, newest first."""
    found = [Run(path.parent) for path in Path(folder).glob("*/plan.json")]
    return sorted(found, key=lambda run: (run.folder / "plan.json").stat().st_mtime, reverse=True)


def open_run(name: str, folder: str | Path = "runs") -> Run:
    """Return a run by its folder or its id; "latest" is the newest.

    Raises:
        RunError: there is no such run.
    """
    there = list_runs(folder)
    if name == "latest" and there:
        return there[0]
    for candidate in (Path(name), Path(folder) / name):
        if (candidate / "plan.json").is_file():
            return Run(candidate)
    ids = ", ".join(run.id for run in there[:5])
    raise RunError(
        f"there is no run {name!r} in {Path(folder).resolve()}",
        f"there are: {ids}" if ids else "boli train PLAN.toml starts one",
    )


def train(
    plan: Plan | None = None,
    *,
    resume: str | None = None,
    forgive: Sequence[str] = (),
    runs: str | Path = "runs",
    observe: Observer = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
) -> Run:
    """Carry out a plan, or go on with a run that was stopped; returns the run.

    `observe` gets journal events, live measurements and stages as they happen.
    When `should_stop` says so, the run ends at a point from which it can be
    resumed, and `Run.finished` is False. `engine` reaches sites elsewhere; without it
    they are processes on this machine. Sites named in `forgive` take part again in a run
    that is resumed, although it suspended them.

    Raises:
        BoliError: the plan, the text, the base or the disk does not allow it.
    """
    from boli.model.base import check_origin

    if resume is not None:
        run = open_run(resume, runs)
        if run.finished:
            return run
        if plan is not None and plan.digest != run.plan.digest:
            raise RunError(
                f"the plan differs from the one that run {run.id} follows",
                f"resume without a plan: boli train --resume {run.id}; or start a new run",
            )
    elif plan is not None and forgive:
        raise RunError(
            "a new run has suspended no site yet",
            f"resume the run that did: boli train --resume RUN --forgive {forgive[0]}",
        )
    elif plan is not None:
        check_text(plan, sites=engine is None)
        check_origin(plan.model.base.path or "")
        run = Run(_new_folder(Path(runs), plan.name))
    else:
        raise RunError("neither a plan nor a run to resume was given", "give one of them")
    with locked(run.folder, "run"):
        if plan is not None and resume is None:
            write_file(run.folder / "plan.json", plan.model_dump_json(indent=2).encode())
        return _carry_out(run, observe, should_stop, engine or local_engine, forgive)


def carry_out(folder: Path, plan: Plan, engine: Engine, observe: Observer = ignore) -> Run:
    """Carry out a plan over an engine, in a folder of its own, or go on with what is there.

    Only the base's text is read here: the sites read theirs.

    Raises:
        BoliError: the plan, the base, the engine or the disk does not allow it.
    """
    run = Run(folder)
    if run.finished:
        return run
    with locked(folder, "run"):
        if not (folder / "plan.json").exists():
            write_file(folder / "plan.json", plan.model_dump_json(indent=2).encode())
        elif plan.digest != run.plan.digest:
            raise RunError(
                f"the plan differs from the one that run {run.id} follows",
                "write a new app: each is one run",
            )
        return _carry_out(run, observe, lambda: False, engine)


def _new_folder(runs: Path, name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        folder = runs / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(folder, error) from error
        return folder
    raise RunError(f"too many runs called {name}-{stamp}", "wait a second")


def _carry_out(
    run: Run,
    observe: Observer,
    should_stop: Callable[[], bool],
    engine: Engine,
    forgive: Sequence[str] = (),
) -> Run:
    # All of this before anything is written: what was altered must not be signed.
    key = own_key()
    told, checkpoints, found = run._verified(key.fingerprint, key.fingerprint, key)
    told.check()
    journal = Journal(run._journal, [observe], key)
    with contextlib.closing(journal):
        try:
            _to_the_end(run, journal, checkpoints, found, observe, should_stop, engine, forgive)
        except BoliError as error:
            # A full disk refuses this line too; the error itself says enough then.
            with contextlib.suppress(StorageError):
                journal.append(RunFailed(error.problem))
                journal.seal_rest()
            raise
    if run.finished:
        run.write_report()
    return run


def _let_threads_sleep() -> None:
    """Keep waiting threads from spinning: a step is ten times slower where others work too.

    Read by OpenMP when torch is loaded; without effect where that has happened.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _to_the_end(
    run: Run,
    journal: Journal,
    checkpoints: CheckpointStore,
    found: Found | None,
    observe: Observer,
    should_stop: Callable[[], bool],
    engine: Engine,
    forgive: Sequence[str],
) -> None:
    """Take a run from wherever it is to its adapter, or to where it was told to stop."""
    started = time.monotonic()
    plan = run.plan
    _let_threads_sleep()
    begun = (run.folder / "run.json").exists()
    if begun and found is not None and read_head(journal.path) is None:
        checkpoints.save(found[0])  # signed, before there is a head that asks for it
    if begun:
        run.seal(journal, found)
    if not begun and not _gather_pieces(run, plan, observe, should_stop, engine):
        return
    prepared, first = prepare(run.folder, plan, journal, observe, boli.__version__)
    corrupt: list[Path] = []
    if found is None:
        state = first or first_state(prepared.run, plan, prepared, observe)
    else:
        state, corrupt = found
        state = state.welcome_back()
        state = _forgiven(state, forgive, journal)
        checkpoints.save(state)
    if begun:
        journal.append(RunResumed(state.version, [p.name for p in corrupt], state.journal_seq))
        journal.seal_rest()
    with engine(run, prepared) as transport:
        rounds = _rounds(plan, prepared, transport, checkpoints, journal, observe, should_stop)
        if not rounds.schedule.finished(state) and not should_stop():
            observe(Stage(WAITING))
            state = rounds.run(state)
    if not rounds.schedule.finished(state):
        journal.append(RunInterrupted(state.version))
        journal.seal_rest()
        return
    observe(Stage("exporting the adapter"))
    base = open_base(plan, prepared.base, observe)
    exported = version_exported(state, plan.rounds.total)
    journal.append(exported)
    _finish(run, plan, prepared, state, exported, journal, base)
    journal.append(RunFinished(state.version, time.monotonic() - started, "adapter"))
    journal.seal_rest()


def _gather_pieces(
    run: Run,
    plan: Plan,
    observe: Observer,
    should_stop: Callable[[], bool],
    engine: Engine,
) -> bool:
    """Ask the sites for their pieces, if that is still to be done; False if told to stop."""
    from boli.plan import available_cores
    from boli.rounds.pieces import Gathering
    from boli.site.pieces import LAYOUT

    if gathered_pieces(run.folder, plan) is not None:
        return True
    sites, described = [site.name for site in plan.site], LAYOUT.describe()
    asked = Prepared(
        f"{run.id}-pieces",
        "",
        described,
        dict.fromkeys(sites, described),
        plan.threads_per_site(available_cores()),
        asks="pieces",
    )
    observe(Stage("asking the sites for their words"))
    with engine(run, asked) as transport:
        return Gathering(
            transport,
            pieces_folder(run.folder),
            asked.run,
            LAYOUT.digest,
            sites,
            plan.model.base.pieces.most_pieces,
            plan.rounds.patience_seconds,
            observe,
            should_stop,
        ).run_to_the_end()


def _forgiven(state: ServerState, names: Sequence[str], journal: Journal) -> ServerState:
    """Return the state in which these sites take part again, and journal that.

    Raises:
        RunError: the run has no such site.
    """
    from boli.rounds.suspicion import forgive

    for name in names:
        if name not in state.sites:
            there = ", ".join(state.sites)
            raise RunError(f"the run has no site {name!r} to forgive", f"it has {there}")
        state = forgive(state, name)
        journal.append(SiteForgiven(name))
    return state


@contextlib.contextmanager
def local_engine(run: Run, prepared: Prepared) -> Iterator[Transport]:
    """Bring up the sites as processes on this machine."""
    from boli.engine.local import LocalTransport, node_command
    from boli.rounds.pieces import payload_bytes_of

    folder = run.folder.resolve()
    transport = LocalTransport(
        node_command(folder, prepared.asks),
        folder / "sites",
        prepared.threads,
        None if prepared.asks else folder / "versions",
        payload_bytes_of(run.plan, prepared.asks),
    )
    with contextlib.closing(transport):
        yield transport


def _rounds(
    plan: Plan,
    prepared: Prepared,
    transport: Transport,
    checkpoints: CheckpointStore,
    journal: Journal,
    observe: Observer,
    should_stop: Callable[[], bool],
) -> Rounds:
    from boli.codec.codec import codec_for, decay_for
    from boli.rounds.bounds import multiple_of, reach_of
    from boli.rounds.buffer import BufferedStrategy
    from boli.rounds.cohort import cohorts_for
    from boli.rounds.outer import Averaging, outer_optimizer
    from boli.rounds.schedule import Schedule
    from boli.rounds.suspicion import Suspicion, early_versions
    from boli.rounds.token_rows import TokenRows

    layout = Layout.from_description(prepared.layout)
    steps, rounds, codec = plan.model.local_steps, plan.rounds, codec_for(plan.codec)
    frames = len(plan.site) * (1 if rounds.mode == "synchronous" else 2)  # at most, at one time
    frames_bytes = frames * codec.expected_bytes(layout.size, 0)
    tokens_a_step = steps.batch_sequences * steps.sequence_length
    # A robust mean takes a row that one site alone has for that site's mistake.
    by_token = plan.model.adapter.own_tokens and rounds.robust == "none"
    tables = layout.token_tables if by_token else ()
    strategy = BufferedStrategy(
        buffer_size=plan.buffer_size,
        max_staleness=plan.max_staleness,
        staleness_power=rounds.staleness_power,
        token_power=rounds.token_power,
        norm_multiple=multiple_of(plan),
        reference_tokens=rounds.local_steps * tokens_a_step,
        max_tokens_per_step=tokens_a_step,
        outer=outer_optimizer(rounds.outer),
        spans={site.name: layout.view(site.rank).spans for site in plan.site},
        uplink=codec_for(plan.codec),
        downlink=codec_for(plan.codec.down),
        downlink_decay=decay_for(plan.codec.down, rounds.total),
        cohorts=cohorts_for(plan),
        keeps_frames=rounds.robust != "none" or frames_bytes <= FRAMES_KEPT_BYTES,
        reach=reach_of(plan, [segment.shape for segment in layout.segments]),
        robust=rounds.robust,
        trim_share=rounds.trim_share,
        suspicion=Suspicion(rounds.suspend, early_versions(len(plan.site), plan.buffer_size)),
        most_share=rounds.most_share,
        averaging=Averaging(rounds.average, rounds.total),
        token_rows=TokenRows(tuple((s.offset, s.shape[0], s.shape[1]) for s in tables)),
    )
    schedule = Schedule(
        total=rounds.total,
        local_steps=rounds.local_steps,
        synchronous=rounds.mode == "synchronous",
        speed_aware=rounds.speed_aware,
        every_rounds=plan.evaluation.every_rounds,
        min_local_steps=rounds.min_local_steps,
        densities=(plan.codec.least_density or plan.codec.density, plan.codec.density),
        shares=strategy.shares,
    )

    def check_site(joined: Joined) -> None:
        expected = Layout.from_description(prepared.site_layouts[joined.site])
        try:
            there = Layout.from_description(joined.layout)
        except (TypeError, ValueError) as error:
            raise SiteError(f"site {joined.site} describes no layout: {error}") from error
        expected.check(there, "the coordinator", f"site {joined.site}")

    return Rounds(
        transport,
        strategy,
        schedule,
        checkpoints,
        journal,
        check_site,
        observe,
        should_stop,
        rounds.deadline_seconds,
        rounds.patience_seconds,
    )


def _finish(
    run: Run,
    plan: Plan,
    prepared: Prepared,
    state: ServerState,
    exported: VersionExported,
    journal: Journal,
    base: Any,
) -> None:
    """Export the adapter, and judge the base language once more with it."""
    from boli.evaluation.card import card, exported_figures
    from boli.model.adapter import attach

    text = card(run.id, plan, exported_figures(exported))
    _export(run.adapter, state.theta, plan, base, text)
    if prepared.base_before:
        attach(base.model, plan.model.adapter).load(state.theta)
        note_base(plan, journal, state.version, judge_base(plan, base))


def _export(folder: Path, theta: Vector, plan: Plan, base: Any, readme: str) -> None:
    """Write an adapter's folder as a whole, or leave what was there."""
    from boli.model.export import export_adapter

    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        export_adapter(theta, plan.model.adapter, base, unfinished)
        (unfinished / "README.md").write_text(readme, encoding="utf-8")
        sync_tree(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except OSError as error:
        raise storage_error(folder, error) from error


def check(plan: Plan) -> Forecast:
    """Return what a plan will do: sizes, bytes a round, memory, and estimated time.

    Raises:
        BoliError: the plan cannot be carried out here.
    """
    _let_threads_sleep()
    from boli.evaluation.forecast import forecast

    splits, notes = check_text(plan), list[str]()
    base = plan.model.base
    if base.path is not None:  # what the sites will load, which may be converted and cut first
        path = prepare_base(plan)
        notes = cut_notes(plan, Path(path))
        base = base.model_copy(update={"path": path, "vocabulary": VocabularyPlan()})
        model = plan.model.model_copy(update={"base": base})
        plan = plan.model_copy(update={"model": model})
    found = forecast(plan, splits)
    return replace(found, notes=(*found.notes, *notes))
