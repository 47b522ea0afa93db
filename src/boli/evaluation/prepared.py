"""What came of preparing text, as two pages: figures, and examples that stay on the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from boli.corpus.consent import consent_date
from boli.corpus.facts import STEPS
from boli.durable import write_file
from boli.evaluation.page import templates
from boli.evaluation.units import count, listed, percent, plural

Figures = Mapping[str, Any]

DUPLICATES = ("exact duplicate", "near duplicate")


def write_pages(out: Path) -> Path:
    """Write report.html and examples.html from the figures in a folder; return the first.

    The report holds numbers and names of kinds alone, and may be shown around. The examples are
    text as it was found, and only its owner may read that file.

    Raises:
        StorageError: the disk is full or refuses.
    """
    figures = json.loads((out / "report.json").read_text(encoding="utf-8"))
    examples = json.loads((out / "examples.json").read_text(encoding="utf-8"))
    environment = templates()
    page = environment.get_template("prepared.html.j2").render(
        figures=figures,
        summary=list(summary(figures)),
        rows=[("kept", figures["kept"], "kept"), *_out(figures)],
        tables=list(_tables(figures)),
        steps=list(steps(figures)),
    )
    write_file(out / "report.html", page.encode())
    page = environment.get_template("examples.html.j2").render(
        examples={reason: examples.get(reason, []) for reason, _ in by_number(figures["dropped"])}
    )
    write_file(out / "examples.html", page.encode("utf-8", "replace"), private=True)
    return out / "report.html"


def _out(figures: Figures) -> Iterator[tuple[str, int, str]]:
    for reason, number in by_number(figures["dropped"]):
        yield reason, number, "out"


def by_number(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return counts, largest first."""
    return sorted(((k, v) for k, v in counts.items() if v), key=lambda pair: (-pair[1], pair[0]))


def share(figures: Figures, number: float) -> str:
    """Return a number of documents as a share of all."""
    return percent(100 * number / max(1, figures["documents"]))


def summary(figures: Figures) -> Iterator[str]:
    """Yield the sentences that say what came of it, the most important first."""
    total, kept = figures["documents"], figures["kept"]
    yield (
        f"Of {plural(total, 'document')} in {plural(figures['files'], 'file')}, {count(kept)} "
        f"({share(figures, kept)}) became records: {count(figures['kept_characters'])} characters "
        f"of {count(figures['characters'])}."
    )
    twice = sum(figures["dropped"].get(reason, 0) for reason in DUPLICATES)
    if twice:
        yield f"{count(twice)} said again what another one says."
    personal = sum(figures["personal"].values())
    if personal:
        yield f"In {plural(personal, 'place')} a placeholder stands for personal data."
    yield from may_leave(figures)


def may_leave(figures: Figures) -> Iterator[str]:
    """Yield what the manifests say of sharing."""
    free = [each for each in figures["consents"] if _shareable(each)]
    number = sum(each["records"] for each in free)
    if not free:
        missing = sorted({what for each in figures["consents"] for what in _missing(each)})
        why = f": {listed(missing)}" if missing else ""
        yield f"Nothing of it may leave this machine by its source.toml{why}."
        return
    limits = listed(sorted({each["residency"] for each in free}))
    every = "all" if number == figures["kept"] else f"{count(number)} of them"
    yield f"The sources allow sharing {every}, as far as: {limits}."


def _shareable(allowed: Mapping[str, Any]) -> bool:
    return not list(_missing(allowed))


def _missing(allowed: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a manifest lacks for any sharing."""
    if not allowed["licence"]:
        yield "no licence is named"
    if "training" not in allowed["purposes"]:
        yield "no consent to training"
    if allowed["expires"] and allowed["expires"] < consent_date().isoformat():
        yield "consent has expired"
    if allowed["residency"] == "premises":
        yield "the limit is the premises"
    elif allowed["residency"] != "any" and not allowed["region"]:
        yield "no region is named"


def steps(figures: Figures) -> Iterator[tuple[str, float, float]]:
    """Yield each step's name, its seconds over all workers, and documents per second of one."""
    for name in STEPS:
        seconds = figures["nanoseconds"].get(name, 0) / 1e9
        if seconds > 1e-6 * figures["documents"]:  # what is less was not asked for
            yield name, seconds, figures["documents"] / seconds


def _tables(figures: Figures) -> Iterator[tuple[str, str, list[tuple[str, int]]]]:
    yield (
        "Personal data",
        "How often a placeholder of each kind was put in, in documents that were kept.",
        by_number(figures["personal"]),
    )
    yield (
        "Lines taken out",
        "Out of documents that otherwise went on.",
        by_number(figures["lines"]),
    )
    yield (
        "Languages",
        "What the identifier calls the documents that were kept; und: it is unsure.",
        by_number(figures["languages"]),
    )
    yield (
        "Scripts",
        "Of most letters of each document that was kept, as in ISO 15924.",
        by_number(figures["scripts"]),
    )
