"""Take a restricted folder away after it was prepared, so that a laxer source.toml governs it.

The archive may go anywhere, and its folder `diary` may not leave. Between `boli prepare` and
`boli share` somebody removes, renames or moves that folder, its file or its source.toml, or puts
a link or a laxer source.toml there. No line of the diary may come into the pool.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from attack import Outcome
from consent_scene import OPEN, Scene

PROMISE = "Text leaves only where both what was noted at preparation and what stands now allow it."


def _replace_by_link(path: Path, scene: Scene) -> None:
    path.rename(scene.folder / "elsewhere")
    path.symlink_to(scene.folder / "elsewhere")


CHANGES: dict[str, Callable[[Scene, Path], object]] = {
    "rm -r diary": lambda _, diary: shutil.rmtree(diary),
    "rm diary/source.toml": lambda _, diary: (diary / "source.toml").unlink(),
    "a laxer diary/source.toml": lambda _, diary: (diary / "source.toml").write_text(OPEN),
    "mv diary notes": lambda scene, diary: diary.rename(scene.archive / "notes"),
    "mv diary/d.txt a level up": lambda scene, diary: (diary / "d.txt").rename(
        scene.archive / "d.txt"
    ),
    "a link in place of diary": lambda scene, diary: _replace_by_link(diary, scene),
    "a link in place of its file": lambda scene, diary: _replace_by_link(diary / "d.txt", scene),
    "an unreadable diary/source.toml": lambda _, diary: (diary / "source.toml").write_text("x"),
}
FAST = ("rm -r diary", "rm diary/source.toml")


def _tries(scene: Scene, names: Iterable[str]) -> int:
    """Make each change, share, and undo it; return how many texts of the diary ever went."""
    backup = scene.folder / "backup"
    shutil.copytree(scene.archive, backup)
    for name in names:
        CHANGES[name](scene, scene.archive / "diary")
        scene.share()
        shutil.rmtree(scene.archive)
        shutil.rmtree(scene.folder / "elsewhere", ignore_errors=True)
        (scene.folder / "elsewhere").unlink(missing_ok=True)
        shutil.copytree(backup, scene.archive)
    return scene.leaked()


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Make the changes to a diary that was noted as restricted, and to one noted as open.

    The first must never go. The second was allowed when it was prepared, and must not go either
    once its source.toml or the file itself is not where it was.
    """
    scene = Scene(folder / "restricted")
    scene.prepare()
    tried = [name for name in CHANGES if name in FAST or not fast]
    leaks = _tries(scene, tried)
    went = scene.rows() - leaks

    if not fast:
        was_open = Scene(folder / "open")
        was_open.write("archive/diary/source.toml", OPEN)
        was_open.prepare()
        leaks += _tries(was_open, [name for name in CHANGES if not name.startswith("a laxer")])

    # The control: its owners allow it, and say that this is to be noted.
    scene.write("archive/diary/source.toml", OPEN)
    scene.note()
    scene.share()
    seen = scene.leaked()
    return Outcome(
        refused=leaks == 0 and went == 20,
        observed=f"after {len(tried)} changes {leaks} texts of the diary are in the pool; "
        f"{went} of 20 others went",
        control=f"once the diary's own source.toml allows it, {seen} go" if seen else "",
        figures={"changes": len(tried), "leaked": leaks, "in_control": seen},
    )
