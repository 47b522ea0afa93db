"""boli flower: the same plan inside a Flower federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import boli

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the plan; can be repeated."),
]


def flower(
    plan: Annotated[Path, typer.Argument(help="The plan, a TOML file.")],
    app_dir: Annotated[Path, typer.Argument(help="A new folder for the app.")],
    overrides: Overrides = None,
    runs: Annotated[
        Path, typer.Option("--runs", help="Folder that holds the runs, where the ServerApp runs.")
    ] = Path("runs"),
) -> None:
    """Write a Flower app that carries out a plan in a federation that is there already.

    The app is one run. Submitted again, after an outage or a stop, it goes on where it was.
    """
    from boli.engine.flower_app import write_app

    run = write_app(boli.load_plan(plan, overrides or ()), app_dir, runs)
    print(f"{app_dir} is run {run}. Start it with: flwr run {app_dir} SUPERLINK --stream")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: boli flower plans/first.toml app",
        short_help="Write an app that runs a plan in a Flower federation.",
    )(flower)
