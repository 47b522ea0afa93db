"""What a pool remembers beside its records: what was erased, who took what, and heads of logs.

A second Delta table, only ever added to. It holds hashes where a site or a record would stand.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from boli.errors import PoolError
from boli.pool.delta import ConflictError, delta, newest, told
from boli.pool.egress_log import Mark, first_break, read_head
from boli.pool.table import COMMIT_RETRIES, LEDGER, Pool, ledger_schema

Found = TypeVar("Found")
Kind = Literal["erased", "text", "taken", "left"]
PATIENCE_SECONDS = 120.0  # until a commit comes through
LOOK_SECONDS = 20.0  # until nobody erases what is being read


@dataclass(frozen=True)
class Line:
    """One fact."""

    kind: Kind
    key: str  # erased: of the row or site; text: of the erase; taken: own id; left: of the log
    facts: dict[str, Any]
    time: str = ""  # filled in when it is written


def add(pool: Pool, lines: Sequence[Line]) -> None:
    """Add facts to the pool's ledger, all or none.

    Raises:
        PoolError: the pool cannot be reached.
    """
    import pyarrow as pa

    if not lines:
        return
    library = delta()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    columns = {
        "kind": [line.kind for line in lines],
        "key": [line.key for line in lines],
        "facts": [json.dumps(line.facts, sort_keys=True) for line in lines],
        "time": [now] * len(lines),
    }
    table = pa.table(columns, schema=ledger_schema())
    properties = library.CommitProperties(max_commit_retries=COMMIT_RETRIES)
    for _ in retrying(pool):
        try:
            with told(pool.address.url):
                library.write_deltalake(
                    pool.ledger, table, mode="append", commit_properties=properties
                )
            pool.address.sync(LEDGER, pool.ledger.version())
            return
        except ConflictError:
            with told(pool.address.url):
                pool.ledger = newest(pool.ledger, pool.address, LEDGER)


def read(pool: Pool, kind: Kind) -> list[Line]:
    """Return the facts of one kind as they are now, in no order.

    Raises:
        PoolError: the pool cannot be reached.
    """
    newest_ledger(pool, kind)
    columns = ["key", "facts", "time"]
    return [
        Line(kind, row["key"], json.loads(row["facts"]), row["time"])
        for batch in pool.scan(columns, None, pool.ledger, ("kind", kind))
        for row in batch.to_pylist()
    ]


def newest_ledger(pool: Pool, kind: Kind) -> list[str]:
    """Go on to the newest version of the ledger; return the names of its files of one kind.

    Raises:
        PoolError: the pool cannot be reached.
    """
    with told(pool.address.url):
        pool.ledger = newest(pool.ledger, pool.address, LEDGER)
        return [name for name in pool.ledger.file_uris() if f"/kind={kind}/" in name]


def erased_keys(pool: Pool) -> frozenset[str]:
    """Return the keys of all rows and sites that must not come back."""
    return frozenset(line.key for line in read(pool, "erased"))


def retrying(pool: Pool, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[int]:
    """Yield attempts, with longer and longer pauses between them.

    Raises:
        PoolError: the patience is over.
    """
    deadline = time.monotonic() + patience_seconds
    pause, attempt, late = 0.02, 0, False
    while not late:
        late = time.monotonic() >= deadline  # one attempt more, for one that took so long
        yield attempt
        attempt += 1
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(pause * 2, 2.0)
    mark = pool.erasing
    if mark is not None and not mark.get("sweeps"):
        raise PoolError(
            f"an erase has been under way at {pool.address.url} since {mark['since']}",
            "wait for it; if it was killed, give the same boli pool erase command again, and "
            "--take-over where that is refused",
        )
    raise PoolError(
        f"others have been writing to {pool.address.url} for {patience_seconds:.0f} seconds",
        "give the command again: what was shared before stays shared",
    )


def steady(pool: Pool, look: Callable[[], Found]) -> Found:
    """Return what `look` finds in the newest version, also where erases come in between.

    Raises:
        PoolError: the pool cannot be reached, or the patience is over.
    """
    last: ConflictError | None = None
    try:
        for _ in retrying(pool, LOOK_SECONDS):
            try:
                pool.refresh()
                return look()
            except ConflictError as error:
                last = error
    except PoolError as error:
        raise last or error from None  # a file may be missing for good
    raise AssertionError  # retrying never ends without an error


def marks(pool: Pool) -> tuple[Mark, ...]:
    """Return what the pool has noted of egress logs.

    Raises:
        PoolError: the pool cannot be reached.
    """
    return tuple(
        Mark(line.key, int(line.facts["seq"]), str(line.facts["hash"]))
        for line in read(pool, "left")
    )


def check_log(pool: Pool, folder: Path) -> str:
    """Hold the egress log in a folder against what the pool has noted; return what is wrong.

    Raises:
        PoolError: there is no log, or the pool cannot be reached.
    """
    head = read_head(folder)  # first: what others log from now on may be missing in the marks
    upto = head.seq if head is not None else -1
    return first_break(folder, marks(pool), pool.description.id, upto)
