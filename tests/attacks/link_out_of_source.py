"""Put links into a source that lead to text elsewhere, so that it is read, and goes with the rest.

`collection` may go anywhere. A link in it leads to a file of `private`, which may not leave; others
lead out of the source by a chain, by a folder, or by the path of a file of the machine. None of
that text may come into the pool; nor into records/ or dropped/, where it does not belong.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
from attack import Outcome
from consent_scene import OPEN, PREMISES, SECRET, Scene, lines

PROMISE = "No link is followed: text is read in its own place alone, by the terms of that place."


def _texts(out: Path) -> str:
    paths = out.glob("*/*.parquet")
    return "".join(str(pyarrow.parquet.ParquetFile(path).read().to_pylist()) for path in paths)


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Prepare and share a source with such links; then the one with both folders inside it."""
    scene = Scene(folder)
    scene.write("both/private/p.txt", lines(100, SECRET))
    scene.write("both/private/source.toml", PREMISES)
    scene.write("both/collection/a.txt", lines(20))
    scene.write("both/collection/source.toml", OPEN)
    both, collection = folder / "both", folder / "both" / "collection"
    links = {
        "diary.txt": Path("../private/p.txt"),
        "chain.txt": collection / "diary.txt",
        "folder": both / "private",
        "machine.txt": Path("/etc/passwd"),
        "device.txt": Path("/dev/zero"),
    }
    for name, target in links.items():
        (collection / name).symlink_to(target)
    scene.prepare(collection)
    scene.share()
    read = _texts(scene.out)
    outside = read.count(SECRET) + read.count("root:")
    told = read.count("links are not followed")
    if not fast:  # both are named now: what the link leads to is read, where it lies
        scene.prepare(both, out=folder / "clean-2")
        scene.share("gaya", out=folder / "clean-2")
        assert _texts(folder / "clean-2").count(SECRET) >= 100
    leaks = scene.leaked()

    # The control: the same file, copied to where the link was.
    (collection / "diary.txt").unlink()
    scene.write("both/collection/diary.txt", lines(100, SECRET))
    scene.prepare(collection, out=folder / "clean-3")
    scene.share("siwan", out=folder / "clean-3")
    seen = scene.leaked("siwan")
    return Outcome(
        refused=leaks == 0 and outside == 0 and told == len(links),
        observed=f"{outside} texts from outside were read, {leaks} are in the pool; "
        f"{told} of {len(links)} links are told of in dropped/",
        control=f"a copy in place of the link gives {seen} texts" if seen else "",
        figures={"links": len(links), "read": outside, "leaked": leaks, "in_control": seen},
    )
