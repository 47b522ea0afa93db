"""Fit a recognizer (recognizer.py) to a site's recordings, and to voices that a machine makes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from boli.corpus.audio import Floats
from boli.corpus.augment import augmented
from boli.corpus.recognizer import MOST_CHARACTERS, Network, Recognizer, log_mel, spoken
from boli.errors import CorpusError

BATCH = 16
STEPS, MADE_STEPS = 200, 1000  # batches with recordings, and of made voices alone before them
ALONE_STEPS = 600  # batches, where nothing came before the recordings
FIRST_RATE, RATE = 3e-3, 1.5e-3  # from nothing, and from what was learned before
WEIGHT_DECAY, NORM = 1e-2, 1.0
WARM_SHARE = 0.1  # of the steps
REAL_SHARE = 0.6  # of a batch with recordings; the rest are made voices, where there are some
AVERAGE = 0.98  # of the averaged parameters is kept at each step
CHECKS = 12  # times that the tuning clips are judged
PATIENCE = 4  # checks without a better loss
FEWEST_TO_TUNE = 100  # clips; of fewer, all are trained on, and the steps are the only limit
TUNING_PART = 10  # every tenth clip


@dataclass(frozen=True)
class Clip:
    """A piece of sound in which a text is said."""

    samples: Floats  # (n,) at 16 kHz, cut by the detector of voices
    text: str
    speaker: str = ""


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int
    steps: int
    loss: float  # of the last batches, per character
    tuning_loss: float | None  # None: too few clips to hold some back


def train(
    clips: Sequence[Clip],
    made: Sequence[Clip] = (),
    *,
    start: Recognizer | None = None,
    language: str = "",
    steps: int = 0,
    made_steps: int = MADE_STEPS,
    minutes: float = 60.0,
    seed: int = 0,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Recognizer:
    """Return a recognizer of the characters in the texts of the clips.

    `made` are clips of synthetic voices, with more words than anybody recorded: it learns from
    them first (`made_steps`), then from both (`steps`; 0: as many as do). `start` is a recognizer
    to go on from instead. Of many clips a tenth is held back to know when to stop. The same seed
    gives the same recognizer, but for rounding, unless `minutes` end it before `steps` are done.

    Raises:
        CorpusError: no clip has a text that can be heard, or the texts have no end of characters.
    """
    clips, made = _heard(clips, language), _heard(made, language)
    characters = _characters([*clips, *made], start)
    rng = np.random.default_rng(seed)
    fitting, tuning = _divided(clips, rng)
    made_steps = 0 if start or not made else made_steps
    goes_on = bool(start or made_steps)
    steps = steps or (STEPS if goes_on else ALONE_STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(len(characters))
        if start:
            _take_over(network, characters, start)
        fit = _Fit(network, characters, rng, tell)
        share = made_steps / (made_steps + steps) if clips else 1.0
        if made_steps:
            fit.run((), made, (), made_steps, FIRST_RATE, 60 * minutes * share)
        if clips:
            rate = RATE if goes_on else FIRST_RATE
            fit.run(fitting, made, tuning, steps, rate, 60 * minutes * (1 - share))
    facts = {
        "recordings": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "made_clips": len(made),
        "steps": fit.steps_taken,
        "seed": seed,
    }
    return Recognizer(fit.best.eval(), characters, language, facts)


def _characters(clips: Sequence[Clip], start: Recognizer | None) -> str:
    if not clips:
        raise CorpusError("there is nothing to train on", "give recordings with their text")
    known = start.characters if start else ""
    characters = "".join(sorted({*known, *"".join(clip.text for clip in clips)}))
    if len(characters) > MOST_CHARACTERS:
        raise CorpusError(
            f"the texts have {len(characters)} characters, more than {MOST_CHARACTERS}",
            "look for what is no text in the labels",
        )
    return characters


def _take_over(network: Network, characters: str, start: Recognizer) -> None:
    """Begin with the parameters of another recognizer, and with its characters' places."""
    state = start.network.state_dict()
    places = [0, *(1 + characters.index(character) for character in start.characters)]
    with torch.no_grad():
        for name, own in network.state_dict().items():
            if name.startswith("out."):
                own[places] = state[name]
            else:
                own.copy_(state[name])


def _heard(clips: Sequence[Clip], language: str) -> list[Clip]:
    told = (Clip(clip.samples, spoken(clip.text, language), clip.speaker) for clip in clips)
    return [clip for clip in told if clip.text and clip.samples.size]


def _divided(clips: list[Clip], rng: np.random.Generator) -> tuple[list[Clip], list[Clip]]:
    if len(clips) < FEWEST_TO_TUNE:
        return clips, []
    order = rng.permutation(len(clips)).tolist()
    held = len(clips) // TUNING_PART
    return [clips[i] for i in order[held:]], [clips[i] for i in order[:held]]


class _Fit:
    """The state of one training."""

    def __init__(
        self,
        network: Network,
        characters: str,
        rng: np.random.Generator,
        tell: Callable[[Progress], None],
    ) -> None:
        self.network = network
        self.averaged = copy.deepcopy(network)
        self.best = self.averaged
        self.places = {character: i for i, character in enumerate(characters, 1)}
        self.rng = rng
        self.tell = tell
        self.steps_taken = 0

    def run(
        self,
        clips: Sequence[Clip],
        made: Sequence[Clip],
        tuning: Sequence[Clip],
        steps: int,
        rate: float,
        seconds: float,
    ) -> None:
        """Take steps; afterwards `best` is the average, or what did best on the tuning clips."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        begun = time.monotonic()
        least, waited = float("inf"), 0
        losses: list[float] = []
        for step in range(steps):
            done = max(step / steps, (time.monotonic() - begun) / seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, done / WARM_SHARE + 0.01) * (1 - done) ** 0.5
            losses.append(self._step(_batch(clips, made, self.rng), optimizer))
            if (step + 1) % max(1, steps // CHECKS) and step + 1 < steps:
                continue
            loss = self._judged(tuning)
            self.tell(Progress(step + 1, steps, float(np.mean(losses[-20:])), loss))
            if loss is None:
                continue
            waited = 0 if loss < least else waited + 1
            if loss < least:
                least, self.best = loss, copy.deepcopy(self.averaged)
            if waited >= PATIENCE and done > 0.5:
                break

    def _step(self, batch: Sequence[Clip], optimizer: torch.optim.Optimizer) -> float:
        self.network.train()
        frames = [augmented(clip.samples, self.rng) for clip in batch]
        loss = self._loss(self.network, frames, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), NORM)
        optimizer.step()
        self.steps_taken += 1
        keep = min(AVERAGE, self.steps_taken / (self.steps_taken + 10))
        with torch.no_grad():
            for mean, new in zip(
                self.averaged.parameters(), self.network.parameters(), strict=True
            ):
                mean.lerp_(new, 1 - keep)
        return float(loss.detach())

    def _loss(self, network: Network, frames: Sequence[Floats], batch: Sequence[Clip]) -> Tensor:
        lengths = torch.tensor([len(one) for one in frames])
        padded = nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in frames], batch_first=True)
        steps, lengths = network(padded, lengths)
        targets = [[self.places[character] for character in clip.text] for clip in batch]
        sizes = torch.tensor([len(target) for target in targets])
        flat = torch.tensor([place for target in targets for place in target])
        # zero_infinity: a fast clip can have fewer steps than characters.
        return nn.functional.ctc_loss(
            steps.transpose(0, 1), flat, lengths, sizes, zero_infinity=True
        )

    @torch.no_grad()
    def _judged(self, tuning: Sequence[Clip]) -> float | None:
        if not tuning:
            return None
        self.averaged.eval()
        return float(self._loss(self.averaged, [log_mel(c.samples) for c in tuning], tuning))


def _batch(clips: Sequence[Clip], made: Sequence[Clip], rng: np.random.Generator) -> list[Clip]:
    real = BATCH if not made else round(REAL_SHARE * BATCH) if clips else 0
    chosen = [clips[i] for i in rng.integers(0, len(clips), real)] if real else []
    return chosen + [made[i] for i in rng.integers(0, len(made), BATCH - real)] if made else chosen
