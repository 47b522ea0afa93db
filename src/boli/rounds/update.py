"""Order, Update, Verdict, Release, and ServerState: what travels and what is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from boli.codec.codec import EXACT, DenseCodec, encode_frame
from boli.codec.facts import pack_facts
from boli.codec.support import Support
from boli.errors import TransportError
from boli.rounds.best import Selection

Vector = NDArray[np.float32]
Sums = NDArray[np.int64]
Spans = tuple[tuple[int, int], ...]  # half-open parts of the flat vector, ascending
Part = Literal["tuning", "test"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e30)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Change = Annotated[float, Field(allow_inf_nan=False, ge=-1, le=1e6)]  # a ratio − 1
Short = Annotated[str, Field(max_length=100)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Rank = Annotated[int, Field(ge=1, le=2**15)]

PROTOCOL: int = 1  # raised by what a peer must understand; other additions are ignored by it

MOST_COPIES = 100  # of pools, that one site reads in one run
SEQUENCES_SKIPPED = 1_000_000  # far above what a site can answer between two checkpoints


class Message(BaseModel):
    """A header on the wire: frozen, JSON; fields of newer peers are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    def facts(self) -> dict[str, Any]:
        """Return what travels: whatever is not at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)


def check_protocol(said: Mapping[str, Any], who: str) -> None:
    """Refuse a peer of another protocol, before anything else that it says is read.

    Raises:
        TransportError: it speaks another one.
    """
    theirs = said.get("protocol", 1)
    if theirs == PROTOCOL and isinstance(theirs, int):
        return
    is_newer = isinstance(theirs, int) and theirs > PROTOCOL
    spoken = str(theirs) if isinstance(theirs, int) and abs(theirs) < 10**6 else "an unknown one"
    raise TransportError(
        f"{who} speaks protocol {spoken}, this boli speaks {PROTOCOL}",
        "update boli here" if is_newer else "update boli there",
        code="protocol",
    )


class Order(Message):
    """What a node is asked: train from a version, judge that version, or both."""

    order: Short  # run-site-sequence: the same in every attempt and after every restart
    site: Short
    sequence: Count  # per site, ascending
    attempt: Count = 0
    base_version: Count
    layout: Short
    rank: Rank | None = None
    local_steps: Count  # 0: only evaluate
    at_most: Count = 0  # local steps of the first attempt; an answer to it is welcome too
    density: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the entries to send; 0: as planned
    position: Finite = 0.0  # of the run when it starts, 0 to 1: the learning-rate schedule
    position_step: Finite = 0.0  # of the run, per local step
    evaluate: Annotated[
        tuple[Part, ...], Field(max_length=10)
    ] = ()  # judged at base_version, before training
    first: bool = False  # what is judged is version 0, the base unchanged, whatever base_version
    returned: Count = 0  # the last sequence that was refused but sound, if its verdict was lost
    support: Support | None = None  # of the cohort that trains from base_version; codec public
    copies: Short = ""  # digest of the copies of pools that the journal says the site reads


class Judgement(Message):
    """Bits per byte of one language's held-out part: bits ÷ bytes."""

    language: Short
    part: Part
    bits: Finite
    bytes: Count


class Difference(Message):
    """Interval of what one row of a report needs beside another on a test part: a ÷ b − 1.

    It is made at the site, over documents drawn anew, of which nothing else is told.
    """

    language: Short
    a: Short  # "model", or "mixed": with n-grams
    b: Short  # "base", "six_gram" or "ppmd"
    documents: Count | None = None  # None: nothing says which lines belong together
    low: Change | None = None  # None: of too few documents, and so is `high`
    high: Change | None = None


class UpdateHeader(Message):
    """What a node says of its answer; the payload travels beside it."""

    order: Short
    site: Short
    sequence: Count
    attempt: Count = 0
    base_version: Count
    layout: Short
    rank: Rank | None = None
    local_steps: Count  # done
    tokens: Count
    loss: Finite = 0.0  # mean over the local steps, nats per token
    train_seconds: Size = 0.0
    evaluate_seconds: Size = 0.0
    work_seconds: Size = 0.0
    idle_seconds: Size = 0.0
    residual_norm: Size = 0.0  # of what it could not send yet
    judgements: Annotated[tuple[Judgement, ...], Field(max_length=100)] = ()
    # Of the same lines: by a 6-gram and by PPMd on the site's text, and by the version and n-grams
    # together; and which of these differences are noise.
    six_gram: Annotated[tuple[Judgement, ...], Field(max_length=100)] = ()
    ppmd: Annotated[tuple[Judgement, ...], Field(max_length=100)] = ()
    mixed: Annotated[tuple[Judgement, ...], Field(max_length=100)] = ()
    differences: Annotated[tuple[Difference, ...], Field(max_length=400)] = ()


class Copy(Message):
    """Which copy of a pool a site reads; tells nothing of the text, or of where it lies."""

    model_config = ConfigDict(strict=True)

    pool: Id
    version: Count  # of the pool
    taken: Id  # of the copy, as the pool has noted it
    rows: Count = 0
    digest: str = Field("", pattern=r"^([0-9a-f]{64})?$")  # of the keys of its rows


def copies_digest(copies: Iterable[Copy]) -> str:
    """Return a digest of which copies these are, in whatever order; of none, the empty one."""
    taken = " ".join(sorted({copy.taken for copy in copies}))
    return hashlib.sha256(taken.encode()).hexdigest()[:16] if taken else ""


@dataclass(frozen=True)
class Update:
    """A node's answer: header and payload, as sent."""

    header: UpdateHeader
    payload: bytes  # a frame of the codec; empty where nothing was trained

    @property
    def num_bytes(self) -> int:
        """Size on the wire, header and payload."""
        return len(pack_facts(self.header.facts())) + len(self.payload)


class Verdict(Message):
    """What became of an update; sent only after the checkpoint that holds it."""

    order: Short
    site: Short
    sequence: Count
    accepted: bool
    reason: Short = ""
    keep: bool = False  # rejected, but sound: the payload goes back to the residual


@dataclass(frozen=True)
class Release:
    """A new version: the step that leads to it, and all of it."""

    version: int
    layout: str
    theta: Vector  # (d,)
    step: Vector | None = None  # (d,), theta_before - step = theta; None: no step leads here
    frame: bytes = b""  # that holds the whole step

    def delta_frame(self, rank: int | None, spans: Spans) -> bytes:
        """Return the step of one view; a site that holds the version before subtracts it.

        All of it is the frame that the coordinator itself decoded. A part of it is
        coded anew, and exactly.
        """
        if self.step is None:
            raise ValueError("the first release has no step")
        if self.frame and spans == ((0, self.step.size),):
            return self.frame
        part = take(self.step, spans)
        codec = EXACT if np.count_nonzero(part) < part.size // 2 else DenseCodec()
        return encode_frame(codec, part, self.layout, rank, self.version - 1)

    def snapshot_frame(self, rank: int | None, spans: Spans) -> bytes:
        """Return all of one view, exactly."""
        return encode_frame(DenseCodec(), take(self.theta, spans), self.layout, rank, self.version)


def take(vector: Vector, spans: Spans) -> Vector:
    """Return the entries of a (d,) vector inside the spans."""
    if len(spans) == 1:
        start, stop = spans[0]
        return vector[start:stop]
    return np.concatenate([vector[start:stop] for start, stop in spans] or [vector[:0]])


def norm_of(vector: Vector) -> float:
    """Return the Euclidean norm, summed in float64."""
    return float(np.sqrt(np.sum(np.square(vector, dtype=np.float64))))


class SiteProgress(Message):
    """What the coordinator remembers of one site."""

    model_config = ConfigDict(extra="forbid")  # of a checkpoint, nothing is ignored

    rank: int | None = None
    sequence: int = 0  # of the last order issued
    outstanding: Order | None = None
    accepted: tuple[int, ...] = ()  # the last few sequences folded in or recorded
    refused: tuple[int, ...] = ()  # the last few that were unsound
    returned: int = 0  # the last sequence that was refused but sound
    judged: int = -1  # last version that it has judged
    judged_sequence: int = 0  # of the answer that told it
    finished: bool = False  # has judged the last version
    steps_per_second: float = 0.0  # last measured
    link_seconds: float = 0.0  # of an order and its answer on the way, a running mean
    density: float = 0.0  # last asked of its codec; 0: as the plan says
    rejections: int = 0  # in a row
    benched: str = ""  # why it gets no more orders
    suspended: bool = False  # for offences: it is not taken back before it is forgiven
    seen: tuple[str, ...] = ()  # of its last updates: the offence, or nothing
    weight: float = 0.0  # of its last update that is in a version, before staleness; 0: none yet
    contribution: float = 0.0  # and what that added, by entry and learning rate

    def change(self, **values: object) -> SiteProgress:
        """Return a copy with these values."""
        return self.model_copy(update=values)


class Folded(Message):
    """An update that is in the partial sum."""

    model_config = ConfigDict(extra="forbid")

    site: str
    sequence: int
    staleness: int
    norm: float
    left: float = 0.0  # size of an entry of what the site could not send yet, as it says
    base_version: int = 0
    size: int = 0  # entries of the site's view
    weight: float = 0.0  # by its tokens
    rate: float = 0.0  # mean learning rate of its steps; 0: not known
    reach: float = 0.0  # the norm that its steps can reach; 0: no bound
    bound: float = 0.0  # of the norm, where it is in the partial sum already; 0: none
    scaled: float = 1.0  # factor that brought it below, there

    @property
    def key(self) -> str:
        """Name of its frame in `ServerState.frames`."""
        return f"{self.site}/{self.sequence}"


@dataclass(frozen=True)
class ServerState:
    """The whole checkpoint of a coordinator.

    O(d), whatever the number of sites, and the frames of one round where they are kept.
    """

    run: str
    layout: str  # digest
    theta: Vector  # (d,)
    sites: Mapping[str, SiteProgress]
    version: int = 0
    outer: Mapping[str, Vector] = field(default_factory=dict)  # moments, (d,) each
    outer_round: int = 0  # rounds that the outer optimizer has seen
    average: Vector | None = None  # (d,) mean of the last versions, where one is made of them
    unsent: Vector | None = None  # (d,) of the steps so far, what versions do not carry yet
    first: Vector | None = None  # (d,) version 0, where supports are public
    support: Support | None = None  # that this version's cohort shares
    partial_sum: Sums | None = None  # (d,) fixed point, of the updates in `folded`
    coverage: Mapping[str, int] = field(default_factory=dict)  # rank to weight, fixed point
    folded: tuple[Folded, ...] = ()  # waiting for a version
    frames: Mapping[str, bytes] = field(default_factory=dict)  # by key, of those not in the sum
    center: Vector | None = None  # (d,) mean of the last round, where distances to it are clipped
    moved_rows: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)  # bits: `token_rows`
    recent: tuple[tuple[str, ...], ...] = ()  # sites whose updates are in each of the last versions
    headings: Mapping[str, Vector] = field(default_factory=dict)  # by site, sketch: `suspicion`
    sketch_seed: int = 0  # of the sketches; 0: not drawn yet
    tokens: int = 0
    journal_seq: int = 0  # lines of the journal that this state knows of
    selection: Selection = field(default_factory=Selection)  # which version is exported
    journal_hash: str = ""  # of the last of them; empty: written before hashes were kept

    def with_site(self, name: str, **values: object) -> ServerState:
        """Return a copy in which one site's progress has these values."""
        sites = dict(self.sites)
        sites[name] = sites[name].change(**values)
        return replace(self, sites=sites)

    def forget_orders(self) -> ServerState:
        """Return a copy that will ask every site anew, with sequences that no site has seen.

        For a state older than what its sites have done since: they would take
        its open orders for answered ones.
        """
        state = self
        for name, site in self.sites.items():
            state = state.with_site(
                name, outstanding=None, sequence=site.sequence + SEQUENCES_SKIPPED
            )
        return state

    def welcome_back(self) -> ServerState:
        """Return a copy in which benched sites get another chance, as when a run is resumed.

        Not those that are suspended for what they did.
        """
        state = self
        for name, site in self.sites.items():
            if site.benched and not site.suspended:
                state = state.with_site(name, benched="", rejections=0, outstanding=None, seen=())
        return state

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the sites that get orders."""
        return tuple(name for name, site in self.sites.items() if not site.benched)
