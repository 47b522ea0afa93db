"""What the terminal shows of a run as it goes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from boli.evaluation.card import against_six_gram
from boli.evaluation.units import signed, size
from boli.journal import (
    AttemptsRefused,
    Evaluated,
    Event,
    OrderSent,
    PiecesMissed,
    RoundStepped,
    RunResumed,
    RunStarted,
    SiteBenched,
    SiteJoined,
    SiteLeft,
    SixGramEvaluated,
    UpdateAccepted,
    UpdateRejected,
    UpdateWeighed,
    VersionJudged,
    VersionRestored,
)

if TYPE_CHECKING:
    from boli.plan import Plan
    from boli.preparation import Stage
    from boli.rounds.transport import Measurement

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
        self._six_gram: dict[tuple[str, str], tuple[float, int]] = {}  # bits, bytes of tuning text
        self._judged: dict[tuple[str, str], tuple[float, int]] = {}  # by site and language
        self._loses: bool | None = None  # what was said last

    def __rich__(self) -> Group:
        suspects = [Text(line, style="red") for line in self.suspects()]
        return Group(self.table(), *suspects, self.bar) if self.sites else Group(self.bar)

    def table(self) -> Table:
        """Return the sites as they stand."""
        table = Table(box=None, padding=SIDE, expand=True)
        table.add_column("site")
        for name in (
            "doing",
            "step",
            "tokens/s",
            "loss",
            "judged",
            "to 6-gram",
            "version",
            "stale",
            "up",
            "down",
        ):
            table.add_column(name, justify="left" if name == "doing" else "right")
        for name, site in self.sites.items():
            table.add_row(
                f"{name} ({site['language']})",
                site["doing"],
                site["step"],
                f"{site['rate']:,.0f}" if site["rate"] else "–",
                f"{site['loss']:.3f}" if site["loss"] else "–",
                site["judged"],
                site["to_six_gram"],
                str(site["version"]),
                str(site["stale"]),
                size(site["up"]),
                size(site["down"]),
            )
        return table

    def suspects(self) -> Iterator[str]:
        """Yield a line for each site whose updates were held to the bound, or that is suspended."""
        for name, site in self.sites.items():
            said = []
            if site["suspended"]:
                said.append(f"suspended: {site['suspended']}")
            if site["offences"]:
                said.append(_compared(site["offences"], site["weighed"]))
            if said:
                yield f"{name}: {'; '.join(said)}"

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
                "judged": "–",
                "to_six_gram": "–",
                "version": 0,
                "stale": 0,
                "up": 0,
                "down": 0,
                "offences": 0,
                "weighed": None,
                "suspended": "",
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
            case PiecesMissed(site=name, reason=reason):
                self.console.print(f"the tokenizer is made without words of {name}: {reason}")
            case SiteJoined(site=name):
                self._change(name, doing="ready", suspended="")
            case SiteLeft(site=name, reason=reason):
                self._change(name, doing="gone")
                self.console.print(
                    f"site {name} is gone ({reason}); its work goes on when it is back"
                )
            case OrderSent(site=name, base_version=version, local_steps=steps, bytes_down=down):
                if version < self.rounds_total:
                    self._count_rounds()
                doing = "training" if steps else "judging"
                self._change(name, doing=doing, version=version, step=f"0/{steps}", add_down=down)
            case UpdateAccepted(site=name, staleness=stale, loss=loss, bytes_up=up):
                self._change(name, doing="waiting", stale=stale, loss=loss, add_up=up)
            case UpdateRejected(site=name, reason=reason, detail=detail):
                self.console.print(f"update of {name} refused: {reason}, {detail}")
            case AttemptsRefused(kind=kind, site=name, count=count, detail=detail):
                # What comes twice, and who only knocks, is in the journal; the rest is news.
                if kind not in ("sent again", "no handshake"):
                    whose = f", {name}" if name else ""
                    times = "once" if count == 1 else f"{count} times"
                    self.console.print(f"refused {times}: {kind}{whose} ({detail})")
            case SiteBenched(site=name, reason=reason):
                self._change(name, doing="suspended", suspended=reason)
                self.console.print(f"site {name} is suspended, and gets no more orders: {reason}")
            case UpdateWeighed():
                self._compare(what)
            case VersionJudged(sites=ratios):
                for name, ratio in ratios.items():
                    self._change(name, judged=f"{signed((ratio - 1) * 100, 1)} %")
                self._say_who_wins()
            case VersionRestored(version=version, restored=restored):
                self.console.print(
                    f"version {restored} comes back as version {version}: "
                    "a majority of the sites judges the last one worse"
                )
            case RoundStepped(version=version):
                self._round(version)
            case Evaluated(site=name, part="test", version=version) if name and version:
                self._change(name, doing="done")
            case Evaluated(site=name, part="tuning", language=code) if name:
                self._judged[name, code] = what.bits, what.bytes
                self._compare_to_six_gram(name)
            case SixGramEvaluated(site=name, part="tuning", language=code):
                self._six_gram[name, code] = what.bits, what.bytes
                self._compare_to_six_gram(name)
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

    def _beside(self, name: str) -> tuple[float, float] | None:
        """Return bits per byte of a site's tuning text: as judged last, and by its 6-gram."""
        keys = [key for key in self._judged if key[0] == name]
        if not keys or any(key not in self._six_gram for key in keys):
            return None
        sums = [sum(told[key][0] for key in keys) for told in (self._judged, self._six_gram)]
        num_bytes = sum(self._judged[key][1] for key in keys)
        return (sums[0] / num_bytes, sums[1] / num_bytes) if num_bytes and all(sums) else None

    def _compare_to_six_gram(self, name: str) -> None:
        found = self._beside(name)
        if found is not None:
            self._change(name, to_six_gram=f"{signed((found[0] / found[1] - 1) * 100, 1)} %")

    def _say_who_wins(self) -> None:
        """Say once how the sites' versions stand beside their 6-grams, and when that turns."""
        found = [pair for pair in map(self._beside, self.sites) if pair is not None]
        if not found:
            return
        model, six_gram = (sum(values) / len(found) for values in zip(*found, strict=True))
        loses = model > six_gram
        if loses != self._loses:
            self._loses = loses
            where = f" ({len(found)} of {len(self.sites)} sites)" * (len(found) < len(self.sites))
            said = against_six_gram(model, six_gram)
            self.console.print(f"On tuning text{where}: {said}", style="yellow" if loses else None)

    def _compare(self, update: UpdateWeighed) -> None:
        """Note how a site's update stands; say its first offence, and every doubling of them."""
        site = self.sites.get(update.site)
        if site is None:
            return
        site["weighed"] = update
        if update.offence:
            site["offences"] = count = site["offences"] + 1
            if count & (count - 1) == 0:
                self.console.print(f"site {update.site} is suspect: {_compared(count, update)}")

    def _round(self, version: int) -> None:
        self._count_rounds()
        self.version = version
        figure = f"{version} of {self.rounds_total}"
        self.bar.update(self.task, completed=version, figure=figure)
        if not self.console.is_terminal:
            losses = "  ".join(
                f"{name} {site['loss']:.3f}" for name, site in self.sites.items() if site["loss"]
            )
            self.console.print(f"round {figure}: loss {losses}")

    def _count_rounds(self) -> None:
        """Let the bar show rounds, if it shows a stage."""
        if self.bar.tasks[0].description != "rounds":
            self.bar.reset(self.task, total=self.rounds_total, description="rounds", figure="")
            self.bar.update(self.task, completed=self.version)

    def _change(self, name: str, add_up: int = 0, add_down: int = 0, **values: Any) -> None:
        site = self.sites.get(name)
        if site is not None:
            site.update(values)
            site["up"] += add_up
            site["down"] += add_down


def _compared(offences: int, update: UpdateWeighed) -> str:
    """Return how a site's last update stands beside the others', in words."""
    said = f"{offences} offence{'s' if offences != 1 else ''}, norm {update.norm:.3g}"
    if update.bound:
        said += f" with a bound of {update.bound:.3g}"
    if update.direction is not None:
        said += f", direction {signed(update.direction)}"
    return said


@contextlib.contextmanager
def watched(plan: Plan) -> Iterator[Watch]:
    """Show a run while it goes; the first Ctrl-C asks it to stop, the second ends it."""
    console = Console(markup=False, emoji=False)
    watch = Watch(console)
    watch.begin(plan)

    def stop() -> None:
        watch.stopping = True

    with interruptible(console, stop):
        if console.is_terminal:
            with Live(watch, console=console, refresh_per_second=4):
                yield watch
        else:
            yield watch


@contextlib.contextmanager
def interruptible(console: Console, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM; the second one ends what goes on."""
    asked = False

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop()
        console.print("stopping; what is done is kept")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
