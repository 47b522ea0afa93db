"""What is in a pool, in numbers: for `boli pool stats` and the dataset card."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from boli.corpus.consent import consent_date
from boli.corpus.signatures import signature_in_form
from boli.corpus.similar import similar
from boli.pool.ledger import read
from boli.pool.table import Pool

COLUMNS = ("site", "language", "script", "licence", "residency", "pipeline")


@dataclass
class Figures:
    """Counts of one version."""

    version: int
    rows: int = 0
    characters: int = 0
    expired: int = 0  # rows whose consent has ended: nobody is given them
    by: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)  # rows, characters
    near_across_sites: int = 0
    same_across_sites: int = 0
    erased: int = 0  # records
    taken: int = 0  # times


def figures(pool: Pool, *, duplicates: bool = True) -> Figures:
    """Count what is in a pool; without `duplicates` signatures are not read.

    Raises:
        PoolError: the pool cannot be reached.
    """
    told, today = Figures(pool.version), consent_date()
    counts: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    sizes: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    signatures: dict[str, list[bytes]] = defaultdict(list)
    sites_of: dict[str, set[str]] = defaultdict(set)
    extra = ["signature", "content_hash"] if duplicates else []
    for batch in pool.scan([*COLUMNS, "characters", "expires", *extra]):
        for row in batch.to_pylist():
            told.rows += 1
            told.characters += row["characters"]
            told.expired += row["expires"] is not None and row["expires"] < today
            for name in COLUMNS:
                counts[name][row[name]] += 1
                sizes[name][row[name]] += row["characters"]
            if duplicates:
                signatures[row["site"]].append(signature_in_form(row["signature"]))
                sites_of[row["content_hash"]].add(row["site"])
    told.by = {
        name: {value: (number, sizes[name][value]) for value, number in count.most_common()}
        for name, count in counts.items()
    }
    told.near_across_sites = _near_across([signatures[site] for site in sorted(signatures)])
    told.same_across_sites = sum(len(sites) - 1 for sites in sites_of.values())
    # A site is one line of the ledger, with the number of its records.
    told.erased = sum(int(line.facts.get("rows", 1)) for line in read(pool, "erased"))
    told.taken = len(read(pool, "taken"))
    return told


def _near_across(sites: Sequence[Sequence[bytes]]) -> int:
    """Count texts that have a near duplicate at a site earlier in the list."""
    number, earlier = 0, list[bytes]()
    for signatures in sites:
        number += sum(place >= 0 for place in similar(signatures, earlier))
        earlier += signatures
    return number


def printable(value: str) -> str:
    """Return a value from a pool as it can stand in a table: others may have written it."""
    return "".join(c if c.isprintable() and c not in "|<>`" else "�" for c in str(value))[:60]
