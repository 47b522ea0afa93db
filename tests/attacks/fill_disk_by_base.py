"""A coordinator fills a site's disk by its base model, or writes beside it.

It names a file of a petabyte, or thousands of files, sends more than a file has, sends other
bytes for ever, leaves one unfinished base after the other, and names files `../x`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attack import Outcome
from rogue import Rogue, honest_kit, lines_of_text, tiny_base

from boli.site.kit import BaseFile, Kit

PROMISE = "A base takes no more of a site's disk than its people allow, and only its own folder."
NO_HASH = "0" * 64


def entry(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "sha256": NO_HASH}


KITS: dict[str, tuple[list[dict[str, Any]], str]] = {  # files, and a word of the refusal
    "a petabyte": ([entry("model.safetensors", 10**15)], "less than or equal"),
    "many shards": (
        [entry(f"model-{n:05d}-of-00290.safetensors", 1 << 30) for n in range(290)],
        "max_base_bytes",
    ),
    "many files": ([entry(f"model-{n:05d}-of-09999.safetensors", 1) for n in range(9999)], "kit"),
    "path": ([entry("../../canary", 3)], "not valid"),
    "absolute": ([entry("/tmp/canary", 3)], "not valid"),
    "hidden": ([entry(".bashrc", 3)], "not valid"),
    "case": ([entry("config.json", 3), entry("CONFIG.json", 3)], "there twice"),
    "code": ([entry("setup.py", 3)], "no base may have"),
}


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Offer each kit; then send wrong bytes for an honest one; then run honestly."""
    base, data = tiny_base(folder / "base"), folder / "data"
    data.mkdir()
    (data / "text.txt").write_text(lines_of_text(), encoding="utf-8")
    facts = honest_kit(base).facts()
    state = folder / "rogue" / "state"
    with Rogue(folder / "rogue", base) as rogue:
        rogue.join(data)
        names = ("a petabyte", "many shards", "path") if fast else tuple(KITS)
        for number, name in enumerate(names):
            files, word = KITS[name]
            if name == "many files":  # what does not fit into one answer of NATS
                files = files[:700]
            rogue.offer({**facts, "run": f"bad-{number}", "files": files}, word)
        sizes = [size_of(state / "bases")]

        def wrong_bytes(wanted: Any) -> bytes | None:
            sizes.append(size_of(state / "bases"))
            return b"x" * 32_768 if "file" in wanted else None

        rogue.pieces = wrong_bytes
        longer = Kit.model_validate({**facts, "run": "longer"})
        longer = longer.model_copy(update={"files": (honest_file(longer, "config.json", -7),)})
        rogue.offer(longer, "arrived altered 3 times")
        whole = {"name": "config.json", "size": 40_000, "sha256": NO_HASH}
        rogue.offer({**facts, "run": "wrong", "files": [whole]}, "arrived altered 3 times")
        most = max(sizes)
        honest = rogue.fetch_honestly() if fast else rogue.serve_honestly()
        beside = sorted(str(path.relative_to(folder)) for path in folder.rglob("*canary*"))
    left = list((state / "bases").glob("*/.*.part"))
    honest_bytes = sum(file["size"] for file in facts["files"])
    refused = most < 100_000 and not beside and not left
    observed = f"{len(names) + 2} kits refused, at most {most} bytes on the disk; {honest}"
    if not refused:
        observed = f"{most} bytes on the disk, {len(left)} unfinished, beside: {beside}"
    found = size_of(state / "bases")
    control = (
        f"the honest base of {honest_bytes} bytes was fetched" if found == honest_bytes else ""
    )
    return Outcome(refused, observed, control, {"most_bytes": most})


def honest_file(kit: Kit, name: str, shorter: int) -> BaseFile:
    """Return a file of a kit, said to be shorter than it is."""
    (file,) = (file for file in kit.files if file.name == name)
    return file.model_copy(update={"size": file.size + shorter})


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
