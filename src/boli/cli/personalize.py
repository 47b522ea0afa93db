"""boli personalize: train a finished run's version on, for one site alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from boli.site.personal import Personal

NO_BETTER = 3  # nothing on the way was better than the version
DEFAULT_PASSES = 4.0


def personalize(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Its id, its folder, or latest.")],
    site: Annotated[str, typer.Option(metavar="NAME", help="Which site's text is trained on.")],
    passes: Annotated[
        float, typer.Option(min=0.01, max=100, help="Over the site's text, at most.")
    ] = DEFAULT_PASSES,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path(
        "runs"
    ),
) -> None:
    """Train the version of a finished run on with one site's text, for that site alone.

    The tuning text says when to stop. The result is an adapter of its own in
    RUN/personal/NAME, which is made of the site's text and stays where it is.

    Exit code 3: nothing on the way was better than the version; no adapter is written.
    """
    from boli.run import open_run

    found, folder = open_run(name, runs).personalize(site, passes, _show)
    _print(site, found, folder)
    if folder is None:
        raise typer.Exit(NO_BETTER)


def _show(steps: int, total: int, tuning: float) -> None:
    if sys.stderr.isatty():
        print(
            f"{steps} of {total} steps  {tuning:.3f} bits per byte of tuning text", file=sys.stderr
        )


def _print(site: str, found: Personal, folder: Path | None) -> None:
    from boli.site.personal import sentences

    for test in found.tests:
        version, six_gram = test.against_version, test.against_six_gram
        print(f"bits per byte of {test.language}, held-out text of {site} (smaller is better)")
        print(f"  version of the run       {version.b:.3f}")
        print(f"  own                      {version.a:.3f}")
        print(f"  6-gram of the same text  {six_gram.b:.3f}")
        print(f"  own, with n-grams        {test.mixed:.3f}")
    for sentence in sentences(found):
        print(sentence)
    last, _ = found.curve[-1]
    if found.overfits:
        print(
            f"the tuning text finds step {found.steps} best; "
            f"what {last - found.steps} further steps made is left out"
        )
    print(f"adapter  {folder}" if folder else "no adapter is written: the version is better")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: boli personalize latest --site bhojpur",
        short_help="Train a finished run's version on, for one site alone.",
    )(personalize)
