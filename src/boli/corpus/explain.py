"""The story of one record: what it was, what each step made of it, and why it was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boli.corpus import final
from boli.corpus.cleaning import Cleaner, Settings
from boli.corpus.documents import Document, Reading, read_file
from boli.corpus.drafts import Draft
from boli.corpus.pipeline import finished
from boli.corpus.record import RECORDS
from boli.corpus.survey import Survey
from boli.errors import CorpusError

MODELS = {"language": "identifier", "score": "scorer"}  # step → the setting that it needs


def explain(out: Path, name: str) -> Iterator[str]:
    """Yield lines that tell how a record of a prepared folder came to be what it is.

    The text itself is shown, for people at the site; its source is read and cleaned again.

    Raises:
        CorpusError: the folder is not prepared, or knows no such record.
    """
    survey = Survey.load(out)
    if survey is None or finished(out) is None:
        raise CorpusError(f"{out} holds no finished preparation", "name the --out of boli prepare")
    row = final.told(out, name)
    if row is None:
        raise CorpusError(
            f"{out} knows no record {name!r}", "ids are in records/, dropped/ and examples.html"
        )
    yield f"record   {row['id']}"
    yield f"source   {row['source']}"
    if "#" in row["source"]:
        yield from _steps(survey, row)
    if row["table"] == RECORDS:
        yield f"outcome  kept, {len(row['text'])} characters, script {row['script']}"
        yield f"allowed  {_allowed(row)}"
        return
    yield f"outcome  dropped: {row['reason']}" + (f" ({row['detail']})" if row["detail"] else "")
    if row["duplicate_of"]:
        other = final.told(out, row["duplicate_of"])
        yield f"kept     {row['duplicate_of']}" + (f" of {other['source']}" if other else "")
        if other:
            yield from (f"    {line}" for line in other["text"].split("\n"))


def _allowed(row: dict[str, Any]) -> str:
    purposes = ", ".join(row["purposes"]) or "nothing but training on the premises"
    until = f" until {row['expires']}" if row["expires"] else ""
    return f"{purposes}{until}; licence {row['licence'] or 'none'}; residency {row['residency']}"


def _steps(survey: Survey, row: dict[str, Any]) -> Iterator[str]:
    told = list(_taken(survey, row["source"]))
    last = told[-1][1] if told else None
    # What is kept ends with the record's text; a duplicate, with what was compared.
    kept = row["table"] == RECORDS or row["duplicate_of"]
    text = row.get("text", row.get("excerpt", ""))
    if last is None or (kept and not last.startswith(text)):
        yield "         (its source is not there any more, or has changed)"
        return
    skipped = {name for name in ("score", "language") if not survey.settings[MODELS[name]]}
    before = None
    for step, after, note in told:
        if step in skipped:
            continue
        same = " (unchanged)" if after == before else ""
        yield f"{step:<14} {note or f'{len(after)} characters'}{same}"
        if after != before:
            yield from (f"    {line}" for line in after.split("\n"))
        before = after


def _taken(survey: Survey, source: str) -> Iterator[tuple[str, str, str]]:
    """Yield each step that is taken on a document, the text after it, and a note."""
    document = _found(survey, source)
    if document is None:
        return
    settings = {**survey.settings, "roots": ("",)}
    told: list[tuple[str, str, str]] = []

    def watch(step: str, drafts: Sequence[Draft]) -> None:
        own = (draft for draft in drafts if draft.source == source)
        told.extend((step, draft.text, _note(step, draft)) for draft in own)

    Cleaner(Settings(**settings)).clean([document], [0], watch)
    yield from told


def _note(step: str, draft: Draft) -> str:
    if draft.reason:
        return f"dropped: {draft.reason} {draft.detail}".rstrip()
    if step == "personal data" and draft.personal:
        return ", ".join(f"{number} {kind}" for kind, number in draft.personal.items())
    if step == "language" and draft.answer is not None:
        return f"{draft.answer.label} {draft.answer.confidence:.2f} {draft.answer.reason}".rstrip()
    if step == "score" and draft.score is not None:
        return f"{draft.score:.3f} bits per byte"
    return ""


def _found(survey: Survey, source: str) -> Document | None:
    """Read the document that a record was made of."""
    file = survey.file_of(source)
    if file is None:
        return None
    for item in read_file(file, Reading(**survey.reading)):
        if isinstance(item, Document) and (item.source == source or item.kind != "text"):
            return item
    return None
