"""Text files and starter text → lines; and which lines are held out.

The held-out rule hashes the *normal form* of a line (or the line of a companion
file as it stands, such as the address of its article), so that every site takes
the same decision on the same text without telling anyone.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from boli.corpus.record import RECORDS
from boli.corpus.starter import starter_lines
from boli.errors import CorpusError
from boli.plan import LANGUAGE, HeldOutPlan, Plan, TextSource

LONGEST_LINE = 1 << 20  # characters; more is not a line of text
BLOCK_LINES = 20  # neighbors that stand for one document where nothing names documents


@dataclass
class Split:
    """The lines of one language at one site, by what they may be used for."""

    train: list[str] = field(default_factory=list)
    tuning: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    documents: dict[str, list[str]] = field(default_factory=dict)  # by part, of each line; "": none

    def part(self, name: str) -> list[str]:
        """Return the held-out lines called "tuning" or "test"."""
        return {"tuning": self.tuning, "test": self.test}[name]

    def documents_of(self, name: str) -> list[str] | None:
        """Return the document of each line of a part; None where not every line has one.

        Consecutive lines are no document: nothing says that they belong together.
        """
        found = self.documents.get(name, [])
        return found if found and all(found) else None

    @property
    def counts(self) -> dict[str, int]:
        """Number of lines of each part."""
        return {"train": len(self.train), "tuning": len(self.tuning), "test": len(self.test)}


def normal_form(text: str) -> str:
    """Return NFKC, lower case, and only letters, marks and digits."""
    return "".join(
        character
        for character in unicodedata.normalize("NFKC", text).lower()
        if unicodedata.category(character)[0] in "LMN"
    )


def share_of(key: str) -> float:
    """Return where a key falls between 0 and 100, evenly and for ever the same."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def judged_lines(lines: Iterable[str], most: int) -> list[str]:
    """Return the lines of a held-out part that are judged: the first so many in hash order."""
    return sorted(lines, key=share_of)[:most]


def judged_documents(split: Split, part: str, most: int) -> list[str] | None:
    """Return the document of each line of `judged_lines`; None where not every one is known."""
    documents = split.documents_of(part)
    if documents is None:
        return None
    found = sorted(zip(split.part(part), documents, strict=True), key=lambda one: share_of(one[0]))
    return [document for _, document in found[:most]]


def part_of(key: str, held_out: HeldOutPlan) -> str:
    """Return "test", "tuning" or "train" for a line's key."""
    share = share_of(key)
    if share < held_out.test_percent:
        return "test"
    if share < held_out.test_percent + held_out.tuning_percent:
        return "tuning"
    return "train"


def read_split(plan: Plan, sources: tuple[TextSource, ...], language: str) -> dict[str, Split]:
    """Read sources and divide their lines; returns a Split per language.

    Of lines with the same normal form only the first is kept, so that none is both
    trained on and held out here. Two sites agree on a line where both hash its
    text, or the same companion line.

    Raises:
        CorpusError: a file is missing, empty, not UTF-8 or not in its format, or a
            language is left without training or held-out lines.
    """
    splits: dict[str, Split] = {}
    for name, part, line, document, _ in _divided(plan, sources, language):
        split = splits.setdefault(name, Split())
        if part:
            (split.train if part == "train" else split.part(part)).append(line)
            split.documents.setdefault(part, []).append(document)
    for name, split in splits.items():
        _check(name, split, sources, plan.corpus.held_out)
    return splits


def read_documents(
    plan: Plan, sources: tuple[TextSource, ...], language: str
) -> list[tuple[str, str, str]]:
    """Return the training lines of all languages, each with its document and its block.

    Documents are named by the lines of the companion file (`held_out_by`), or by records. A block
    is `BLOCK_LINES` neighboring lines (or records) of a file: it stands for a document where
    nothing names one, and whoever counts documents counts blocks too, because the companion
    file is the plan's choice and could call every line a document.

    Raises:
        CorpusError: as for `read_split`.
    """
    return [
        (line, f"named {document}" if document else block, block)
        for _, part, line, document, block in _divided(plan, sources, language)
        if part == "train"
    ]


def _divided(
    plan: Plan, sources: tuple[TextSource, ...], language: str
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield language, part, line, document if it has one, and block; first the language alone."""
    seen: set[str] = set()
    for source in sources:
        name = source.language or language
        yield name, "", "", "", ""
        for number, (line, key, named) in enumerate(_keyed_lines(plan, source)):
            form = normal_form(line)
            if not form or form in seen:
                continue
            seen.add(form)
            part = part_of(form if key is None else key, plan.corpus.held_out)
            block = f"{source.path or source.starter}#{number // BLOCK_LINES}"
            yield name, part, line, named, block


def _check(
    language: str,
    split: Split,
    sources: tuple[TextSource, ...],
    rule: HeldOutPlan,
) -> None:
    where = ", ".join(source.path or f"starter {source.starter}" for source in sources)
    if not split.train:
        raise CorpusError(
            f"no line of {language} is left to train on in {where}", "add text", "text.short"
        )
    for part in ("test", "tuning"):
        if not split.part(part):
            percent = rule.test_percent if part == "test" else rule.tuning_percent
            raise CorpusError(
                f"language {language} has no held-out {part} line: {len(split.train)} lines of "
                f"{where}, {percent:g} % held out",
                f"add text, or raise corpus.held_out.{part}_percent",
                "text.short",
            )


def _missing(path: Path) -> CorpusError:
    return CorpusError(
        f"there is no text at {path}",
        "put it there, or name the folder that the plan's paths start at: corpus.root in the "
        "plan, --data at a site",
        "text.missing",
    )


def _named(path: Path, kind: Literal["auto", "txt"] = "auto") -> list[str]:
    """Read a file that a command names, and no plan."""
    if not path.exists():
        raise CorpusError(f"there is no text at {path}", "give a file that is there")
    return _read(path, TextSource(path=str(path), format=kind))


def read_lines(path: Path) -> list[str]:
    """Return the lines of one plain text file that hold text.

    Raises:
        CorpusError: the file is missing, empty or not UTF-8.
    """
    lines = [" ".join(line.split()) for line in _named(path)]
    lines = [line for line in lines if line]
    if not lines:
        raise CorpusError(f"{path} holds no text", "give a file with one sentence a line")
    return lines


def read_labeled(path: Path) -> dict[str, list[str]]:
    """Return the lines of a tsv file of `text<TAB>label` by label; labels become lower case.

    Raises:
        CorpusError: the file is missing, empty or not UTF-8, or a line has no ISO 639-3 label.
    """
    lines: dict[str, list[str]] = {}
    for number, line in enumerate(_named(path, "txt"), 1):
        if not line.strip():
            continue
        text, _, label = line.rstrip().rpartition("\t")
        label = label.lower()
        if not text.strip() or not re.fullmatch(LANGUAGE, label):
            raise CorpusError(
                f"line {number} of {path} is not text, a tab and a label of three letters",
                "label lines with ISO 639-3 codes; a file in one language is given as CODE=FILE",
            )
        lines.setdefault(label, []).append(" ".join(text.split()))
    if not lines:
        raise CorpusError(f"{path} holds no text", "give lines of text, a tab and a label")
    return lines


def _keyed_lines(plan: Plan, source: TextSource) -> Iterator[tuple[str, str | None, str]]:
    """Yield each line, the key that decides where it goes (None: its normal form), its document."""
    if source.starter is not None:
        # Made one by one, so that each is a document of its own.
        for number, line in enumerate(starter_lines(source.starter, source.lines or 4000)):
            yield line, None, f"starter {source.starter} {number}"
        return
    assert source.path is not None
    path = plan.resolve(source.path)
    lines = _read(path, source)
    if not any(line.strip() for line in lines):
        raise CorpusError(
            f"{path} holds no text", "give a file with one sentence a line", "text.empty"
        )
    keys: list[str] | None = None
    if source.held_out_by is not None:
        companion = plan.resolve(source.held_out_by)
        keys = _lines(_text(companion))
        if len(keys) != len(lines):
            raise CorpusError(
                f"{companion} has {len(keys)} lines and {path} has {len(lines)}",
                "held_out_by needs a file aligned line by line",
                "text.format",
            )
    documents = keys if keys is not None else _record_documents(path)
    for number, line in enumerate(lines[: source.lines]):
        text = " ".join(line.split())
        if len(text) > LONGEST_LINE:
            raise CorpusError(
                f"line {number + 1} of {path} has {len(text)} characters",
                "break it into sentences, one a line",
                "text.format",
            )
        if text:
            yield (
                text,
                None if keys is None else keys[number],
                "" if documents is None else documents[number],
            )


def _record_documents(path: Path) -> list[str] | None:
    """Return the document of each record at a path, by its `source`; None for other text.

    The places of a plain text file are its lines or paragraphs, so the file is the document.
    """
    import pyarrow
    import pyarrow.parquet

    files = text_files(path)
    if not all(file.suffix == ".parquet" for file in files):
        return None
    try:
        if any("source" not in pyarrow.parquet.read_schema(file).names for file in files):
            return None
        values = pyarrow.parquet.read_table(files, columns=["source"]).column(0).to_pylist()
    except (OSError, pyarrow.ArrowException):
        return None
    return [f"{path}: {_document_of_place(value)}" if value else "" for value in values]


def _document_of_place(source: str) -> str:
    """Return the document of a record's place, such as "news/1998.txt#14"."""
    name, _, _ = source.rpartition("#")
    return name if name.endswith(".txt") else source


def _lines(text: str) -> list[str]:
    lines = text.split("\n")  # splitlines would also break at U+2028, and lose the alignment
    return lines if lines[-1] else lines[:-1]


def _text(path: Path) -> str:
    try:
        # Bytes, because reading as text would break lines at stray carriage returns.
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise _missing(path) from None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}",
            "convert it first, for example with iconv -f UTF-16 -t UTF-8",
            "text.format",
        ) from None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}", "check the path") from None


def text_files(path: Path) -> list[Path]:
    """Return the files that text at a path is read from: itself, or the records of a folder.

    A folder is what boli prepare wrote, or holds Parquet files of others; those of the folders
    in it are not read.
    """
    if not path.is_dir():
        return [path]
    folder = path / RECORDS if (path / RECORDS).is_dir() else path
    return sorted(folder.glob("*.parquet"))


def _read(path: Path, source: TextSource) -> list[str]:
    kind, files = source.format, text_files(path)
    if path.is_dir():
        kind = "parquet"
        if not files:
            raise CorpusError(
                f"the folder {path} holds no records",
                "name one that boli prepare has written",
                "text.empty",
            )
    elif kind == "auto":
        kind = {".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix, "txt")  # type: ignore[assignment]
    if kind == "parquet":
        return _parquet(path, files, source)
    text = _text(path)
    if "\0" in text:
        raise CorpusError(f"{path} holds binary data, not text", "give a text file", "text.format")
    lines = _lines(text)
    if kind == "tsv":
        return [_cell(path, number, line, source) for number, line in enumerate(lines, 1)]
    if kind == "jsonl":
        return [_member(path, number, line, source) for number, line in enumerate(lines, 1)]
    return lines


def _cell(path: Path, number: int, line: str, source: TextSource) -> str:
    if not isinstance(source.column, int):
        raise CorpusError(
            f"{path} is tsv, but column is {source.column!r}",
            "set column to a number from 1",
            "text.column",
        )
    cells = line.split("\t")
    if len(cells) < source.column:
        raise CorpusError(
            f"line {number} of {path} has {len(cells)} columns, not {source.column}",
            "mend the line, or choose another column",
            "text.column",
        )
    return cells[source.column - 1]


def _member(path: Path, number: int, line: str, source: TextSource) -> str:
    key = source.column or "text"
    try:
        value = json.loads(line)[key]
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair is no text
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorpusError(
            f"line {number} of {path} has no {key!r}: {error}",
            "each line must be a JSON object; set column to the key that holds the text",
            "text.column",
        ) from None
    if not isinstance(value, str):
        raise CorpusError(
            f"line {number} of {path}: {key!r} is {type(value).__name__}, not text",
            "set column to the key that holds the text",
            "text.column",
        )
    return value


def _parquet(path: Path, files: list[Path], source: TextSource) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    key = str(source.column or "text")
    try:
        column: Any = pyarrow.parquet.read_table(files, columns=[key]).column(key)
        values = column.to_pylist()
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise CorpusError(
            f"cannot read column {key!r} of {path}: {error}",
            "set column to the one that holds the text",
            "text.column",
        ) from None
    return [value if isinstance(value, str) else "" for value in values]
