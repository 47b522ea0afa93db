"""Bound the memory that reading or cleaning one thing may take, so that it ends that alone.

The steps bound what they take; this is for what they cannot tell beforehand, such as a parser
that reads markup otherwise than we do, or a compressed page that lies about its size. Only Linux
counts what a process maps; elsewhere nothing is bounded here.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


def count_all() -> None:
    """Let Arrow ask the system for what it needs, in this process and those that it starts.

    Its own allocator sets a gigabyte aside at the first request, which no bound would count again.
    Without effect once pyarrow is loaded.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def bound(more_bytes: int) -> None:
    """Let this process map at most so many bytes more than it has, for good."""
    _set(more_bytes, for_good=True)


@contextmanager
def bounded(more_bytes: int) -> Iterator[None]:
    """Let this process map at most so many bytes more while the block runs.

    Whoever asks for more in the block gets a MemoryError, or the like of its library.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    _set(more_bytes, for_good=False)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _set(more_bytes: int, *, for_good: bool) -> None:
    if not _STATUS.exists():
        return
    import pyarrow

    pyarrow.allocate_buffer(1 << 20)  # so that what its allocator sets aside is there already
    (used,) = (
        int(line.split()[1]) * 1024
        for line in _STATUS.read_text().splitlines()
        if line.startswith("VmData")
    )
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = used + more_bytes
    if most == resource.RLIM_INFINITY or wanted < most:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted if for_good else most))
