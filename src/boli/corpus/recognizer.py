"""Our own recognizer: sound → characters, small enough for one core and one site's recordings.

Log-mel frames, two convolutions, a bidirectional GRU, and CTC over the characters of its training
text: about 0.6 M parameters. With a list of words it names the one that fits best; without, it
writes what it hears. Files are checksummed safetensors, and nothing in them is trusted.

Source: Graves, Fernández, Gomez & Schmidhuber 2006, Connectionist Temporal Classification,
    https://doi.org/10.1145/1143844.1143891 (loss, and the likelihood of a given word)
Source: Amodei et al. 2016, Deep Speech 2, https://arxiv.org/abs/1512.02595 (convolutions below
    recurrent layers)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boli.corpus.audio import RATE_HZ, Floats
from boli.corpus.normalize import normalize
from boli.durable import read_tensors, write_tensors
from boli.errors import CorpusError, CorruptFileError

KIND, FORMAT = "boli recognizer", 1
FRAME, HOP, FFT, BANDS = 400, 160, 512, 40  # 25 ms every 10 ms
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0
DEPTH = 9.0  # of the loudest band, natural log: what is fainter counts as silence
CEPSTRA = 14  # cosines kept of the bands
STRIDE = 3  # frames, 30 ms, to a step: faster by half than 2, and still enough for quick speech
CHANNELS, WIDTH, HIDDEN, LAYERS = 32, 160, 128, 2
DROPOUT = 0.2
MOST_CHARACTERS = 4096
SHORTEST = FRAME + 4 * HOP  # samples


@dataclass(frozen=True)
class Heard:
    """What was said, and how sure that is."""

    text: str
    confidence: float  # 0 to 1


class Network(nn.Module):
    """(batch, frames, BANDS) → (batch, steps, 1 + characters) log probabilities; 0 is blank."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, CHANNELS, (5, 3), stride=(STRIDE, 2), padding=(2, 1))
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=(1, 2), padding=1)
        self.narrow = nn.Linear(CHANNELS * BANDS // 4, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.recurrent = nn.GRU(
            WIDTH, HIDDEN, LAYERS, batch_first=True, bidirectional=True, dropout=DROPOUT
        )
        self.out = nn.Linear(2 * HIDDEN, characters + 1)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log probabilities, and how many of them belong to each row."""
        gelu = nn.functional.gelu
        steps = (lengths - 1) // STRIDE + 1
        hidden = gelu(self.first(frames[:, None]))  # (batch, CHANNELS, steps, BANDS / 2)
        there = torch.arange(hidden.shape[2]) < steps[:, None]
        # Without the mask, a row beside a longer one would hear something behind its end.
        hidden = gelu(self.second(hidden * there[:, None, :, None]))
        hidden = self.norm(self.narrow(hidden.transpose(1, 2).flatten(2)))  # (batch, steps, WIDTH)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(gelu(hidden)), steps, batch_first=True, enforce_sorted=False
        )
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            self.recurrent(packed)[0], batch_first=True, total_length=hidden.shape[1]
        )
        return self.out(self.dropout(hidden)).log_softmax(-1), steps


class Recognizer:
    """Hears the characters that it was trained on; one segment at a time, on the CPU."""

    def __init__(
        self, network: Network, characters: str, language: str, facts: Mapping[str, Any]
    ) -> None:
        self.network = network
        self.characters = characters
        self.language = language
        self.facts = facts  # what it was trained on: counts, never text or names
        self.words: tuple[str, ...] = ()  # where there are some, one of them is named

    def with_words(self, words: Sequence[str]) -> Recognizer:
        """Return this recognizer, naming one of these words or lines for each segment.

        Raises:
            CorpusError: there are none, or one has a character that it never learned.
        """
        known = tuple(dict.fromkeys(spoken(word, self.language) for word in words))
        unknown = sorted(set("".join(known)) - set(self.characters))
        if not any(known) or unknown:
            raise CorpusError(
                f"the words have characters that were not in training: {' '.join(unknown)}"
                if unknown
                else "there are no words to choose from",
                "leave them out, or train with these words: boli speech train --words",
            )
        other = Recognizer(self.network, self.characters, self.language, self.facts)
        other.words = tuple(word for word in known if word)
        return other

    @torch.inference_mode()
    def log_probabilities(self, samples: Floats) -> Tensor:
        """Return (steps of 30 ms, 1 + characters) for (n,) samples at 16 kHz."""
        frames = torch.from_numpy(log_mel(samples))[None]
        self.network.eval()
        found: Tensor = self.network(frames, torch.tensor([frames.shape[1]]))[0][0]
        return found

    def transcribe(self, samples: Floats) -> Heard:
        """Return the text of a segment; "" where nothing was heard.

        Among words, confidence is the share of the best in the likelihood of all of them: a word
        that is not in the list is taken for one that is, often with a high confidence.
        """
        steps = self.log_probabilities(samples)
        if not self.words:
            return greedy(steps, self.characters)
        scores = word_scores(steps, self.words, self.characters)
        if not torch.isfinite(scores).any():
            return Heard("", 0.0)  # too short for any
        best = int(scores.argmax())
        return Heard(self.words[best], float(scores.softmax(0)[best]))


def spoken(text: str, language: str = "") -> str:
    """Return what of a text can be heard: normalized, lower case, without punctuation."""
    text = normalize(text, language).lower()
    kept = (
        " " if unicodedata.category(c)[0] in "PSZC" else c for c in text if c not in "\u200c\u200d"
    )
    return " ".join("".join(kept).split())


def greedy(steps: Tensor, characters: str) -> Heard:  # (steps, 1 + characters) log probabilities
    """Return the best character of each step, repeats and blanks taken out."""
    chances, best = steps.max(-1)
    new = (best != 0) & (best != torch.cat([torch.zeros(1, dtype=best.dtype), best[:-1]]))
    text = " ".join("".join(characters[i - 1] for i in best[new].tolist()).split())
    voiced = chances[best != 0]
    return Heard(text, float(voiced.mean().exp()) if text else 0.0)


def character_errors(truth: str, told: str) -> int:
    """Return the characters to change, add or drop to make one text of the other."""
    row = list(range(len(told) + 1))
    for i, left in enumerate(truth, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(told, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def word_scores(steps: Tensor, words: Sequence[str], characters: str) -> Tensor:
    """Return the log likelihood of each word, over all ways to lay it along the steps."""
    places = {character: i for i, character in enumerate(characters, 1)}
    targets = [torch.tensor([places[character] for character in word]) for word in words]
    sizes = torch.tensor([target.numel() for target in targets])
    repeated = steps[:, None].expand(-1, len(words), -1)
    lengths = torch.full((len(words),), steps.shape[0])
    return -nn.functional.ctc_loss(
        repeated.contiguous(), torch.cat(targets), lengths, sizes, reduction="none"
    )


@cache
def _filters(warp: float = 1.0) -> Floats:  # (1 + FFT / 2, BANDS)
    """Return triangular mel filters; warp moves their centers, like a longer or shorter throat."""

    def mel(hertz: float) -> float:
        return float(2595 * np.log10(1 + hertz / 700))

    edges = 700 * (10 ** (np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2) / 2595) - 1)
    edges = np.minimum(edges * warp, RATE_HZ / 2)
    hertz = np.fft.rfftfreq(FFT, 1 / RATE_HZ)[:, None]
    rise = (hertz - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], 1e-3)
    fall = (edges[2:] - hertz) / np.maximum(edges[2:] - edges[1:-1], 1e-3)
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


@cache
def _smooth() -> Floats:  # (BANDS, BANDS)
    """Return what takes out ripples narrower than a formant: the harmonics of a high voice."""
    places = (np.arange(BANDS) + 0.5) / BANDS
    waves = np.cos(np.pi * np.arange(CEPSTRA)[:, None] * places)  # (CEPSTRA, BANDS)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    return np.asarray(waves.T @ waves, dtype=np.float32)


def log_mel(
    samples: Floats,  # (n,) at 16 kHz
    warp: float = 1.0,
) -> Floats:  # (frames, BANDS), mean 0 in each band and variance 1 over all
    """Return log-mel frames; loudness and the color of a microphone are taken out."""
    if samples.size < SHORTEST:
        samples = np.pad(samples, (0, SHORTEST - samples.size))
    sharp = np.append(samples[:1], samples[1:] - np.float32(0.97) * samples[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(sharp, FRAME)[::HOP]
    spectrum = np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    logs = np.log(power @ _filters(warp) + np.float32(1e-10))
    logs = np.maximum(logs, logs.max() - np.float32(DEPTH))
    logs = logs @ _smooth()
    logs -= logs.mean(0)
    return np.asarray(logs / (logs.std() + np.float32(1e-3)), dtype=np.float32)


def save_recognizer(recognizer: Recognizer, path: Path) -> None:
    """Write the recognizer as one checksummed safetensors file, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses.
    """
    state = recognizer.network.state_dict()
    facts = {
        "kind": KIND,
        "format": FORMAT,
        "characters": recognizer.characters,
        "language": recognizer.language,
        "trained_on": dict(recognizer.facts),
    }
    write_tensors(path, {name: tensor.numpy() for name, tensor in state.items()}, facts)


def load_recognizer(path: Path) -> Recognizer:
    """Return what `save_recognizer` wrote; everything in the file is checked.

    Raises:
        CorruptFileError: the file is missing, torn, altered, or no recognizer.
    """
    again = "make it again with boli speech train"  # it may be any file of theirs
    arrays, facts = read_tensors(path, again)
    try:
        if facts["kind"] != KIND or facts["format"] != FORMAT:
            raise ValueError(f"kind {facts['kind']!r}, format {facts['format']!r}")
        characters, language, trained_on = (
            facts[name] for name in ("characters", "language", "trained_on")
        )
        if not (isinstance(characters, str) and isinstance(language, str)):
            raise ValueError("its characters are no text")
        if not 0 < len(characters) == len(set(characters)) <= MOST_CHARACTERS:
            raise ValueError(f"{len(characters)} characters")
        network = Network(len(characters))
        network.load_state_dict(_checked(arrays, network))
        return Recognizer(network.eval(), characters, language, dict(trained_on))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a recognizer of this version: {error}", again
        ) from error


def _checked(arrays: Mapping[str, NDArray[Any]], network: Network) -> dict[str, Tensor]:
    expected = network.state_dict()
    if set(arrays) != set(expected):
        raise ValueError(f"it has {', '.join(sorted(arrays))}")
    for name, tensor in expected.items():
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != tuple(tensor.shape):
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has entries that are no numbers")
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
