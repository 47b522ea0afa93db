"""A site's agent whose clock is wrong: off_by_a_day.py FOLDER SITE; OFF_BY_SECONDS says how far."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

OFF_BY_SECONDS = float(os.environ.get("OFF_BY_SECONDS", "0"))
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + OFF_BY_SECONDS
time.time_ns = lambda: _time_ns() + int(OFF_BY_SECONDS * 1e9)

import over_nats  # noqa: E402, so that nothing keeps the true clock

if __name__ == "__main__":
    sys.stdout.write(f"it is {time.time():.0f}\n")
    over_nats.main(Path(sys.argv[1]), sys.argv[2])
