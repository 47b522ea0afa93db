"""The mark of an erase or a sweep on a pool's table, which keeps all others' commits out.

The mark is in the table's metadata. Delta refuses a commit where the metadata changed since its
writer last looked, so that no commit comes through that was begun before the mark; and a writer
that sees the mark waits. So no file of a commit in flight is needed by anybody, and no clock or
lease is needed. Whoever carried a mark through a listing of files looks at it again before any of
these goes: what others write under a mark of their own came later than the list.
"""

from __future__ import annotations

import contextlib
import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from boli.errors import PoolError
from boli.pool.delta import ConflictError, told
from boli.pool.ledger import retrying
from boli.pool.process import has_ended, this_process
from boli.pool.table import ERASING, ERASURES, Pool

ABANDONED = timedelta(minutes=15)  # an erase that began longer ago is taken over


class OvertakenError(PoolError):
    """Another process put its own mark in the place of ours."""


def begin(pool: Pool, take_over: bool = False, sweeps: bool = False) -> tuple[str, bool]:
    """Mark the table, so that no other commit comes through.

    A sweep waits for an erase, and gives way to whoever comes: they find what it would have.
    Returns the mark's token, and whether an erase was left unfinished.

    Raises:
        PoolError: somebody else is erasing, or the pool cannot be reached.
    """
    token = uuid4().hex
    for _ in retrying(pool):
        pool.refresh()
        other = pool.erasing
        unfinished = other is not None and not other.get("sweeps")
        if unfinished and sweeps:
            continue
        if other is not None and unfinished and not take_over and not _is_dead(other):
            raise PoolError(
                f"an erase on {other['host']} has been under way since {other['since']}",
                "wait for it; if it was killed, add --take-over",
            )
        mark = {
            "token": token,
            "host": socket.gethostname(),
            **this_process(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "sweeps": sweeps,
        }
        with contextlib.suppress(ConflictError):
            set_properties(pool, {ERASING: json.dumps(mark)})
        # Whether it came through is seen by looking: an answer can be lost, and so can a commit
        # that an erase began the log anew under. At once: two that sweep would else take turns.
        pool.refresh()
        if pool.erasing is not None and pool.erasing["token"] == token:
            return token, unfinished
    raise AssertionError  # retrying never ends without an error


def _is_dead(mark: dict[str, Any]) -> bool:
    since = datetime.fromisoformat(mark["since"])
    return since < datetime.now(UTC) - ABANDONED or has_ended(mark)


def set_properties(pool: Pool, properties: dict[str, str]) -> None:
    """Write something into the table's metadata.

    Raises:
        ConflictError: another commit to it came first.
        PoolError: the pool cannot be reached.
    """
    with told(pool.address.url):
        pool.records.alter.set_table_properties(properties, raise_if_not_exists=False)


def end(pool: Pool, token: str, erasures: int) -> None:
    """Take the mark away, and count so many erasures more.

    Raises:
        OvertakenError: it is ours no longer.
        PoolError: the pool cannot be reached.
    """
    then: int | None = None
    for _ in retrying(pool):
        pool.refresh()
        mark = pool.erasing
        if then is not None and pool.erasures >= then and (mark is None or mark["token"] != token):
            return  # only the answer was lost
        check(pool, token)
        then = pool.erasures + erasures
        try:
            set_properties(pool, {ERASING: "", ERASURES: str(then)})
        except ConflictError:
            continue
        return


def hand_to_sweep(pool: Pool, token: str, erasures: int) -> None:
    """Make the mark of an erase that of a sweep, and count so many erasures more.

    Nothing is left of the erase then: whoever finds the mark after a kill need only sweep.

    Raises:
        ConflictError, OvertakenError: it is ours no longer.
        PoolError: the pool cannot be reached.
    """
    pool.refresh()
    check(pool, token)
    mark = {**(pool.erasing or {}), "sweeps": True}
    count = str(pool.erasures + erasures)
    set_properties(pool, {ERASING: json.dumps(mark), ERASURES: count})


def give_up(pool: Pool, token: str) -> None:
    """Say that a sweep was not carried out, and that nobody has to wait for it.

    The mark stays: others may trust this sweep with what they left.

    Raises:
        PoolError: the mark is ours no longer, or the pool cannot be reached.
    """
    pool.refresh()
    check(pool, token)
    set_properties(pool, {ERASING: json.dumps({**(pool.erasing or {}), "over": True})})


def check(pool: Pool, token: str) -> None:
    """Look whether the mark is ours, in the version that the pool was refreshed to.

    Raises:
        OvertakenError: it is not.
    """
    mark = pool.erasing
    if mark is None or mark["token"] != token:
        raise OvertakenError(
            "another process took this erase over",
            "give the command again: it sees to it that nothing is left",
        )
