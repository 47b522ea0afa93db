"""The library deltalake: opened when it is needed, and its errors told as ours."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from boli.errors import PoolError
from boli.pool.address import Address, plain, unreachable

if TYPE_CHECKING:
    from deltalake import DeltaTable

PIP = "pip install 'boli[pool]'"
# What reading says while an erase takes files away: of the log, or of rows.
# The last: where a commit came late, under a number that an erase had given free.
_TAKEN_AWAY = (
    r"(?i)not found|no such file|invalid table version|NoSuchKey|No table metadata or protocol"
)
_LOOKS = 10


class ConflictError(PoolError):
    """Another commit came first that touches the same, or took it away; look, and try again."""


def delta() -> Any:
    """Return the library deltalake.

    Raises:
        PoolError: it is not installed.
    """
    try:
        import deltalake
    except ImportError:
        raise PoolError("pools need deltalake, which is not installed", PIP) from None
    return deltalake


@contextmanager
def told(url: str) -> Iterator[None]:
    """Turn the library's errors into ours.

    Raises:
        ConflictError: another commit came first, or an erase took away what was being read.
        PoolError: the pool cannot be reached.
    """
    import pyarrow

    errors = delta().exceptions
    try:
        yield
    except errors.TableNotFoundError as error:
        raise unreachable(url, error) from error
    except (errors.DeltaError, OSError, pyarrow.ArrowException) as error:
        if isinstance(error, errors.CommitFailedError) or _was_taken_away(error):
            raise ConflictError(
                f"the pool at {url} changed in between: {plain(error)}", "give the command again"
            ) from error
        raise unreachable(url, error) from error


def _was_taken_away(error: Exception) -> bool:
    text = str(error)
    broken = "NoSuchBucket" in text or "magic bytes" in text  # a torn file is there for good
    return bool(re.search(_TAKEN_AWAY, text)) and not broken


def open_table(address: Address, name: str) -> DeltaTable:
    """Return one of a pool's tables at its newest version; errors are the library's own."""
    library = delta()
    for attempt in range(_LOOKS):
        try:
            return library.DeltaTable(address.table(name), storage_options=address.options)
        except library.exceptions.TableNotFoundError:
            raise
        except library.exceptions.DeltaError as error:
            # Between listing the log and reading it, an erase may take older parts away.
            if attempt == _LOOKS - 1 or not _was_taken_away(error):
                raise
            time.sleep(0.1)
    raise AssertionError


def newest(table: DeltaTable, address: Address, name: str) -> DeltaTable:
    """Return a table at its newest version; errors are the library's own."""
    try:
        table.update_incremental()
    except delta().exceptions.DeltaError:  # an erase took away what it would go on from
        return open_table(address, name)
    return table
