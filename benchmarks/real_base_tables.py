"""Rows of real_base.py: kept by arm and seed, compared by article, and shown."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boli.evaluation.paired import compare
from boli.evaluation.units import size

Row = dict[str, Any]
# What is set beside what: an arm and a name of each, and how they are called.
PAIRS = (
    (("gemma", "model"), ("gemma", "6-gram")),
    (("gemma", "model"), ("gemma", "PPMd")),
    (("gemma", "model"), ("gemma", "base untouched")),
    (("gemma", "model + n-gram"), ("gemma", "6-gram")),
    (("gemma", "model + n-gram"), ("gemma", "model")),
    (("own", "own"), ("gemma", "6-gram")),
    (("own", "own"), ("gemma", "model")),
    (("own", "own + n-gram"), ("gemma", "6-gram")),
    (("gemma", "model"), ("central", "model")),
    (("gemma", "model + n-gram"), ("central", "model + n-gram")),
    (("untouched", "micro-LLM + n-gram"), ("untouched", "Gemma")),
    (("untouched", "micro-LLM"), ("untouched", "Gemma")),
    (("untouched", "Gemma, cut"), ("untouched", "Gemma")),
)


def read_rows(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def key_of(row: Row) -> tuple[str, str, int]:
    return row["arm"], row.get("base", ""), row["seed"]


def merged(rows: Sequence[Row], row: Row) -> list[Row]:
    """Return the rows with one more, in place of an earlier one of its arm and seed."""
    others = [each for each in rows if key_of(each) != key_of(row)]
    return sorted([*others, row], key=key_of)


def write_all(
    path: Path,
    rows: Sequence[Row],
    sentences: Sequence[str],
    table: str,
    draw: Callable[[Sequence[Row], Path], None],
) -> None:
    """Write the rows as JSON, a table beside it, and a drawing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"sentences": list(sentences), "rows": list(rows)}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    draw(rows, path.with_suffix(".svg"))
    print(table)
    print(f"written to {path}")


def of_arm(rows: Sequence[Row], arm: str) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if row["arm"] == arm}


def bits(row: Row, name: str, part: str) -> dict[str, float]:
    """Return bits per byte by language, and their mean."""
    found = {}
    for language, parts in row["judged"].items():
        if name in parts[part]:
            sums = np.array(list(parts[part][name].values())).sum(0)
            found[language] = float(sums[0] / sums[1])
    return found | {"mean": statistics.fmean(found.values())} if found else {}


def sentences(rows: Sequence[Row]) -> Iterator[str]:
    """Yield who is better on the test part, over all languages and seeds, by article."""
    yield from compared(rows, PAIRS)
    for row in of_arm(rows, "keystrokes").values():
        yield from row["sentences"]


Named = tuple[str, str]  # an arm, and the name of one of its rows


def compared(rows: Sequence[Row], pairs: Sequence[tuple[Named, Named]]) -> Iterator[str]:
    """Yield who is better of each pair, over all languages and the seeds that both have."""
    for (arm, name), (other_arm, other) in pairs:
        ours, theirs = of_arm(rows, arm), of_arm(rows, other_arm)
        seeds = sorted(ours.keys() & theirs.keys())
        pooled: dict[str, list[float]] = {}  # article to bits of both, bytes, and the other's bytes
        for seed in seeds:
            for language, parts in ours[seed]["judged"].items():
                beside = theirs[seed]["judged"][language]["test"].get(other, {})
                for article, (one, num_bytes) in parts["test"].get(name, {}).items():
                    added = [one, 0.0, num_bytes, 0]
                    added[1::2] = beside.get(article, [0.0, 0])
                    own = pooled.setdefault(article, [0.0] * 4)
                    own[:] = [sum(both) for both in zip(own, added, strict=True)]
        if not pooled:
            continue
        a, b, sizes, other_sizes = zip(*pooled.values(), strict=True)
        names = (name, other) if arm == other_arm else (f"{arm}: {name}", f"{other_arm}: {other}")
        if sizes != other_sizes:
            yield f"{' and '.join(names)} were not judged on the same lines: start one again"
            continue
        said = compare(a, b, sizes, list(pooled)).sentence(*names, "article")
        yield f"{said} ({len(seeds)} seed{'s' * (len(seeds) != 1)})"


def table(rows: Sequence[Row]) -> str:
    """Return all figures as Markdown."""
    lines = ["# Real bases over three sites", "", *_bits_table(rows), "", *_cost_table(rows)]
    lines += ["", *_peft_lines(rows)]
    lines += ["", *_keystroke_table(rows), "", *_step_table(rows)]
    lines += ["", *(f"- {said}" for said in sentences(rows))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _peft_lines(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if "peft" not in row:
            continue
        means = [
            statistics.fmean(row["languages"][code][when]["test"] for code in row["peft"])
            for when in ("before", "after")
        ]
        whole = [each["peft"] for each in row.get("peft_on_whole_base", {}).values()]
        beside = f", {statistics.fmean(whole):.3f} on the base in full precision" if whole else ""
        yield (
            f"- {row['arm']}, seed {row['seed']}: {means[0]:.3f} → {means[1]:.3f} bits per byte; "
            f"in plain PEFT the same within {row['peft_differs']:.1g}{beside}"
        )


def _bits_table(rows: Sequence[Row]) -> Iterator[str]:
    if not any("judged" in row for row in rows):
        return
    yield "Bits per byte of the test part (held-out articles), and of FLORES-200; seeds apart:"
    yield ""
    yield "| arm | seed | | bho | mag | hne | mean | FLORES, mean |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|"
    for row in rows:
        names = dict.fromkeys(
            name for parts in row.get("judged", {}).values() for name in parts["test"]
        )
        for name in names:
            test, flores = bits(row, name, "test"), bits(row, name, "flores")
            cells = [
                f"{test.get(code, float('nan')):.3f}" for code in ("bho", "mag", "hne", "mean")
            ]
            cells.append(f"{flores['mean']:.3f}" if flores else "")
            yield f"| {row['arm']} | {row['seed']} | {name} | {' | '.join(cells)} |"


def _cost_table(rows: Sequence[Row]) -> Iterator[str]:
    there = [row for row in rows if "dense_bytes" in row]
    if not there:
        return
    yield "Up and down are a site's, words for the vocabulary's cut included; the peak is the"
    yield "largest of a site's process; tokens a second are of all sites, as the machine was."
    yield ""
    yield (
        "| arm | seed | up | down | dense, every step | times fewer | peak | tokens a second | "
        "a CPU-second | CPU-seconds |"
    )
    yield "|---|--:|" + "--:|" * 8
    for row in there:
        sites = row["sites"].values()
        up = max(site["bytes_up"] + site["bytes_of_pieces"] for site in sites)
        down = max(site["bytes_down"] for site in sites)
        peak = max((site["peak_bytes"] or 0) for site in sites)
        cells = [size(up), size(down), size(row["dense_bytes"])]
        cells += [f"{row['dense_bytes'] / (up + down):,.0f}×", size(peak)]
        cells += [f"{row['tokens_per_second']:.0f}", f"{row['tokens_per_cpu_second']:.0f}"]
        cells += [f"{row['cpu_seconds']:,.0f}"]
        yield f"| {row['arm']} | {row['seed']} | {' | '.join(cells)} |"


def _keystroke_table(rows: Sequence[Row]) -> Iterator[str]:
    there = of_arm(rows, "keystrokes")
    if not there:
        return
    yield "Keystrokes saved, Bhojpuri, held-out articles:"
    yield ""
    yield "| seed | | hit@1 | hit@3 | saved |"
    yield "|--:|---|--:|--:|--:|"
    for seed, row in there.items():
        for name, each in row["predictors"].items():
            cells = f"{each['hit_at_1']:.3f} | {each['hit_at_3']:.3f} | {each['saved']:.1%}"
            yield f"| {seed} | {name} | {cells} |"


def _step_table(rows: Sequence[Row]) -> Iterator[str]:
    there = [row for row in rows if row["arm"] == "step"]
    if not there:
        return
    yield "A site's steps of 8 × 128 tokens in one process:"
    yield ""
    yield "| base | parameters | peak | threads | tokens a second | tokens a CPU-second |"
    yield "|---|" + "--:|" * 5
    for row in there:
        cells = [f"{row['parameters']:,}", size(row["peak_bytes"]), str(row["threads"])]
        cells += [f"{row['tokens_per_second']:.0f}", f"{row['tokens_per_cpu_second']:.0f}"]
        yield f"| {row['base']} | {' | '.join(cells)} |"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean of the sites' tuning parts over tokens, with the 6-gram beside it."""
    import matplotlib
    from matplotlib.figure import Figure

    there = [row for row in rows if row["arm"] in ("gemma", "central")]
    if not there:
        return
    matplotlib.rcParams |= {"svg.hashsalt": "real_base", "svg.fonttype": "none", "font.size": 9}
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colors = {"gemma": "C0", "central": "C1"}
    for row in there:
        tokens, values = curve(row)
        label = {"gemma": "three sites, thin wire", "central": "one central run"}[row["arm"]]
        axes.plot(tokens, values, "o-", ms=3, color=colors[row["arm"]], label=label)
    grams = [each["six_gram"]["tuning"] for each in _sites_of(there[0]).values()]
    if all(grams):
        axes.axhline(statistics.fmean(grams), color="k", ls=":", label="6-gram")
    axes.set(xlabel="tokens, of all sites together", ylabel="bits per byte")
    axes.set_title(
        "Gemma 3 270M, vocabulary cut, LoRA: mean of the tuning parts", fontsize=9, loc="left"
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e3:g} k")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _sites_of(row: Row) -> Mapping[str, Any]:
    return {code: each for code, each in row["languages"].items() if each["six_gram"].get("tuning")}


def curve(row: Row) -> tuple[list[int], list[float]]:
    """Return tokens and the mean of the languages' bits per byte, where all were judged."""
    points: dict[int, list[float]] = {}
    for each in row["curve"].values():
        for _, tokens, value in each:
            if tokens is not None and value is not None:
                points.setdefault(tokens, []).append(value)
    whole = {t: v for t, v in sorted(points.items()) if len(v) == len(row["curve"])}
    return list(whole), [statistics.fmean(values) for values in whole.values()]
