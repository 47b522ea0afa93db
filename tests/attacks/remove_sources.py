"""Take all sources away after they were prepared, or carry the prepared folder off, and share it.

What was noted in its records then is the only word left. It must not be enough: consent may have
been taken back where nobody looks any more.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from attack import Outcome
from consent_scene import OPEN, Scene

PROMISE = "Where a source is gone, has moved or is on another machine, nothing of it leaves."


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Share after the archive was moved, without preparation.json, and from a copy of a pool."""
    scene = Scene(folder)
    scene.write("archive/diary/source.toml", OPEN)
    scene.prepare()
    said = []

    away = folder / "away"
    scene.archive.rename(away)
    said.append(scene.share())
    if not fast:
        scene.archive.symlink_to(away)  # a link in its place
        said.append(scene.share())
        scene.archive.unlink()
        scene.archive.mkdir()  # an empty folder, with a lax manifest
        scene.write("archive/source.toml", OPEN)
        said.append(scene.share())
        shutil.rmtree(scene.archive)
    away.rename(scene.archive)

    bare = folder / "bare"  # the records alone, as a copy of a pool has them
    shutil.copytree(scene.out / "records", bare / "records")
    said.append(scene.share(out=bare))

    leaks = scene.rows()
    scene.share()
    seen = scene.rows()
    return Outcome(
        refused=leaks == 0 and all("shared               0" in each for each in said),
        observed=f"{leaks} texts are in the pool after {len(said)} tries",
        control=f"with the sources in their place the same command shares {seen}" if seen else "",
        figures={"tries": len(said), "leaked": leaks, "in_control": seen},
    )
