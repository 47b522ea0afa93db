"""Labeled recordings: a tsv of files and what is said in them → clips to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boli.corpus.audio import RATE_HZ, Floats, read_whole
from boli.corpus.recognizer_training import Clip
from boli.corpus.voice import Activity
from boli.errors import CorpusError

LONGEST_SECONDS = 30
FILE_NAMES = ("file", "path", "audio", "filename", "file_name")
TEXT_NAMES = ("text", "sentence", "transcript", "transcription")
SPEAKER_NAMES = ("speaker", "speaker_id", "client_id")


@dataclass(frozen=True)
class Label:
    """What is said in a recording, and by whom."""

    path: Path
    text: str
    speaker: str  # "" where it is not told


def read_labels(
    path: Path, file_column: str = "", text_column: str = "", speaker_column: str = ""
) -> list[Label]:
    """Return the rows of a tsv, with or without a header; files lie beside it.

    A column is a name of the header, or a number from 1. Without one: file, text and speaker by
    their usual names, or the first, second and third column where there is no header.

    Raises:
        CorpusError: the file is missing, empty or not UTF-8, lacks a column, or a row is short.
    """
    rows = _rows(path)
    header = [cell.strip() for cell in rows[0]]
    lower = [cell.lower() for cell in header]
    named = [name for name in (file_column, text_column, speaker_column) if name]
    has_header = bool(set(lower) & set(FILE_NAMES)) or any(
        name in header and not name.isdigit() for name in named
    )
    columns = [
        _column(path, header if has_header else [], given, usual, place)
        for given, usual, place in (
            (file_column, FILE_NAMES, 1),
            (text_column, TEXT_NAMES, 2),
            (speaker_column, SPEAKER_NAMES, 3),
        )
    ]
    labels = []
    for number, row in enumerate(rows[has_header:], 1 + has_header):
        cells = [row[i].strip() if i is not None and i < len(row) else "" for i in columns]
        if not cells[0] or not cells[1]:
            raise CorpusError(
                f"row {number} of {path} has no file or no text",
                "each row is a file, a tab and what is said in it",
            )
        labels.append(Label(path.parent / cells[0], cells[1], cells[2]))
    if not labels:
        raise CorpusError(f"{path} has no rows", "each row is a file, a tab and what is said in it")
    return labels


def load_clips(
    labels: Sequence[Label], activity: Activity, skipped: Callable[[Label, str], None]
) -> list[Clip]:
    """Return the clips that can be read, cut to where somebody speaks; tell of the others.

    Raises:
        CorpusError: none is left.
    """
    clips = []
    for label in labels:
        try:
            samples = read_whole(label.path, LONGEST_SECONDS)
        except CorpusError as error:
            skipped(label, error.problem)
            continue
        heard = voiced(samples, activity)
        if heard.size:
            clips.append(Clip(heard, label.text, label.speaker))
        else:
            skipped(label, f"nobody speaks in {label.path}")
    if not clips:
        raise CorpusError(
            f"none of {len(labels)} recordings can be used", "see the reasons above; mend the files"
        )
    return clips


def voiced(samples: Floats, activity: Activity) -> Floats:
    """Return the pieces in which somebody speaks, one after another; empty where there are none."""
    pieces = [piece.samples for piece in activity.pieces([samples])]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def seconds_of(clips: Sequence[Clip]) -> float:
    """Return how long somebody speaks in the clips."""
    return sum(clip.samples.size for clip in clips) / RATE_HZ


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at {error.start}",
            "save it as UTF-8 text with tabs between columns",
        ) from None
    except OSError as error:
        raise CorpusError(
            f"cannot read {path}: {error.strerror}", "give a tsv of files and what is said in them"
        ) from None
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise CorpusError(f"{path} is empty", "each row is a file, a tab and what is said in it")
    return [line.split("\t") for line in lines]


def _column(
    path: Path, header: Sequence[str], given: str, usual: Sequence[str], place: int
) -> int | None:
    """Return the place of a column, from 0; None for a speaker that is not told."""
    if given.isdigit() and int(given) > 0:
        return int(given) - 1
    if not header and not given:
        return place - 1
    found = [i for i, cell in enumerate(header) if cell == given]
    if not given:
        found = [i for i, cell in enumerate(header) if cell.lower() in usual]
    if found:
        return found[0]
    what = {1: "file", 2: "text", 3: "speaker"}[place]
    if what == "speaker" and not given:
        return None
    raise CorpusError(
        f"{path} has no column {given or what}; it has {', '.join(header) or 'no header'}",
        f"name it: --{what}-column NAME, or its number from 1",
    )
