"""A micro-LLM for three sites: federated, each site's own, one central run, and each site alone.

    python benchmarks/model.py ARM [--data ../shared/data] [--seed 0] [--work DIR] [--plan FILE]

One arm and seed at a time; its row goes into the result file when it is done:

    federated  the plan as it is, by `boli train`; then each site's own adapter, as
               `boli personalize` makes it
    central    the control: one site that holds all three languages takes as many steps of the same
               batch as the three together, on the federated run's base, dense; then each
               language's own adapter from it. It needs `federated` of the same seed
    alone      the dumbest alternative: nothing is federated, each site trains the same base on
               with its own text, for as many passes as both phases of `federated` together, and
               its tuning text says when to stop. It needs `federated` of the same seed
    draw       none: the table and the drawing anew from the result file

Bits per byte are of all lines of the test part, scored one by one, and compared by article;
FLORES-200 is the second domain, without articles, so without intervals. The n-grams are each site's
own. Bytes of a dense exchange: every federated step 4 bytes an entry up and as many down.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boli.evaluation.units import size
from real_base import Text, judge, judge_baselines, texts
from real_base_runs import Row, base_of_run, personalized, told, toml, trained, vector_of
from real_base_tables import bits, compared, merged, of_arm, read_rows, write_all

HERE = Path(__file__).parent
LANGUAGES = ("bho", "mag", "hne")
PAIRS = (
    (("federated", "own"), ("federated", "6-gram")),
    (("federated", "own"), ("federated", "version")),
    (("federated", "own"), ("alone", "own")),
    (("federated", "own"), ("central", "own")),
    (("federated", "version"), ("central", "version")),
    (("federated", "version"), ("federated", "6-gram")),
    (("federated", "own + n-gram"), ("federated", "6-gram")),
    (("federated", "own + n-gram"), ("federated", "own")),
)
Judged = dict[str, dict[str, Any]]  # language → part → name → sums by article


def as_arguments(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={toml(value)}" for key, value in settings.items()]


def federated_run(options: argparse.Namespace) -> tuple[Any, Any]:
    settings = {
        "corpus.root": str(options.data),
        "rounds.seed": options.seed,
        "model.base.micro.seed": options.seed,
    }
    return trained(options, "model", [*as_arguments(settings), *options.set], options.plan)


def judge_version(run: Any, text: dict[str, Text]) -> Judged:
    from boli.model.export import load_adapter

    adapted = load_adapter(run.adapter)
    names = ("version", "version + n-gram", "base untouched")
    return {code: judge(adapted, each, names) for code, each in text.items()}


def add(found: Judged, more: Judged) -> None:
    for code, parts in more.items():
        for part, rows in parts.items():
            found.setdefault(code, {}).setdefault(part, {}).update(rows)


def own_adapters(
    run: Any, theta: Any, passes: float, text: dict[str, Text]
) -> tuple[Judged, dict[str, Row]]:
    """Train a vector on at each site, and judge what comes out on its language."""

    def judged(base: Any, language: str) -> dict[str, Any]:
        return judge(base, text[language], ("own", "own + n-gram", ""))

    return personalized(run, theta, passes, judged)


def federated(options: argparse.Namespace) -> Row:
    run, used = federated_run(options)
    text = texts(options, run.plan)
    judged = judge_version(run, text)
    add(judged, {code: judge_baselines(each) for code, each in text.items()})
    more, own = own_adapters(run, vector_of(run), options.passes, text)
    add(judged, more)
    return {"settings": options.set, **told(run, used), "own": own, "judged": judged}


def central(options: argparse.Namespace) -> Row:
    first, _ = federated_run(options)
    plan = first.plan
    sources = [
        source.model_dump(exclude_none=True) | {"language": site.language}
        for site in plan.site
        for source in site.text
    ]
    base = plan.model.base.model_dump(include={"language", "text"}, exclude_none=True)
    settings = {
        "corpus.root": str(options.data),
        "rounds.seed": options.seed,
        "site": [{"name": "all", "language": plan.site[0].language, "text": sources}],
        "codec": {"name": "dense"},
        "model.base": base | {"path": base_of_run(first.folder)},
        "model.adapter.kind": "full",
    }
    # The base is there already, and the rounds are as long as all sites' together.
    more = [each for each in options.set if not each.startswith(("model.base.micro", "codec"))]
    more.append(f"rounds.local_steps={len(plan.site) * plan.rounds.local_steps}")
    run, used = trained(options, "central", [*as_arguments(settings), *more], options.plan)
    text = texts(options, plan)
    judged = judge_version(run, text)
    owned, own = own_adapters(first, vector_of(run), options.passes, text)
    add(judged, owned)
    return {"settings": options.set, **told(run, used), "own": own, "judged": judged}


def alone(options: argparse.Namespace) -> Row:
    from boli.model.adapter import initial_vector
    from boli.preparation import open_base

    run, _ = federated_run(options)
    plan, text = run.plan, texts(options, run.plan)
    base = open_base(plan, base_of_run(run.folder), print)
    theta = initial_vector(base.model, plan.model.adapter)
    steps = plan.model.local_steps
    tokens = steps.batch_sequences * steps.sequence_length
    tokens *= plan.rounds.total * plan.rounds.local_steps
    lines = [line for each in text.values() for line in each.train]
    held = sum(map(len, base.tokenizer(lines)["input_ids"])) + len(lines)
    passes = options.passes + len(text) * tokens / held
    judged, own = own_adapters(run, theta, passes, text)
    return {"settings": options.set, "own": own, "judged": judged}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield all figures as Markdown."""
    yield "# A micro-LLM for three sites\n"
    yield "Bits per byte of the test part (held-out articles), and of FLORES-200; seeds apart:\n"
    yield "| arm | seed | | bho | mag | hne | mean | FLORES, mean |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|"
    for row in rows:
        for name in dict.fromkeys(n for each in row["judged"].values() for n in each["test"]):
            test, flores = bits(row, name, "test"), bits(row, name, "flores")
            cells = " | ".join(f"{test[code]:.3f}" for code in (*LANGUAGES, "mean"))
            yield f"| {row['arm']} | {row['seed']} | {name} | {cells} | {flores['mean']:.3f} |"
    yield ""
    for row in of_arm(rows, "federated").values():
        sites = row["sites"].values()
        moved = max(s["bytes_up"] + s["bytes_down"] + s["bytes_of_pieces"] for s in sites)
        cpu = statistics.fmean(each["cpu_seconds"] for each in row["own"].values())
        yield (
            f"- seed {row['seed']}: {size(moved)} a site, up and down, "
            f"{row['dense_bytes'] / moved:,.0f} times fewer than dense steps; at most "
            f"{size(max(s['peak_bytes'] or 0 for s in sites))} of memory and "
            f"{max(s['cpu_seconds'] or 0 for s in sites):,.0f} CPU-seconds a site, and "
            f"{cpu:,.0f} for its own adapter, judging included"
        )
    yield from (f"- {said}" for said in compared(rows, PAIRS))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean bits per byte of the test part by arm, a dot a seed, the 6-gram a line."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "model", "svg.fonttype": "none", "font.size": 9}
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    shown = [
        ("alone", "own", "each site alone"),
        ("federated", "version", "federated"),
        ("federated", "own", "federated, then own steps"),
        ("federated", "own + n-gram", "… with n-grams"),
        ("central", "version", "one central run"),
        ("central", "own", "central, then own steps"),
    ]
    labels: list[str] = []
    for arm, name, label in shown:
        values = [bits(row, name, "test")["mean"] for row in of_arm(rows, arm).values()]
        if values:
            axes.plot(values, [len(labels)] * len(values), "o", ms=5)
            labels.append(label)
    for row in list(of_arm(rows, "federated").values())[:1]:
        for name, line in (("6-gram", ":"), ("PPMd", "--")):
            if found := bits(row, name, "test"):
                axes.axvline(found["mean"], color="k", ls=line, lw=1, label=name)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte of held-out articles, mean of the sites (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


ARMS = {arm.__name__: arm for arm in (federated, central, alone)}


def main() -> None:
    """Measure one arm, and write its row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arm", choices=[*ARMS, "draw"])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", type=Path, default=HERE.parent / "plans" / "real.toml")
    parser.add_argument("--passes", type=float, default=4.0, help="of a site's own adapter")
    parser.add_argument("--work", type=Path, default=Path("runs/model"), help="for its runs")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "model.json")
    parser.add_argument("--set", action="append", default=[], help="of the plan: KEY=VALUE")
    parser.add_argument("--most", type=int, default=10_000, help="lines of a part, to try it out")
    options = parser.parse_args()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = read_rows(options.out)
    if options.arm != "draw":
        row = {"arm": options.arm, "seed": options.seed, **ARMS[options.arm](options)}
        rows = merged(read_rows(options.out), row)
    said = list(compared(rows, PAIRS))
    write_all(options.out, rows, said, "\n".join(table(rows)) + "\n", draw)


if __name__ == "__main__":
    main()
