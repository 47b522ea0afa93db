"""boli prepare: source folders → clean records, a report page, and the story of one record."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from boli.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from boli.corpus.pipeline import Progress
    from boli.corpus.survey import Request

INTERRUPTED = 130
HINTS = {
    "link": "name the folder that it leads to as a source of its own",
    "recording": "name a recognizer with --speech; boli speech train makes one",
    "unknown kind of file": "save documents of other programs as txt or html first",
    "no text": "--column names the column that holds the text",
}


def prepare(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="Folders and files: txt, tsv, jsonl, html, parquet; wav, flac, mp3, ogg.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="ISO 639-3 code of the language they are in.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for records and report.")
    ] = None,
    script: Annotated[
        str, typer.Option(metavar="CODE", help="ISO 15924, where not the language's usual one.")
    ] = "",
    identifier: Annotated[
        str, typer.Option(metavar="MODEL", help="What boli language train wrote.")
    ] = "",
    speech: Annotated[
        str, typer.Option(metavar="MODEL", help="For recordings: see boli speech.")
    ] = "",
    scorer: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder of a small language model, to score with.")
    ] = "",
    most_bits: Annotated[
        float | None,
        typer.Option(metavar="BITS", help="Drop what takes more bits per byte under the scorer."),
    ] = None,
    unit: Annotated[
        Literal["auto", "line", "paragraph", "document"],
        typer.Option(
            help="What of a txt file is a document. auto: paragraphs where lines are empty."
        ),
    ] = "auto",
    column: Annotated[
        str, typer.Option(help="Name or number of the text in tables; else text, or the first.")
    ] = "",
    duplicates: Annotated[
        Literal["near", "exact"],
        typer.Option(help="Which are dropped: near ones too, or only those to the letter."),
    ] = "near",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    executor: Annotated[
        Literal["none", "local", "slurm", "ray"],
        typer.Option(help="Share the work out with datatrove."),
    ] = "none",
    tasks: Annotated[int, typer.Option(min=1, help="Shares of the work, with --executor.")] = 2,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the executor, such as partition=cpu."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, without what is there.")] = (
        False
    ),
    note: Annotated[
        bool,
        typer.Option("--note", help="Only read source.toml of DIR's sources anew; clean nothing."),
    ] = False,
    explain: Annotated[
        str, typer.Option(metavar="ID", help="Tell the story of one record of DIR.")
    ] = "",
) -> None:
    """Clean text and recordings where they are: nothing leaves this machine.

    Records come out in DIR/records, dropped ones with their reasons in DIR/dropped, figures in
    DIR/report.html. Ctrl-C stops it; the same command goes on. What may leave later is said in
    source.toml of each source folder; a template is written where there is none. Once it is filled
    in, the same command, or --out DIR --note, notes what it says; nothing is cleaned again.
    """
    if out is None:
        raise CorpusError("no folder was named", "boli prepare SOURCE… --language CODE --out DIR")
    if explain:
        _explain(out, explain)
        return
    if note:
        _note(out)
        return
    if not sources:
        raise CorpusError("no source was named", "boli prepare SOURCE… --language CODE --out DIR")
    if not language:
        raise CorpusError("no language was named", "add --language with its ISO 639-3 code")
    if not re.fullmatch("[a-z]{3}", language):
        raise CorpusError(
            f"language {language!r} is no ISO 639-3 code", "three letters, such as --language bho"
        )
    from boli.corpus.memory import count_all

    count_all()  # before anything loads pyarrow
    from boli.corpus.documents import Reading
    from boli.corpus.record import without_pandas
    from boli.corpus.survey import Request
    from boli.plan import available_cores

    if most_bits is not None and not scorer:
        raise CorpusError("--most-bits needs a model", "name its folder with --scorer")
    without_pandas()
    request = Request(
        tuple(sources),
        out,
        language,
        script,
        Reading(unit, column),
        identifier,
        speech,
        scorer,
        most_bits,
        duplicates == "near",
        workers or available_cores(),
    )
    if executor == "none":
        _run(request, again)
    else:
        _share_out(request, again, executor, tasks, settings or [])


def _share_out(
    request: Request, again: bool, executor: str, tasks: int, settings: list[str]
) -> None:
    from boli.corpus.pipeline import Preparation, finished
    from boli.corpus.scale_out import executor_class, share_out

    pairs = dict(setting.partition("=")[::2] for setting in settings)
    executor_class(executor, pairs)
    preparation = Preparation(request)
    preparation.begin(again)
    _tell_templates(preparation.templates)
    if finished(request.out) is None:
        share_out(request, executor, tasks, pairs)
    if finished(request.out) is None:
        print("the tasks are under way; once they are done, the same command prints the figures")
        return
    figures = preparation.finish(tasks)
    _tell_loosened(preparation.loosened)
    _show(request.out, figures)


def _tell_templates(templates: list[Path]) -> None:
    for path in templates:
        print(
            f"wrote {path}: fill it in and give this command again to allow sharing; "
            "until then nothing may leave"
        )


def _note(out: Path) -> None:
    from boli.corpus.pipeline import note

    figures, loosened = note(out)
    _tell_loosened(loosened)
    _show(out, figures)


def _tell_loosened(number: int) -> None:
    if number:
        print(f"{number:,} records are allowed more now than was noted before, or other things")


def _run(request: Request, again: bool) -> None:
    from boli.corpus.pipeline import Preparation

    with _watched() as watch:
        preparation = Preparation(request, watch.observe, watch.should_stop)
        figures = preparation.run(again)
    _tell_templates(preparation.templates)
    if figures is None:
        print("\nstopped; nothing is lost. The same command goes on")
        raise typer.Exit(INTERRUPTED)
    _tell_loosened(preparation.loosened)
    _show(request.out, figures)


class _Watch:
    """A bar over the bytes of the sources, with what was kept so far."""

    def __init__(self, console: Console, bar: RichProgress) -> None:
        self.console = console
        self.bar = bar
        self.task = bar.add_task("cleaning", total=None, figure="")
        self.stopping = False
        self._said = "", ""

    def should_stop(self) -> bool:
        """Tell whether Ctrl-C was pressed."""
        return self.stopping

    def stop(self) -> None:
        """Note that it was."""
        self.stopping = True

    def observe(self, progress: Progress) -> None:
        """Show how far it is."""
        facts = progress.facts
        clean = facts.documents - facts.dropped.total()
        figure = f"{clean:,} of {facts.documents:,} documents are clean"
        self.bar.update(
            self.task,
            description=progress.stage,
            total=progress.bytes_total or None,
            completed=progress.place.bytes,
            figure=figure,
        )
        if not self.console.is_terminal and (progress.stage, figure) != self._said:
            self._said = progress.stage, figure
            tail = f": {figure}" if progress.stage == "cleaning" else ""
            self.console.print(f"{progress.stage}{tail}")


@contextlib.contextmanager
def _watched() -> Iterator[_Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from boli.cli.progress import interruptible

    console = Console(markup=False, emoji=False, stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figure]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )
    watch = _Watch(console, bar)
    with interruptible(console, watch.stop), bar:
        yield watch


def _show(out: Path, figures: dict[str, Any]) -> None:
    from boli.evaluation.prepared import by_number, share, summary, write_pages

    page = write_pages(out)
    print(" ".join(summary(figures)))
    print(f"\n{'kept':<22}{figures['kept']:>9,}  {share(figures, figures['kept'])}")
    for reason, number in by_number(figures["dropped"]):
        print(f"{reason:<22}{number:>9,}  {share(figures, number)}")
    for reason, hint in HINTS.items():
        if figures["dropped"].get(reason):
            print(f"\n{reason}: {hint}")
    if figures["personal"]:
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in by_number(figures["personal"]))
        print(f"\npersonal data replaced: {kinds}")
    print(f"\nrecords  {out}/records\nreport   {page}")


def _explain(out: Path, name: str) -> None:
    from boli.corpus.explain import explain

    for line in explain(out, name):
        print(line)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: boli prepare archive/ --language bho --out clean",
        short_help="Clean text and recordings where they are.",
    )(prepare)
