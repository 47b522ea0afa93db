"""Put a source.toml into a folder above a source, so that it speaks for all that lies below.

Many people can write into a shared parent folder. A source.toml there, which allows everything,
must open neither a source folder without one of its own, nor a file that was named by itself.
"""

from __future__ import annotations

from pathlib import Path

from attack import Outcome
from consent_scene import OPEN, SECRET, Scene, lines

PROMISE = "Only a source.toml in a named source folder or below it counts for the text in it."


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Prepare a folder without a manifest under a lax one, and a single file beside a lax one."""
    scene = Scene(folder / "shared" / "scene")
    for place in (folder / "shared", folder / "shared" / "scene"):
        (place / "source.toml").write_text(OPEN)
    scene.write("mine/m.txt", lines(40, SECRET))
    mine, file = scene.folder / "mine", scene.folder / "mine" / "m.txt"
    written = scene.prepare(mine)
    scene.share()
    said = (mine / "source.toml").read_text(encoding="utf-8") if "source.toml" in written else ""
    if not fast:
        (mine / "source.toml").write_text(OPEN)  # now beside the file
        scene.prepare(file, out=scene.folder / "alone")
        scene.share("gaya", out=scene.folder / "alone")
    leaks = scene.leaked()

    (mine / "source.toml").write_text(OPEN)
    scene.note()  # what the folder itself allows
    scene.share()
    seen = scene.leaked()
    return Outcome(
        refused=leaks == 0 and "purposes = []" in said and f"wrote {mine}" in written,
        observed=f"{leaks} texts are in the pool; a template was written into the source",
        control=f"the same source.toml in the source itself shares {seen}" if seen else "",
        figures={"leaked": leaks, "in_control": seen},
    )
