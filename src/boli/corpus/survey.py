"""What a preparation was asked for and which files it found, frozen in the folder that it writes.

What comes into the sources later is not read by a preparation that goes on. What the sources
allow is read when records are written, and `governed` holds which source.toml said so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from boli.corpus.cleaning import Cleaner, Settings
from boli.corpus.consent import MANIFEST, TEMPLATE
from boli.corpus.documents import Reading
from boli.corpus.listing import MARKER, SourceFile, list_files
from boli.corpus.record import PIPELINE, root_key
from boli.corpus.script import KNOWN_SCRIPTS, table
from boli.corpus.source_state import SourceState
from boli.durable import write_file
from boli.errors import CorpusError


@dataclass(frozen=True)
class Request:
    """What is to be prepared, and how."""

    sources: tuple[Path, ...]
    out: Path
    language: str
    script: str = ""  # empty: the one that the language is mostly written in
    reading: Reading = field(default_factory=Reading)
    identifier: str = ""
    recognizer: str = ""
    scorer: str = ""
    most_bits: float | None = None  # per byte, under the scorer
    near: bool = True  # near duplicates go too, not only exact ones
    workers: int = 1  # processes; 0: none but this one
    part_documents: int = 8192  # a kill costs at most as many

    def settings(self) -> Settings:
        """Return what the workers have to know.

        Raises:
            CorpusError: there is no such script.
        """
        if self.script and self.script not in KNOWN_SCRIPTS:
            raise CorpusError(
                f"script {self.script!r} is not known", f"one of {', '.join(sorted(KNOWN_SCRIPTS))}"
            )
        script = self.script or table("languages").get(self.language, "")
        models = (self.identifier, self.recognizer, self.scorer)
        paths = [str(Path(path).resolve()) if path else "" for path in models]
        return Settings(
            self.language,
            script,
            identifier=paths[0],
            recognizer=paths[1],
            scorer=paths[2],
            most_bits=self.most_bits,
            roots=tuple(map(root_key, self.sources)),
        )

    def digest(self) -> str:
        """Return a hash of all that decides what comes out, but for the text itself."""
        settings = self.settings()
        digest = hashlib.sha256(PIPELINE.encode())
        chosen = [asdict(self.reading), asdict(settings), self.near]
        digest.update(json.dumps(chosen).encode())
        for path in filter(None, (settings.identifier, settings.recognizer)):
            if Path(path).is_file():
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        return digest.hexdigest()

    def refuse_missing(self) -> None:
        """Refuse models that are not there.

        Raises:
            CorpusError: one is not.
        """
        for option in ("identifier", "recognizer", "scorer"):
            path = getattr(self, option)
            if path and not Path(path).exists():
                raise CorpusError(f"there is no {option} at {path}", "check the path")

    def refuse_overlap(self) -> None:
        """Refuse to write where text is read from.

        Raises:
            CorpusError: a source is the folder that is written, or lies in it.
        """
        out = self.out.resolve()
        for source in self.sources:
            if source.resolve().is_relative_to(out):
                raise CorpusError(
                    f"the source {source} is inside {self.out}, which is written to",
                    "name another folder with --out",
                )


@dataclass(frozen=True)
class Survey:
    """The files of a preparation, in order."""

    digest: str  # of the request
    settings: dict[str, Any]
    reading: dict[str, Any]
    sources: tuple[str, ...]
    files: tuple[SourceFile, ...]
    stamps: tuple[tuple[int, int], ...]  # size and time of change of each file
    # Root → folder → folder of the source.toml that governed it: first when the preparation began,
    # then when records were written. Empty where none did. None: an older boli did not note that.
    governed: dict[str, dict[str, str]] | None = None

    @classmethod
    def take(cls, request: Request) -> Survey:
        """Look at the sources and read the models, so that what is wrong is told of at once.

        Raises:
            CorpusError: there is nothing to read, or a manifest or a model cannot be read.
        """
        request.refuse_overlap()
        request.refuse_missing()
        files = list_files(request.sources, leave_out=request.out)
        settings = request.settings()
        survey = cls(
            request.digest(),
            asdict(settings),
            asdict(request.reading),
            tuple(str(source.resolve()) for source in request.sources),
            tuple(files),
            tuple(stamp_of(file.path) for file in files),
        )
        Cleaner(settings).check()
        return replace(survey, governed=SourceState(survey.file_of).governing(files))

    def save(self, out: Path) -> None:
        """Write it into a folder; only its owner may read it.

        Raises:
            StorageError: the disk is full or refuses.
        """
        body = {each.name: getattr(self, each.name) for each in fields(self)}
        body["files"] = [[str(file.path), file.name, str(file.root)] for file in self.files]
        if self.governed is None:
            del body["governed"]
        write_file(out / MARKER, json.dumps(body).encode(), private=True)

    @classmethod
    def load(cls, out: Path) -> Survey | None:
        """Return the survey of a folder; None where nothing was prepared.

        Raises:
            CorpusError: the file is not whole.
        """
        try:
            body = json.loads((out / MARKER).read_bytes())
            files = tuple(SourceFile(Path(a), b, Path(c)) for a, b, c in body.pop("files"))
            stamps = tuple((size, changed) for size, changed in body.pop("stamps"))
            body["sources"] = tuple(body["sources"])
            if (governed := body.get("governed")) is not None:
                body["governed"] = {
                    root: {folder: os.fspath(place) for folder, place in folders.items()}
                    for root, folders in governed.items()
                }
            return cls(**body, files=files, stamps=stamps)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorpusError(
                f"{out / MARKER} is not whole: {type(error).__name__}", "begin anew with --again"
            ) from None

    @property
    def roots(self) -> list[int]:
        """Which of the sources each file is of."""
        return [self.sources.index(str(file.root)) for file in self.files]

    @cached_property
    def _by_name(self) -> dict[str, SourceFile]:
        return {file.name: file for file in self.files}

    def file_of(self, source: str) -> SourceFile | None:
        """Return the file that a record's source names."""
        name = source.rpartition("#")[0] or source
        while name not in self._by_name and "/" in name:  # a member of a zip file
            name = name.rpartition("/")[0]
        return self._by_name.get(name)

    def is_of_same(self, other: Survey) -> bool:
        """Tell whether another one found the same files, unchanged."""
        names = [[file.name for file in each.files] for each in (self, other)]
        return names[0] == names[1] and self.stamps == other.stamps

    def state(self) -> SourceState:
        """Return what the sources allow now, for records that were prepared."""
        return SourceState(self.file_of, self.governed or {})

    def noted(self, *, anew: bool) -> tuple[Survey, SourceState]:
        """Return what the sources allow now, to note it in records; and the survey to save then.

        Not `anew`: what governed the sources when the preparation began has to be there still.

        Raises:
            CorpusError: a manifest cannot be read, or says what it may not.
        """
        state = SourceState(self.file_of, None if anew else self.governed)
        return replace(self, governed=state.governing(self.files)), state

    def write_templates(self) -> Iterator[Path]:
        """Write source.toml into each source folder that has none; yields what was written."""
        state = SourceState(self.file_of)
        for root in dict.fromkeys(file.root for file in self.files):
            # Not beside a single file: it would count for all that lies there.
            if root.is_dir() and state.nearest(root, root) is None:
                # On a read-only disk there is none. What appeared there meanwhile stays.
                with contextlib.suppress(OSError):
                    with (root / MANIFEST).open("x", encoding="utf-8") as file:
                        file.write(TEMPLATE)
                    yield root / MANIFEST


def stamp_of(path: Path) -> tuple[int, int]:
    """Return the size and the time of change of a file; zeros where they cannot be told."""
    try:
        stat = path.lstat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def refuse_other(out: Path, survey: Survey, request: Request) -> None:
    """Refuse to go on with another request than the one that was begun.

    Raises:
        CorpusError: it is another.
    """
    if survey.digest != request.digest():
        raise CorpusError(
            f"{out} holds what was made of other sources or with other settings",
            "name another folder with --out, or begin anew with --again",
        )


def refuse_foreign(out: Path) -> None:
    """Refuse to write into a folder with other people's files.

    Raises:
        CorpusError: there are some.
    """
    there = [path.name for path in out.iterdir()] if out.is_dir() else []
    if set(there) - {"lock"} and MARKER not in there:
        raise CorpusError(
            f"{out} is not empty, and boli prepare did not write it",
            "name a new folder with --out",
        )
