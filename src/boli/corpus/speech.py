"""Recordings → text: decode, find voices, transcribe each piece; hours in bounded memory.

transcriber = open_transcriber(Path("hne.safetensors"), "hne")
for segment in transcribe_file(Path("village.mp3"), transcriber):
    print(segment.start_seconds, segment.text)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from boli.corpus.audio import EXTENSIONS, Floats, read_blocks
from boli.corpus.voice import Activity, open_activity
from boli.errors import CorpusError, ModelError

if TYPE_CHECKING:
    from boli.corpus.recognizer import Heard

__all__ = [
    "EXTENSIONS",
    "Segment",
    "Transcriber",
    "open_transcriber",
    "transcribe_blocks",
    "transcribe_file",
]


@dataclass(frozen=True)
class Segment:
    """What was said in one piece of a recording."""

    start_seconds: float
    end_seconds: float
    text: str
    confidence: float  # 0 to 1, by the engine's own measure


class Transcriber(Protocol):
    """Every engine: a piece of sound → its text."""

    def transcribe(self, samples: Floats, /) -> Heard:
        """Return the text of (n,) samples at 16 kHz, at most 20 s; "" where nothing was heard."""
        ...


def transcribe_file(
    path: Path, transcriber: Transcriber, activity: Activity | None = None
) -> Iterator[Segment]:
    """Yield the segments of a recording that have text, in order, as they are heard.

    Where nobody speaks there are none. Give the same `activity` (`open_activity()`) for many
    files: opening one takes longer than a short file. An error in the middle of a file comes after
    the segments before it.

    Raises:
        CorpusError: the recording cannot be decoded, or boli[speech] is not installed.
    """
    yield from transcribe_blocks(read_blocks(path), transcriber, activity or open_activity())


def transcribe_blocks(
    blocks: Iterable[Floats], transcriber: Transcriber, activity: Activity
) -> Iterator[Segment]:
    """Yield the segments of 16 kHz mono sound that comes in blocks of any size."""
    for piece in activity.pieces(blocks):
        heard = transcriber.transcribe(piece.samples)
        if heard.text:
            yield Segment(piece.start_seconds, piece.end_seconds, heard.text, heard.confidence)


def open_transcriber(path: Path, language: str = "", words: Sequence[str] = ()) -> Transcriber:
    """Open a speech model, whatever it is, without a network.

    A file is our own recognizer. A folder is Whisper for CTranslate2 (faster-whisper), or any
    model for speech recognition that transformers loads, with weights as safetensors.
    `language` (ISO 639-3) is told to models that know several. With `words`, which only our own
    recognizer takes, each segment is named as one of them.

    Raises:
        ModelError: there is no such model, its weights are pickled, or it cannot be loaded.
        CorruptFileError: the recognizer is torn or altered.
        CorpusError: words are given to a model that takes none, or cannot be written by it.
    """
    if path.is_file():
        from boli.corpus.recognizer import load_recognizer

        recognizer = load_recognizer(path)
        return recognizer.with_words(words) if words else recognizer
    if words:
        raise CorpusError(
            f"only our own recognizer chooses among words, and {path} is none",
            "leave out the words, or make one with boli speech train",
        )
    from boli.corpus import pretrained_speech

    if (path / "config.json").is_file():
        facts = _facts(path)
        if (path / "model.bin").is_file() and "model_type" not in facts:
            return pretrained_speech.FasterWhisper.open(path, language)
        return pretrained_speech.open_transformers(path, language, facts)
    raise ModelError(
        f"there is no speech model at {path}",
        "give what boli speech train wrote, or a folder with a Whisper or wav2vec2 model",
    )


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {path / 'config.json'}: {error}", "copy the folder again"
        ) from None
    return facts if isinstance(facts, dict) else {}
