"""What a site on another machine needs to begin a run: the plan, and the files of the base."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from boli.corpus.pieces import Floors
from boli.corpus.sources import read_split
from boli.durable import Generations, make_private, open_private, storage_error, sync_folder
from boli.errors import (
    CorruptFileError,
    LimitError,
    ModelError,
    NotAcceptedError,
    PlanError,
    SiteError,
    StorageError,
)
from boli.evaluation.units import size
from boli.model.base_check import LARGEST_BASE_BYTES, MOST_FILES, check_base, is_allowed_name
from boli.plan import Plan, SitePlan
from boli.plan_file import plan_from_tables
from boli.pool.pins import note_pins
from boli.pretrained import revision_of
from boli.rounds.transport import NodeLink
from boli.rounds.update import PROTOCOL, Count, Message, Order, check_protocol
from boli.site import answers, limits
from boli.site.answers import Answers, in_words, pieces_in_words
from boli.site.limits import Limits, OrderCheck, SentBytes
from boli.site.node import Node
from boli.site.pieces import PieceWork, floors_of, pieces_file, write_pieces

Accept = Callable[[str, LimitError | None], bool]  # the plan in words, and what was refused of it

READ_BYTES = 1 << 20
LARGEST_KIT_BYTES = 4 << 20
STATE = ("runs", "bases", "sent", "lock", limits.FILE, answers.FILE)  # what the folder holds
SPARE_DISK_BYTES = 1 << 30  # left free when a base is fetched
TRIES = 3  # to fetch a file that arrives altered
# Of these sections of a plan a site is told only what it works by.
TOLD = {
    "corpus": ("held_out",),
    "rounds": ("mode", "total", "local_steps", "min_local_steps", "speed_aware", "seed"),
    "base": ("language", "quantize", "pieces"),
}


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
    num_sites: Count = 0  # of the plan, where it names one alone; 0: it names all
    # Before the base of a run is made: counts of pieces of words. Nothing is trained then, and
    # there are no files: a site that does not know this refuses for lack of them.
    asks: Literal["", "pieces"] = ""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [file.name.lower() for file in self.files]  # some disks know no case
        if len(set(names)) < len(names):
            raise ValueError("a file of the base is there twice")
        return self

    def for_site(self, site: str) -> Kit:
        """Return what one site is told: its own part of the plan, and no path of the coordinator.

        Where the coordinator's files are and what other sites read is nothing of its business.
        """
        sections = self.plan.get("site", ())
        model = dict(self.plan.get("model", {}))
        if "base" in model:
            model["base"] = {"path": self.origin or "base", **_told("base", model["base"])}
        plan = dict(self.plan) | {"site": [one for one in sections if one.get("name") == site]}
        plan |= {key: _told(key, plan[key]) for key in ("corpus", "rounds") if key in plan}
        plan |= {"model": model} if model else {}
        num_sites = self.num_sites or len(sections)
        return self.model_copy(update={"plan": plan, "num_sites": num_sites})

    @property
    def base_sha256(self) -> str:
        """Hash of the base's files and their names; empty where a hub names it."""
        said = json.dumps([file.facts() for file in self.files])
        return hashlib.sha256(said.encode()).hexdigest() if self.files else ""

    @property
    def base_bytes(self) -> int:
        """Size of the base's files."""
        return sum(file.size for file in self.files)

    @property
    def base_digest(self) -> str:
        """Name of the base's folder at a site: bases that are equal share one."""
        return self.base_sha256[:16]

    @property
    def digest(self) -> str:
        """Hash of all that the site is told: whoever accepted it has accepted just this."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()


def _told(section: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tables[key] for key in TOLD[section] if key in tables}


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


def pieces_kit(run: str, plan: Plan) -> Kit:
    """Return the kit with which sites are asked for their pieces."""
    tables = json.loads(plan.model_dump_json())
    return Kit(protocol=PROTOCOL, run=run, plan=tables, asks="pieces")


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
    limits: Limits = field(default_factory=Limits)  # that its people set
    limits_file: Path | None = None  # where they are, if not in the state folder

    @property
    def answers(self) -> Answers:
        """What the site answered so far to what it was asked."""
        return Answers(self.state / answers.FILE)

    def make_private(self) -> None:
        """Make the state folder, for its owner alone; what was left open is closed.

        Raises:
            StorageError: the disk refuses, or the folder is somebody else's.
        """
        make_private(self.state, STATE)

    def run_folder(self, kit: Kit) -> Path:
        """Return where the node's state of one run is."""
        return self.state / "runs" / kit.run

    def base_folder(self, kit: Kit) -> Path:
        """Return where the base's files are, or will be."""
        return self.base or self.state / "bases" / kit.base_digest

    def admit(self, kit: Kit, accept: Accept) -> None:
        """Let a run begin that the site's limits allow and its people accepted; before any fetch.

        They are asked once for each plan, and again after an order of it was refused.

        Raises:
            CorpusError: the text is missing, empty or too short.
            LimitError: the limits do not allow it.
            NotAcceptedError: its people did not accept it.
            SiteError: the plan does not know the site.
            StorageError: the answer cannot be kept.
        """
        self.plan_here(kit)
        refusal = self.answers.refusal(kit.run, kit.digest, self.limits.digest)
        if refusal is None and self.answers.is_accepted(kit.run, kit.digest):
            return
        words = self._pieces_in_words(kit) if kit.asks else self._plan_in_words(kit)
        if not accept(words, refusal):
            self.answers.decline(kit.run, kit.digest)
            raise NotAcceptedError(
                f"the people of site {self.site} did not accept run {kit.run}",
                "ask them; boli join shows them the plan again",
            )
        self.answers.accept(kit.run, kit.digest)

    def _plan_in_words(self, kit: Kit) -> str:
        plan, section = self.plan_here(kit)
        base = f"{kit.base_sha256} ({size(kit.base_bytes)})"
        base += f", which is {kit.origin} of a hub" if kit.origin else ""
        splits = read_split(plan, section.text, section.language)
        num_sites = kit.num_sites or len(plan.site)
        return in_words(kit.run, plan, section, splits, base, num_sites, self.limits)

    def _pieces_in_words(self, kit: Kit) -> str:
        """Count the pieces, so that people can read what would be sent before they answer."""
        plan, section = self.plan_here(kit)
        floors = self._floors(plan)
        path = pieces_file(self.run_folder(kit), floors)
        pieces = write_pieces(plan, section, floors, path)
        num_sites = kit.num_sites or len(plan.site)
        return pieces_in_words(kit.run, plan, section, num_sites, floors, pieces, path)

    def _floors(self, plan: Plan) -> Floors:
        """Return what a piece needs to leave: the stricter of plan and limits."""
        return floors_of(plan.model.base.pieces).stricter(self.limits.floors)

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
        bases.mkdir(parents=True, exist_ok=True, mode=0o700)
        wanted = {self._unfinished(kit, file) for file in kit.files}
        for path in bases.glob("*/.*.part"):
            if path not in wanted:
                path.unlink()
        there = sum(path.stat().st_size for path in bases.rglob("*") if path.is_file())
        coming = sum(file.size - self.fetched_bytes(kit, file) for file in lacking)
        if there + coming > self.limits.max_base_bytes:
            others = sorted(path.name for path in bases.iterdir() if path != folder)
            raise ModelError(
                f"the base takes {coming} bytes more, and {there} of the "
                f"{self.limits.max_base_bytes} that bases may take here are in use",
                f"delete what no run needs of {bases}: {', '.join(others[:5])}"
                if others
                else f"raise max_base_bytes in {limits.FILE}, if this base is wanted",
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
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(open_private(path), "ab") as target:
                target.write(piece)
                whole = target.tell()
            if whole > file.size:
                path.unlink()
                raise CorruptFileError(
                    f"{file.name} of the base came with {whole} bytes, not {file.size}",
                    "fetch it again",
                )
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
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(open_private(path))
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
            LimitError: the limits do not allow it.
            ModelError: the base cannot be loaded.
            SiteError: the plan does not know the site.
            StorageError: the disk refuses.
        """
        plan, section = self.plan_here(kit)
        refusal = self.answers.refusal(kit.run, kit.digest, self.limits.digest)
        if refusal is not None:
            raise refusal
        if kit.asks:
            return self._open_pieces(kit, plan, section, link, restarts)
        import torch

        from boli.plan import available_cores
        from boli.site.work import open_work

        self._check_base(kit, plan)
        cores = available_cores()
        torch.set_num_threads(min(plan.engine.threads_per_site or cores, cores))
        work = open_work(plan, section, str(self.base_folder(kit)), kit.num_sites)
        check = self._order_check(kit, plan)
        try:
            check.check_work(work.text_tokens, work.num_lines)
            note_pins(self.run_folder(kit) / "run.json", [copy.facts() for copy in work.copies])
            store = Generations(self.run_folder(kit))
            return Node.of(plan, self.site, link, work, store, restarts, check)
        except BaseException:
            work.close()
            raise

    def _open_pieces(
        self, kit: Kit, plan: Plan, section: SitePlan, link: NodeLink, restarts: int
    ) -> Node:
        floors, folder = self._floors(plan), self.run_folder(kit)

        def note(pieces: Mapping[str, int], data: bytes) -> None:
            digest = hashlib.sha256(data).hexdigest()
            self.answers.send_pieces(kit.run, kit.digest, len(pieces), len(data), digest)

        work = PieceWork(plan, section, floors, pieces_file(folder, floors), note)
        note_pins(folder / "run.json", [copy.facts() for copy in work.copies])
        check = self._order_check(kit, plan)
        return Node.of(plan, self.site, link, work, Generations(folder), restarts, check)

    def _order_check(self, kit: Kit, plan: Plan) -> OrderCheck:
        def refuse(order: Order, error: LimitError) -> None:
            under = self.limits.digest
            self.answers.refuse(kit.run, kit.digest, under, order.order, error)

        sent = SentBytes(self.state / "sent", self.limits.max_bytes_a_day)
        return OrderCheck(self.limits, plan, sent, refuse)

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
            LimitError: the plan asks for what the site's limits do not allow.
            PlanError: it is none; keys that only a newer boli knows are ignored.
            SiteError: the plan does not know the site.
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
        self.limits.check_plan(plan)
        self.limits.check_text(self.data, section.text)
        if kit.asks:
            self.limits.check_pieces()
        else:
            self.limits.check_base(kit.base_sha256, 0 if self.base else kit.base_bytes)
        return plan, section


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
