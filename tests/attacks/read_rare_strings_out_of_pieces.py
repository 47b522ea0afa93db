"""A curious coordinator asks a site for pieces of its words, and looks for what few lines hold.

It asks with floors of 1, names a companion file that calls every line a document, and looks for
rare names, a phone number, an address and a long string that were planted in the site's text.
The fast form uses the site's own code in this process; the full one counts more text.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from attack import Outcome
from one_site import CuriousLink

from boli.corpus.pieces import read_pieces
from boli.plan import Plan
from boli.rounds.update import Order
from boli.site.kit import Kit, SiteFolder, pieces_kit
from boli.site.limits import Limits
from boli.site.pieces import LAYOUT

PROMISE = (
    "With the usual limits no string leaves a site that fewer than ten lines or three passages "
    "hold, no personal data of a known form, and no number, whatever the plan asks for."
)
WITHOUT = Limits(pieces_least_lines=1, pieces_least_documents=1)
# What is planted, and in how many lines of how many passages.
CANARIES = {
    "Zebulonqx": (50, 1),
    "Quixworthzz": (50, 2),
    "Wyzkhov": (9, 9),
    "Yxqvarn": (3, 3),
    "क्षठढ्यझ": (40, 2),
}
PHONE, ADDRESS = "9876512340", "vjwqk.xyqzz@example.org"
PASSAGE = 20  # lines


def attack(folder: Path, *, fast: bool) -> Outcome:
    write_text(folder, 60 if fast else 400)
    kept = what_leaves(folder, Limits(), "usual")
    found = leaked(kept)
    rare = sorted(piece for piece in kept if piece.strip().isdigit() and len(piece.strip()) > 1)
    free = leaked(what_leaves(folder, WITHOUT, "without"))
    observed = f"of {len(CANARIES) + 2} canaries {len(found)} are in {len(kept)} pieces"
    control = f"where the site's people take the floors away, {len(free)} canaries come out"
    return Outcome(
        not found and not rare and len(kept) > 20,
        observed,
        control if set(CANARIES) - {"क्षठढ्यझ"} <= free else "",
        {"pieces": len(kept), "canaries": len(found), "canaries_without_floors": len(free)},
    )


def write_text(folder: Path, passages: int) -> None:
    """Write ordinary lines, with canaries in some, and the file that names their documents."""
    draw = random.Random(5)
    words = ["".join(draw.choices("कखगचजटडतदनपबमरलसह", k=3)) for _ in range(60)]
    lines = [" ".join(draw.choices(words, k=9)) for _ in range(passages * PASSAGE)]
    for canary, (number, places) in CANARIES.items():
        for i in range(number):
            lines[(i % places) * PASSAGE + i // places % PASSAGE] += f" {canary}"
    for i in range(0, len(lines), 3):
        lines[i] += f" {PHONE}" if i % 2 else f" {ADDRESS}"
    lines += ["".join(draw.choices("abcdefgh", k=3000)) for _ in range(2)]
    data = folder / "text"
    data.mkdir()
    (data / "mag.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = "\n".join(f"document {i}" for i in range(len(lines)))
    (data / "names.txt").write_text(names + "\n", encoding="utf-8")


def what_leaves(folder: Path, limits: Limits, name: str) -> dict[str, int]:
    """Return what a site sends to a coordinator that asks for as much as it can."""
    plan = Plan.model_validate(
        {
            "name": "curious",
            "model": {
                "base": {
                    "language": "hin",
                    "micro": {"tokenizer": "sites"},
                    "text": ["hin.txt"],
                    "pieces": {"least_lines": 1, "least_documents": 1, "most_pieces": 100_000},
                },
            },
            "rounds": {"total": 5, "local_steps": 40},
            "site": [
                {
                    "name": "gaya",
                    "language": "mag",
                    "text": [{"path": "mag.txt", "held_out_by": "names.txt"}],
                }
            ],
        }
    )
    kit: Any = pieces_kit("curious-1-pieces", plan).for_site("gaya")
    kit = Kit.model_validate_json(json.dumps(kit.facts()))
    site = SiteFolder("gaya", folder / "text", folder / name, None, limits)
    site.admit(kit, lambda _words, _no: True)
    asked = Order(
        order="curious-1-pieces-gaya-1",
        site="gaya",
        sequence=1,
        base_version=0,
        layout=LAYOUT.digest,
        local_steps=0,
    )
    link = CuriousLink(asked)
    site.open_node(kit, link).run()
    ((_, payload),) = link.answers
    return read_pieces(payload, 100_000, "gaya")


def leaked(pieces: dict[str, int]) -> set[str]:
    """Return the canaries of which a part of four characters or more can be read."""
    text = "\n".join(pieces)
    secrets = [*CANARIES, PHONE, ADDRESS.partition("@")[0]]
    return {
        secret
        for secret in secrets
        if any(secret[i : i + 4] in text for i in range(len(secret) - 3))
    }
