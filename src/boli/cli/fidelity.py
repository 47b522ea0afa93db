"""boli fidelity: learn what keeps languages apart, and judge whether a text stays in its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from boli.cli.language import ModelOut, ModelPath, NamedFiles, named_lines

EXAMPLE = (
    "Example: boli fidelity train bho=news.txt bho=tales.txt hin=hin.txt --out bho.safetensors"
)

fidelity = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=EXAMPLE,
)

Language = Annotated[str, typer.Option(metavar="CODE", help="What the text should be in.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@fidelity.command(
    epilog=EXAMPLE,
    short_help="Learn the markers of languages from their lines.",
)
def train(
    files: NamedFiles,
    out: ModelOut,
) -> None:
    """Learn which words and endings keep each language apart from every other one.

    Each file is a domain, such as news or stories: a marker has to be frequent in two domains of
    its language. Of a single file the halves stand for two. Give every language that a text could
    drift into: one that is missing is taken for the nearest of the others.
    """
    from boli.evaluation.fidelity import learn
    from boli.evaluation.fidelity_file import save_fidelity

    domains: dict[str, list[list[str]]] = {}
    for code, lines in named_lines(files):
        domains.setdefault(code, []).append(lines)
    learned = learn(domains)
    save_fidelity(learned, out)
    for name in learned.languages:
        parts = domains[name]
        print(f"{name}  {sum(map(len, parts))} lines in {len(parts)} domains")
    print(f"{len(learned.markers)} markers\nwrote {out}")


@fidelity.command(
    epilog="Example: boli fidelity judge bho.safetensors answers.txt --language bho",
    short_help="Judge whether the lines of a text stay in a language.",
)
def judge(
    model: ModelPath,
    file: Annotated[Path, typer.Argument(help="A text file, one sentence a line.")],
    language: Language,
    as_json: Json = False,
) -> None:
    """Print which share of lines, of markers and of windows of 8 words is in the language."""
    from dataclasses import asdict

    from boli.corpus.sources import read_lines
    from boli.evaluation import fidelity as judging
    from boli.evaluation.fidelity_file import load_fidelity

    score = judging.judge(load_fidelity(model), read_lines(file), language)
    if as_json:
        print(json.dumps(asdict(score), ensure_ascii=False, indent=1))
        return
    print(f"lines           {score.num_lines}")
    print(f"sentences pass  {score.sentence_pass:.1%}")
    print(f"markers pass    {score.marker_pass:.1%}")
    print(f"windows pass    {score.window_pass:.1%}  of lines, no 8 words of which are another's")
    if score.drifts_to:
        print(f"drifts to       {score.drifts_to}")
    print(f"weakest window  {score.weakest}  (nearest: {score.weakest_neighbor})")


@fidelity.command(
    epilog="Example: boli fidelity markers bho.safetensors --language bho --against hin",
    short_help="Print the markers of a language, for its speakers to look at.",
)
def markers(
    model: ModelPath,
    language: Language,
    against: Annotated[str, typer.Option(metavar="CODE", help="The neighbor.")],
    most: Annotated[int, typer.Option(min=1, help="How many.")] = 40,
) -> None:
    """Print the strongest markers, folded as they are compared; ~ marks an ending."""
    from boli.evaluation.fidelity_file import load_fidelity

    for form, odds in load_fidelity(model).strongest(language, against, most):
        print(f"{odds:5.2f}  {form}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(
        fidelity, name="fidelity", short_help="Judge whether a text stays in its language."
    )
