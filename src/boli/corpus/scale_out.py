"""The same preparation under datatrove's executors: processes, Slurm, Ray.

Each task cleans a share of the files; one task after them takes duplicates out and writes the
records. What comes out is the same as without. Folders must be reachable by the same path
everywhere. (datatrove hands its tasks over as pickles of its own, from and to its own processes.)

Source: Penedo et al. 2024, DataTrove. https://github.com/huggingface/datatrove
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from boli.corpus.pipeline import TASKS, Preparation
from boli.corpus.survey import Request
from boli.errors import CorpusError


def executor_class(kind: str, settings: Mapping[str, str]) -> Any:
    """Return datatrove's class of executors: local, slurm or ray.

    Raises:
        CorpusError: datatrove is not installed, or that executor knows no such setting, or needs
            another.
    """
    try:
        from datatrove.executor import (
            LocalPipelineExecutor,
            RayPipelineExecutor,
            SlurmPipelineExecutor,
        )
    except ImportError as error:
        raise CorpusError(
            f"datatrove is not installed ({error})", "pip install 'boli[datatrove]'"
        ) from None
    executor = {
        "local": LocalPipelineExecutor,
        "slurm": SlurmPipelineExecutor,
        "ray": RayPipelineExecutor,
    }[kind]
    known = inspect.signature(executor).parameters
    for name in settings:
        if name not in known:
            raise CorpusError(
                f"datatrove's {kind} executor has no setting {name!r}", f"it has {', '.join(known)}"
            )
    needed = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name not in ("pipeline", "tasks", *settings)
    ]
    if needed:
        raise CorpusError(
            f"datatrove's {kind} executor needs {', '.join(needed)}",
            " ".join(f"--set {name}=…" for name in needed),
        )
    return executor


def share_out(
    request: Request,
    kind: str,  # local, slurm or ray
    num_tasks: int,
    settings: Mapping[str, str],  # further arguments of datatrove's executor, such as partition
) -> None:
    """Have the tasks of a preparation that has begun run; with Slurm, have them queued.

    Raises:
        CorpusError: as `executor_class`, or what the executor needs is not installed.
    """
    executor = executor_class(kind, settings)
    request = replace(request, workers=0, out=request.out.resolve())
    logs = request.out / TASKS
    # What is done already is known in the folder itself, and is quickly seen.
    given = {name: _value(text) for name, text in settings.items()} | {"skip_completed": False}
    stages: list[tuple[Any, int, str]] = [
        (_CleanShare(request), num_tasks, "clean"),
        (_Finish(request, num_tasks), 1, "finish"),
    ]
    before: Any = None
    try:
        for step, tasks, name in stages:
            place = str(logs / name)
            before = executor([step], tasks=tasks, logging_dir=place, depends=before, **given)
        before.run()
    except ImportError as error:
        raise CorpusError(str(error), "install it beside boli") from None


def _value(text: str) -> Any:
    return int(text) if text.lstrip("-").isdecimal() else text


class _CleanShare:
    """A stage of datatrove's: one share of the files."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __call__(self, _: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        Preparation(self.request).clean_share(rank, world_size)
        return iter(())


class _Finish:
    """The last stage: duplicates, and everything in its place."""

    def __init__(self, request: Request, num_shares: int) -> None:
        self.request = request
        self.num_shares = num_shares

    def __call__(self, _: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:  # noqa: ARG002
        Preparation(self.request).finish(self.num_shares)
        return iter(())
