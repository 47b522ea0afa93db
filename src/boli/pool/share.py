"""Share a prepared folder with a pool: what may go goes, what stays is told with its reason."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from boli.corpus.consent import Terms
from boli.corpus.record import Record, read_records
from boli.corpus.signatures import signature_in_form
from boli.corpus.similar import SignatureIndex
from boli.corpus.source_state import UNKNOWN
from boli.corpus.survey import Survey
from boli.durable import storage_error, sync_folder
from boli.pool.card import write_card
from boli.pool.egress import Sent, TermsNow, check_site, send, sweep_up, would_send
from boli.pool.egress_log import EgressLog
from boli.pool.ledger import steady
from boli.pool.table import Pool, site_key

SAME = "the same text as another site's"
NEAR = "a near duplicate of another site's"
ROWS_AT_ONCE = 1024  # that go in one commit
OWN_AT_ONCE = 1 << 16  # records of a site that are compared with the pool: 160 MB
SIGNATURES_AT_ONCE = 1 << 16  # of the pool, that are in memory


@dataclass
class Shared:
    """What became of a prepared folder."""

    added: int = 0
    there: int = 0
    stayed: Counter[str] = field(default_factory=Counter)  # reason to records
    withdrawn: int = 0  # of those that stayed: are in the pool from before, and have to be erased
    report: Path | None = None  # which record stayed, and why

    @property
    def total(self) -> int:
        """Records in the folder."""
        return self.added + self.there + self.stayed.total()


def share(
    folder: Path,
    pool: Pool,
    site: str,
    log: EgressLog,
    max_quality_bits: float | None = None,
    dry_run: bool = False,
) -> Shared:
    """Put the records of a prepared folder into the pool that may go there.

    Near duplicates of other sites' records are found before any text goes, by signatures that
    are read from the pool. What sources allow is read from their source.toml for each batch of
    records; where they are not on this machine, nothing goes. A dry run sends nothing, and writes
    no report.

    Raises:
        CorpusError: this is no prepared folder.
        PoolError: the pool cannot be reached, or the site cannot share.
        StorageError: the log or the report cannot be written.
    """
    check_site(site)
    if not dry_run:
        sweep_up(pool, log)
    repeats = steady(pool, lambda: _repeats(folder, pool, site))
    sending = _Sending(pool, site, log, max_quality_bits, dry_run, repeats)
    added = 0
    while True:
        told, stayed, again = sending.send_all(folder)
        told.added, told.there = told.added + added, told.there - added
        added = told.added
        if not again:
            break
    told.withdrawn = sum(row["in_pool"] for row in stayed)
    if not dry_run:
        told.report = folder / f"share-{pool.description.name}-{pool.description.id[:8]}.jsonl"
        _write_own(told.report, stayed)
        if told.added:
            write_card(pool)
    return told


@dataclass
class _Sending:
    """How the records of a folder are asked for and sent."""

    pool: Pool
    site: str
    log: EgressLog
    max_quality_bits: float | None
    dry_run: bool
    repeats: dict[str, str]  # id to reason
    would: dict[str, str] = field(default_factory=dict)  # id to content hash, of a dry run

    def send_all(self, folder: Path) -> tuple[Shared, list[dict[str, Any]], bool]:
        """Send what may go; returns the counts, what stayed, and whether to go again.

        A text that was left out because another row had it is lacking where that row was written
        over later. Each time more records lie under their own ids, so that this comes to an end.
        """
        told, stayed, again = Shared(), list[dict[str, Any]](), False
        moved, survey = set[str](), Survey.load(folder)
        for records in read_records(folder, ROWS_AT_ONCE):
            reasons = {
                record.id: reason
                for record in records
                if (reason := self.repeats.get(record.id) or _poor(record, self.max_quality_bits))
            }
            asked = [record for record in records if record.id not in reasons]
            sent = self._send(asked, partial(_terms_now, survey))
            again |= not moved.isdisjoint(sent.replaced)
            moved |= sent.moved
            reasons |= sent.stayed
            staying = [record for record in records if record.id in reasons]
            told.there += len(sent.there)
            told.added += len(sent.added)
            told.stayed.update(reasons[record.id] for record in staying)
            stayed += _rows_of_report(staying, reasons, sent.held)
        return told, stayed, again

    def _send(self, records: list[Record], terms_now: TermsNow) -> Sent:
        if not self.dry_run:
            return send(self.pool, self.site, records, self.log, terms_now)
        would = partial(would_send, self.pool, self.site, records, terms_now, self.would)
        sent = steady(self.pool, would)
        going = set(sent.added)
        self.would |= {one.id: one.content_hash for one in records if one.id in going}
        return sent


def _terms_now(survey: Survey | None, records: Sequence[Record]) -> list[Terms | str]:
    """Return what the sources of records allow at this moment."""
    if survey is None:
        return [UNKNOWN] * len(records)
    state = survey.state()
    return [state.terms_of(record.source) for record in records]


def _rows_of_report(
    staying: list[Record], reasons: dict[str, str], held: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Say of each record why it stayed, and under which ids the pool holds it from before."""
    rows = {record.content_hash: set[str]() for record in staying}
    if rows:
        for name, text in held.items():
            if text in rows:
                rows[text].add(name)
    return [
        {
            "id": record.id,
            "source": record.source,
            "reason": reasons[record.id],
            "in_pool": bool(there := rows[record.content_hash] | ({record.id} & held.keys())),
            "pool_ids": sorted(there),
        }
        for record in staying
    ]


def _poor(record: Record, most: float | None) -> str:
    if most is None:
        return ""
    if record.quality is None:
        return "its quality was not scored"
    # Not `quality > most`: of a quality that is no number, nothing is known.
    return "" if record.quality <= most else f"its quality is above {most:g} bits per byte"


def _repeats(folder: Path, pool: Pool, site: str) -> dict[str, str]:
    """Return the ids of records that another site's make superfluous, with a reason.

    A text of this site that is in the pool already, under whatever id, stays there.
    """
    own = set(pool.held(site).hashes.values())
    ids, hashes, signatures = [], [], []
    for records in read_records(folder):
        for record in records:
            if record.content_hash not in own:
                ids.append(record.id)
                hashes.append(record.content_hash)
                signatures.append(signature_in_form(record.signature))
    repeats: dict[str, str] = {}
    for first in range(0, len(ids), OWN_AT_ONCE):
        part = slice(first, first + OWN_AT_ONCE)
        index = SignatureIndex[bool](signatures[part])
        same = set[str]()
        for there, texts in _of_others(pool, site_key(site)):
            same.update(texts.intersection(hashes[part]))
            index.look_up((True, signature) for signature in there)
        for name, text, found in zip(ids[part], hashes[part], index.keys, strict=True):
            if text in same or found:
                repeats[name] = SAME if text in same else NEAR
    return repeats


def _of_others(pool: Pool, own: str) -> Iterator[tuple[list[bytes], set[str]]]:
    """Yield signatures and content hashes of other sites' rows, some thousand at once."""
    signatures, hashes = list[bytes](), set[str]()
    for batch in pool.scan(["site_key", "signature", "content_hash"]):
        for site, signature, text in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            if site != own:
                signatures.append(signature_in_form(signature))
                hashes.add(text)
        if len(signatures) >= SIGNATURES_AT_ONCE:
            yield signatures, hashes
            signatures, hashes = [], set()
    if signatures:
        yield signatures, hashes


def _write_own(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines that only their owner may read: a source can name a person."""
    try:
        # Two may share one folder at once; mkstemp lets nobody else read it.
        descriptor, temporary = tempfile.mkstemp(prefix=".share-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
