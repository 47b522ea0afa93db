"""The pool itself: a Delta table of records, and the rules by which several write it at once.

Nobody waits for a lock. A commit is refused by Delta where another came first that touches the
same: every commit for a site carries that site's own count (a Delta application transaction), so
that two writers of one site never add the same row; and `erase` changes the table's metadata
before and after, so that no commit from before or during it comes through (see erase.py).

Source: Armbrust et al. 2020, Delta Lake. https://www.vldb.org/pvldb/vol13/p3411-armbrust.pdf
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from boli.corpus.record import Record, schema_of, to_table
from boli.errors import PoolError
from boli.pool.address import Address, parse_address
from boli.pool.delta import ConflictError, delta, newest, open_table, told
from boli.pool.description import Description, new_description, read_description

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from deltalake import CommitProperties, DeltaTable
    from numpy.typing import NDArray

RECORDS, LEDGER = "records", "ledger"
ERASING, ERASURES = "boli.erasing", "boli.erasures"
SETTINGS = {
    # Delta would copy the first characters of a file's least and greatest text into its log.
    "delta.dataSkippingNumIndexedCols": "0",
    # Versions are pinned by runs: none goes by itself.
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.checkpointInterval": "25",  # over a thin line a log of many files is slow to read
}
_LOOKS = 5
COMMIT_RETRIES = 100  # of the library's own: others were first, and touched nothing of this


def site_key(site: str) -> str:
    """Return what stands for a site where its name must not: 32 hex digits."""
    return hashlib.sha256(site.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def row_key(site: str, record: str) -> str:
    """Return the key of a row: one for each record of a site, 32 hex digits."""
    text = f"{site}\0{record}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]


@dataclass
class Held:
    """What the pool holds of one site: id to content hash."""

    hashes: dict[str, str]
    count: int  # of the site's commits
    erasures: int


@dataclass
class Pool:
    """An open pool, as it was at one version; `refresh` goes on to the newest."""

    address: Address
    description: Description
    records: DeltaTable
    ledger: DeltaTable
    erased_texts: tuple[tuple[str, ...], NDArray[np.uint64]] | None = None  # see texts.py
    seen_mark: tuple[str, float] = ("", 0.0)  # token, and since when by time.monotonic
    _held: dict[str, Held] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Version of the records; every commit makes the next."""
        return int(self.records.version())

    @property
    def erasing(self) -> dict[str, Any] | None:
        """Who is erasing; None: nobody."""
        text = self._setting(ERASING)
        return json.loads(text) if text else None

    @property
    def erasures(self) -> int:
        """How many were carried out so far."""
        return int(self._setting(ERASURES) or 0)

    def _setting(self, name: str) -> str:
        return str(self.records.metadata().configuration.get(name) or "")

    def refresh(self) -> None:
        """Go on to the newest version.

        Raises:
            PoolError: the pool cannot be reached.
        """
        with told(self.address.url):
            self.records = newest(self.records, self.address, RECORDS)

    def at_version(self, version: int) -> DeltaTable:
        """Return the records as they were.

        Raises:
            PoolError: there is no such version, or an erase has taken it away.
        """
        import pyarrow

        newest = open_table(self.address, RECORDS)
        try:
            newest.load_as_version(version)
        except (delta().exceptions.DeltaError, OSError, OverflowError, pyarrow.ArrowException):
            raise PoolError(
                f"the pool at {self.address.url} has no version {version}",
                f"the newest is {self.version}; every erase takes the older ones away",
            ) from None
        return newest

    def scan(
        self,
        columns: Sequence[str],
        where: Mapping[str, Collection[str]] | None = None,
        table: DeltaTable | None = None,
        partition: tuple[str, str] | None = None,
    ) -> Iterator[pyarrow.RecordBatch]:
        """Yield columns of the rows that have one of the given values in each column of `where`.

        Raises:
            ConflictError: an erase took the files away in between.
            PoolError: a file cannot be read.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        where = where or {}
        read = [*columns, *(name for name in where if name not in columns)]
        wanted = {name: pa.array(sorted(own), pa.string()) for name, own in where.items()}
        folder = pc.field(partition[0]) == partition[1] if partition else None
        with told(self.address.url):
            dataset = (table or self.records).to_pyarrow_dataset()
            for batch in dataset.scanner(columns=read, filter=folder).to_batches():
                # Not the scanner's own filter: it fails on files that Delta has rewritten, whose
                # text is of another Arrow type.
                for name, values in wanted.items():
                    batch = batch.filter(pc.is_in(batch[name], value_set=values))
                if batch.num_rows:
                    yield batch.select(list(columns))

    def held(self, site: str) -> Held:
        """Return what this version holds of a site; do not change it but by `write`.

        Raises:
            PoolError: the pool cannot be reached.
        """
        key = site_key(site)
        with told(self.address.url):
            count = self.records.transaction_version(f"site-{key}") or 0
        known = self._held.get(key)
        if known is None or (known.count, known.erasures) != (count, self.erasures):
            hashes: dict[str, str] = {}
            for batch in self.scan(["id", "content_hash"], {"site_key": [key]}):
                ids, contents = (column.to_pylist() for column in batch.columns)
                hashes.update(zip(ids, contents, strict=True))
            known = self._held[key] = Held(hashes, count, self.erasures)
        return known

    def write(self, site: str, records: Sequence[Record]) -> int:
        """Add rows of a site, or replace those with the same id; returns the version.

        Only egress.py may call this: it carries text. All rows are there afterwards, or none.

        Raises:
            ConflictError: this site, or an erase, came first since the last `refresh`.
            PoolError: the pool cannot be reached.
        """
        held, erasures = self.held(site), self.erasures
        rows = rows_of(site, records)
        properties = _commit(site_key(site), held.count + 1)
        with told(self.address.url):
            if any(record.id in held.hashes for record in records):
                merger = self.records.merge(
                    rows, "t.key = s.key", "s", "t", commit_properties=properties
                )
                merger.when_matched_update_all().when_not_matched_insert_all().execute()
            else:
                delta().write_deltalake(
                    self.records, rows, mode="append", commit_properties=properties
                )
        version = self.version
        self.address.sync(RECORDS, version)
        held.hashes.update((record.id, record.content_hash) for record in records)
        held.count += 1
        self._check_there(site, records, erasures)
        return version

    def _check_there(self, site: str, records: Sequence[Record], erasures: int) -> None:
        """Refuse a commit that an erase began the log anew under: it counts for nothing.

        Its number can be free again by the time that it arrives over a slow line.
        """
        self.refresh()
        mark = self.erasing
        if self.erasures == erasures and (mark is None or mark.get("sweeps")):
            return
        there = self._held_anew(site)
        if any(there.get(record.id) != record.content_hash for record in records):
            raise ConflictError(
                f"an erase came to {self.address.url} meanwhile", "give the command again"
            )

    def _held_anew(self, site: str) -> dict[str, str]:
        for _ in range(_LOOKS):
            self._held.pop(site_key(site), None)
            with contextlib.suppress(ConflictError):  # an erase takes files away just now
                return self.held(site).hashes
            self.refresh()
        return {}


def _commit(key: str, count: int) -> CommitProperties:
    library = delta()
    transaction = library.Transaction(f"site-{key}", count)
    return library.CommitProperties(
        app_transactions=[transaction], max_commit_retries=COMMIT_RETRIES
    )


def row_schema() -> pyarrow.Schema:
    """Return the columns of a pool's records: those of a Record, and what the pool adds."""
    import pyarrow as pa

    own = [
        ("key", pa.string()),
        ("site", pa.string()),
        ("site_key", pa.string()),
        ("characters", pa.int32()),
        ("shared", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema([*own, *schema_of(Record)])


def ledger_schema() -> pyarrow.Schema:
    """Return the columns of the ledger: see ledger.py."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in ("kind", "key", "facts", "time")])


def rows_of(site: str, records: Sequence[Record]) -> pyarrow.Table:
    """Return records as rows of the pool."""
    import pyarrow as pa

    columns = {
        "key": [row_key(site, record.id) for record in records],
        "site": [site] * len(records),
        "site_key": [site_key(site)] * len(records),
        "characters": [len(record.text) for record in records],
        "shared": [datetime.now(UTC)] * len(records),
    }
    table = to_table(records, Record)
    columns |= {name: table[name] for name in table.column_names}
    return pa.table(columns, schema=row_schema())


def open_pool(url: str) -> Pool:
    """Open the pool at an address.

    Raises:
        PoolError: there is none, or it cannot be reached.
    """
    address = parse_address(url)
    missing = delta().exceptions.TableNotFoundError
    try:
        with told(address.url):
            records = open_table(address, RECORDS)
            ledger = open_table(address, LEDGER)
    except PoolError as error:
        if isinstance(error.__cause__, missing):
            raise PoolError(
                f"there is no pool at {address.url}",
                f"check the address; boli pool create {address.url} --region IN-BR makes one",
            ) from None
        raise
    return Pool(address, read_description(records.metadata().description, url), records, ledger)


def create_pool(url: str, name: str, region: str, licences: tuple[str, ...] = ()) -> Pool:
    """Make an empty pool; without licences it takes a list of open ones.

    Raises:
        PoolError: there is one already, a value is not allowed, or it cannot be written.
    """
    address = parse_address(url)
    description = new_description(name, region, licences)
    create = delta().DeltaTable.create
    options: Mapping[str, Any] = {
        "configuration": SETTINGS,
        "storage_options": address.options,
    }
    with told(address.url):
        there = delta().DeltaTable.is_deltatable(address.table(RECORDS), address.options)
    if there:
        raise _there_already(address.url)
    _refuse_others(address)
    try:
        with told(address.url):
            # The description comes last, with the records: what was begun before it is no pool.
            create(
                address.table(LEDGER),
                ledger_schema(),
                mode="ignore",
                partition_by=["kind"],
                **options,
            )
            create(
                address.table(RECORDS),
                row_schema(),
                mode="error",
                name=description.name,
                description=description.text(),
                **options,
            )
    except ConflictError:
        raise _there_already(address.url) from None
    return open_pool(url)


def _refuse_others(address: Address) -> None:
    """Refuse a folder with other people's files: the card would be written over their README."""
    folder = address.folder
    if folder is not None and folder.is_dir():
        others = {path.name for path in folder.iterdir()} - {RECORDS, LEDGER}
        if others:
            raise PoolError(
                f"{folder} is not empty: it holds {min(others)!r}", "name a new folder for the pool"
            )


def _there_already(url: str) -> PoolError:
    return PoolError(f"there is a pool at {url} already", "choose another address")
