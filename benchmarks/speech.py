"""How well our own recognizer names words of people it never heard, and how fast it is.

The recordings are 60: six speakers say five Chhattisgarhi words twice. Every speaker says the same
five words, so a held-out speaker's words were heard in training, from others.

splits        each of the 15 ways to hold two speakers out; trained on the other four, and on clips
              of espeak-ng (voice hi) that say the five words and 500 of our made-up text. All
              settings are fixed; they were chosen on the three splits in `chosen_on`, with other
              seeds, so `other_splits` are the figures to quote
named         share of clips named right out of the five words; `of_30` out of 30 words, 25 of
              which nobody recorded; `cer` of what is written without a list
controls      nearest template by dynamic time warping, on the same frames; the recognizer without
              espeak-ng; the recognizer without recordings
speed         boli speech transcribe on one core, voices found and files decoded included
memory        peak resident memory of that command for 5 minutes and for an hour

The part that learns from espeak-ng alone hears no recording, so it is trained once for a seed and
goes on in each split; boli speech train does both parts in one.

python benchmarks/speech.py DATA [--out FILE] [--seeds 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from boli.corpus.audio import RATE_HZ
from boli.corpus.recognizer import (
    Recognizer,
    character_errors,
    log_mel,
    save_recognizer,
    spoken,
)
from boli.corpus.recognizer_training import Clip, train
from boli.corpus.recordings import load_clips, read_labels, seconds_of, voiced
from boli.corpus.voice import Activity, open_activity
from boli.corpus.voices import balanced, further_words, made_clips

HERE = Path(__file__).parent
CHOSEN_ON = (("spk01", "spk02"), ("spk02", "spk04"), ("spk03", "spk06"))
HARDEST = CHOSEN_ON[1]  # for the nearest template
MADE_CLIPS = 3000  # what boli speech train makes of five words


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "mean": round(statistics.mean(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def made(texts: Sequence[str], activity: Activity, seed: int) -> list[Clip]:
    lines = balanced(texts, further_words(texts))
    found = made_clips(lines, ["hi"], MADE_CLIPS, seed)
    cut = (Clip(voiced(c.samples, activity), c.text, c.speaker) for c in found)
    return [clip for clip in cut if clip.samples.size]


def scores(recognizer: Recognizer, clips: Sequence[Clip], others: Sequence[str]) -> dict[str, Any]:
    texts = sorted({clip.text for clip in clips})
    truth = [clip.text for clip in clips]
    few, many = recognizer.with_words(texts), recognizer.with_words([*texts, *others])
    free = [recognizer.transcribe(clip.samples).text for clip in clips]

    def right(told: Sequence[str]) -> float:
        return round(float(np.mean([a == b for a, b in zip(told, truth, strict=True)])), 4)

    wrong = sum(character_errors(a, b) for a, b in zip(truth, free, strict=True))
    return {
        "named": right([few.transcribe(clip.samples).text for clip in clips]),
        "of_30": right([many.transcribe(clip.samples).text for clip in clips]),
        "cer": round(wrong / sum(map(len, truth)), 4),
    }


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: spread([row[name] for row in rows]) for name in ("named", "of_30", "cer")}


def distance(a: Any, b: Any) -> float:  # (frames, bands) each
    """Return how far two words are from each other, over the best way to lay one on the other."""
    costs = ((a[:, None] - b[None]) ** 2).sum(-1)
    best = np.full((len(a) + 1, len(b) + 1), np.inf)
    best[0, 0] = 0
    for i, row in enumerate(costs, 1):
        for j, cost in enumerate(row, 1):
            best[i, j] = cost + min(best[i - 1, j - 1], best[i - 1, j], best[i, j - 1])
    return float(best[-1, -1] / (len(a) + len(b)))


def templates(clips: Sequence[Clip], splits: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    frames = [log_mel(clip.samples)[::2] for clip in clips]
    table = np.zeros((len(clips), len(clips)))
    for i, j in itertools.combinations(range(len(clips)), 2):
        table[i, j] = table[j, i] = distance(frames[i], frames[j])
    speaker, text = (np.array([getattr(c, name) for c in clips]) for name in ("speaker", "text"))
    found = []
    for held in splits:
        out = np.isin(speaker, held)
        nearest = table[out][:, ~out].argmin(1)
        found.append(float(np.mean(text[~out][nearest] == text[out])))
    return {"named": spread(found)}


def measured(recognizer: Recognizer, clips: Sequence[Path], core: str) -> dict[str, Any]:
    """Run the command on a core, on five minutes and on an hour of the recordings."""
    parts = [soundfile.read(path, dtype="int16")[0] for path in clips]
    once = np.concatenate(parts)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        save_recognizer(recognizer, model)
        for name, seconds in (("five_minutes", 300), ("one_hour", 3600)):
            path = Path(folder) / f"{name}.wav"
            with soundfile.SoundFile(path, "w", RATE_HZ, 1) as file:
                for _ in range(round(seconds * RATE_HZ / once.size)):
                    file.write(once)
            command = ["taskset", "-c", core, sys.executable, "-m", "boli.cli.main", "speech"]
            command += ["transcribe", str(model), str(path)]
            begun = time.perf_counter()
            done = subprocess.run(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            taken = time.perf_counter() - begun
            length = soundfile.info(path).duration
            told = re.search(r"in ([\d.]+) s", done.stderr)
            assert told is not None
            found[name] = {
                "seconds": round(length, 1),
                "segments": len(done.stdout.splitlines()),
                "times_real_time": round(length / float(told[1]), 1),
                "times_real_time_with_start": round(length / taken, 1),
                # Of the largest child so far: the hour comes last.
                "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of real text")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "speech.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core", default="0", help="the core on which speed is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    labels = read_labels(
        options.data / "speech_hne_words" / "metadata.tsv", text_column="word_devanagari"
    )
    activity = open_activity()
    raw = load_clips(labels, activity, lambda label, why: print(label.path.name, why))
    clips = [Clip(clip.samples, spoken(clip.text, "hne"), clip.speaker) for clip in raw]
    speakers = sorted({clip.speaker for clip in clips})
    splits = list(itertools.combinations(speakers, 2))
    texts = sorted({clip.text for clip in clips})
    others = [word for word in further_words(texts) if word not in texts][:25]
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "recordings": {
            "clips": len(clips),
            "speakers": len(speakers),
            "words": texts,
            "seconds_with_a_voice": round(seconds_of(clips), 1),
        },
        "chosen_on": CHOSEN_ON,
        "controls": {"nearest_template": templates(clips, splits)},
    }
    rows, without_recordings, seconds = [], [], []
    for seed in range(options.seeds):
        begun = time.perf_counter()
        voices = made(texts, activity, seed)
        base = train((), voices, language="hne", seed=seed, tell=print)
        seconds.append(round(time.perf_counter() - begun, 1))
        without_recordings.append(scores(base, clips, others))
        print(f"seed {seed}: without recordings {without_recordings[-1]}", flush=True)
        for held in splits:
            rows.append(one(clips, held, voices, base, others, seed))
            print(rows[-1], flush=True)
        found |= told(rows, seconds)
        found["controls"]["espeak_alone"] = summed(without_recordings)
        written(found | {"rows": rows}, options.out)
    own = [clip for clip in clips if clip.speaker not in splits[0]]
    found |= measured(
        train(own, voices, start=base, language="hne", seed=0),
        [label.path for label in labels],
        options.core,
    )
    written(found | {"rows": rows}, options.out)
    found["controls"]["recordings_alone"] = recordings_alone(clips, [*splits[::5], HARDEST])
    written(found | {"rows": rows}, options.out)


def one(
    clips: Sequence[Clip],
    held: tuple[str, ...],
    voices: Sequence[Clip],
    base: Recognizer,
    others: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    own = [clip for clip in clips if clip.speaker not in held]
    begun = time.perf_counter()
    recognizer = train(own, voices, start=base, language="hne", seed=seed)
    row = {"seed": seed, "held_out": held, "seconds": round(time.perf_counter() - begun, 1)}
    return row | scores(recognizer, [clip for clip in clips if clip.speaker in held], others)


def told(rows: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "seeds": len(seconds),
        "all_splits": summed(rows),
        "other_splits": summed([row for row in rows if row["held_out"] not in CHOSEN_ON]),
        "splits_with_90_percent_named": sum(row["named"] >= 0.9 for row in rows) / len(rows),
        "training_seconds": {
            "made_voices": spread(seconds),
            "recordings": spread([row["seconds"] for row in rows]),
        },
    }


def recordings_alone(clips: Sequence[Clip], splits: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    rows = []
    for held in splits:
        own = [clip for clip in clips if clip.speaker not in held]
        recognizer = train(own, language="hne", seed=0)
        # It knows only the characters of the five words, so there are no 25 others.
        rows.append(scores(recognizer, [clip for clip in clips if clip.speaker in held], []))
        print("recordings alone", held, rows[-1], flush=True)
    return {
        "splits": splits,
        "named": spread([row["named"] for row in rows]),
        "cer": spread([row["cer"] for row in rows]),
    }


def written(found: dict[str, Any], path: Path) -> None:
    """Write what there is so far: the whole takes an hour."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
