"""One execution of a plan: prepare, train, export, report; and find and resume earlier ones.

A run's folder:

    plan.json       the whole plan, as validated
    run.json        what was prepared: base, layouts, and the base's own figures
    journal.jsonl   every fact, hash-chained
    checkpoints/    the coordinator's last two states
    sites/NAME/     each site's own state and log; on another machine, it stays there
    adapter/        the result, in PEFT's format (a whole model for adapter kind "full")
    report.html, report.json
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boli
from boli.corpus.sources import Split, read_split, share_of
from boli.durable import locked, storage_error, sync_tree, write_file
from boli.errors import BoliError, RunError, SiteError, StorageError
from boli.journal import (
    Evaluated,
    Event,
    Journal,
    RunFailed,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
)
from boli.model.layout import Layout
from boli.plan import Plan, available_cores
from boli.plan_file import plan_from_tables
from boli.rounds.checkpoint import CheckpointStore
from boli.rounds.loop import Rounds
from boli.rounds.transport import Joined, Measurement, Transport
from boli.rounds.update import ServerState, SiteProgress

if TYPE_CHECKING:
    from boli.evaluation.forecast import Forecast


@dataclass(frozen=True)
class Stage:
    """A step of preparation, for whoever watches."""

    name: str
    done: int = 0
    total: int = 0
    loss: float | None = None


Observer = Callable[[Event | Measurement | Stage], None]


def _ignore(_: object) -> None:
    return None


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
        return plan_from_tables(_read_json(self.folder / "plan.json"))

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

    def write_report(self) -> Path:
        """Write report.json and report.html; returns the page's path."""
        from boli.evaluation.report import write_report

        return write_report(self.folder)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"cannot read {path}: {error.strerror}", "boli runs lists the runs that there are"
        ) from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}", "start a new run") from None


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


@dataclass(frozen=True)
class Prepared:
    """What run.json holds: made once, the same at every resume."""

    run: str
    base: str  # folder or hub id
    layout: list[Any]  # description at full rank
    site_layouts: dict[str, list[Any]]
    threads: int  # of a node: another number would give other bits
    base_before: dict[str, float] = field(default_factory=dict)  # bits, bytes


def train(
    plan: Plan | None = None,
    *,
    resume: str | None = None,
    runs: str | Path = "runs",
    observe: Observer = _ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Carry out a plan, or go on with a run that was stopped; returns the run.

    `observe` gets journal events, live measurements and stages as they happen.
    When `should_stop` says so, the run ends at a point from which it can be
    resumed, and `Run.finished` is False.

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
    elif plan is not None:
        check_text(plan)
        check_origin(plan.model.base.path or "")
        run = Run(_new_folder(Path(runs), plan.name))
    else:
        raise RunError("neither a plan nor a run to resume was given", "give one of them")
    with locked(run.folder, "run"):
        if plan is not None and resume is None:
            write_file(run.folder / "plan.json", plan.model_dump_json(indent=2).encode())
        return _carry_out(run, observe, should_stop)


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


def check_text(plan: Plan) -> dict[str, dict[str, Split]]:
    """Read every site's text once, so that what is wrong shows before anything is built.

    Raises:
        CorpusError: a text is missing, empty, not UTF-8, or leaves nothing held out.
    """
    splits = {site.name: read_split(plan, site.text, site.language) for site in plan.site}
    if plan.model.base.text:
        splits[""] = read_split(plan, plan.model.base.text, plan.model.base.language)
    return splits


def _carry_out(run: Run, observe: Observer, should_stop: Callable[[], bool]) -> Run:
    journal = Journal(run.folder / "journal.jsonl", [observe])
    with contextlib.closing(journal):
        try:
            _to_the_end(run, journal, observe, should_stop)
        except BoliError as error:
            # A full disk refuses this line too; the error itself says enough then.
            with contextlib.suppress(StorageError):
                journal.append(RunFailed(error.problem))
            raise
    if run.finished:
        run.write_report()
    return run


def _to_the_end(
    run: Run, journal: Journal, observe: Observer, should_stop: Callable[[], bool]
) -> None:
    """Take a run from wherever it is to its adapter, or to where it was told to stop."""
    started = time.monotonic()
    plan = run.plan
    # Threads that spin while they wait make a step ten times slower where other programs run.
    # Read by OpenMP when torch is loaded; without effect where that has happened.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    checkpoints = CheckpointStore(run.folder / "checkpoints")
    found = checkpoints.load()
    begun = (run.folder / "run.json").exists()
    prepared, first = _prepare(run, plan, journal, observe)
    corrupt: list[Path] = []
    if found is None:
        state = first or _first_state(run, plan, prepared, observe)
    else:
        state, corrupt = found
        state = state.welcome_back()
        checkpoints.save(state)
    if begun:
        journal.append(RunResumed(state.version, [p.name for p in corrupt], state.journal_seq))
    with _transport(run, prepared) as transport:
        rounds = _rounds(plan, prepared, transport, checkpoints, journal, observe, should_stop)
        if not rounds.schedule.finished(state) and not should_stop():
            state = rounds.run(state)
    if not rounds.schedule.finished(state):
        journal.append(RunInterrupted(state.version))
        return
    observe(Stage("exporting the adapter"))
    base = _load_base(plan, prepared.base, observe)
    _finish(run, plan, prepared, state, journal, base)
    journal.append(RunFinished(state.version, time.monotonic() - started, "adapter"))
    journal.sync()


def prepare_base(plan: Plan, observe: Observer = _ignore) -> str:
    """Return the folder or hub id of the plan's base, building a micro-LLM if it has to."""
    base = plan.model.base
    if base.path is not None:
        return base.path
    from boli.model.base import build_micro

    assert base.micro is not None
    text = read_split(plan, base.text, base.language)[base.language]

    def progress(step: int, of: int, loss: float) -> None:
        observe(Stage("pre-training the base", step, of, loss))

    return str(build_micro(base.micro, text.train, progress).resolve())


def _load_base(plan: Plan, origin: str, observe: Observer) -> Any:
    from boli.model.base import best_device, load_base

    observe(Stage("loading the base"))
    model = plan.model
    return load_base(origin, model.base, model.local_steps, model.adapter.kind, best_device())


def _prepare(
    run: Run, plan: Plan, journal: Journal, observe: Observer
) -> tuple[Prepared, ServerState | None]:
    """Lay out the adapter and note how good the base is; once for every run.

    The state is version 0 where this call laid it out, and None otherwise. The base is
    let go again: the nodes need the memory.
    """
    from boli.model.adapter import adapter_layout
    from boli.model.base import check_length

    path = run.folder / "run.json"
    if path.exists():
        return Prepared(**_read_json(path)), None
    origin = prepare_base(plan, observe)
    base = _load_base(plan, origin, observe)
    check_length(base, plan.model.local_steps)
    adapter = plan.model.adapter
    layout = adapter_layout(base.model, adapter)
    by_site = {
        site.name: adapter_layout(base.model, adapter, site.rank).describe() for site in plan.site
    }
    observe(Stage("judging the base"))
    judged = _judge_base(plan, base)
    threads = plan.threads_per_site(available_cores())
    prepared = Prepared(run.id, origin, layout.describe(), by_site, threads, judged)
    languages = {site.name: site.language for site in plan.site}
    journal.append(
        RunStarted(run.id, plan.digest, boli.__version__, layout.digest, layout.size, languages)
    )
    _note_base(plan, journal, 0, judged)
    journal.sync()
    write_file(path, json.dumps(vars(prepared)).encode())
    return prepared, _version_0(run, plan, layout, base)


def _first_state(run: Run, plan: Plan, prepared: Prepared, observe: Observer) -> ServerState:
    """Return version 0 of a run that was stopped before its first checkpoint."""
    base = _load_base(plan, prepared.base, observe)
    return _version_0(run, plan, Layout.from_description(prepared.layout), base)


def _version_0(run: Run, plan: Plan, layout: Layout, base: Any) -> ServerState:
    from boli.model.adapter import initial_vector

    theta = initial_vector(base.model, plan.model.adapter)
    sites = {site.name: SiteProgress(rank=site.rank) for site in plan.site}
    return ServerState(run=run.id, layout=layout.digest, theta=theta, sites=sites)


def _judge_base(plan: Plan, base: Any) -> dict[str, float]:
    """Return bits and bytes of the base language's own test part; empty where it has no text."""
    from boli.evaluation.metrics import bits_per_byte

    section = plan.model.base
    if not section.text:
        return {}
    lines = read_split(plan, section.text, section.language)[section.language].test
    lines = sorted(lines, key=share_of)[: plan.evaluation.max_lines]
    found = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
    return {"bits": found.bits, "bytes": found.bytes}


def _note_base(plan: Plan, journal: Journal, version: int, found: dict[str, float]) -> None:
    if found:
        language = plan.model.base.language
        journal.append(Evaluated("", language, "test", version, found["bits"], int(found["bytes"])))


@contextlib.contextmanager
def _transport(run: Run, prepared: Prepared) -> Iterator[Transport]:
    from boli.engine.local import LocalTransport, node_command

    folder = run.folder.resolve()
    transport = LocalTransport(node_command(folder), folder / "sites", prepared.threads)
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
    from boli.rounds.buffer import BufferedStrategy
    from boli.rounds.outer import outer_optimizer
    from boli.rounds.schedule import Schedule

    layout = Layout.from_description(prepared.layout)
    steps, rounds = plan.model.local_steps, plan.rounds
    tokens_a_step = steps.batch_sequences * steps.sequence_length
    strategy = BufferedStrategy(
        buffer_size=plan.buffer_size,
        max_staleness=plan.max_staleness,
        staleness_power=rounds.staleness_power,
        token_power=rounds.token_power,
        norm_multiple=rounds.norm_multiple,
        reference_tokens=rounds.local_steps * tokens_a_step,
        max_tokens_per_step=tokens_a_step,
        outer=outer_optimizer(rounds.outer),
        spans={site.name: layout.view(site.rank).spans for site in plan.site},
    )
    schedule = Schedule(
        total=rounds.total,
        local_steps=rounds.local_steps,
        synchronous=rounds.mode == "synchronous",
        speed_aware=rounds.speed_aware,
        every_rounds=plan.evaluation.every_rounds,
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
    run: Run, plan: Plan, prepared: Prepared, state: ServerState, journal: Journal, base: Any
) -> None:
    """Export the adapter, and judge the base language once more with it."""
    from boli.model.adapter import attach
    from boli.model.export import export_adapter

    unfinished = run.folder / ".adapter"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        export_adapter(state.theta, plan.model.adapter, base, unfinished)
        sync_tree(unfinished)
        shutil.rmtree(run.adapter, ignore_errors=True)
        unfinished.rename(run.adapter)
    except OSError as error:
        raise storage_error(run.adapter, error) from error
    if prepared.base_before:
        attach(base.model, plan.model.adapter).load(state.theta)
        _note_base(plan, journal, state.version, _judge_base(plan, base))


@dataclass(frozen=True)
class Score:
    """Bits per byte of one text file under an adapter and under its base alone."""

    path: Path
    num_lines: int
    num_bytes: int
    base: float
    adapted: float


def evaluate(adapter: str | Path, text: Sequence[str | Path]) -> list[Score]:
    """Judge an adapter in PEFT's format on text files, one sentence a line.

    Raises:
        ModelError: the adapter or its base cannot be loaded.
        CorpusError: a text is missing, empty or not UTF-8.
    """
    from boli.corpus.sources import read_lines
    from boli.evaluation.metrics import bits_per_byte
    from boli.model.export import load_adapter

    texts = [(Path(path), read_lines(Path(path))) for path in text]
    base = load_adapter(Path(adapter))
    scores = []
    for path, lines in texts:
        with base.without_adapter():
            before = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
        after = bits_per_byte(base.model, base.tokenizer, lines, base.max_length)
        scores.append(Score(path, len(lines), after.bytes, before.per_byte, after.per_byte))
    return scores


def check(plan: Plan) -> Forecast:
    """Return what a plan will do: sizes, bytes a round, memory, and estimated time.

    Raises:
        BoliError: the plan cannot be carried out here.
    """
    from boli.evaluation.forecast import forecast

    return forecast(plan, check_text(plan))
