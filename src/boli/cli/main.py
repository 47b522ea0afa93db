"""boli: train, check, report, runs, demo; the other commands are in their own files."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

import boli
from boli.cli import evaluate, fidelity, fleet, flower, language, personalize, pool, prepare, speech
from boli.cli.doctor import doctor
from boli.errors import BoliError, RunError

if TYPE_CHECKING:
    from boli.run import Engine

INTERRUPTED = 130
NO_BETTER = 3  # the run is finished, and its adapter is not shown to be better than the base

# Our help is plain text. Where rich is installed, typer escapes its brackets for rich all the same.
typer.core.HAS_RICH = False

app = typer.Typer(
    name="boli",
    help="Train language models for low-resource languages where the data and the machines "
    "already are.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PlanPath = Annotated[Path | None, typer.Argument(help="The plan, a TOML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the plan; can be repeated."),
]
Forgive = Annotated[
    list[str] | None,
    typer.Option(metavar="SITE", help="Let a suspended site take part again; can be repeated."),
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"boli {boli.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Example: boli train plans/first.toml --set rounds.total=3",
    short_help="Train an adapter as a plan says, or resume a run.",
)
def train(
    plan: PlanPath = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run: its id, its folder, or latest."),
    ] = None,
    forgive: Forgive = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Train an adapter as a plan says, over all its sites. Ctrl-C stops it; --resume goes on.

    What comes out is in runs/ID: report.html, report.json, journal.jsonl, adapter/.

    The adapter is the version that the sites' tuning text finds best. Exit code 3: it is no
    better than the base, or too few sites judged it; the adapter is written all the same.
    """
    if plan is None and resume is None:
        raise RunError("no plan was given", "boli train PLAN.toml, or boli train --resume RUN")
    if resume is not None and overrides:
        raise RunError("a resumed run follows its own plan", "leave out --set, or start a new run")
    loaded = None if plan is None else boli.load_plan(plan, overrides or ())
    _train(loaded, resume, runs, forgive or ())


def _train(
    plan: boli.Plan | None, resume: str | None, runs: Path, forgive: Sequence[str] = ()
) -> None:
    run = watched_run(plan, resume, runs, forgive=forgive)
    finish_or_tell(run, f"boli train --resume {run.id}")


def finish_or_tell(run: boli.Run, command: str) -> None:
    """Print what came out, or the command that goes on.

    Raises:
        Exit: the run was stopped, or its adapter is no better than the base: a script that
            uses the adapter next must not take that for a success.
    """
    from boli.cli.tables import show_result

    if not run.finished:
        begun = (run.folder / "run.json").exists()
        kept = "nothing is lost" if begun else "the base was not ready yet and begins anew"
        print(f"\nstopped; {kept}. Go on with: {command}")
        raise typer.Exit(INTERRUPTED)
    show_result(run)
    exported = run.report()["exported"]
    if exported is not None and not exported["better_than_base"]:
        raise typer.Exit(NO_BETTER)


def watched_run(
    plan: boli.Plan | None,
    resume: str | None,
    runs: Path,
    engine: Engine | None = None,
    forgive: Sequence[str] = (),
) -> boli.Run:
    """Carry out a plan, or go on with a run, and show how it goes."""
    from boli.cli.progress import watched

    try:
        with watched(plan or boli.open_run(resume or "", runs).plan) as watch:
            return boli.train(
                plan,
                resume=resume,
                forgive=forgive,
                runs=runs,
                observe=watch.observe,
                should_stop=watch.should_stop,
                engine=engine,
            )
    except KeyboardInterrupt:
        return boli.open_run(resume or "latest", runs)


@app.command(
    epilog="Example: boli demo",
    short_help="Train over three sites on made-up text that ships with boli.",
)
def demo(overrides: Overrides = None, runs: RunsFolder = Path("runs")) -> None:
    """Train one adapter over three sites on this machine: no server, no download, no account.

    The sites hold made-up Bhojpuri, Magahi and Maithili text that never leaves their processes.
    """
    _train(boli.load_plan(_first_plan(), overrides or ()), None, runs)


def _first_plan() -> Path:
    """Return the demo's plan: inside an installed package, or in the source tree."""
    package = Path(boli.__file__).parent
    installed = package / "plans" / "first.toml"
    return installed if installed.exists() else package.parents[1] / "plans" / "first.toml"


@app.command(
    epilog="Example: boli check plans/first.toml",
    short_help="Validate a plan and print what it will do.",
)
def check(plan: Annotated[Path, typer.Argument()], overrides: Overrides = None) -> None:
    """Validate a plan, read its text, and print sizes, bytes a round, memory and time."""
    from boli.cli.tables import show_forecast

    loaded = boli.load_plan(plan, overrides or ())
    show_forecast(loaded, boli.check(loaded))


evaluate.register(app)
personalize.register(app)


@app.command(
    epilog="Example: boli report latest",
    short_help="Write a run's report anew and print its figures.",
)
def report(
    run: Annotated[str, typer.Argument(help="A run's id, its folder, or latest.")],
    runs: RunsFolder = Path("runs"),
) -> None:
    """Write report.html and report.json of a run from its journal, and print its figures."""
    from boli.cli.tables import show_result

    found = boli.open_run(run, runs)
    found.write_report()
    show_result(found)


@app.command(
    epilog="Example: boli verify latest",
    short_help="Check that a run's journal is the one that was written.",
)
def verify(
    run: Annotated[str, typer.Argument(help="A run's id, its folder, or latest.")],
    runs: RunsFolder = Path("runs"),
    key: Annotated[
        str,
        typer.Option(
            metavar="FINGERPRINT",
            help="The key that must have signed. Default: this machine's, if it has one.",
        ),
    ] = "",
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="Sign it with this machine's key, where the signature is all that is wrong.",
        ),
    ] = False,
) -> None:
    """Check a run's journal against its signed head and against the newest checkpoint.

    The signature shows that nobody without the key has changed what it covers; whoever has the
    key can write another journal. What this prints last can be kept elsewhere, to compare later.
    """
    from boli.cli.tables import show_verification

    found = boli.open_run(run, runs)
    show_verification(found.adopt() if adopt else found.verify(key or None))


@app.command("runs", epilog="Example: boli runs", short_help="List the runs that there are.")
def list_runs(runs: RunsFolder = Path("runs")) -> None:
    """List runs, newest first, with their state."""
    from boli.cli.tables import show_runs

    show_runs(boli.list_runs(runs), runs)


fleet.register(app)
app.command(
    epilog="Example: boli doctor bhojpur.boli --data /srv/text",
    short_help="At a site: look at all that it needs, and say what to do.",
)(doctor)
flower.register(app)
prepare.register(app)
language.register(app)
fidelity.register(app)
speech.register(app)
pool.register(app)


def main() -> None:
    """Run the command line; a BoliError becomes its message and its exit code.

    Raises:
        SystemExit: always, with the exit code.
    """
    # It warns of missing kernels wherever it is installed, also when nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # It warns of a return value inside its own TLS streams whenever a server closes a connection.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    try:
        app()
    except BoliError as error:
        print(f"error: {error.problem}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def script() -> None:
    """Be the process of one command: run it, and end the process with its exit code.

    Nothing else may run in this process: after an error it ends at once, without `atexit`, where
    deltalake is loaded, whose threads can abort it while the interpreter is taken down.
    """
    try:
        main()
    except SystemExit as ended:
        if "deltalake" not in sys.modules or not isinstance(ended.code, int) or ended.code == 0:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(ended.code)


if __name__ == "__main__":
    script()
