"""What the terminal shows: a run as it goes, and tables of figures."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from boli.evaluation.units import bits, duration, size
from boli.journal import (
    Evaluated,
    Event,
    OrderSent,
    RoundStepped,
    RunResumed,
    RunStarted,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    UpdateAccepted,
    UpdateRejected,
)

if TYPE_CHECKING:
    from boli.evaluation.forecast import Forecast
    from boli.plan import Plan
    from boli.rounds.transport import Measurement
    from boli.run import Run, Score, Stage

SIDE = (0, 1)


class Watch:
    """A run on the terminal: a line a site, and one bar with the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.sites: dict[str, dict[str, Any]] = {}
        self.stopping = False
        self.version = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figure]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task("reading the plan", total=None, figure="")
        self.rounds_total = 0
        self._said = ""

    def __rich__(self) -> Group:
        return Group(self.table(), self.bar) if self.sites else Group(self.bar)

    def table(self) -> Table:
        """Return the sites as they stand."""
        table = Table(box=None, padding=SIDE, expand=True)
        table.add_column("site")
        for name in ("doing", "step", "tokens/s", "loss", "version", "stale", "up", "down"):
            table.add_column(name, justify="left" if name == "doing" else "right")
        for name, site in self.sites.items():
            table.add_row(
                f"{name} ({site['language']})",
                site["doing"],
                site["step"],
                f"{site['rate']:,.0f}" if site["rate"] else "–",
                f"{site['loss']:.3f}" if site["loss"] else "–",
                str(site["version"]),
                str(site["stale"]),
                size(site["up"]),
                size(site["down"]),
            )
        return table

    def begin(self, plan: Plan) -> None:
        """Take the sites and the number of rounds from the plan."""
        self.rounds_total = plan.rounds.total
        for site in plan.site:
            self.sites[site.name] = {
                "language": site.language,
                "doing": "waiting",
                "step": "",
                "rate": 0.0,
                "loss": 0.0,
                "version": 0,
                "stale": 0,
                "up": 0,
                "down": 0,
            }

    def should_stop(self) -> bool:
        """Tell whether Ctrl-C was pressed."""
        return self.stopping

    def observe(self, what: Event | Measurement | Stage) -> None:
        """Take in one event, measurement or stage."""
        match what:
            case RunStarted():
                self.bar.reset(self.task, total=self.rounds_total, description="rounds", figure="")
            case RunResumed(version=version, corrupt=corrupt):
                self.version = version
                self.console.print(f"resumed at version {version}")
                for name in corrupt:
                    self.console.print(f"checkpoint {name} is corrupt; went back to the one before")
            case SiteJoined(site=name):
                self._change(name, doing="ready")
            case SiteLeft(site=name, reason=reason):
                self._change(name, doing="gone")
                self.console.print(f"site {name} is gone ({reason}); starting it again")
            case OrderSent(site=name, base_version=version, local_steps=steps, bytes_down=down):
                doing = "training" if steps else "judging"
                self._change(name, doing=doing, version=version, step=f"0/{steps}", add_down=down)
            case UpdateAccepted(site=name, staleness=stale, loss=loss, bytes_up=up):
                self._change(name, doing="waiting", stale=stale, loss=loss, add_up=up)
            case UpdateRejected(site=name, reason=reason, detail=detail):
                self.console.print(f"update of {name} refused: {reason}, {detail}")
            case SiteBenched(site=name, reason=reason):
                self._change(name, doing="benched")
                self.console.print(f"site {name} gets no more orders: {reason}")
            case RoundStepped(version=version):
                self._round(version)
            case Evaluated(site=name, part="test", version=version) if name and version:
                self._change(name, doing="done")
            case Event():
                pass
            case _:
                self._live(what)

    def _live(self, what: Any) -> None:
        if self.stopping and not hasattr(what, "values"):
            raise KeyboardInterrupt  # between stages, and while a base is pre-trained
        values = getattr(what, "values", None)
        if values is not None:
            self._change(
                what.site,
                doing="training",
                step=f"{values.get('step', 0):.0f}/{values.get('of', 0):.0f}",
                rate=values.get("tokens_per_second", 0.0),
                loss=values.get("loss", 0.0),
            )
            return
        figure = "" if what.loss is None else f"loss {what.loss:.3f}"
        self.bar.update(
            self.task,
            description=what.name,
            total=what.total or None,
            completed=what.done,
            figure=figure,
        )
        if not self.console.is_terminal and what.name != self._said:
            self._said = what.name
            self.console.print(what.name)

    def _round(self, version: int) -> None:
        if self.bar.tasks[0].description != "rounds":
            self.bar.reset(self.task, total=self.rounds_total, description="rounds", figure="")
        self.version = version
        figure = f"{version} of {self.rounds_total}"
        self.bar.update(self.task, completed=version, figure=figure)
        if not self.console.is_terminal:
            losses = "  ".join(
                f"{name} {site['loss']:.3f}" for name, site in self.sites.items() if site["loss"]
            )
            self.console.print(f"round {figure}: loss {losses}")

    def _change(self, name: str, add_up: int = 0, add_down: int = 0, **values: Any) -> None:
        site = self.sites.get(name)
        if site is not None:
            site.update(values)
            site["up"] += add_up
            site["down"] += add_down


@contextlib.contextmanager
def watched(plan: Plan) -> Iterator[Watch]:
    """Show a run while it goes; the first Ctrl-C asks it to stop, the second ends it."""
    console = Console()
    watch = Watch(console)
    watch.begin(plan)

    def interrupt(_: int, __: FrameType | None) -> None:
        if watch.stopping:
            raise KeyboardInterrupt
        watch.stopping = True
        console.print("stopping; what is done is kept")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if console.is_terminal:
            with Live(watch, console=console, refresh_per_second=4):
                yield watch
        else:
            yield watch
    finally:
        signal.signal(signal.SIGINT, before)


def show_result(run: Run) -> None:
    """Print a run's figures and where its files are."""
    console = Console()
    figures = run.report()
    console.print()
    console.print("bits per byte of held-out text (smaller is better)", style="italic")
    console.print(_languages(figures))
    console.print("\nsites", style="italic")
    console.print(_sites(figures))
    console.print(f"\n{_verdict(figures)}")
    console.print(f"\nreport   {run.folder / 'report.html'}", soft_wrap=True)
    if run.finished:
        console.print(f"adapter  {run.adapter}", soft_wrap=True)


def _languages(figures: dict[str, Any]) -> Table:
    table = Table(box=None)
    table.add_column("language")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for code, language in figures["languages"].items():
        if language["role"] == "site":
            table.add_row(code, *_judged(language["before"]["test"], language["after"]["test"]))
    mean, base = figures["mean"], figures["forgetting"]
    table.add_row("mean of sites", *_judged(mean["before"], mean["after"]), style="bold")
    if base is not None:
        judged = _judged(base["before"], base["after"])
        table.add_row(f"{base['language']} (the base's own)", *judged, style="dim")
    return table


def _judged(before: float | None, after: float | None) -> tuple[str, str, str]:
    return bits(before), bits(after), _change(before, after)


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "–"
    return f"{(after / before - 1) * 100:+.1f} %"


def _sites(figures: dict[str, Any]) -> Table:
    table = Table(box=None)
    table.add_column("site")
    for name in ("updates", "tokens", "tokens/s", "up", "down", "working", "idle"):
        table.add_column(name, justify="right")
    for name, site in figures["sites"].items():
        working = site["train_seconds"] + site["evaluate_seconds"]
        table.add_row(
            name,
            str(site["updates"]),
            f"{site['tokens']:,}",
            f"{site['tokens_per_second'] or 0:,.0f}",
            size(site["bytes_up"]),
            size(site["bytes_down"]),
            duration(working),
            f"{site['idle_percent'] or 0:.0f} %",
        )
    return table


def _verdict(figures: dict[str, Any]) -> str:
    mean = figures["mean"]
    seconds = duration(figures["seconds"])
    if mean["before"] is None or mean["after"] is None:
        return f"{figures['version']} rounds in {seconds}; not judged yet"
    change = (mean["after"] / mean["before"] - 1) * 100
    word = "better" if change < 0 else "worse"
    return (
        f"{figures['version']} rounds in {seconds}: the adapter is {abs(change):.1f} % {word} "
        "at the sites' languages than the base was"
    )


def show_forecast(plan: Plan, found: Forecast) -> None:
    """Print what a plan will do."""
    console = Console()
    held = "cached" if found.base_cached else "to be built"
    console.print(f"plan {plan.name} is valid")
    console.print(f"base      {found.base_parameters / 1e6:.2f} M parameters, {held}")
    console.print(
        f"adapter   {plan.model.adapter.kind}, {found.num_entries:,} entries in "
        f"{found.num_segments} segments"
    )
    console.print(
        f"rounds    {found.rounds}, {plan.rounds.mode}, {plan.rounds.local_steps} local steps, "
        f"{found.tokens:,} tokens in all"
    )
    table = Table(box=None)
    for name in ("site", "language", "train", "tuning", "test", "entries", "up a round"):
        table.add_column(name, justify="left" if name in ("site", "language") else "right")
    table.add_column("down a round", justify="right")
    table.add_column("memory", justify="right")
    for site in found.sites:
        for language, lines in site.languages.items():
            table.add_row(
                site.name,
                language,
                *(f"{lines[part]:,}" for part in ("train", "tuning", "test")),
                f"{site.num_entries:,}",
                size(site.bytes_up),
                size(site.bytes_down),
                size(site.memory_bytes),
            )
    console.print(table)
    console.print(f"traffic   {size(found.run_bytes)} for the whole run, all sites")
    console.print(
        f"time      about {duration(found.pretrain_seconds)} to pre-train the base, "
        f"{duration(found.train_seconds)} to train, on this machine"
        if found.pretrain_seconds
        else f"time      about {duration(found.train_seconds)} to train, on this machine"
    )
    for note in found.notes:
        console.print(f"note      {note}")


def show_scores(scores: Sequence[Score]) -> None:
    """Print bits per byte of text files."""
    console = Console()
    console.print("bits per byte (smaller is better)", style="italic")
    table = Table(box=None)
    table.add_column("text")
    for name in ("lines", "base", "adapter", "change"):
        table.add_column(name, justify="right")
    for score in scores:
        table.add_row(
            str(score.path),
            f"{score.num_lines:,}",
            *_judged(score.base, score.adapted),
        )
    console.print(table)


def show_runs(runs: Sequence[Run], folder: Path) -> None:
    """Print the runs of a folder."""
    if not runs:
        print(f"no runs in {folder.resolve()}; boli demo makes one")
        return
    table = Table(box=None)
    for name in ("run", "state", "rounds", "started", "change"):
        table.add_column(name)
    for run in runs:
        table.add_row(run.id, *_run_line(run))
    Console().print(table)


def _run_line(run: Run) -> tuple[str, str, str, str]:
    from boli.errors import BoliError

    started = time.strftime(
        "%Y-%m-%d %H:%M", time.localtime((run.folder / "plan.json").stat().st_mtime)
    )
    try:
        figures = run.report()
    except BoliError:
        return "not begun", "0", started, "–"
    mean = figures["mean"]
    change = _change(mean["before"], mean["after"])
    return figures["status"], str(figures["version"]), started, change
