"""The one way by which text of a record leaves this machine.

`send` asks for every single record whether it may go, here and at this moment: by what was noted
when it was prepared, and by what its source says now. The stricter counts, and whatever is unknown
denies. What goes is in the egress log, on the disk, before the first byte is sent, and the log's
head is noted in the pool.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from typing import Any

from boli.corpus.consent import LIMITS, REGION, Terms, consent_date, effective, why_not
from boli.corpus.record import Record, content_hash
from boli.errors import BoliError, PoolError
from boli.plan import LANGUAGE, NAME
from boli.pool.delta import ConflictError
from boli.pool.description import Description
from boli.pool.egress_log import EgressLog, read_log
from boli.pool.ledger import Line, add, check_log, erased_keys, retrying
from boli.pool.process import has_ended, this_process, where
from boli.pool.sweep import sweep, sweep_abandoned
from boli.pool.table import Pool, row_key, site_key
from boli.pool.texts import erased_of

PURPOSE = "training"
TOO_LARGE = 1 << 20  # characters; as in corpus.sources, more is no text
FORMS = {
    "id": r"[0-9a-f]{32}",
    "language": LANGUAGE,
    "script": r"[A-Z][a-z]{3}",
    "region": f"({REGION})?",
    "content_hash": r"[0-9a-f]{64}",
}
NOT_AS_NOTED = "its licence or region is another than when it was prepared"
NOTED_BEFORE = ": so it was noted when it was prepared, and its source.toml allows it now"
ERASED = "erased from this pool before"
TEXT_ERASED = "its text was erased from this pool"

# What the sources of records allow at this moment; a sentence where that is not known.
TermsNow = Callable[[Sequence[Record]], Sequence[Terms | str]]


@dataclass
class Sent:
    """What became of records: the ids that were added, and why others were not."""

    added: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    stayed: dict[str, str] = field(default_factory=dict)  # id to reason
    held: Mapping[str, str] = field(default_factory=dict)  # of the site before: id to content hash
    moved: set[str] = field(default_factory=set)  # content hashes that are there under another id
    replaced: set[str] = field(default_factory=set)  # content hashes of rows that were written over


def check_site(site: str) -> None:
    """Refuse what is no name of a site.

    Raises:
        PoolError: it is none.
    """
    if not re.fullmatch(NAME, site):
        raise PoolError(
            f"{site[:80]!r} cannot be the name of a site",
            "use lower-case letters, digits and dashes, at most 31, as in a plan",
        )


def why_stay(record: Record, pool: Description, today: date) -> str:
    """Return why a record may not go into a pool by what it says itself; empty where it may."""
    return _out_of_form(record) or _denied(_noted(record), pool, today)


def judged(record: Record, now: Terms | str, pool: Description, today: date) -> tuple[Record, str]:
    """Return a record with the terms that it may go under; or why it may not go.

    `now` is what its source allows at this moment, or a sentence where that is not known.
    """
    if reason := _out_of_form(record):
        return record, reason
    noted = _noted(record)
    as_noted = _denied(noted, pool, today)
    if isinstance(now, str):
        return record, as_noted or now
    as_now = _denied(now, pool, today)
    if as_noted:
        return record, as_noted if as_now else as_noted + NOTED_BEFORE
    terms = effective(noted, now)
    if _denied(terms, pool, today):
        return record, as_now or NOT_AS_NOTED
    return replace(record, **asdict(terms)), ""


def _out_of_form(record: Record) -> str:
    for name, form in FORMS.items():
        value = getattr(record, name)
        if not isinstance(value, str) or not re.fullmatch(form, value):
            return f"its {name.replace('_', ' ')} is not in form"
    for name in ("text", "source", "contact", "licence", "personal", "pipeline"):
        if not _is_text(getattr(record, name)):
            return f"its {name} is not in form"
    if record.residency not in LIMITS:
        return "its residency is unknown"
    if not record.text or len(record.text) > TOO_LARGE:
        return "its text is empty or too long"
    if content_hash(record.text) != record.content_hash:
        return "its text is not what was prepared"
    return ""


def _noted(record: Record) -> Terms:
    return Terms(**{each.name: getattr(record, each.name) for each in fields(Terms)})


def _denied(terms: Terms, pool: Description, today: date) -> str:
    return why_not(
        purposes=terms.purposes,
        expires=terms.expires,
        licence=terms.licence,
        residency=terms.residency,
        region=terms.region,
        pool_region=pool.region,
        licences=frozenset(pool.licences),
        today=today,
        purpose=PURPOSE,
    )


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def send(
    pool: Pool,
    site: str,
    records: Sequence[Record],
    log: EgressLog,
    terms_now: TermsNow,
    today: date | None = None,
) -> Sent:
    """Put those records into the pool that may go there; says what became of each.

    After a kill at any moment the same call can be made again: no row is lost, or there twice.

    Raises:
        PoolError: the site has no name or was erased, or the pool cannot be reached.
        StorageError: the egress log cannot be written; nothing was sent.
    """
    check_site(site)
    sent = Sent()
    erasures: int | None = None  # when a commit was refused
    for _ in retrying(pool):
        try:
            pool.refresh()
            if sweep_abandoned(pool) or (
                not pool.erasing and erasures not in (None, pool.erasures)
            ):
                _sweep(pool, log, _unsure(pool, log))
                erasures = pool.erasures  # whoever took its place sweeps for this too
            if pool.erasing is not None:
                continue
            erasures = pool.erasures
            # Asked anew each time: to wait for an erase can take long.
            allowed = _allowed(pool.description, records, terms_now, today, sent)
            # Read after the snapshot: an erase in between makes the commit below a conflict.
            going = _going(pool, site, allowed, sent)
            if going:
                _put(pool, site, going, log)
        except ConflictError:
            continue
        sent.added += [record.id for record in going]
        return sent
    raise AssertionError  # retrying never ends without an error


def sweep_up(pool: Pool, log: EgressLog) -> None:
    """Take away what earlier sends to a pool may have left there when they ended half-way.

    Only where an erase came since: what it took out can be in such a file. Nothing is sent with a
    log that is not the one that the pool knows.

    Raises:
        PoolError: the pool cannot be reached, or the egress log was cut or altered.
        StorageError: the egress log cannot be written.
    """
    wrong = check_log(pool, log.folder) if log.path.exists() else ""
    if wrong:
        raise PoolError(
            f"the egress log in {log.folder} is broken: {wrong}",
            "restore it from a copy; boli pool log --verify looks at it. Nothing was shared",
        )
    unsure = _unsure(pool, log)
    pool.refresh()
    if unsure and (pool.erasing or any(had != pool.erasures for had in unsure.values())):
        _sweep(pool, log, unsure)


def _unsure(pool: Pool, log: EgressLog) -> dict[int, int]:
    """Return the intents of processes that have ended, with no "done" or sweep since.

    Each with the number of erases that there had been.
    """
    unsure = dict[int, int]()
    for line in read_log(log.folder) if log.path.exists() else ():
        if line.get("pool") != pool.description.id:
            continue
        if line["event"] == "intent" and _is_over(line):
            unsure[line["seq"]] = line.get("erasures", -1)
        elif line["event"] == "done":
            unsure.pop(line["of"], None)
        elif line["event"] == "swept":
            for intent in line.get("of", ()):
                unsure.pop(intent, None)
    return unsure


def _is_over(intent: Mapping[str, Any]) -> bool:
    """Tell whether who sent it has ended: in this process, since the machine's start, or before."""
    here = intent.get("where") and intent["where"] == where()
    return not here or intent["process"] == os.getpid() or has_ended(intent)


def _sweep(pool: Pool, log: EgressLog, unsure: Iterable[int]) -> None:
    """Sweep, for intents that were looked up before: what comes now may arrive too late for it."""
    sweep(pool)
    log.append("swept", pool=pool.description.id, url=pool.address.url, of=sorted(unsure))


def would_send(
    pool: Pool,
    site: str,
    records: Sequence[Record],
    terms_now: TermsNow,
    earlier: Mapping[str, str],  # id to content hash, of what would have gone before
) -> Sent:
    """Say what `send` would do as the pool is now, and send nothing.

    Raises:
        ConflictError: an erase took away what was being read.
        PoolError: the site has no name or was erased, or the pool cannot be reached.
    """
    check_site(site)
    sent = Sent()
    allowed = _allowed(pool.description, records, terms_now, None, sent)
    going = _going(pool, site, allowed, sent, earlier)
    sent.added = [record.id for record in going]
    return sent


def _allowed(
    pool: Description,
    records: Sequence[Record],
    terms_now: TermsNow,
    today: date | None,
    sent: Sent,
) -> dict[str, Record]:
    """Return the records that may go, by id; the others stay, with a reason."""
    often = Counter(record.id for record in records)
    today = today or consent_date()
    allowed = {}
    sent.stayed.clear()
    for noted, now in zip(records, terms_now(records), strict=True):
        record, reason = judged(noted, now, pool, today)
        if not reason and often[record.id] > 1:
            reason = "its id is there twice"
        if reason:
            sent.stayed[record.id] = reason
        else:
            allowed[record.id] = record
    return allowed


def _going(
    pool: Pool,
    site: str,
    allowed: dict[str, Record],
    sent: Sent,
    earlier: Mapping[str, str] | None = None,
) -> list[Record]:
    """Return the records that the pool lacks and may have back."""
    erased = erased_keys(pool)
    if site_key(site) in erased:
        raise PoolError(
            f"site {site} was erased from the pool at {pool.address.url}",
            "nothing of it may come back; if consent was given anew, share under another name",
        )
    records = list(allowed.values())
    rest = []
    for record, gone in zip(records, erased_of(pool, [one.text for one in records]), strict=True):
        if row_key(site, record.id) in erased:
            sent.stayed[record.id] = ERASED
        elif gone:
            sent.stayed[record.id] = TEXT_ERASED
        else:
            rest.append(record)
    held = pool.held(site).hashes
    hashes = sent.held = {**held, **earlier} if earlier else held
    lacking = _lacking(rest, hashes)
    going = [record for record in rest if record.id in lacking]
    there = [record for record in rest if record.id not in lacking]
    sent.there = [record.id for record in there]
    sent.moved = {one.content_hash for one in there if hashes.get(one.id) != one.content_hash}
    sent.replaced = {hashes[record.id] for record in going if record.id in hashes}
    return going


def _lacking(records: Sequence[Record], hashes: Mapping[str, str]) -> set[str]:
    """Return the ids of the records whose text the site does not have in the pool under any id.

    A line more in a file, or a folder that moved, gives the texts after it other ids. But a text
    is lacking where each row that holds it is about to be written over.
    """
    first: dict[str, Record] = {}  # by text: one that is here twice goes once
    for record in records:
        if hashes.get(record.id) != record.content_hash:
            first.setdefault(record.content_hash, record)
    rows = Counter(text for text in hashes.values() if text in first)
    lacking: set[str] = set()
    waiting = [record for text, record in first.items() if not rows[text]]
    while waiting:
        record = waiting.pop()
        lacking.add(record.id)
        over = hashes.get(record.id, "")  # this row's text goes
        if over in first:
            rows[over] -= 1
            if not rows[over]:
                waiting.append(first[over])
    return lacking


def _put(pool: Pool, site: str, going: Sequence[Record], log: EgressLog) -> None:
    there = {"pool": pool.description.id, "url": pool.address.url}
    mark = log.append(
        "intent",
        **there,
        site=site,
        purpose=PURPOSE,
        erasures=pool.erasures,
        **this_process(),
        records=[[record.id, record.content_hash] for record in going],
    )
    add(pool, [Line("left", mark.log, {"seq": mark.seq, "hash": mark.hash})])
    try:
        version = pool.write(site, going)
    except BoliError as error:
        what = "another came first" if isinstance(error, ConflictError) else "unknown"
        log.append("failed", **there, of=mark.seq, reason=what)
        raise
    log.append("done", **there, of=mark.seq, version=version, count=len(going))
