"""Let espeak-ng say words in many voices, for a recognizer to learn words that nobody recorded.

It knows some languages of the region (hi, mr, ne, bn, pa, gu, or, ta, te, kn, ml, ur …), and a
close relative's voice says the others with an accent. Made voices alone do not teach real speech.
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import numpy as np

from boli.corpus.audio import RATE_HZ, Floats, soundfile_module
from boli.corpus.recognizer import spoken
from boli.corpus.recognizer_training import Clip
from boli.corpus.script import script_of
from boli.corpus.starter import starter_lines
from boli.errors import CorpusError

VARIANTS = ("", *(f"+m{i}" for i in range(1, 8)), *(f"+f{i}" for i in range(1, 6)))
SPEEDS, PITCHES = (110, 190), (20, 80)  # words a minute, and of 99
MOST_CHARACTERS, SECONDS = 400, 60
LANGUAGES = ("bho", "hin", "mag", "mai")  # of the made-up text that further words come from


def further_words(texts: Sequence[str], count: int = 500) -> list[str]:
    """Return words of our made-up text for the voices to say, where the texts are in its script.

    A recognizer that hears only a few words learns how those people say them, and not what makes
    a sound. Other scripts than Devanagari have no such text: then there are none.
    """
    if not texts or any(script_of(text) != "Deva" for text in texts):
        return []
    words: dict[str, None] = {}
    for language in LANGUAGES:
        for line in starter_lines(language, 4000):
            words |= dict.fromkeys(word for word in spoken(line).split() if 2 <= len(word) <= 8)
    return random.Random(0).sample(sorted(words), min(count, len(words)))


def balanced(texts: Sequence[str], further: Sequence[str]) -> list[str]:
    """Return what the voices say in turn: at least a third of it the recorded texts."""
    own = sorted(set(texts))
    others = sorted(set(further) - set(own))
    return own * max(1, len(others) // (2 * len(own))) + others


def made_clips(
    texts: Sequence[str], voices: Sequence[str], count: int, seed: int = 0
) -> Iterator[Clip]:
    """Yield that many clips: each text in turn, in voices, speeds and pitches drawn at random.

    Raises:
        CorpusError: espeak-ng is not installed, or does not know a voice.
    """
    program = _program(voices)
    rng = np.random.default_rng(seed)
    # Signs that nobody says end some versions of espeak-ng.
    said = [text for text in (spoken(text)[:MOST_CHARACTERS] for text in texts) if text]
    for number in range(count if said else 0):
        text = said[number % len(said)]
        voice = f"{rng.choice(np.array(voices))}{rng.choice(np.array(VARIANTS))}"
        samples = say(program, text, voice, int(rng.integers(*SPEEDS)), int(rng.integers(*PITCHES)))
        if samples.size:
            yield Clip(samples, text, f"espeak-ng {voice}")


def say(program: str, text: str, voice: str, speed: int, pitch: int) -> Floats:
    """Return what espeak-ng says, at 16 kHz; nothing where it cannot say it.

    Raises:
        CorpusError: espeak-ng fails.
    """
    import soxr

    command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-b", "1"]
    done = _run([*command, "--stdin", "--stdout"], text)
    if done.returncode < 0:
        return np.zeros(0, np.float32)  # it crashed on this text
    if done.returncode:
        raise CorpusError(
            f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()[:200]}",
            f"try: espeak-ng -v {voice} test",
        )
    soundfile = soundfile_module()
    try:
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    except (soundfile.SoundFileError, RuntimeError):
        return np.zeros(0, np.float32)
    if not samples.size:
        return np.zeros(0, np.float32)
    return np.asarray(soxr.resample(samples, rate, RATE_HZ), dtype=np.float32)


def _run(command: list[str], text: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, input=text.encode(), capture_output=True, check=False, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CorpusError(f"espeak-ng failed: {error}", "apt install espeak-ng") from None


def _program(voices: Sequence[str]) -> str:
    program = shutil.which("espeak-ng")
    if program is None:
        raise CorpusError(
            "made voices need espeak-ng, which is not installed",
            "apt install espeak-ng, or leave out --voices",
        )
    table = _run([program, "--voices"], "").stdout.decode(errors="replace").splitlines()[1:]
    known = {line.split()[1] for line in table if len(line.split()) > 1}
    unknown = [voice for voice in voices if voice not in known]
    if unknown or not voices:
        raise CorpusError(
            f"espeak-ng has no voice {', '.join(unknown)}" if unknown else "no voice was given",
            "espeak-ng --voices lists what it has",
        )
    return program
