"""Hindi documents for benchmarks/prepare.py: real sentences, with faults and duplicates planted.

The sentences are those of parallel/kangri and parallel/ntrex; how they stand together is drawn.
Each document carries what it is, so that kept sets can be judged.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

FILE_DOCUMENTS = 5000
SHARES = {  # of all documents
    "near duplicate": 0.10,
    "exact duplicate": 0.02,
    "English": 0.02,
    "too short": 0.02,
    "repeated": 0.02,
    "menu": 0.02,
}
MENU = ["होम", "समाचार", "खेल", "मनोरंजन", "संपर्क करें", "लॉगिन"]


def sentences(data: Path) -> tuple[list[str], list[str]]:
    """Return the Hindi and the English sentences, each once."""
    rows = (data / "parallel/kangri/train.xnr-hin.tsv").read_text(encoding="utf-8").splitlines()
    hindi = [row.split("\t")[1] for row in rows]
    ntrex = data / "parallel" / "ntrex"
    hindi += (ntrex / "newstest2019.hin").read_text(encoding="utf-8").splitlines()
    english = (ntrex / "newstest2019.eng").read_text(encoding="utf-8").splitlines()
    return [line for line in dict.fromkeys(hindi) if len(line) > 40], english


def write_documents(data: Path, folder: Path, number: int, seed: int) -> int:
    """Write documents as jsonl files with id, kind and text; return their characters."""
    folder.mkdir(parents=True, exist_ok=True)
    characters, lines = 0, []
    for place, (kind, text) in enumerate(_documents(*sentences(data), number, seed)):
        name = f"{place}:{kind}"
        lines.append(json.dumps({"id": name, "text": text}, ensure_ascii=False))
        characters += len(text)
        if len(lines) == FILE_DOCUMENTS or place == number - 1:
            path = folder / f"{place // FILE_DOCUMENTS:04d}.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            lines = []
    return characters


def _documents(
    hindi: list[str], english: list[str], number: int, seed: int
) -> Iterator[tuple[str, str]]:
    """Yield what a document is, and its text. Duplicates name the place of the first one."""
    drawn = random.Random(seed)
    clean: list[tuple[int, str]] = []
    words = sorted({word for line in hindi for word in line.split()})
    for place in range(number):
        kind = drawn.choices([*SHARES, "clean"], [*SHARES.values(), 1 - sum(SHARES.values())])[0]
        if kind in ("near duplicate", "exact duplicate") and clean:
            first, text = drawn.choice(clean)
            if kind == "near duplicate":
                text = edited(text, words, drawn)
            yield f"{kind} of {first}", text
        elif kind == "English":
            yield kind, " ".join(drawn.sample(english, 4))
        elif kind == "too short":
            yield kind, drawn.choice(words)
        elif kind == "repeated":
            yield kind, "\n".join([drawn.choice(hindi)] * 6)
        elif kind == "menu":
            yield kind, "\n".join(drawn.sample(MENU, len(MENU)) * 2)
        else:
            chosen = drawn.sample(hindi, 5)
            text = " ".join(chosen[:3]) + "\n" + " ".join(chosen[3:])
            clean.append((place, text))
            if len(clean) > 20_000:  # as archives are: what repeats does so within some time
                clean.pop(0)
            yield "clean", text


def edited(text: str, words: list[str], drawn: random.Random, share: float = 0.1) -> str:
    """Replace, leave out or add a word at a share of the words."""
    result = []
    for line in text.split("\n"):
        row = []
        for word in line.split(" "):
            if drawn.random() >= share:
                row.append(word)
                continue
            match drawn.randrange(3):
                case 0:
                    row.append(drawn.choice(words))
                case 1:
                    row += [word, drawn.choice(words)]
        result.append(" ".join(row))
    return "\n".join(result)
