"""boli speech: train a recognizer on a site's own recordings, and turn recordings into text."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boli.errors import CorpusError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from boli.corpus.audio import Floats
    from boli.corpus.recognizer import Recognizer
    from boli.corpus.recognizer_training import Clip, Progress
    from boli.corpus.recordings import Label
    from boli.corpus.speech import Segment
    from boli.corpus.voice import Activity

speech = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: boli speech transcribe hne.safetensors village.mp3",
)

MADE_STEPS = 1000  # as in recognizer_training, which is not light to import
MADE_CLIPS = 3000
FORMATS = ("txt", "tsv", "jsonl", "srt")
RATE_HZ = 16_000


@speech.command(
    epilog="Example: boli speech train words.tsv --out hne.safetensors --voices hi "
    "--held-out-speakers asha,ravi",
    short_help="Train a small recognizer on labeled recordings.",
)
def train(
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS.tsv", help="File, a tab, what is said; a third: speaker."),
    ],
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The file to write.")],
    language: Annotated[str, typer.Option(help="ISO 639-3, for how its text is written.")] = "",
    voices: Annotated[
        str, typer.Option(help="espeak-ng voices that say the texts too: hi or hi,mr.")
    ] = "",
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Further words for the voices to say.")
    ] = None,
    held_out: Annotated[
        str, typer.Option("--held-out-speakers", help="Not trained on, but judged: asha,ravi.")
    ] = "",
    start: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="A recognizer to go on from.")
    ] = None,
    clips_made: Annotated[
        int, typer.Option("--made-clips", min=1, max=100_000, help="Clips of espeak-ng to make.")
    ] = MADE_CLIPS,
    steps: Annotated[
        int, typer.Option(min=0, help="Batches of recordings to learn from; 0: as many as do.")
    ] = 0,
    made_steps: Annotated[
        int, typer.Option(help="Batches of made voices before them.")
    ] = MADE_STEPS,
    minutes: Annotated[float, typer.Option(min=0.01, help="Stop after so long at most.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same recognizer.")] = 0,
    file_column: Annotated[str, typer.Option(help="Name or number of the column.")] = "",
    text_column: Annotated[str, typer.Option(help="Name or number of the column.")] = "",
    speaker_column: Annotated[str, typer.Option(help="Name or number of the column.")] = "",
) -> None:
    """Train a recognizer on some recordings with their text, in minutes on one core.

    Where few words are recorded, --voices adds many that espeak-ng says: those in --words, or for
    Devanagari words of our own made-up text. Hold some speakers back to see how well it hears
    people whom it has not heard. Recordings that cannot be used are told, and left out.
    """
    from boli.corpus import recognizer_training
    from boli.corpus.recognizer import load_recognizer, save_recognizer
    from boli.corpus.recordings import load_clips, read_labels, seconds_of
    from boli.corpus.voice import open_activity

    if out.is_dir():
        raise StorageError(f"{out} is a folder", "give a file to write, such as hne.safetensors")
    rows = read_labels(labels, file_column, text_column, speaker_column)
    aside = _held_out(rows, held_out)
    begun_from = load_recognizer(start) if start else None
    activity = open_activity()
    clips = load_clips(rows, activity, _tell_skipped)
    own = [clip for clip in clips if clip.speaker not in aside]
    made = _made([clip.text for clip in own], words, voices, clips_made, activity, seed)
    told = f"{len(own)} recordings, {seconds_of(own):.0f} s with a voice"
    print(told + (f"; {len(made)} clips of espeak-ng" if made else ""))
    recognizer = recognizer_training.train(
        own,
        made,
        start=begun_from,
        language=language or (begun_from.language if begun_from else ""),
        steps=steps,
        made_steps=made_steps,
        minutes=minutes,
        seed=seed,
        tell=_tell_progress,
    )
    save_recognizer(recognizer, out)
    _judge(recognizer, [clip for clip in clips if clip.speaker in aside], own, sorted(aside))
    print(f"wrote {out}")


def _held_out(rows: Sequence[Label], names: str) -> set[str]:
    aside = {name.strip() for name in names.split(",") if name.strip()}
    speakers = {row.speaker for row in rows}
    if unknown := sorted(aside - speakers):
        raise CorpusError(
            f"nobody is called {', '.join(unknown)} in the labels",
            f"speakers: {', '.join(sorted(speakers - {''})) or 'none; name --speaker-column'}",
        )
    if not speakers - aside:
        raise CorpusError("every speaker is held out", "leave some to train on")
    return aside


def _tell_skipped(label: Label, reason: str) -> None:
    print(f"skipped {label.path.name}: {reason}", file=sys.stderr)


def _tell_progress(progress: Progress) -> None:
    tuning = "" if progress.tuning_loss is None else f", {progress.tuning_loss:.2f} held back"
    print(f"step {progress.step} of {progress.steps}  loss {progress.loss:.2f}{tuning}", flush=True)


def _made(
    texts: Sequence[str],
    words: Path | None,
    voices: str,
    count: int,
    activity: Activity,
    seed: int,
) -> list[Clip]:
    """Return clips of espeak-ng, cut by the same detector as recordings."""
    from boli.corpus.recognizer_training import Clip
    from boli.corpus.recordings import voiced
    from boli.corpus.sources import read_lines
    from boli.corpus.voices import balanced, further_words, made_clips

    names = [name.strip() for name in voices.split(",") if name.strip()]
    if not names:
        if words:
            raise CorpusError("nobody is there to say the words", "add --voices, such as hi")
        return []
    lines = balanced(texts, read_lines(words) if words else further_words(texts))
    cut = (
        Clip(voiced(clip.samples, activity), clip.text, clip.speaker)
        for clip in made_clips(lines, names, count, seed)
    )
    return [clip for clip in cut if clip.samples.size]


def _judge(
    recognizer: Recognizer, clips: Sequence[Clip], own: Sequence[Clip], speakers: Sequence[str]
) -> None:
    """Print how well held-out speakers are heard, and what that does not say."""
    from boli.corpus.recognizer import character_errors, spoken

    if not clips:
        print(
            "no speaker was held out: how well it hears others is not known; "
            "judge it with --held-out-speakers"
        )
        return
    truth = [spoken(clip.text, recognizer.language) for clip in clips]
    texts = sorted({spoken(clip.text, recognizer.language) for clip in own})
    choosing = recognizer.with_words(texts)
    named = sum(
        choosing.transcribe(clip.samples).text == text
        for clip, text in zip(clips, truth, strict=True)
    )
    written = [recognizer.transcribe(clip.samples).text for clip in clips]
    wrong = sum(character_errors(a, b) for a, b in zip(truth, written, strict=True))
    characters = sum(map(len, truth))
    print(f"held-out speakers  {', '.join(speakers)}: {len(clips)} recordings")
    print(f"named              {named} of {len(clips)}, out of the {len(texts)} texts of training")
    print(f"written freely     {wrong / characters:.1%} of {characters} characters wrong")
    unseen = sorted(set(truth) - set(texts))
    if unseen:
        print(f"limits: {len(unseen)} of the held-out texts were in no recording of training")
    print(
        "limits: this is about these texts, said by these people with their microphones; it says "
        "nothing about other words, or about speech without pauses"
    )


@speech.command(
    epilog="Example: boli speech transcribe hne.safetensors village.mp3 --format srt",
    short_help="Turn recordings into text.",
)
def transcribe(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="What train wrote, or a folder: Whisper, wav2vec2."),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="wav, flac, mp3, ogg …")],
    language: Annotated[str, typer.Option(help="ISO 639-3, for models of many languages.")] = "",
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Name one of these for each segment.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="txt, tsv, jsonl or srt.")] = "tsv",
) -> None:
    """Print what is said in recordings, a line for each segment; silence and noise give none.

    tsv is start and end in seconds, confidence, text, and the file where there are several. How
    much faster than real time it went is told in the end, on standard error.
    """
    from boli.corpus.audio import read_blocks
    from boli.corpus.sources import read_lines
    from boli.corpus.speech import open_transcriber, transcribe_blocks
    from boli.corpus.voice import open_activity

    if form not in FORMATS or (form == "srt" and len(files) > 1):
        raise CorpusError(
            f"cannot write {len(files)} recordings as {form}",
            "choose txt, tsv, jsonl, or srt for a single one",
        )
    transcriber = open_transcriber(model, language, read_lines(words) if words else ())
    activity = open_activity()
    listened = _Listened()
    failed = 0
    for path in files:
        blocks = listened.through(read_blocks(path))
        try:
            for number, segment in enumerate(transcribe_blocks(blocks, transcriber, activity), 1):
                print(_written(segment, number, form, path if len(files) > 1 else None), flush=True)
        except CorpusError as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"skipped: {error.problem}", file=sys.stderr)
    print(listened.told(), file=sys.stderr)
    if failed == len(files):
        raise CorpusError("none of the recordings can be read", "see the reasons above")


class _Listened:
    """How much sound went through, and how long that took."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.samples = 0

    def through(self, blocks: Iterable[Floats]) -> Iterator[Floats]:
        """Yield the blocks, counted."""
        for block in blocks:
            self.samples += block.size
            yield block

    def told(self) -> str:
        """Return a line about it."""
        taken, heard = time.perf_counter() - self.begun, self.samples / RATE_HZ
        return f"{heard:.1f} s of sound in {taken:.1f} s: {heard / taken:.0f} times real time"


def _written(segment: Segment, number: int, form: str, path: Path | None) -> str:
    start, end = segment.start_seconds, segment.end_seconds
    if form == "txt":
        return segment.text
    if form == "srt":
        return f"{number}\n{_clock(start)} --> {_clock(end)}\n{segment.text}\n"
    if form == "tsv":
        cells = [f"{start:.2f}", f"{end:.2f}", f"{segment.confidence:.2f}", segment.text]
        return "\t".join(cells if path is None else [*cells, str(path)])
    row = {
        "start_seconds": round(start, 3),
        "end_seconds": round(end, 3),
        "confidence": round(segment.confidence, 4),
        "text": segment.text,
    }
    return json.dumps(row if path is None else row | {"file": str(path)}, ensure_ascii=False)


def _clock(seconds: float) -> str:
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02},{milliseconds:03}"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(
        speech, name="speech", short_help="Train a recognizer, and turn recordings into text."
    )
