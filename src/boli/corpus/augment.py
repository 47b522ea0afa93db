"""Make one clip sound like many: other throats, rooms, microphones, distances and noise.

Source: Ko, Peddinti, Povey & Khudanpur 2015, Audio Augmentation for Speech Recognition,
    https://www.danielpovey.com/files/2015_interspeech_augmentation.pdf (speed)
Source: Jaitly & Hinton 2013, Vocal Tract Length Perturbation,
    https://www.cs.toronto.edu/~hinton/absps/perturb.pdf (warp)
Source: Park et al. 2019, SpecAugment, https://arxiv.org/abs/1904.08779 (masks)
"""

from __future__ import annotations

import numpy as np

from boli.corpus.audio import RATE_HZ, Floats
from boli.corpus.recognizer import BANDS, log_mel

SPEEDS, WARPS = (0.8, 1.25), np.linspace(0.86, 1.16, 13)
STRETCH = (0.8, 1.25)  # in time alone
NOISE_DB = (8.0, 40.0)  # signal to noise
EDGE_SECONDS = 0.1
FEWEST = 800  # samples
MASKS, WIDEST_MASK = 1, 8  # of bands and of frames
ROOMS, NOISES = 0.3, 0.8  # how often


def augmented(samples: Floats, rng: np.random.Generator) -> Floats:  # (n,) → (frames, BANDS)
    """Return log-mel frames of the clip as somebody else might have said it somewhere else."""
    if samples.size < FEWEST:
        samples = np.pad(samples, (0, FEWEST - samples.size))
    sound = _faster(samples, float(rng.uniform(*SPEEDS)))
    sound = _edges(sound, rng)
    if rng.random() < ROOMS:
        sound = _room(sound, rng)
    if rng.random() < NOISES:
        sound = sound + _noise(sound, rng)
    frames = log_mel(sound.astype(np.float32), float(rng.choice(WARPS)))
    return _masked(_stretched(frames, float(rng.uniform(*STRETCH))), rng)


def _faster(samples: Floats, speed: float) -> Floats:
    places = np.arange(0, samples.size - 1, speed)
    return np.asarray(np.interp(places, np.arange(samples.size), samples), dtype=np.float32)


def _edges(samples: Floats, rng: np.random.Generator) -> Floats:
    """Move both ends: a detector of voices does not cut twice alike."""
    cuts = rng.integers(0, int(EDGE_SECONDS * RATE_HZ), 2)
    if rng.random() < 0.5 and samples.size > 2 * cuts.sum():
        return samples[cuts[0] // 2 : samples.size - cuts[1] // 2]
    return np.concatenate([np.zeros(cuts[0]), samples, np.zeros(cuts[1])]).astype(np.float32)


def _room(samples: Floats, rng: np.random.Generator) -> Floats:
    """Let the sound die away over 0.05 to 0.4 s, as between walls."""
    size = int(rng.uniform(0.05, 0.4) * RATE_HZ)
    tail = rng.standard_normal(size) * np.exp(-5 * np.arange(size) / size) * rng.uniform(0.02, 0.15)
    tail[0] = 1.0
    length = 1 << int(samples.size + size).bit_length()
    heard = np.fft.irfft(np.fft.rfft(samples, length) * np.fft.rfft(tail, length), length)
    return heard[: samples.size].astype(np.float32)


def _noise(samples: Floats, rng: np.random.Generator) -> Floats:
    """Return hiss, hum or rumble of a random color, some decibels below the voice."""
    length = 1 << int(samples.size - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= (1 + np.arange(spectrum.size)) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)[: samples.size]
    loud = np.sqrt(np.mean(samples**2)) / (np.sqrt(np.mean(noise**2)) + 1e-9)
    decibels = float(rng.uniform(*NOISE_DB))
    return np.asarray(noise * loud * 10 ** (-decibels / 20), dtype=np.float32)


def _stretched(frames: Floats, factor: float) -> Floats:
    count = max(4, round(len(frames) * factor))
    places = np.linspace(0, len(frames) - 1, count)
    below = np.minimum(places.astype(int), len(frames) - 2)
    share = (places - below).astype(np.float32)[:, None]
    return np.asarray(frames[below] * (1 - share) + frames[below + 1] * share, dtype=np.float32)


def _masked(frames: Floats, rng: np.random.Generator) -> Floats:
    frames = frames.copy()
    for _ in range(MASKS):
        width = int(rng.integers(0, WIDEST_MASK))
        begin = int(rng.integers(0, BANDS - width))
        frames[:, begin : begin + width] = 0
        width = int(rng.integers(0, max(1, min(WIDEST_MASK, len(frames) // 8))))
        begin = int(rng.integers(0, len(frames) - width))
        frames[begin : begin + width] = 0
    return frames
