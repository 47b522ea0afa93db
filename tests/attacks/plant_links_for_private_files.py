"""Somebody with an account on the machine plants links where boli is about to write private files.

The names at which earlier versions wrote temporary files are links to a file of the victim's; a
thread goes on planting them, and replaces the written file by a link, all the time. The
umask lets everybody read and write. `boli invite` writes the key of a site, `boli join` its state.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from attack import Outcome, boli
from one_site import end, start, wait_for

from boli.durable import write_file

PROMISE = (
    "Keys and a site's state are for their owner alone from the first byte on, and nothing is "
    "written through a link, whatever the umask and whoever plants links."
)
PRECIOUS = b"a file of the victim's"


def attack(folder: Path, *, fast: bool) -> Outcome:
    before = os.umask(0)
    try:
        return _attack(folder, rounds=60 if fast else 1000, with_join=not fast)
    finally:
        os.umask(before)


def _attack(folder: Path, *, rounds: int, with_join: bool) -> Outcome:
    victim, place, wrong = folder / "victim", folder / "place", []
    victim.write_bytes(PRECIOUS)
    place.mkdir()
    # The real command, over links that wait for it.
    for name in (".gaya.boli.tmp", "gaya.boli"):
        (place / name).symlink_to(victim)
    words = ("--out", place / "gaya.boli", "--folder", place / "coordinator")
    boli("invite", "gaya", "--address", "127.0.0.1:1", *words, home=folder)
    wrong += [f"{path} is open" for path in _open(place / "coordinator")]
    if (place / "gaya.boli").is_symlink() or _mode(place / "gaya.boli") & 0o077:
        wrong.append("the invitation")
    # A thread that never rests.
    with _planting(place, "key", victim) as planted:
        for number in range(rounds):
            write_file(place / "key", b"%d" % number, private=True)
    if with_join:
        wrong += _state_of_join(place)
    if victim.read_bytes() != PRECIOUS:
        wrong.append("the victim's file was written over")
    observed = (
        f"wrong: {wrong[:5]}" if wrong else f"{rounds} writes between {planted[0]:,} planted links"
    )
    # The control: how it was written before; the link is followed, and the file is everybody's.
    naive = folder / "naive"
    naive.mkdir()
    (naive / ".key.tmp").symlink_to(victim)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(naive / ".key.tmp", flags, 0o666), "wb") as file:
        file.write(b"secret")
    seen = victim.read_bytes() == b"secret"
    control = "a predictable name without O_EXCL writes over the victim's file"
    return Outcome(not wrong, observed, control if seen else "", {"links_planted": planted[0]})


@contextlib.contextmanager
def _planting(place: Path, name: str, victim: Path) -> Iterator[list[int]]:
    """Plant links at a file's name and at names of temporary files, until the block ends."""
    over, planted = threading.Event(), [0]

    def plant() -> None:
        while not over.is_set():
            for target in (name, f".{name}.tmp", f".{name}.{planted[0] % 99:016x}.tmp"):
                with contextlib.suppress(OSError):
                    (place / "new").symlink_to(victim)
                    (place / "new").replace(place / target)
                    planted[0] += 1

    attacker = threading.Thread(target=plant)
    attacker.start()
    try:
        yield planted
    finally:
        over.set()
        attacker.join()


def _state_of_join(place: Path) -> list[str]:
    """Return what others can reach of a site's state, some of it left open by a version before."""
    state = place / "state"
    (state / "runs" / "old").mkdir(parents=True)
    (state / "runs" / "old" / "000000001.safetensors").write_bytes(b"an update")
    (place / "text").mkdir()
    words = ("join", "gaya.boli", "--data", "text", "--state", "state", "--accept")
    joined = start(*words, home=place, log=place / "join.log")
    try:
        wait_for((state / "limits.toml").exists, 60)
        time.sleep(1)
        everything = (state, *state.rglob("*"))
        return [f"{path} is open" for path in everything if _mode(path) & 0o077]
    finally:
        end(joined)


def _open(folder: Path) -> list[Path]:
    """Return what is for more than its owner, of a folder that others can enter."""
    if not _mode(folder) & 0o077:
        return []
    everything = (folder, *folder.rglob("*"))
    return [one for one in everything if not one.is_symlink() and _mode(one) & 0o077]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
