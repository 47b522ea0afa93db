"""What a site on another machine needs to begin a run: the plan, and the files of the base."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from boli.durable import Generations, storage_error, sync_folder
from boli.errors import CorruptFileError, ModelError, PlanError, SiteError, StorageError
from boli.model.base_check import LARGEST_BASE_BYTES, MOST_FILES, check_base, is_allowed_name
from boli.plan import Plan, SitePlan, TextSource
from boli.plan_file import plan_from_tables
from boli.pool.pins import note_pins
from boli.pretrained import revision_of
from boli.rounds.transport import NodeLink
from boli.rounds.update import PROTOCOL, Count, Message, check_protocol
from boli.site.node import Node

READ_BYTES = 1 << 20
LARGEST_KIT_BYTES = 4 << 20
SPARE_DISK_BYTES = 1 << 30  # left free when a base is fetched
TRIES = 3  # to fetch a file that arrives altered


class BaseFile(Message):
    """One file of the base: what it is called, and what it must be."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}$")
    size: int = Field(ge=0, le=LARGEST_BASE_BYTES)  # bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Kit(Message):
    """All that a site is told of a run; its text and its state are its own."""

    protocol: Count = 1
    run: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    plan: dict[str, Any]  # tables, as in plan.json
    files: tuple[BaseFile, ...] = Field((), max_length=MOST_FILES)  # of the base
    # Where the coordinator has the base from, for people to read: a site fetches it by digests.
    origin: str = Field("", pattern=r"^([A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?)?$")
    revision: str = Field("", pattern=r"^([0-9a-f]{40})?$")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [file.name.lower() for file in self.files]  # some disks know no case
        if len(set(names)) < len(names):
            raise ValueError("a file of the base is there twice")
        return self

    @property
    def base_digest(self) -> str:
        """Name of the base's folder at a site: bases that are equal share one."""
        said = json.dumps([file.facts() for file in self.files])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def kit_of(run: str, plan: Plan, base: Path, origin: str = "") -> Kit:
    """Return the kit of a run whose base is in a folder; `origin` is its id at a hub, or a folder.

    Raises:
        ModelError: sites would refuse the base.
    """
    files = []
    for path in sorted(base.iterdir()):
        if path.is_file() and is_allowed_name(path.name):
            size = path.stat().st_size
            files.append(BaseFile(name=path.name, size=size, sha256=sha256_of(path)))
    check_base(base, [file.name for file in files])
    tables = json.loads(plan.model_dump_json())
    at_hub = {} if Path(origin).is_dir() else {"origin": origin, "revision": revision_of(base)}
    return Kit(protocol=PROTOCOL, run=run, plan=tables, files=tuple(files), **at_hub)


def read_kit(data: bytes) -> Kit:
    """Read what a coordinator answered; fields that only a newer boli knows are ignored.

    Raises:
        SiteError: it is none that a site can follow.
        TransportError: the coordinator speaks another protocol.
    """
    if len(data) > LARGEST_KIT_BYTES:
        raise _bad_kit(f"it has {len(data)} bytes, at most {LARGEST_KIT_BYTES} are read")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _bad_kit(f"it is no JSON ({type(error).__name__})") from None
    return kit_from(said)


def kit_from(said: object) -> Kit:
    """Return the kit that a coordinator's JSON says; see `read_kit`.

    Raises:
        SiteError: it is none that a site can follow.
        TransportError: the coordinator speaks another protocol.
    """
    if not isinstance(said, dict):
        raise _bad_kit(f"it is a {type(said).__name__}")
    check_protocol(said, "this coordinator")
    try:
        return Kit.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise _bad_kit(f"{where or 'it'}: {first['msg'][:200]}") from None
    except RecursionError:
        raise _bad_kit("it is nested too deeply") from None


def _bad_kit(problem: str) -> SiteError:
    return SiteError(
        f"the coordinator's kit is not valid: {problem}",
        "tell the coordinator's people",
        "site.kit",
    )


@dataclass(frozen=True)
class SiteFolder:
    """One site's own places: text that is only read, and state that only boli writes."""

    site: str
    data: Path  # text paths of the plan start here, and stay below it
    state: Path
    base: Path | None = None  # the base, where the site has it already
    base_bytes: int = LARGEST_BASE_BYTES  # that all bases may take here

    def run_folder(self, kit: Kit) -> Path:
        """Return where the node's state of one run is."""
        return self.state / "runs" / kit.run

    def base_folder(self, kit: Kit) -> Path:
        """Return where the base's files are, or will be."""
        return self.base or self.state / "bases" / kit.base_digest

    def missing(self, kit: Kit) -> list[BaseFile]:
        """Return the files of the base that are not here yet, or not whole.

        Raises:
            ModelError: a file is none that a base may have.
            SiteError: the base that the site was given is not the run's.
        """
        for file in kit.files:
            if not is_allowed_name(file.name):
                raise ModelError(
                    f"the coordinator's base has a file {file.name}, which no base may have",
                    "tell the coordinator's people",
                    code="model.refused",
                )
        folder = self.base_folder(kit)
        found = [
            file
            for file in kit.files
            if not (folder / file.name).is_file() or sha256_of(folder / file.name) != file.sha256
        ]
        if found and self.base is not None:
            raise SiteError(
                f"{folder / found[0].name} is not the file that run {kit.run} starts from",
                "give the folder of the same base, or none: it is fetched then",
            )
        return found

    def make_room(self, kit: Kit, lacking: Sequence[BaseFile]) -> None:
        """Drop what was left of bases that were never whole, and see whether `lacking` fits.

        Raises:
            ModelError: the bases together would be larger than they may.
            StorageError: the disk would be full.
        """
        bases, folder = self.state / "bases", self.base_folder(kit)
        bases.mkdir(parents=True, exist_ok=True)
        wanted = {self._unfinished(kit, file) for file in kit.files}
        for path in bases.glob("*/.*.part"):
            if path not in wanted:
                path.unlink()
        there = sum(path.stat().st_size for path in bases.rglob("*") if path.is_file())
        coming = sum(file.size - self.fetched_bytes(kit, file) for file in lacking)
        if there + coming > self.base_bytes:
            others = sorted(path.name for path in bases.iterdir() if path != folder)
            raise ModelError(
                f"the base takes {coming} bytes more, and {there} of the {self.base_bytes} that "
                "bases may take here are in use",
                f"delete what no run needs of {bases}: {', '.join(others[:5])}"
                if others
                else "allow more, if this base is wanted",
                code="model.size",
            )
        free = shutil.disk_usage(bases).free
        if coming + SPARE_DISK_BYTES > free:
            raise StorageError(
                f"the base takes {coming} bytes more, and {bases} has {free} free",
                f"free some space: {SPARE_DISK_BYTES} bytes stay free",
            )

    def fetched_bytes(self, kit: Kit, file: BaseFile) -> int:
        """Return how much of a file of the base was fetched so far, also before a power cut."""
        path = self._unfinished(kit, file)
        return path.stat().st_size if path.exists() else 0

    def add_piece(self, kit: Kit, file: BaseFile, piece: bytes) -> None:
        """Keep the next piece of a file of the base.

        Raises:
            CorruptFileError: more comes than the file has; what was fetched is dropped.
            StorageError: the disk is full or refuses.
        """
        path = self._unfinished(kit, file)
        if self.fetched_bytes(kit, file) + len(piece) > file.size:
            path.unlink(missing_ok=True)
            raise CorruptFileError(f"{file.name} of the base arrives longer than it is")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as target:
                target.write(piece)
        except OSError as error:
            raise storage_error(path, error) from error

    def finish_file(self, kit: Kit, file: BaseFile) -> None:
        """Take a file of the base for fetched.

        Raises:
            CorruptFileError: it is not what the kit names; what was fetched is dropped.
            StorageError: the disk is full or refuses.
        """
        path = self._unfinished(kit, file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if sha256_of(path) != file.sha256:
                path.unlink()
                raise CorruptFileError(f"{file.name} of the base arrived altered", "fetch it again")
            with path.open("rb") as whole:
                os.fsync(whole.fileno())
            path.rename(self.base_folder(kit) / file.name)
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, error) from error

    def _unfinished(self, kit: Kit, file: BaseFile) -> Path:
        return self.base_folder(kit) / f".{file.name}.part"

    def open_node(self, kit: Kit, link: NodeLink, restarts: int = 0) -> Node:
        """Return the site's node for a run, with its text and base loaded.

        Raises:
            CorpusError: the text is missing, empty or too short.
            ModelError: the base cannot be loaded.
            SiteError: the plan does not know the site, or wants text from elsewhere.
            StorageError: the disk refuses.
        """
        import torch

        from boli.plan import available_cores
        from boli.site.work import open_work

        plan, section = self.plan_here(kit)
        self._check_base(kit, plan)
        cores = available_cores()
        torch.set_num_threads(min(plan.engine.threads_per_site or cores, cores))
        work = open_work(plan, section, str(self.base_folder(kit)))
        try:
            note_pins(self.run_folder(kit) / "run.json", [copy.facts() for copy in work.copies])
            return Node.of(plan, self.site, link, work, Generations(self.run_folder(kit)), restarts)
        except BaseException:
            work.close()
            raise

    def _check_base(self, kit: Kit, plan: Plan) -> None:
        """Refuse a base that is not whole, is named by no digests, or is not safe to load."""
        if not kit.files:
            raise ModelError(
                f"run {kit.run} names no files of a base by their digests",
                "update boli at the coordinator",
                code="model.refused",
            )
        whole, memory = sum(file.size for file in kit.files), _memory_bytes()
        if plan.model.base.quantize == "none" and whole > memory:
            raise ModelError(
                f"the base takes {whole} bytes, and this machine has {memory} of memory",
                "the run needs a larger machine, or a smaller base",
                code="model.size",
            )
        lacking = self.missing(kit)
        if lacking:
            raise CorruptFileError(f"{lacking[0].name} of the base is not whole", "start again")
        check_base(self.base_folder(kit), [file.name for file in kit.files])

    def plan_here(self, kit: Kit) -> tuple[Plan, SitePlan]:
        """Return the plan with this site's folder as its root, and the site's section.

        Raises:
            PlanError: it is none; keys that only a newer boli knows are ignored.
            SiteError: the plan does not know the site, or wants text from elsewhere.
        """
        corpus = kit.plan.get("corpus", {})
        if not isinstance(corpus, dict):
            raise PlanError(f"corpus of the plan is a {type(corpus).__name__}, not a table")
        tables = {**kit.plan, "corpus": {**corpus, "root": str(self.data)}}
        plan = plan_from_tables(tables, "the coordinator's plan", extra="ignore")
        section = next((one for one in plan.site if one.name == self.site), None)
        if section is None:
            names = ", ".join(one.name for one in plan.site)
            raise SiteError(
                f"plan {plan.name} has no site {self.site}", f"it has: {names}", "site.unknown"
            )
        for source in section.text:
            _check_below(source, self.data)
        return plan, section


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_below(source: TextSource, data: Path) -> None:
    """Refuse text outside the site's folder: the plan was written by somebody else."""
    for path in filter(None, (source.path, source.held_out_by)):
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise SiteError(
                f"the plan asks for {path}, which is outside {data}",
                "name text in the plan relative to the site's data folder",
                "site.outside",
            )
