"""The folder that Flower runs: a lone pyproject.toml that points into the installed package."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from boli.durable import storage_error
from boli.engine.flower_seat import Pace
from boli.errors import RunError
from boli.plan import Plan

TEMPLATE = """\
# One run of boli: submit it again, and it goes on where it was.
[project]
name = "boli"
version = "1.0.0"
description = "Federated LoRA training with boli"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "boli"

[tool.flwr.app.components]
serverapp = {serverapp}
clientapp = {clientapp}

[tool.flwr.app.config]
run = {run}
runs = {runs}
plan = {plan}
{pace}
"""
SERVERAPP, CLIENTAPP = "boli.engine.flower:server_app", "boli.engine.flower:client_app"


def write_app(
    plan: Plan,
    folder: Path,
    runs: Path,
    pace: Pace | None = None,
    serverapp: str = SERVERAPP,
    clientapp: str = CLIENTAPP,
) -> str:
    """Write the Flower app of a new run; returns the run's id.

    Raises:
        RunError: there is an app already: it belongs to its run.
        StorageError: the folder cannot be written.
    """
    path = folder / "pyproject.toml"
    if path.exists():
        raise RunError(
            f"{folder} holds an app already",
            "submit it again to go on with its run, or choose another folder for a new one",
        )
    run = f"{plan.name}-{datetime.now():%Y%m%d-%H%M%S}"
    figures = {name.replace("_", "-"): value for name, value in vars(pace or Pace()).items()}
    text = TEMPLATE.format(
        serverapp=_quoted(serverapp),
        clientapp=_quoted(clientapp),
        run=_quoted(run),
        runs=_quoted(str(runs.absolute())),
        plan=_quoted(plan.model_dump_json()),
        pace="\n".join(f"{name} = {value}" for name, value in figures.items()),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(path, error) from error
    return run


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's escapes are TOML's too, but for lone surrogates and /."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
