"""A suite: a folder whose suite.toml names files of known test sets; read into tests.

```toml
name = "dialects"

[[test]]
kind = "flores"                      # flores loresmt udhr ili pairs lines
files = ["devtest.hin", "devtest.bho"]
languages = ["hin", "bho"]           # ISO 639-3, of each file or column; the last is judged
documents = "metadata.tsv"           # optional: a file aligned by line; its first column counts
```

| kind | files |
|---|---|
| `lines` | one sentence a line, all in one language |
| `pairs` | two files aligned by line, or one of `source<TAB>target` |
| `flores` | FLORES-200: a file of lines for each language; FLORES+: a `.jsonl` with `text`, `url` |
| `loresmt` | LoResMT: one file, a column for each language; each but the first is a target |
| `udhr` | the Declaration, titles and paragraphs; its articles are the documents |
| `ili` | VarDial: `sentence<TAB>LABEL`; a test for each label, or for those of `languages` |
"""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from boli.corpus.sources import read_labeled
from boli.errors import CorpusError
from boli.plan import LANGUAGE

MANIFEST = "suite.toml"
HEADING_WORDS = 4  # at most, in the heading of an article


@dataclass(frozen=True)
class SuiteTest:
    """Lines of one language that models are judged on."""

    name: str
    language: str
    lines: list[str]
    documents: list[str] | None = None  # of each line
    sources: list[str] | None = None  # of each line, in another language
    source_language: str = ""


class Entry(BaseModel):
    """One [[test]] of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["flores", "loresmt", "udhr", "ili", "pairs", "lines"]
    files: list[str] = Field(min_length=1)
    languages: list[str] = []
    documents: str | None = None
    max_lines: int | None = Field(None, ge=1)


class Manifest(BaseModel):
    """What suite.toml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    test: list[Entry] = Field(min_length=1)


def read_suite(folder: Path) -> list[SuiteTest]:
    """Read all tests of a suite.

    Raises:
        CorpusError: there is no manifest, it says what it may not, or a file is not of its kind.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CorpusError(
            f"there is no suite at {folder}", f"name a folder that holds {MANIFEST}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}", "write it as TOML in UTF-8") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorpusError(
            f"{path} is not valid: {where}: {first['msg']}", "kinds and keys are in the manual"
        ) from None
    for entry in manifest.test:
        _check_languages(entry, path)
    return [
        _cut(_with_documents(test, folder, entry), entry.max_lines)
        for entry in manifest.test
        for test in _READERS[entry.kind](folder, entry, manifest.name)
    ]


def _check_languages(entry: Entry, path: Path) -> None:
    for code in entry.languages:
        if not re.fullmatch(LANGUAGE, code):
            raise CorpusError(
                f"{path} names the language {code!r}", "use ISO 639-3 codes, such as bho"
            )
    if not entry.languages and entry.kind != "ili":
        raise CorpusError(
            f"{path} names no languages for {', '.join(entry.files)}",
            'add languages = ["bho"], of each file or column',
        )


def _with_documents(test: SuiteTest, folder: Path, entry: Entry) -> SuiteTest:
    if entry.documents is None:
        return test
    path = folder / entry.documents
    rows = [row.split("\t")[0].strip() for row in _rows(path)]
    if len(rows) == len(test.lines) + 1:
        rows = rows[1:]  # the metadata of FLORES has a header
    if len(rows) != len(test.lines):
        raise CorpusError(
            f"{path} has {len(rows)} lines and {test.name} has {len(test.lines)}",
            "documents must be aligned with the text line by line",
        )
    return replace(test, documents=rows)


def _cut(test: SuiteTest, most: int | None) -> SuiteTest:
    """Leave out lines without text, and all after the first `most`."""
    rows = [number for number, line in enumerate(test.lines) if line][:most]
    if not rows:
        raise CorpusError(f"{test.name} holds no text", "name a file with one sentence a line")

    def kept(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in rows]

    documents = kept(test.documents)
    return replace(
        test,
        lines=[test.lines[row] for row in rows],
        documents=documents if documents and all(documents) else None,
        sources=kept(test.sources),
    )


def _rows(path: Path) -> list[str]:
    """Return the lines of a file, spaces collapsed but for tabs."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise CorpusError(f"there is no file {path}", f"mend files in {MANIFEST}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}",
            "convert it first, for example with iconv -f UTF-16 -t UTF-8",
        ) from None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}", "check the path") from None
    rows = text.split("\n")
    rows = rows if rows[-1] else rows[:-1]
    return ["\t".join(" ".join(cell.split()) for cell in row.split("\t")) for row in rows]


def _columns(path: Path, count: int) -> list[list[str]]:
    """Return the columns of a file without a header; empty lines are left out."""
    rows = [(number, row.split("\t")) for number, row in enumerate(_rows(path), 1) if row.strip()]
    for number, row in rows:
        if len(row) != count:
            raise CorpusError(
                f"line {number} of {path} has {len(row)} columns, not {count}",
                "give a language for each column, and one line for each sentence",
            )
    return [list(column) for column in zip(*(row for _, row in rows), strict=True)]


def _same_length(paths: Sequence[Path], columns: Sequence[list[str]]) -> None:
    if len({len(column) for column in columns}) > 1:
        raise CorpusError(
            "files are not aligned: "
            + ", ".join(f"{p} has {len(c)} lines" for p, c in zip(paths, columns, strict=True)),
            "line n of each must be the same sentence",
        )


def _paths(folder: Path, entry: Entry, count: int | None) -> list[Path]:
    wanted = len(entry.languages) if count is None else count
    if len(entry.files) != wanted:
        raise CorpusError(
            f"{folder / MANIFEST}: a test of kind {entry.kind} names {len(entry.files)} files for "
            f"{', '.join(entry.languages) or 'no language'}",
            f"name {wanted} of them",
        )
    return [folder / name for name in entry.files]


def _lines(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    language = entry.languages[-1]
    lines = [line for name in entry.files for line in _rows(folder / name)]
    return [SuiteTest(f"{suite} {language}", language, lines)]


def _targets(
    suite: str, languages: Sequence[str], columns: Sequence[list[str]], first: int
) -> list[SuiteTest]:
    """Return a test for each column from `first` on; the first of all is their source."""
    sources = (columns[0], languages[0]) if len(columns) > 1 else (None, "")
    arrow = f"{languages[0]}-" if len(columns) > 1 else ""
    return [
        SuiteTest(f"{suite} {arrow}{code}", code, lines, None, *sources)
        for code, lines in list(zip(languages, columns, strict=True))[first:]
    ]


def _pairs(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    if len(entry.languages) != 2:
        raise CorpusError(
            f"{folder / MANIFEST}: pairs are of two languages, and it names {len(entry.languages)}",
            'write languages = ["hin", "bho"], source and target',
        )
    if len(entry.files) == 1:
        columns = _columns(folder / entry.files[0], 2)
    else:
        paths = _paths(folder, entry, None)
        columns = [_rows(path) for path in paths]
        _same_length(paths, columns)
    return _targets(suite, entry.languages, columns, 1)


def _loresmt(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    (path,) = _paths(folder, entry, 1)
    if len(entry.languages) < 2:
        raise CorpusError(
            f"{folder / MANIFEST}: {path.name} needs a language for each column",
            'write for example languages = ["hin", "bho", "mag"]',
        )
    return _targets(suite, entry.languages, _columns(path, len(entry.languages)), 1)


def _flores(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    paths = _paths(folder, entry, None)
    read = [_flores_file(path) for path in paths]
    _same_length(paths, [lines for lines, _ in read])
    columns, documents = [lines for lines, _ in read], read[-1][1]
    (found,) = _targets(suite, entry.languages, columns, len(columns) - 1)
    return [replace(found, documents=documents)]


def _flores_file(path: Path) -> tuple[list[str], list[str] | None]:
    """Return lines, and the articles that FLORES+ names by their addresses."""
    if path.suffix != ".jsonl":
        return _rows(path), None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_rows(path), 1):
        try:
            row = json.loads(line)
            rows.append({"text": " ".join(row["text"].split()), "url": str(row.get("url") or "")})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"line {number} of {path} is none of FLORES+: {error}",
                'each must be a JSON object with a "text"',
            ) from None
    return [row["text"] for row in rows], [row["url"] for row in rows]


def _udhr(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    (path,) = _paths(folder, entry, 1)
    lines, documents, section = [], [], 0
    for line in _rows(path):
        if not any(unicodedata.category(letter)[0] == "L" for letter in line):
            continue
        if len(line.split()) <= HEADING_WORDS and re.search(r"\d", line):
            section += 1  # "Article 5": the same letters in many languages, and no sentence
            continue
        lines.append(line)
        documents.append(f"section {section}")
    language = entry.languages[-1]
    return [SuiteTest(f"{suite} {language}", language, lines, documents)]


def _ili(folder: Path, entry: Entry, suite: str) -> list[SuiteTest]:
    (path,) = _paths(folder, entry, 1)
    labeled = read_labeled(path)
    missing = sorted(set(entry.languages) - set(labeled))
    if missing:
        raise CorpusError(
            f"{path} has no line of {', '.join(missing)}",
            f"it has {', '.join(sorted(labeled))}",
        )
    return [
        SuiteTest(f"{suite} {code}", code, labeled[code])
        for code in entry.languages or sorted(labeled)
    ]


_READERS: dict[str, Callable[[Path, Entry, str], list[SuiteTest]]] = {
    "lines": _lines,
    "pairs": _pairs,
    "loresmt": _loresmt,
    "flores": _flores,
    "udhr": _udhr,
    "ili": _ili,
}
