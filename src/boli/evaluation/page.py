"""A run's figures as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boli.evaluation.card import WARNING, beside_sentences, exported_sentences
from boli.evaluation.plots import NUM_COLORS, plots
from boli.evaluation.units import (
    SPACE,
    bits,
    count,
    duration,
    listed,
    percent,
    plural,
    signed,
    size,
    utc,
)
from boli.evaluation.verdict import comparison_notes, span

if TYPE_CHECKING:
    import jinja2

Figures = Mapping[str, Any]

TRAINED = {
    "lora": "one LoRA adapter",
    "frozen_a": "one LoRA adapter with frozen A",
    "core": "one core-only LoRA adapter",
    "full": "all parameters",
}


def templates() -> jinja2.Environment:
    """Return the environment of all pages: HTML in values is escaped, and numbers are worded."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bits": bits,
        "signed": signed,
        "count": count,
        "duration": duration,
        "percent": percent,
        "size": size,
        "utc": utc,
    }
    return environment


def page(figures: Figures) -> str:
    """Return the page of a run; `figures` are those of report.json."""
    environment = templates()
    environment.filters |= {"verdict": verdict, "change": _change, "span": _span}
    colors = {code: f"series{k % NUM_COLORS}" for k, code in enumerate(figures["languages"])}
    tested = [each["before"]["test"] for each in figures["languages"].values()]
    tested += [each["after"]["test"] for each in figures["languages"].values()]
    tested += [each["six_gram"]["test"] for each in figures["languages"].values()]
    tested += [each["ppmd"] for each in figures["languages"].values()]
    return environment.get_template("report.html.j2").render(
        figures=figures,
        colors=colors,
        largest=max((value for value in tested if value is not None), default=1.0),
        summary=list(summary(figures)),
        verdicts=_verdicts(figures),
        notes=list(comparison_notes(figures)),
        warnings=[s for s in _exported(figures) if s.startswith(WARNING)],
        plots=plots(figures, colors),
        sites={name: f"series{k % NUM_COLORS}" for k, name in enumerate(figures["sites"])},
        settings=list(_settings(figures["plan"]["settings"])),
    )


def _verdicts(figures: Figures) -> dict[str, str]:
    """Return by language, and for their mean, who wins and whether that is noise."""
    languages = figures["languages"]
    found = {code: one["verdict"] for code, one in languages.items() if one.get("verdict")}
    if len(found) > 1 and figures["mean"]["verdict"]:
        found["mean"] = figures["mean"]["verdict"]
    return found


def _span(difference: Figures) -> str:
    """Return the interval of a difference."""
    return span(difference["low_percent"], difference["high_percent"])


def _change(ratio: float | None) -> str:
    """Return a ratio as a change."""
    return "–" if ratio is None else f"{signed((ratio - 1) * 100, 1)}{SPACE}%"


def verdict(change_percent: float | None) -> str:
    """Say how a change of bits per byte is to be read: fewer are better."""
    if change_percent is None:
        return "not judged yet"
    if abs(change_percent) < 0.05:
        return "no change"
    return f"{percent(abs(change_percent))} {'better' if change_percent < 0 else 'worse'}"


def summary(figures: Figures) -> Iterator[str]:
    """Yield the sentences that say what was trained, and what came of it."""
    settings, sites = figures["plan"]["settings"], figures["sites"]
    what = TRAINED.get(settings["model"]["adapter"]["kind"], "an adapter")
    ours = [code for code, each in figures["languages"].items() if each["role"] == "site"]
    yield (
        f"{plural(len(sites), 'site')} trained {what} of {count(figures['num_entries'])} entries "
        f"in {listed(ours)}, over {plural(figures['version'], 'round')} and "
        f"{count(figures['tokens'])} tokens."
    )
    total = settings["rounds"]["total"]
    if figures["status"] == "interrupted":
        yield f"The run is not finished: it ended after round {figures['version']} of {total}."
        if figures["failure"]:
            yield f"What ended it: {figures['failure']}."
    elif figures["status"] == "running":
        yield f"The run goes on: {figures['version']} of {total} rounds are done."
    yield from (sentence for sentence in _exported(figures) if not sentence.startswith(WARNING))
    yield from _outcome(figures, ours)
    base = figures["forgetting"]
    if base and base["change_percent"] is not None:
        yield _forgotten(base)
    sent = figures["bytes"]
    spent = f"The rounds took {duration(figures['seconds'])}"
    if (figures["preparation_seconds"] or 0) >= 1:
        spent += f" after {duration(figures['preparation_seconds'])} of preparation"
    yield f"{spent}; {size(sent['up'])} went up from the sites and {size(sent['down'])} down."
    yield _vouched(figures["journal"])


def _exported(figures: Figures) -> Iterator[str]:
    """Yield which version is exported; nothing before there is one."""
    if figures["exported"] is not None:
        yield from exported_sentences(figures["exported"])


def _outcome(figures: Figures, ours: Sequence[str]) -> Iterator[str]:
    """Yield what came of it at the sites' languages, also where it is not to our liking."""
    mean = figures["mean"]
    benched = [name for name, site in figures["sites"].items() if site["benched"]]
    if benched:
        who = f"Site{'s' if len(benched) > 1 else ''} {listed(benched)}"
        yield f"{who} {'were' if len(benched) > 1 else 'was'} suspended: no more orders were given."
    if mean["change_percent"] is None:
        yield "No test part has been judged since, so there is no gain to tell of yet."
        return
    each = {code: figures["languages"][code]["change_percent"] for code in mean["languages"]}
    over = "these languages" if len(each) == len(ours) else f"{listed(list(each))} alone"
    yield (
        f"{f'On average over {over}' if len(ours) > 1 else 'There'}, a byte of text that no site "
        f"trained on took {bits(mean['before'])} bits before and takes {bits(mean['after'])} "
        f"after: {verdict(mean['change_percent'])}."
    )
    yield from beside_sentences(mean, briefly=True)
    worse = [code for code, change in each.items() if change >= 0.05]
    if worse and len(each) > 1:
        yield f"Not every language gained: {listed(worse)} became worse."


def _vouched(journal: Figures) -> str:
    """Say whether the journal that all of this is from is the one that was written."""
    if not journal["whole"]:
        return f"The journal cannot be vouched for: {journal['problem']}."
    if not journal["sealed"]:
        return "The journal was never signed: an older version of boli wrote it."
    rest = journal["lines"] - journal["sealed"]
    whose = "this machine's key" if journal["own_key"] else "key"
    return (
        f"The first {plural(journal['sealed'], 'line')} of the journal are signed by {whose} "
        + (
            f"{journal['key']}; {count(rest)} after them are not."
            if rest
            else f"{journal['key']}, and no line comes after them."
        )
    )


def _forgotten(base: Figures) -> str:
    change = base["change_percent"]
    if change < 0.05:
        said = "was not forgotten" if change > -0.05 else f"became {verdict(change)} as well"
        return f"The base's own language, {base['language']}, {said}."
    return (
        f"The base's own language, {base['language']}, was forgotten by {percent(change)}: "
        f"{bits(base['before'])} bits per byte before, {bits(base['after'])} after."
    )


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the plan as `section.key` and value; a table in a list goes by its name."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _settings(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, entry in enumerate(value, 1):
            yield from _settings(entry, f"{key}.{entry.get('name', number)}")
    elif value is not None:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield key, text.lower() if isinstance(value, bool) else text
