"""What the measurements of engines.py come to: medians, ratios, goals, and a page of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from boli.evaluation.units import size

Figures = dict[str, Any]
Runs = Mapping[str, Figures]  # by name: "arm · preset · seed n", or what was measured of a line
PEER = "flower fedavg"
PRESETS = ("broadband", "4g", "rural")
KEYS = ("bytes", "seconds", "seconds_outside_of_work")


def first_as_good(curve: Sequence[Figures], target: float) -> Figures | None:
    return next((point for point in curve if point["bits_per_byte"] <= target), None)


def summary(runs: Runs, arms: Sequence[str]) -> Figures:
    """Return, by preset and arm, what it took to the best that the peer reached; medians."""
    found: Figures = {}
    for preset in PRESETS:
        peers = {
            name.removeprefix(f"{PEER} · "): figures["curve"]
            for name, figures in runs.items()
            if name.startswith(f"{PEER} · {preset} ·")
        }
        if peers:
            best = {rest: min(p["bits_per_byte"] for p in peers[rest]) for rest in peers}
            found[preset] = {"bits_per_byte": median(best.values())}
            for arm in arms:
                pairs = [
                    (
                        first_as_good(runs[f"{arm} · {rest}"]["curve"], best[rest]),
                        first_as_good(curve, best[rest]),
                    )
                    for rest, curve in peers.items()
                    if f"{arm} · {rest}" in runs
                ]
                if pairs:
                    found[preset][arm] = compared(pairs)
    return found


def compared(pairs: Sequence[tuple[Figures | None, Figures | None]]) -> Figures:
    """Return medians of an arm's own figures, and of the peer's as multiples of them."""
    reached = [(own, peer) for own, peer in pairs if own and peer]
    found: Figures = {"runs": len(pairs), "runs_as_good": len(reached)}
    if len(reached) == len(pairs):
        for key in KEYS:
            found[key] = median([own[key] for own, _ in reached])
            ratios = [peer[key] / max(own[key], 1e-9) for own, peer in reached]
            found[f"times_fewer_{key}"] = median(ratios)
    return found


def median(values: Any) -> float:
    return round(statistics.median(values), 4)


def goals(found: Figures, runs: Runs) -> Iterator[tuple[str, str, str, bool]]:
    """Yield what was measured against a goal: what, how much, the goal, whether it is met."""
    ours = found.get("rural", {}).get("nats", {})
    if ours:
        for key, word, goal in (("bytes", "fewer bytes", 20), ("seconds", "less time", 5)):
            times = ours.get(f"times_fewer_{key}", 0.0)
            what = f"{word} than Flower's FedAvg to equal bits per byte, `rural`"
            yield what, f"{times:.1f} ×", f"≥ {goal} ×", times >= goal
    for name, figures in runs.items():
        kind, _, preset = name.partition(" ")
        match kind:
            case "idle":
                rate = figures["bytes_per_second"]
                what = f"an idle site, up and down, over {figures['seconds']} s, `{preset}`"
                yield what, f"{rate:.1f} B/s", "≤ 20 B/s", rate <= 20
            case "overhead" if "round_trips_median" in figures:
                trips = figures["round_trips_median"]
                what = f"order to update besides the work, `{preset}`"
                yield what, f"{trips:.2f} round trips", "≤ 1.5", trips <= 1.5
            case "overhead":
                spent = figures["median_ms"]
                yield f"the same on {preset}", f"{spent:.1f} ms", "≤ 10 ms", spent <= 10
            case "large":
                yield from large_goals(preset, figures)
            case "cut":
                late, wire = figures["late_seconds"], figures["wire_per_payload"]
                what = (
                    f"a cut of {figures['cut_seconds']:.0f} s inside an update of "
                    f"{size(figures['payload_bytes'])}, `{preset}`"
                )
                yield f"{what}: late", f"{late:.1f} s", "≤ 5 s", late <= 5
                # The headers of whole packets come on top of what is sent again.
                most = 1.1 * 1.06
                yield f"{what}: bytes ÷ payload", f"{wire:.3f}", f"≤ {most:.3f}", wire <= most
            case "utilization":
                shares = {s: f for s, f in figures.items() if isinstance(f, dict)}
                least = min(site["trained_percent"] for site in shares.values())
                speeds = [site["tokens_per_second"] for site in shares.values()]
                what = (
                    f"time in local steps at every site, `{preset}`, asynchronous, "
                    f"speeds {max(speeds) / min(speeds):.1f} : 1"
                )
                yield what, f"{least:.1f} %", "≥ 95 %", least >= 95


def large_goals(preset: str, figures: Figures) -> Iterator[tuple[str, str, str, bool]]:
    """Yield the line's share that large payloads take; bytes where nothing is lost."""
    for way in ("up", "down"):
        what = f"{size(figures['payload_bytes'])} {way}, `{preset}`"
        share = figures[way]["wire_share_of_rate"]
        yield f"{what}: of the line's rate", f"{share:.1%}", "≥ 90 %", share >= 0.9
        if "no loss" in preset or preset == "broadband":
            wire = figures[way]["wire_per_payload"]
            yield f"{what}: bytes ÷ payload", f"{wire:.3f}", "≤ 1.06", wire <= 1.06


def page(found: Figures, runs: Runs, arms: Sequence[str]) -> str:
    """Return a page of tables."""
    lines = [
        "# The engines on thin lines",
        "",
        "Written by `benchmarks/engines.py`, which says how; all figures are in",
        "[engines.json](engines.json). Medians where there are several seeds; bytes and seconds",
        "are a site's, from the first order to the first version that is as good as the best of",
        "Flower's FedAvg on held-out text. In brackets: how many times fewer than FedAvg.",
        "",
        "| line | bits per byte | arm | seeds | bytes | seconds | of them not local work |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for preset, row in found.items():
        start = f"| {preset} | {row['bits_per_byte']:.4f} |"
        lines += [f"{start} {arm} {cells(row[arm])}" for arm in arms if arm in row]
    lines += ["", "| measured | | goal | |", "|---|--:|--:|---|"]
    for what, value, goal, met in goals(found, runs):
        lines.append(f"| {what} | {value} | {goal} | {'met' if met else 'missed'} |")
    late = [f"{n} ({f['late_p99_ms']:.0f} ms)" for n, f in runs.items() if is_late(f)]
    if late:
        lines += ["", f"The machine was too busy for exact times in: {', '.join(late)}."]
    return "\n".join(lines) + "\n"


def cells(figures: Figures) -> str:
    if figures["runs_as_good"] < figures["runs"]:
        said = f"as good in {figures['runs_as_good']} of {figures['runs']}"
        return f"| {figures['runs']} | {said} | | |"
    values = [size(figures["bytes"])] + [f"{figures[key]:.1f}" for key in KEYS[1:]]
    ratios = [f"({figures[f'times_fewer_{key}']:.1f} ×)" for key in KEYS]
    both = (f"{value} {ratio}" for value, ratio in zip(values, ratios, strict=True))
    return f"| {figures['runs']} | {' | '.join(both)} |"


def is_late(figures: Figures) -> bool:
    """Whether packets came through a line's emulation later than its delays by too much."""
    return bool(figures.get("late_p99_ms", 0.0) > 5)
