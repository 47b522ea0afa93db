"""Share text whose consent has ended, on a machine whose clock is set to a time zone far behind.

The last day of the consent is the one that it still is 12 hours west of Greenwich. By UTC, or in
India, it may be over; on some islands it always is. Neither `boli share` nor `boli pool get` may
give the text away.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow.parquet
from attack import Outcome
from consent_scene import OPEN, SECRET, Scene, lines

from boli.corpus.record import read_records
from boli.pool.table import open_pool

PROMISE = "Nothing leaves once the last day of its consent has ended anywhere, whatever TZ says."
FAR_BEHIND = "FAR+12"  # as POSIX writes it: 12 hours west
LATER = "पहिले से"


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Share with an expiry that is today by TZ; as the control, with one of three days later."""
    scene = Scene(folder)
    local = (datetime.now(UTC) - timedelta(hours=12)).date()
    given = {"ended": local, "going on": local + timedelta(days=3)}
    words = {}
    for name, day in given.items():
        words[name] = f"{SECRET}{len(words)}"
        scene.write(f"{name}/t.txt", lines(40, words[name]))
        dated = OPEN.replace("[residency]", f"expires = {day}\n[residency]")
        scene.write(f"{name}/source.toml", dated)
    scene.prepare(*(folder / name for name in given))
    scene.share(TZ=FAR_BEHIND)
    went = {name: scene.leaked(word=word) for name, word in words.items()}
    taken = folder / "copy"
    leaks, seen = went["ended"], went["going on"]
    if not fast:
        # Nor does the pool give away what came to it while that was allowed.
        _put_in(scene, local)
        assert scene.leaked(word=LATER) == 1
        done = scene.boli("pool", "get", scene.pool, "--out", taken, TZ=FAR_BEHIND)
        assert "consent has expired" in done.stdout, done.stdout
        given_away = pyarrow.parquet.read_table(taken / "records").to_pylist()
        leaks += sum(LATER in row["text"] for row in given_away)
    return Outcome(
        refused=leaks == 0,
        observed=f"with a last day of {local} and TZ={FAR_BEHIND}, {leaks} texts went",
        control=f"with three days more, {seen} went" if seen else "",
        figures={"leaked": leaks, "in_control": seen},
    )


def _put_in(scene: Scene, expires: date) -> None:
    """Put a record into the pool that another site shared before its consent ended."""
    record = next(read_records(scene.out))[0]
    open_pool(str(scene.pool)).write("gaya", [replace(record, text=LATER, expires=expires)])
