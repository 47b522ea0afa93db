"""What the terminal shows once figures are there: results, forecasts, scores, runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from boli.errors import CorruptFileError
from boli.evaluation.card import WARNING, beside_sentences, exported_sentences
from boli.evaluation.units import bits, duration, percent, signed, size
from boli.evaluation.verdict import by_language, comparison_notes

if TYPE_CHECKING:
    from boli.engine.identities import Guest
    from boli.evaluation.forecast import Forecast
    from boli.evaluation.proof import TestFigures
    from boli.plan import Plan
    from boli.rounds.integrity import Verification
    from boli.run import Run


def show_result(run: Run) -> None:
    """Print a run's figures and where its files are."""
    console = Console(markup=False, emoji=False)
    figures = run.report()
    console.print()
    console.print("bits per byte of held-out text (smaller is better)", style="italic")
    console.print(_languages(figures))
    console.print("\nsites", style="italic")
    console.print(_sites(figures))
    console.print("\nsites beside each other", style="italic")
    console.print(_comparison(figures))
    console.print(f"\n{_verdict(figures)}")
    won = figures["mean"]["winner"]
    lost = won is not None and won["row"] != "model"
    for sentence in beside_sentences(figures["mean"]):
        console.print(sentence, style="bold yellow" if lost else None)
    for sentence in filter(None, (by_language(figures), *comparison_notes(figures))):
        console.print(sentence)
    for sentence in exported_sentences(figures["exported"]) if figures["exported"] else ():
        console.print(sentence, style="bold red" if sentence.startswith(WARNING) else None)
    console.print(f"\nreport   {run.folder / 'report.html'}", soft_wrap=True)
    if run.finished:
        console.print(f"adapter  {run.adapter}", soft_wrap=True)


def show_verification(told: Verification) -> None:
    """Print what holds of a run's journal.

    Raises:
        CorruptFileError: something does not.
    """
    whose = "this machine's" if told.is_own_key else "not this machine's; is it the coordinator's?"
    print(f"journal  {told.num_lines} lines; the last has hash {told.last}")
    if told.key:
        print(
            f"signed   {told.sealed} lines, at version {told.version}, by key {told.key} ({whose})"
        )
    if told.unsealed:
        print(f"         {told.unsealed} lines after them are not signed")
    told.check()
    if not told.key:
        raise CorruptFileError(
            "the journal was never signed: an older version of boli wrote it",
            "resuming the run signs it; or boli verify RUN --adopt, if you know that it is whole",
        )
    print("whole    chain, head, checkpoint and run fit together")


def _languages(figures: dict[str, Any]) -> Table:
    table = Table(box=None)
    table.add_column("language")
    for name in ("before", "after", "change", "PPMd", "6-gram", "to it", "+ n-grams"):
        table.add_column(name, justify="right")
    for code, language in figures["languages"].items():
        if language["role"] == "site":
            six_gram = language["six_gram"]["test"]
            judged = _judged(language["before"]["test"], language["after"]["test"])
            table.add_row(code, *judged, *_beside(language, six_gram))
    mean, base = figures["mean"], figures["forgetting"]
    judged = _judged(mean["before"], mean["after"])
    table.add_row("mean of sites", *judged, *_beside(mean, mean["six_gram"]), style="bold")
    if base is not None:
        judged = _judged(base["before"], base["after"])
        table.add_row(f"{base['language']} (base's own)", *judged, style="dim")
    return table


def _judged(before: float | None, after: float | None) -> tuple[str, str, str]:
    return bits(before), bits(after), _change(before, after)


def _beside(found: Mapping[str, Any], six_gram: float | None) -> tuple[str, ...]:
    """Return the cells on PPMd and n-grams of the same text."""
    against = found["against_six_gram_percent"]
    return (
        bits(found["ppmd"]),
        bits(six_gram),
        "–" if against is None else f"{against:+.1f} %",
        bits(found["mixed"]),
    )


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "–"
    return f"{(after / before - 1) * 100:+.1f} %"


def _sites(figures: dict[str, Any]) -> Table:
    table = Table(box=None)
    table.add_column("site")
    for name in ("updates", "tokens", "tokens/s", "up", "down", "working", "idle"):
        table.add_column(name, justify="right")
    for name, site in figures["sites"].items():
        working = site["train_seconds"] + site["evaluate_seconds"]
        table.add_row(
            name,
            str(site["updates"]),
            f"{site['tokens']:,}",
            f"{site['tokens_per_second'] or 0:,.0f}",
            size(site["bytes_up"]),
            size(site["bytes_down"]),
            duration(working),
            f"{site['idle_percent'] or 0:.0f} %",
        )
    return table


def _comparison(figures: dict[str, Any]) -> Table:
    table = Table(box=None)
    table.add_column("site")
    for name in ("norm of bound", "direction", "judgement", "offences"):
        table.add_column(name, justify="right")
    table.add_column("suspended")
    for name, site in figures["sites"].items():
        found = site["comparison"]
        norm, judged = found["norm_of_bound"]["max"], found["judged_percent"]
        table.add_row(
            name,
            percent(None if norm is None else 100 * norm),
            signed(found["direction"]["mean"]),
            "–" if judged is None else f"{signed(judged, 1)} %",
            str(found["offences"]),
            site["benched"] or "no",
            style="red" if site["benched"] or found["offences"] else None,
        )
    return table


def _verdict(figures: dict[str, Any]) -> str:
    mean = figures["mean"]
    seconds = duration(figures["seconds"])
    if mean["before"] is None or mean["after"] is None:
        return f"{figures['version']} rounds in {seconds}; not judged yet"
    change = (mean["after"] / mean["before"] - 1) * 100
    word = "better" if change < 0 else "worse"
    return (
        f"{figures['version']} rounds in {seconds}: the adapter is {abs(change):.1f} % {word} "
        "at the sites' languages than the base was"
    )


def show_forecast(plan: Plan, found: Forecast) -> None:
    """Print what a plan will do."""
    console = Console(markup=False, emoji=False)
    held = "cached" if found.base_cached else "to be built"
    console.print(f"plan {plan.name} is valid")
    console.print(f"base      {found.base_parameters / 1e6:.2f} M parameters, {held}")
    console.print(
        f"adapter   {plan.model.adapter.kind}, {found.num_entries:,} entries in "
        f"{found.num_segments} segments"
    )
    console.print(
        f"rounds    {found.rounds}, {plan.rounds.mode}, {plan.rounds.local_steps} local steps, "
        f"{found.tokens:,} tokens in all"
    )
    table = Table(box=None)
    for name in ("site", "language", "train", "tuning", "test", "entries", "up a round"):
        table.add_column(name, justify="left" if name in ("site", "language") else "right")
    table.add_column("down a round", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("passes", justify="right")
    has_links = any(site.link_seconds is not None for site in found.sites)
    if has_links:
        table.add_column("on its line", justify="right")
    for site in found.sites:
        line = [duration(site.link_seconds)] if has_links else []
        for language, lines in site.languages.items():
            table.add_row(
                site.name,
                language,
                *(f"{lines[part]:,}" for part in ("train", "tuning", "test")),
                f"{site.num_entries:,}",
                size(site.bytes_up),
                size(site.bytes_down),
                size(site.memory_bytes),
                f"{site.passes:.1f}",
                *line,
            )
    console.print(table)
    console.print(f"traffic   {size(found.run_bytes)} for the whole run, all sites")
    console.print(
        f"time      about {duration(found.pretrain_seconds)} to pre-train the base, "
        f"{duration(found.train_seconds)} to train, on this machine"
        if found.pretrain_seconds
        else f"time      about {duration(found.train_seconds)} to train, on this machine"
    )
    for note in found.notes:
        console.print(f"note      {note}")


def show_proof(figures: Sequence[TestFigures], names: tuple[str, str]) -> None:
    """Print what was measured of an adapter, and what that says; `names` are its and the other's.

    Lines of output are not broken: paths in them are to be copied.
    """
    console = Console(markup=False, emoji=False)
    console.print("bits per byte (smaller is better)", style="italic")
    table = Table(box=None)
    table.add_column("text")
    for name in ("lines", "base", "adapter", "change", "tokens a word"):
        table.add_column(name, justify="right")
    for found in figures:
        table.add_row(
            found.name,
            f"{found.num_lines:,}",
            *_judged(found.base, found.adapted),
            f"{found.tokens_a_word:.2f}",
        )
    console.print(table)
    from boli.evaluation.proof import sentences

    for line in (*_usefulness(figures), *_losses(figures), *sentences(figures, *names)):
        console.print(line, soft_wrap=True)


def _usefulness(figures: Sequence[TestFigures]) -> Iterator[str]:
    """Yield a line for each thing that was measured beside bits."""
    for found in figures:
        for role, typed in found.keystrokes.items():
            yield (
                f"keys      {found.name}, {role}: {typed.saved:.1%} saved; the next word is the "
                f"first suggestion for {typed.hit_at_1:.1%}, one of three for {typed.hit_at_3:.1%}"
            )
        for role, stays in found.fidelity.items():
            drift = f"; others drift to {stays.drifts_to}" if stays.drifts_to else ""
            yield (
                f"fidelity  {found.name}, {role}: {stays.sentence_pass:.1%} of lines are "
                f"{found.language}, {stays.marker_pass:.1%} of markers, no foreign window in "
                f"{stays.window_pass:.1%}{drift}"
            )
        for role, score in found.translation.items():
            yield (
                f"chrF++     {found.name}, {role}: {score.chrf:.1f}, BLEU {score.bleu:.1f}; the "
                f"source as it stands has chrF++ {score.copied_chrf:.1f}"
            )


def _losses(figures: Sequence[TestFigures]) -> Iterator[str]:
    for found in figures:
        if found.lost_share:
            yield (
                f"note      {found.lost_share:.1%} of the bytes of {found.name} are not in this "
                "tokenizer's alphabet: counted at 8 bits each"
            )


def show_sites(guests: Mapping[str, Guest], runs: Sequence[Run]) -> None:
    """Print who was invited, and what the journal of the run that moved last knows of each."""
    from boli.durable import is_locked
    from boli.evaluation.presence import last_seen

    if not guests:
        print("no site was invited yet; boli invite SITE makes an invitation")
        return
    run = max(runs, key=_last_line_at, default=None)
    seen = last_seen(run.folder / "journal.jsonl") if run else {}
    table, reasons = Table(box=None), []
    for name in ("site", "key", "state", "last seen", "tokens/s", "line", "version", "up", "down"):
        left = name in ("site", "key", "state")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for name, guest in guests.items():
        found = seen.get(name)
        key = "valid" if guest.public else "revoked"
        if found is None:
            table.add_row(name, key, "never seen", *(["–"] * 6))
            continue
        state, colon, _ = found.state.partition(":")
        if colon:
            reasons.append(f"{name}: {found.state}")
        table.add_row(
            name,
            key,
            state,
            f"{duration(time.time() - found.seconds)} ago" if found.seconds else "–",
            f"{found.tokens_per_second:,.0f}" if found.tokens_per_second else "–",
            duration(found.line_seconds) if found.line_seconds is not None else "–",
            str(found.version),
            size(found.bytes_up),
            size(found.bytes_down),
        )
    console = Console(markup=False, emoji=False)
    if run:
        console.print(f"run {run.id}", style="italic")
    console.print(table)
    for reason in reasons:
        console.print(reason)
    if not run or not is_locked(run.folder):
        print("no coordinator runs here now; boli coordinator PLAN starts one, or goes on")


def _last_line_at(run: Run) -> float:
    """Return when something was last journaled, Unix seconds."""
    try:
        return (run.folder / "journal.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def show_runs(runs: Sequence[Run], folder: Path) -> None:
    """Print the runs of a folder."""
    if not runs:
        print(f"no runs in {folder.resolve()}; boli demo makes one")
        return
    table = Table(box=None)
    for name in ("run", "state", "rounds", "started", "change"):
        table.add_column(name)
    for run in runs:
        table.add_row(run.id, *_run_line(run))
    Console(markup=False, emoji=False).print(table)


def _run_line(run: Run) -> tuple[str, str, str, str]:
    from boli.errors import BoliError

    started = time.strftime(
        "%Y-%m-%d %H:%M", time.localtime((run.folder / "plan.json").stat().st_mtime)
    )
    try:
        figures = run.report()
    except BoliError:
        return "not begun", "0", started, "–"
    mean = figures["mean"]
    change = _change(mean["before"], mean["after"])
    return figures["status"], str(figures["version"]), started, change
