"""What a site on another machine needs to begin a run: the plan, and the files of the base."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from boli.corpus.sources import read_split
from boli.durable import Generations, make_private, open_private, storage_error, sync_folder
from boli.errors import CorruptFileError, LimitError, NotAcceptedError, SiteError
from boli.evaluation.units import size
from boli.plan import Plan, SitePlan
from boli.plan_file import plan_from_tables
from boli.pool.pins import note_pins
from boli.rounds.transport import NodeLink
from boli.rounds.update import Message, Order
from boli.site import answers, limits
from boli.site.answers import Answers, in_words
from boli.site.limits import Limits, OrderCheck, SentBytes
from boli.site.node import Node

Accept = Callable[[str, LimitError | None], bool]  # the plan in words, and what was refused of it

READ_BYTES = 1 << 20
STATE = ("runs", "bases", "sent", "lock", limits.FILE, answers.FILE)  # what the folder holds
# Of these sections of a plan a site is told only what it works by.
TOLD = {
    "corpus": ("held_out",),
    "rounds": ("mode", "total", "local_steps", "min_local_steps", "speed_aware", "seed"),
    "base": ("language", "quantize"),
}
BASE_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")  # data only, never code


class BaseFile(Message):
    """One file of the base: what it is called, and what it must be."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,150}$")
    size: int = Field(ge=0)  # bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Kit(Message):
    """All that a site is told of a run; its text and its state are its own."""

    run: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    plan: dict[str, Any]  # tables, as in plan.json
    files: tuple[BaseFile, ...] = ()  # of the base; none: the plan names a hub id
    origin: str = ""  # the hub id
    num_sites: int = Field(0, ge=0)  # of the plan, where it names one alone; 0: it names all

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


def kit_of(run: str, plan: Plan, origin: str) -> Kit:
    """Return the kit of a run whose base is the folder or hub id `origin`."""
    folder, files = Path(origin), []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in BASE_SUFFIXES:
                size = path.stat().st_size
                files.append(BaseFile(name=path.name, size=size, sha256=sha256_of(path)))
    tables = json.loads(plan.model_dump_json())
    return Kit(run=run, plan=tables, files=tuple(files), origin="" if files else origin)


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
        plan, section = self.plan_here(kit)
        refusal = self.answers.refusal(kit.run, kit.digest, self.limits.digest)
        if refusal is None and self.answers.is_accepted(kit.run, kit.digest):
            return
        base = repr(kit.origin) if kit.origin else f"{kit.base_sha256} ({size(kit.base_bytes)})"
        splits = read_split(plan, section.text, section.language)
        num_sites = kit.num_sites or len(plan.site)
        words = in_words(kit.run, plan, section, splits, base, num_sites, self.limits)
        if not accept(words, refusal):
            self.answers.decline(kit.run, kit.digest)
            raise NotAcceptedError(
                f"the people of site {self.site} did not accept run {kit.run}",
                "ask them; boli join shows them the plan again",
            )
        self.answers.accept(kit.run, kit.digest)

    def missing(self, kit: Kit) -> list[BaseFile]:
        """Return the files of the base that are not here yet, or not whole.

        Raises:
            SiteError: the base that the site was given is not the run's.
        """
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

    def fetched_bytes(self, kit: Kit, file: BaseFile) -> int:
        """Return how much of a file of the base was fetched so far, also before a power cut."""
        path = self._unfinished(kit, file)
        return path.stat().st_size if path.exists() else 0

    def add_piece(self, kit: Kit, file: BaseFile, piece: bytes) -> None:
        """Keep the next piece of a file of the base.

        Raises:
            CorruptFileError: there is more of it than the kit names; what came is dropped.
            StorageError: the disk is full or refuses.
        """
        path = self._unfinished(kit, file)
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
        import torch

        from boli.plan import available_cores
        from boli.site.work import open_work

        plan, section = self.plan_here(kit)
        refusal = self.answers.refusal(kit.run, kit.digest, self.limits.digest)
        if refusal is not None:
            raise refusal
        cores = available_cores()
        torch.set_num_threads(min(plan.engine.threads_per_site or cores, cores))
        origin = str(self.base_folder(kit)) if kit.files else kit.origin
        work = open_work(plan, section, origin, kit.num_sites)
        check = self._order_check(kit, plan)
        try:
            check.check_work(work.text_tokens, work.num_lines)
            note_pins(self.run_folder(kit) / "run.json", [copy.facts() for copy in work.copies])
            store = Generations(self.run_folder(kit))
            return Node.of(plan, self.site, link, work, store, restarts, check)
        except BaseException:
            work.close()
            raise

    def _order_check(self, kit: Kit, plan: Plan) -> OrderCheck:
        def refuse(order: Order, error: LimitError) -> None:
            under = self.limits.digest
            self.answers.refuse(kit.run, kit.digest, under, order.order, error)

        sent = SentBytes(self.state / "sent", self.limits.max_bytes_a_day)
        return OrderCheck(self.limits, plan, sent, refuse)

    def plan_here(self, kit: Kit) -> tuple[Plan, SitePlan]:
        """Return the plan with this site's folder as its root, and the site's section.

        Raises:
            LimitError: the plan asks for what the site's limits do not allow.
            SiteError: the plan does not know the site.
        """
        tables = {**kit.plan, "corpus": {**kit.plan.get("corpus", {}), "root": str(self.data)}}
        plan = plan_from_tables(tables)
        section = next((one for one in plan.site if one.name == self.site), None)
        if section is None:
            names = ", ".join(one.name for one in plan.site)
            raise SiteError(f"plan {plan.name} has no site {self.site}", f"it has: {names}")
        self.limits.check_plan(plan)
        self.limits.check_text(self.data, section.text)
        others = 0 if self.base else self._bytes_of_other_bases(kit)
        self.limits.check_base(kit.base_sha256, 0 if self.base else kit.base_bytes, others)
        return plan, section

    def _bytes_of_other_bases(self, kit: Kit) -> int:
        own = self.base_folder(kit)
        files = (self.state / "bases").glob("*/*")
        return sum(path.stat().st_size for path in files if path.parent != own and path.is_file())
