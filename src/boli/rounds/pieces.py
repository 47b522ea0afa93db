"""Before the first round: ask every site once for counts of its pieces of words.

It runs over the same transport as the rounds, as a run of its own with one entry to train, so
that updates are stored, sent again and acknowledged as ever. What a site sent is on the disk
before it is told so; a coordinator that was killed asks the others only.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boli.codec.codec import codec_for
from boli.corpus.pieces import LARGEST_BYTES, read_pieces
from boli.durable import write_file
from boli.errors import CorpusError, RunError, SiteError
from boli.plan import Plan
from boli.rounds.transport import (
    Arrival,
    Delivery,
    Failed,
    Joined,
    Malformed,
    Measurement,
    PayloadBytes,
    Transport,
)
from boli.rounds.update import Order, Release, Verdict, copies_digest

GATHERED = "gathered.json"  # written last: nobody is asked any more
WRONG_BORNE = 3  # answers of one site that cannot be used


def payload_bytes_of(plan: Plan, asks: str) -> PayloadBytes:
    """Return the most bytes that an update may have: of pieces, or by the plan's codec."""
    return (lambda _entries: LARGEST_BYTES) if asks else codec_for(plan.codec).payload_bytes


@dataclass(frozen=True)
class Sent:
    """What one site sent, without the pieces themselves."""

    num_pieces: int
    bytes: int  # as they traveled
    digest: str  # SHA-256 of them


@dataclass(frozen=True)
class Gathered:
    """What came of asking: pieces by site, and why which sites sent none."""

    sent: Mapping[str, Sent] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # site, piece to lines
    without: Mapping[str, str] = field(default_factory=dict)


def read_gathered(folder: Path, most_pieces: int) -> Gathered | None:
    """Return what the sites sent; None while some are still to be asked.

    Raises:
        CorpusError: a file was altered since.
        RunError: a file is missing.
    """
    try:
        told = json.loads((folder / GATHERED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    try:
        found = {site: _read_saved(folder, site, most_pieces) for site in told["sites"]}
    except OSError as error:
        raise RunError(
            f"cannot read {error.filename}: {error.strerror}", "start a new run"
        ) from None
    sent = {site: sent for site, (sent, _) in found.items()}
    return Gathered(sent, {site: counts for site, (_, counts) in found.items()}, told["without"])


def _read_saved(folder: Path, site: str, most_pieces: int) -> tuple[Sent, dict[str, int]]:
    data = (folder / site).read_bytes()
    pieces = read_pieces(data, most_pieces, f"site {site}")
    return Sent(len(pieces), len(data), hashlib.sha256(data).hexdigest()), pieces


@dataclass
class Gathering:
    """Asks the sites of a run for their pieces; all progress is in its folder."""

    transport: Transport
    folder: Path
    run: str
    layout: str  # digest
    sites: Sequence[str]
    most_pieces: int
    patience_seconds: float
    observe: Callable[[Measurement], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic
    _have: set[str] = field(default_factory=set)
    _without: dict[str, str] = field(default_factory=dict)  # sites that send none, and why
    _wrong: dict[str, int] = field(default_factory=dict)
    _first_at: float | None = None  # when something was there

    def run_to_the_end(self) -> bool:
        """Wait for all sites, or for those that answer in time; False if told to stop before.

        The patience counts from the first answer on: until then people may be asked somewhere.

        Raises:
            SiteError: no site sends any.
            StorageError: what came cannot be kept.
        """
        self._have = {site for site in self.sites if self._is_whole(site)}
        release = Release(0, self.layout, np.zeros(1, np.float32))
        self.transport.start(dict.fromkeys(self.sites, (None, ((0, 1),))), release)
        while not self._is_over():
            if self.should_stop():
                return False
            for arrival in self.transport.receive(timeout_seconds=0.5):
                self._take(arrival)
        if not self._have:
            reasons = "; ".join(f"{site}: {why}" for site, why in sorted(self._without.items()))
            raise SiteError(
                f"no site sent pieces of its words: {reasons}",
                'mend that, or set model.base.micro.tokenizer = "base" or '
                'model.base.vocabulary.cut = "none" in a new plan',
            )
        late = set(self.sites) - self._have - self._without.keys()
        without = {**self._without, **dict.fromkeys(late, "it did not answer in time")}
        told = {"sites": sorted(self._have), "without": without}
        write_file(self.folder / GATHERED, json.dumps(told, indent=2).encode())
        return True

    def _is_over(self) -> bool:
        if self._have | self._without.keys() >= set(self.sites):
            return True
        now = self.clock()
        if self._have and self._first_at is None:
            self._first_at = now
        return self._first_at is not None and now - self._first_at > self.patience_seconds

    def _is_whole(self, site: str) -> bool:
        try:
            _read_saved(self.folder, site, self.most_pieces)
        except (FileNotFoundError, CorpusError):
            return False
        return True

    def _take(self, arrival: Arrival) -> None:
        match arrival:
            case Joined():
                self._without.pop(arrival.site, None)  # it is back
                if arrival.site not in self._have:
                    self.transport.send_order(self._order(arrival))
            case Delivery():
                self._fold(arrival)
            case Failed():
                self._give_up(arrival.site, arrival.problem)
            case Malformed():
                self._count_wrong(arrival.site, arrival.detail)
            case Measurement():
                self.observe(arrival)

    def _order(self, joined: Joined) -> Order:
        site = joined.site
        return Order(
            order=f"{self.run}-{site}-1",
            site=site,
            sequence=1,
            base_version=0,
            layout=self.layout,
            local_steps=0,
            copies=copies_digest(joined.copies),
        )

    def _fold(self, delivery: Delivery) -> None:
        """Keep what a site sent, once, and tell it so."""
        site, header = delivery.site, delivery.update.header
        reason = ""
        if site in self._have:
            reason = "duplicate"
        elif (header.sequence, header.site, header.layout) != (1, site, self.layout):
            reason = "not what was asked for"
        else:
            try:
                read_pieces(delivery.update.payload, self.most_pieces, f"site {site}")
            except CorpusError as error:
                reason = error.problem[:100]
        if not reason:
            write_file(self.folder / site, delivery.update.payload, private=True)
            self._have.add(site)
        elif reason != "duplicate":
            self._count_wrong(site, reason)
        self.transport.answer(
            Verdict(
                order=header.order,
                site=site,
                sequence=header.sequence,
                accepted=site in self._have,
                reason=reason,
            )
        )

    def _count_wrong(self, site: str, reason: str) -> None:
        self._wrong[site] = self._wrong.get(site, 0) + 1
        # An answer that cannot be used comes again as it is: there is no other.
        if self._wrong[site] >= WRONG_BORNE or reason.startswith("the pieces of"):
            self._give_up(site, reason)

    def _give_up(self, site: str, reason: str) -> None:
        if site not in self._have:
            self._without[site] = reason
