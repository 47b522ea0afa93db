"""From source folders to clean records on the disk: the order of things, progress, resume.

First every document is cleaned, part after part; each part is on the disk before the next is
begun, so that a kill costs one part at most. Then duplicates are found among all that was kept,
and the parts are written anew without them. Sources are never changed, but for a template of
source.toml where a folder has none.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from boli.corpus import final
from boli.corpus.cleaning import Cleaner, Settings
from boli.corpus.facts import Facts
from boli.corpus.listing import MARKER
from boli.corpus.parts import Batches, Part, Place, part_name
from boli.corpus.record import PIPELINE
from boli.corpus.survey import Request, Survey, refuse_foreign, refuse_other, stamp_of
from boli.corpus.worker import Cleaned, Workers, clean_here
from boli.durable import locked, storage_error, write_file
from boli.errors import CorpusError

WORK, PROGRESS, REPORT = "work", "progress.json", "report.json"
TASKS = "tasks"  # datatrove's own logs
CLEANING, DUPLICATES, WRITING = "cleaning", "duplicates", "writing"


@dataclass
class Progress:
    """How far the work is. All of it is in progress.json after each part."""

    place: Place = field(default_factory=Place)
    parts: int = 0
    seconds: float = 0.0
    facts: Facts = field(default_factory=Facts)
    bytes_total: int = 0
    stage: str = CLEANING

    def save(self, path: Path) -> None:
        """Write it down.

        Raises:
            StorageError: the disk is full or refuses.
        """
        state = {**vars(self), "place": asdict(self.place), "facts": self.facts.to_json()}
        write_file(path, json.dumps(state).encode())

    @classmethod
    def load(cls, path: Path) -> Progress:
        """Read what `save` wrote.

        Raises:
            CorpusError: the file is not whole.
        """
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            place, facts = Place(**state.pop("place")), Facts.from_json(state.pop("facts"))
            return cls(**state, place=place, facts=facts)
        except (ValueError, TypeError, KeyError):
            raise CorpusError(f"{path} is not whole", "begin anew with --again") from None


class Preparation:
    """One run of the pipeline over some sources; goes on where one before it was cut off.

    The cleaning can be shared out: each share takes files that lie together, so that records are
    in the same order, and what comes out is the same, however many shares there are.
    """

    def __init__(
        self,
        request: Request,
        observe: Callable[[Progress], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.request = request
        self.out = request.out
        self.observe = observe
        self.should_stop = should_stop
        self.work = request.out / WORK
        self.templates: list[Path] = []  # of source.toml, that were written
        self.loosened = 0  # records that are allowed more than was noted before, or other things

    def run(self, again: bool = False) -> dict[str, Any] | None:
        """Return the figures of report.json; None where it was told to stop before the end.

        Where it was done before, records are only told anew what their sources allow.

        Raises:
            CorpusError: there is no source, a manifest or a model file cannot be read, or the
                folder holds what was made of other sources or settings.
            StorageError: the disk is full or refuses, or another process works there.
        """
        self.begin(again)
        if not self.clean_share(0, 1):
            return None
        return self.finish(1)

    def begin(self, again: bool = False) -> Survey:
        """Look at the sources, and write down which files there are; `again`: begin anew.

        Raises:
            CorpusError, StorageError: as `run`.
        """
        survey = Survey.take(self.request)
        refuse_foreign(self.out)
        with locked(self.out, "the folder"):
            there = None if again else Survey.load(self.out)
            if there is not None:
                refuse_other(self.out, there, self.request)
                if (self.out / REPORT).exists() and not there.is_of_same(survey):
                    raise CorpusError(
                        f"the sources have changed since {self.out} was made",
                        "name another folder with --out, or begin anew with --again; "
                        "to note only what source.toml allows now, add --note",
                    )
                places = {file.name: file for file in survey.files}
                files = tuple(places.get(file.name, file) for file in there.files)
                if files != there.files:  # of an older boli, which wrote paths with links
                    there = replace(there, files=files)
                    there.save(self.out)
                return there
            clear(self.out)
            self.templates = list(survey.write_templates())
            survey.save(self.out)
        return survey

    def clean_share(self, number: int, num_shares: int) -> bool:
        """Clean the files of one share, unless that is done; False: it was told to stop.

        Raises:
            CorpusError, StorageError: as `run`.
        """
        survey = self._survey()
        if (self.out / REPORT).exists():
            return True
        first, last = _share(survey, number, num_shares)
        folder = self._share_folder(number, num_shares)
        with locked(folder, "the folder"):
            progress = self._resume(folder, survey, first, last)
            if progress.stage == CLEANING:
                self._clean(folder, survey, first, last, progress)
        return progress.stage != CLEANING

    def finish(self, num_shares: int) -> dict[str, Any]:
        """Take duplicates out of all shares, put everything in its place; return the figures.

        Raises:
            CorpusError: a share is not done; and as `run`.
            StorageError: as `run`.
        """
        survey = self._survey()
        with locked(self.out, "the folder"):
            try:
                figures = finished(self.out)
                if figures is None:
                    return self._finish(num_shares, survey)
                self.loosened = _note(self.out, survey, figures)
                return figures
            except OSError as error:
                raise storage_error(self.out, error) from error

    def _survey(self) -> Survey:
        survey = Survey.load(self.out)
        if survey is None:
            return self.begin()
        refuse_other(self.out, survey, self.request)
        return survey

    def _share_folder(self, number: int, num_shares: int) -> Path:
        return self.work / f"{number:05d}-of-{num_shares:05d}"

    def _resume(self, folder: Path, survey: Survey, first: int, last: int) -> Progress:
        path = folder / PROGRESS
        if not path.exists():
            return Progress(bytes_total=sum(size for size, _ in survey.stamps[first:last]))
        progress = Progress.load(path)
        number = first + progress.place.files
        if progress.place.items and stamp_of(survey.files[number].path) != survey.stamps[number]:
            raise CorpusError(
                f"{survey.files[number].path} has changed while it was being read",
                "begin anew with --again",
            )
        return progress

    def _clean(
        self, folder: Path, survey: Survey, first: int, last: int, progress: Progress
    ) -> None:
        """Clean what is not cleaned yet, part by part."""
        begun = time.monotonic() - progress.seconds
        settings = self.request.settings()
        batches = Batches(
            survey.files[first:last],
            survey.roots[first:last],
            settings.roots,
            self.request.reading,
            progress.place,
        )
        with contextlib.closing(self._parts(batches, settings)) as parts:
            for part in parts:
                assert part.end is not None
                part.write(folder, progress.parts)
                progress.parts += 1
                progress.facts.add(part.facts)
                progress.place = part.end
                progress.seconds = time.monotonic() - begun
                if part.end.files == last - first:
                    progress.stage = DUPLICATES
                progress.save(folder / PROGRESS)
                self.observe(progress)

    def _parts(self, batches: Batches, settings: Settings) -> Generator[Part, None, None]:
        cleaned: Generator[Cleaned, None, None]
        if self.request.workers:
            cleaned = Workers(settings, self.request.workers).clean(batches)
        else:
            cleaner = Cleaner(settings)
            cleaned = (clean_here(cleaner, batch) for batch in batches)
        part = Part()
        with contextlib.closing(cleaned):
            for done in cleaned:
                part.add(done, batches.given.pop(0))
                stop = self.should_stop()
                if stop or part.full(self.request.part_documents):
                    yield part
                    part = Part()
                if stop:
                    return
        if part.end is not None:
            yield part

    def _finish(self, num_shares: int, survey: Survey) -> dict[str, Any]:
        whole, parts = self._joined(num_shares, survey)
        begun = time.monotonic()
        self.observe(whole)
        found = final.find_duplicates(self.work, parts, self.request.near)
        seconds = {"cleaning": whole.seconds, "duplicates": time.monotonic() - begun}
        whole.stage = WRITING
        self.observe(whole)
        begun = time.monotonic()
        survey, state = survey.noted(anew=False)
        examples = final.write(self.work, self.out, parts, found, whole.facts, state.terms_of)
        survey.save(self.out)
        seconds["writing"] = time.monotonic() - begun
        settings = {k: v for k, v in survey.settings.items() if k in ("language", "script")}
        figures = {
            "pipeline": PIPELINE,
            **settings,
            "workers": self.request.workers,
            "shares": num_shares,
            "sources": [Path(source).name for source in survey.sources],
            "files": len(survey.files),
            "bytes": whole.bytes_total,
            "consents": final.allowed(self.out),
            "seconds": seconds,
            **json.loads(whole.facts.to_json()),
        }
        write_file(self.out / final.EXAMPLES, json.dumps(examples).encode(), private=True)
        write_file(self.out / REPORT, json.dumps(figures, indent=1).encode())
        shutil.rmtree(self.work, ignore_errors=True)
        return figures

    def _joined(self, num_shares: int, survey: Survey) -> tuple[Progress, list[Path]]:
        """Return the numbers of all shares together, and the folders of their parts."""
        whole = Progress(stage=DUPLICATES)
        parts: list[Path] = []
        for number in range(num_shares):
            folder = self._share_folder(number, num_shares)
            progress = self._resume(folder, survey, 0, 0)
            if progress.stage == CLEANING:
                raise CorpusError(
                    f"share {number} of {num_shares} is not cleaned yet",
                    "let it end; the same command goes on",
                )
            whole.facts.add(progress.facts)
            whole.bytes_total += progress.bytes_total
            whole.place = replace(whole.place, bytes=whole.bytes_total)
            whole.seconds = max(whole.seconds, progress.seconds)
            parts += [folder / part_name(k) for k in range(progress.parts)]
        return whole, parts


def note(out: Path) -> tuple[dict[str, Any], int]:
    """Note in the records of a folder what their sources allow now.

    For sources that have changed since: what is new in them is not looked at. Returns the figures
    of the folder, and how many records are allowed more than before, or something else.

    Raises:
        CorpusError: nothing was prepared there, or a manifest cannot be read.
        StorageError: the disk is full or refuses, or another process works there.
    """
    if not (out / MARKER).exists() or finished(out) is None:
        raise CorpusError(f"{out} holds no finished preparation", "name the --out of boli prepare")
    with locked(out, "the folder"):
        survey, figures = Survey.load(out), finished(out)
        if survey is None or figures is None:
            raise CorpusError(f"{out} is being prepared anew", "wait until that is done")
        try:
            return figures, _note(out, survey, figures)
        except OSError as error:
            raise storage_error(out, error) from error


def _note(out: Path, survey: Survey, figures: dict[str, Any]) -> int:
    """Note what the sources allow now; return how many records are not bound as before."""
    survey, state = survey.noted(anew=True)
    changed, loosened = final.stamp_again(out, state.terms_of)
    if changed:
        figures["consents"] = final.allowed(out)
        write_file(out / REPORT, json.dumps(figures, indent=1).encode())
    survey.save(out)
    return loosened


def clear(out: Path) -> None:
    """Remove what an earlier preparation wrote, and nothing else."""
    for name in (WORK, TASKS, *final.FOLDERS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (REPORT, final.EXAMPLES, "report.html", "examples.html", MARKER):
        (out / name).unlink(missing_ok=True)


def finished(out: Path) -> dict[str, Any] | None:
    """Return the figures of a folder that is prepared; None where there are none yet.

    Raises:
        CorpusError: the file with them is not whole.
    """
    try:
        figures: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return figures if figures["pipeline"] else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise CorpusError(f"{out / REPORT} is not whole", "begin anew with --again") from None


def _share(survey: Survey, number: int, num_shares: int) -> tuple[int, int]:
    """Return which files belong to a share: such as lie together, with about as many bytes."""
    sizes = np.array([size + 1 for size, _ in survey.stamps], np.int64)
    middle = np.cumsum(sizes) - sizes / 2
    share = (middle * num_shares / sizes.sum()).astype(int)
    return int(np.searchsorted(share, number)), int(np.searchsorted(share, number, "right"))
