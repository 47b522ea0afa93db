"""A coordinator asks for text that is not there, and reads names of patients in the site's errors.

A wrong `column` makes the reader of Parquet files list all columns that there are; a path that is
missing names the folder; a line that is not as it should be may be quoted. What a site says of its
failure goes to the coordinator, into its journal and onto its display.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from attack import Outcome
from rogue import Rogue, honest_kit, lines_of_text, plan_tables, tiny_base

from boli.engine.wire import unpack_message
from boli.errors import PUBLIC_WORDS, TransportError
from boli.rounds.transport import Failed

PROMISE = "Of its failures a site says a code; no name, path or value of the site leaves with it."
CANARY = "verma_hiv_1987"


def write_texts(data: Path) -> None:
    """Write files with the canary in names of columns, in values, and in the folder's name."""
    import pyarrow
    import pyarrow.parquet

    data.mkdir(parents=True)
    (data / "text.txt").write_text(lines_of_text(), encoding="utf-8")
    table = pyarrow.table({f"{CANARY}_{n}": [f"{CANARY} {n}"] for n in range(5)})
    pyarrow.parquet.write_table(table, data / "notes.parquet")
    (data / "notes.jsonl").write_text(f'{{"{CANARY}": "{CANARY}"}}\n', encoding="utf-8")
    (data / "notes.tsv").write_text(f"{CANARY}\n", encoding="utf-8")
    (data / "latin.txt").write_bytes(f"{CANARY} caf\xe9\n".encode("latin-1"))
    (data / "short.txt").write_text(f"{CANARY}\n", encoding="utf-8")


WANTED: dict[str, Any] = {  # by the code that the coordinator hears
    "text.column": [
        {"path": "notes.parquet", "column": "text"},
        {"path": "notes.jsonl", "column": "text"},
        {"path": "notes.tsv", "column": 3},
    ],
    "text.missing": ["missing.txt"],
    "text.format": ["latin.txt"],
    "text.short": ["short.txt"],
    "site.outside": ["../text.txt"],
}


def attack(folder: Path, *, fast: bool) -> Outcome:
    """Ask for each kind of text, and look for the canary in all that came from the site."""
    base, data = tiny_base(folder / "base"), folder / CANARY / "data"
    write_texts(data)
    wanted = [(code, text) for code, texts in WANTED.items() for text in texts]
    failures: list[Failed] = []
    codes: list[str] = []
    with Rogue(folder / "rogue", base) as rogue:
        rogue.join(data)
        for number, (code, text) in enumerate(itertools.islice(wanted, 2 if fast else None)):
            kit = honest_kit(base, plan_tables(text=[text])).model_copy(
                update={"run": f"asks-{number}"}
            )
            rogue.offer(kit, f"run asks-{number}:")
            failures += rogue.arrivals(Failed)
            codes.append(code)
        honest = "" if fast else f"; {rogue.serve_honestly()}"
        left = b"\n".join([*rogue.heard, *map(opened, rogue.heard), repr(failures).encode()])
        at_home = rogue.said.count(CANARY)
    leaked = left.count(CANARY.encode()) + left.count(b"data/")
    told = [one.problem for one in failures]
    as_coded = all(PUBLIC_WORDS[code][0] in told for code in codes)
    observed = f"{len(failures)} failures told by {len(set(told))} of our sentences{honest}"
    if leaked or not as_coded:
        observed = f"{leaked} times a name or a path left the site; the coordinator heard {told}"
    control = (
        f"the same errors name it {at_home} times on the site's own terminal" if at_home else ""
    )
    bytes_heard = sum(map(len, rogue.heard))
    return Outcome(not leaked and as_coded, observed, control, {"bytes_from_site": bytes_heard})


def opened(message: bytes) -> bytes:
    """Return what a message says, where it is packed."""
    _, _, data = message.partition(b" ")
    try:
        kind, body, payload = unpack_message(data)
    except TransportError:
        return b""
    return f"{kind} {body}".encode() + payload
