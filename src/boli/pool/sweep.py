"""Take away files that no version of a pool needs.

A commit that was refused may have its rows in a file already, and one in flight may bring that
file after an erase looked for files to take away. So whoever was refused sweeps (see egress.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

from boli.errors import PoolError
from boli.pool.delta import told
from boli.pool.mark import OvertakenError, begin, check, end, give_up
from boli.pool.process import has_ended
from boli.pool.table import RECORDS, Pool

SWEEP_SECONDS = 60.0  # that others wait for one; less than their patience
READ_AT_ONCE = 16  # files of a log
LOG = f"{RECORDS}/_delta_log"
_FILES = ("add", "remove")  # actions of a commit


def sweep(pool: Pool) -> None:
    """Take away the files of commits that never came through; all versions stay.

    Raises:
        PoolError: the pool cannot be reached, or an erase takes long or was left unfinished.
    """
    token, _ = begin(pool, sweeps=True)
    finish_sweep(pool, token)


def finish_sweep(pool: Pool, token: str) -> None:
    """Sweep under a mark of a sweep, and take it away.

    Raises:
        PoolError: the pool cannot be reached, or lacks files.
    """
    try:
        _take_strays(pool, token)
        end(pool, token, 0)
    except OvertakenError:
        return  # whoever came takes these away too
    except PoolError:
        with contextlib.suppress(PoolError):
            give_up(pool, token)
        raise


def sweep_abandoned(pool: Pool) -> bool:
    """Tell whether a sweep under way has ended without a word, or goes on for long.

    By a clock of one's own, from when the mark was seen first. Two that sweep do no harm.
    """
    mark = pool.erasing
    if mark is None or not mark.get("sweeps"):
        return False
    if pool.seen_mark[0] != mark["token"]:
        pool.seen_mark = mark["token"], time.monotonic()
    over = bool(mark.get("over")) or has_ended(mark)
    return over or time.monotonic() - pool.seen_mark[1] > SWEEP_SECONDS


def _take_strays(pool: Pool, token: str) -> None:
    """Take away every file of rows that no version needs."""
    files = pool.address.files(RECORDS)
    stray = set(not_needed(pool, token, files))
    first = _first_version(files)
    old = [name for name in files if is_old(name, first)]
    if stray:  # some are of older versions: the log says where these came, and where they went
        log = [name for name in files if re.fullmatch(rf"{LOG}/\d+\.json", name)]
        stray -= _named(pool, token, sorted(set(log) - set(old)))
    pool.address.delete([*sorted(stray), *old])


def _named(pool: Pool, token: str, log: Sequence[str]) -> set[str]:
    """Return the files of rows that commits name."""
    named = set[str]()
    try:
        with ThreadPoolExecutor(READ_AT_ONCE) as readers:
            for data in readers.map(pool.address.read, log):
                for line in data.splitlines():
                    action = json.loads(line)
                    named.update(_paths(one["path"] for one in map(action.get, _FILES) if one))
    except PoolError:
        pool.refresh()
        check(pool, token)  # an erase that took over takes the log away
        raise
    return named


def _paths(paths: Iterable[str]) -> Iterator[str]:
    """Yield names of files below the pool: as Delta writes a path, and as it means it."""
    for path in paths:
        yield from (f"{RECORDS}/{path}", f"{RECORDS}/{unquote(path)}")


def not_needed(pool: Pool, token: str, files: Sequence[str]) -> list[str]:
    """Return those of the files, listed under a mark, that hold rows the newest version has not.

    The mark has to be there still, now that they are listed: none is of somebody who took over.
    What is not in the log by then is of commits that can no longer come through.

    Raises:
        OvertakenError: it is not.
        PoolError: the pool cannot be reached, or lacks files.
    """
    import pyarrow as pa

    pool.refresh()
    check(pool, token)
    with told(pool.address.url):
        paths = pa.table(pool.records.get_add_actions())["path"].to_pylist()
    needed = set(_paths(paths))
    found = [name for name in files if not name.startswith(f"{LOG}/")]
    if len(needed.intersection(found)) < len(paths):
        raise PoolError(
            f"the pool at {pool.address.url} lacks files of its newest version",
            "nothing was taken away; restore it from a copy",
        )
    return [name for name in found if name not in needed]


def _first_version(files: Sequence[str]) -> int:
    """Return the first version that the log has: 0, or the one that the last erase began with."""
    if f"{LOG}/{0:020d}.json" in files:
        return 0
    there = set(files)  # a checkpoint without its commit came late, as a commit can
    matches = (re.match(rf"{LOG}/(\d{{20}})\.checkpoint\.", name) for name in files)
    found = {match[1] for match in matches if match}
    return min((int(one) for one in found if f"{LOG}/{one}.json" in there), default=0)


def is_old(name: str, first: int) -> bool:
    """Tell whether a file of the log is of a version before `first`, or of a killed writer."""
    if not name.startswith(f"{LOG}/") or name == f"{LOG}/_last_checkpoint":
        return False
    found = re.match(r"(\d{20})\.", name.removeprefix(f"{LOG}/"))
    return found is None or int(found[1]) < first
