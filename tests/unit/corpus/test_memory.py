"""What takes too much memory fails by itself, and nothing after it."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from boli.corpus.memory import bounded

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux counts what a process maps"
)


def test_more_than_the_bound_is_a_memory_error() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded(64 << 20):
        assert len(bytearray(8 << 20)) == 8 << 20
        with pytest.raises(MemoryError):
            bytearray(2 << 30)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_bound_for_good_cannot_be_raised() -> None:
    code = (
        "from boli.corpus.memory import bound, bounded\n"
        "bound(64 << 20)\n"
        "with bounded(4 << 30):\n"
        "    try: bytearray(2 << 30)\n"
        "    except MemoryError: print('refused')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "refused\n"
