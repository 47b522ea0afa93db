"""boli evaluate: judge an adapter beside its base, and beside another adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boli.errors import CorpusError

if TYPE_CHECKING:
    from boli.evaluation.suites import SuiteTest

Folders = Annotated[
    list[Path] | None,
    typer.Option("--suite", metavar="FOLDER", help="Tests that its suite.toml names."),
]


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="A folder with an adapter in PEFT's format.")],
    more: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE…", help="Text, one sentence a line; one file or several."),
    ] = None,
    suite: Folders = None,
    language: Annotated[
        str, typer.Option(metavar="CODE", help="What the files of --text are in.")
    ] = "und",
    forgetting: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Text in the base's own language.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Say which adapter is better on the same lines."),
    ] = None,
    fidelity: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Judge what it writes; boli fidelity train makes it."),
    ] = None,
    keystrokes: Annotated[
        bool, typer.Option("--keystrokes", help="Count keys that suggestions save; slow.")
    ] = False,
    translations: Annotated[
        bool,
        typer.Option("--translations", help="chrF++ and BLEU where a suite has pairs; slow."),
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write the figures into the adapter's README.md.")
    ] = False,
    lm_eval: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the tests as tasks of lm-eval, and judge none."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Print bits per byte of text under an adapter and under its base alone, and what that says.

    Comparisons are paired, and by document where a suite says which line is of which.
    """
    from boli.evaluation.fidelity_file import load_fidelity
    from boli.evaluation.lm_eval import write_lm_eval
    from boli.evaluation.proof import Wanted, plain_test, prove
    from boli.evaluation.proof import as_json as in_json

    tests = _tests([*(text or ()), *(more or ())], suite or [], language)
    if lm_eval is not None:
        for path in write_lm_eval(tests, lm_eval):
            print(f"wrote {path}")
        return
    if fidelity is not None and "und" in {test.language for test in tests}:
        raise CorpusError(
            "fidelity is asked for, and it is not said which language --text is in",
            "add --language CODE, such as --language bho",
        )
    wanted = Wanted(load_fidelity(fidelity) if fidelity else None, keystrokes, translations)
    owns = [plain_test(path) for path in forgetting or ()]
    figures = prove(adapter, tests, owns, wanted, compare, _tell)
    names = (_name(adapter, compare), _name(compare, adapter) if compare else "")
    proof = in_json(figures, *names)
    if card:
        _write_card(adapter, proof)
    if as_json:
        print(json.dumps(proof, ensure_ascii=False, indent=1))
        return
    from boli.cli.tables import show_proof

    show_proof(figures, names)


def _tests(files: list[Path], suites: list[Path], language: str) -> list[SuiteTest]:
    from boli.evaluation.proof import plain_test
    from boli.evaluation.suites import read_suite

    if not files and not suites:
        raise CorpusError("no text was given", "boli evaluate ADAPTER --text FILE")
    tests = [plain_test(path, language) for path in files]  # the shell makes several of *.txt
    for folder in suites:
        tests += read_suite(folder)
    return tests


def _tell(doing: str) -> None:
    if sys.stderr.isatty():
        print(f"judging {doing}", file=sys.stderr)


def _name(adapter: Path | None, other: Path | None) -> str:
    """Return the shortest end of a path that tells it from another."""
    if adapter is None:
        return ""
    own, theirs = adapter.resolve().parts, other.resolve().parts if other else ()
    size = 1
    while size < len(own) and (own[-size:] == theirs[-size:] or own[-size] == "adapter"):
        size += 1
    return "/".join(own[-size:])


def _write_card(adapter: Path, proof: dict[str, object]) -> None:
    from boli.durable import write_file
    from boli.evaluation.card import evaluated_card

    path = adapter / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_file(path, evaluated_card(text, _name(adapter, None), proof).encode())
    print(f"wrote {path}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: boli evaluate runs/first-20260101-120000/adapter --text village.txt",
        short_help="Judge an adapter on text files and suites, beside its base or another.",
    )(evaluate)
