"""What a model has to beat: a character 6-gram and PPMd, on the very lines that it is judged on.

Both are trained on the site's training lines in seconds. Their bits per byte count as those of
a model do: UTF-8 bytes, with one for the end of each line.

The **6-gram** codes each line by itself, and knows the training lines alone. **PPMd** is a
compressor: bits(test | train) = 8 · (bytes written up to the end of test − bytes written up to the
end of train), lines joined by line ends. It goes on learning along the test lines, which a model is
not allowed to; what it takes for a line is known to some bytes, since it writes a little late. Of
very long texts both are trained on the same lines, evenly along it.

Source: Kneser & Ney 1995, https://doi.org/10.1109/ICASSP.1995.479394; Shkarin 2002, PPM: one step
to practicality, https://doi.org/10.1109/DCC.2002.999958.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from boli.corpus.sources import judged_lines, read_split
from boli.errors import CorpusError
from boli.model.ngram import CHARACTER_ORDER, CharacterNGram, counted_lines
from boli.plan import Plan, SitePlan

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SIX_GRAM = "6-gram"
PPMD = "PPMd"
PPMD_ORDER = 16  # best on tuning text of Indic scripts, whose letters take three bytes
PPMD_MEMORY_BYTES = 256 << 20  # of its tree; when that is full it begins anew
PPMD_MISSING = "pyppmd is not installed: pip install 'boli[proof]'"


@dataclass(frozen=True)
class Baseline:
    """Code length of each of some lines under a baseline; where it cannot be had, why."""

    name: str
    bits: Floats = field(default_factory=lambda: np.zeros(0))  # (lines,)
    bytes: Integers = field(default_factory=lambda: np.zeros(0, np.int64))  # (lines,)
    missing: str = ""

    @property
    def per_byte(self) -> float | None:
        """Bits per byte of all lines together; smaller is better. None: it is missing."""
        num_bytes = int(self.bytes.sum())
        return float(self.bits.sum()) / num_bytes if num_bytes else None


def site_baselines(plan: Plan, site: SitePlan) -> dict[str, dict[str, list[Baseline]]]:
    """Return the rows by language and part, on the lines of a site that a run would judge.

    Raises:
        CorpusError: the text is missing, empty or too short.
    """
    most = plan.evaluation.max_lines
    return {
        language: {
            part: baselines(split.train, judged_lines(split.part(part), most))
            for part in ("tuning", "test")
        }
        for language, split in read_split(plan, site.text, site.language).items()
    }


def baselines(train: Sequence[str], lines: Sequence[str]) -> list[Baseline]:
    """Return the rows of a report: what each baseline needs for lines after the training lines.

    Raises:
        CorpusError: there are no training lines.
    """
    found = [six_gram(train, lines)]
    try:
        found.append(ppmd(train, lines))
    except ImportError:
        found.append(Baseline(PPMD, missing=PPMD_MISSING))
    return found


def six_gram(train: Sequence[str], lines: Sequence[str]) -> Baseline:
    """Return what a character 6-gram of the training lines needs for each line.

    Raises:
        CorpusError: there are no training lines.
    """
    model = CharacterNGram.train(train, CHARACTER_ORDER)
    return Baseline(SIX_GRAM, model.line_bits(lines), _bytes_of(lines))


def ppmd(
    train: Sequence[str],
    lines: Sequence[str],
    order: int = PPMD_ORDER,  # longest context, in bytes
    memory_bytes: int = PPMD_MEMORY_BYTES,
) -> Baseline:
    """Return what PPMd takes for each line, after the training lines and the lines before it.

    Raises:
        CorpusError: there are no training lines.
        ImportError: pyppmd is not installed; the extra `proof` brings it.
    """
    import pyppmd

    if not train:
        raise CorpusError("there is no text to train PPMd on", "give lines of text")
    encoder = pyppmd.Ppmd7Encoder(order, memory_bytes)
    written = [len(encoder.encode(_joined(counted_lines(train))))]
    for line in lines:
        written.append(written[-1] + len(encoder.encode(_joined([line]))))
    bits: Floats = np.diff(8.0 * np.array(written, np.float64))
    return Baseline(PPMD, bits, _bytes_of(lines))


def _joined(lines: Sequence[str]) -> bytes:
    return b"".join(line.encode() + b"\n" for line in lines)


def _bytes_of(lines: Sequence[str]) -> Integers:
    return np.array([len(line.encode()) + 1 for line in lines], np.int64)
