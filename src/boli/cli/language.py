"""boli language: train a dialect identifier, ask it, and judge it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boli.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from boli.corpus.language import Answer, Identifier

language = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: boli language train bho=village.txt mag=town.txt --out dialects.safetensors",
)

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="What train wrote.")]
ModelOut = Annotated[Path, typer.Option(metavar="MODEL", help="The file to write.")]
NamedFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES…", help="CODE=FILE, one sentence a line; or a tsv of text and label."
    ),
]
Adapt = Annotated[
    bool,
    typer.Option("--adapt", help="First learn from these lines, taken together, without labels."),
]


@language.command(
    epilog="Example: boli language train bho=village.txt mag=town.txt --out dialects.safetensors",
    short_help="Train an identifier on labeled lines.",
)
def train(
    files: NamedFiles,
    out: ModelOut,
) -> None:
    """Train a dialect identifier on some hundreds of lines of each language, in seconds.

    Keep lines in the order of their documents: confidence is fitted to the second half.
    """
    from boli.corpus import language_training
    from boli.corpus.language_file import save_identifier

    lines = _labeled(files)
    identifier = language_training.train(lines)
    save_identifier(identifier, out)
    for name, scripts in zip(identifier.labels, identifier.settings.scripts, strict=True):
        print(f"{name}  {len(lines[name])} lines, {', '.join(scripts)}")
    print(f"wrote {out}")


def _labeled(files: Sequence[str]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    for code, own in named_lines(files):
        lines.setdefault(code, []).extend(own)
    return lines


def named_lines(files: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a language and its lines for each CODE=FILE, and for each label of each tsv file.

    Raises:
        CorpusError: a file is missing, empty or not UTF-8, or says no language.
    """
    from boli.corpus.sources import read_labeled, read_lines

    for file in files:
        code, equals, path = file.partition("=")
        if equals and len(code) == 3 and code.isascii() and code.islower():
            yield code, read_lines(Path(path))
        elif Path(file).suffix == ".tsv":
            yield from read_labeled(Path(file)).items()
        else:
            raise CorpusError(
                f"{file} does not say which language it is in",
                "give CODE=FILE with an ISO 639-3 code, or a .tsv file of text, a tab and a label",
            )


@language.command(
    epilog="Example: boli language identify dialects.safetensors archive.txt --adapt",
    short_help="Say which language each line is in.",
)
def identify(
    model: ModelPath,
    file: Annotated[str, typer.Argument(help="A text file, or - for what comes in.")],
    adapt: Adapt = False,
) -> None:
    """Print a line for each line: label, confidence, text. The label is und where none fits.

    What came together is told in the end, on standard error.
    """
    from boli.corpus.language_file import load_identifier
    from boli.corpus.sources import read_lines

    identifier = load_identifier(model)
    lines = _standard_input() if file == "-" else read_lines(Path(file))
    identifier = _ready(identifier, lines, adapt)
    whole, answers = identifier.identify_record("\n".join(lines))
    for answer, line in zip(answers, lines, strict=True):
        print(f"{answer.label}\t{answer.confidence:.2f}\t{line}")
    print(_summary(whole, answers), file=sys.stderr)


def _standard_input() -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"what came in is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}",
            "convert it first, for example with iconv -f UTF-16 -t UTF-8",
        ) from None
    lines = [line for line in (" ".join(line.split()) for line in text.split("\n")) if line]
    if not lines:
        raise CorpusError("no text came in", "give one sentence a line")
    return lines


def _ready(identifier: Identifier, lines: Sequence[str], adapt: bool) -> Identifier:
    if not adapt:
        return identifier
    adapted = identifier.adapted(lines)
    if adapted is identifier:
        print("too few lines in these languages to adapt to", file=sys.stderr)
    return adapted


def _summary(whole: Answer, answers: Sequence[Answer]) -> str:
    labels = Counter(answer.label for answer in answers).most_common()
    parts = [f"{name} {number}" for name, number in labels]
    reasons = Counter(answer.reason for answer in answers if answer.reason).most_common()
    if reasons:
        parts.append("und: " + ", ".join(f"{number} {reason}" for reason, number in reasons))
    together = f"{whole.label} {whole.confidence:.2f}"
    return f"{len(answers)} lines, together {together}; " + "; ".join(parts)


@language.command(
    epilog="Example: boli language evaluate dialects.safetensors judged.tsv",
    short_help="Judge an identifier on labeled lines.",
)
def evaluate(
    model: ModelPath,
    file: Annotated[Path, typer.Argument(metavar="FILE.tsv", help="Text, a tab, a label.")],
    adapt: Adapt = False,
) -> None:
    """Print macro-F1, the scores of each label, what was taken for what, and calibration."""
    import numpy as np

    from boli.corpus.language_file import load_identifier
    from boli.corpus.sources import read_labeled
    from boli.evaluation.labels import calibration_error, confusion, label_scores, macro_f1

    identifier = load_identifier(model)
    labeled = read_labeled(file)
    lines = [line for own in labeled.values() for line in own]
    truth = [label for label, own in labeled.items() for _ in own]
    answers = _ready(identifier, lines, adapt).identify(lines)
    best = [answer.best or answer.label for answer in answers]
    told = [answer.label for answer in answers]
    right = np.array([a == b for a, b in zip(truth, best, strict=True)])
    confidence = np.array([answer.confidence for answer in answers])

    print(f"macro-F1           {macro_f1(truth, best):.3f}  of the best label of each line")
    print(f"macro-F1, und told {macro_f1(truth, told):.3f}  where und is wrong")
    print(f"calibration error  {calibration_error(confidence, right):.3f}")
    print("\nlabel  lines  precision  recall     F1")
    for name, score in label_scores(truth, best).items():
        print(
            f"{name:<5} {score.lines:>6} {score.precision:>10.3f} {score.recall:>7.3f}"
            f" {score.f1:>6.3f}"
        )
    table = confusion(truth, told)
    names = list(next(iter(table.values())))
    print("\ntrue \\ told" + "".join(f"{name:>7}" for name in names))
    for true, row in table.items():
        print(f"{true:<11}" + "".join(f"{row[name]:>7}" for name in names))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(
        language, name="language", short_help="Train, ask and judge a dialect identifier."
    )
