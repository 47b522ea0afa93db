"""How many planted near duplicates are found, and how many distinct documents are taken for one.

planted      documents and one edited copy of each: 5 to 20 % of the words, or of the characters,
             replaced, deleted or inserted; beside them as many documents of the same domain that
             share 30 % of their sentences with one (hard). Medians over seeds. found: the copy is
             dropped for its own original; false: share of distinct documents that are dropped,
             false_hard: of the hard ones. datatrove: same texts, its default MinHash (5 words,
             14 buckets of 8 hashes), words split at spaces (its Hindi tokenizer needs more
             packages); found where the pair shares a bucket
real         dirty text: exact and near duplicates, and the exact Jaccard similarity of each row
             that is dropped to the one that is kept
lost         short sentences: how many of a corpus are dropped as near duplicates, by length
speed        documents of about 600 characters, a tenth of them edited copies: "chain" are made of
             pairs of words of Hindi text, "shuffled" are sentences of it (so that very many
             documents share some); one process each

Threshold, shingles and bands were chosen on Kangri's Hindi, Bhojpuri (seed and news) and
Chhattisgarhi; NTREX, Magahi and Santali were not looked at before.

python benchmarks/near_duplicates.py DATA [--out FILE] [--only PART] [--rows N ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from boli.corpus.dedup import KEPT, Duplicates, SignatureFile, near_duplicates
from boli.corpus.signatures import SHINGLE, SHORTEST, THRESHOLD, fingerprints
from boli.corpus.similar import SignatureIndex
from boli.corpus.sources import normal_form

HERE = Path(__file__).parent
SETS = {  # name: file, column, whether constants were chosen on it
    "hin_kangri": ("parallel/kangri/train.xnr-hin.tsv", 1, True),
    "bho_seed": ("parallel/nllb_seed/seed.bho", 0, True),
    "bho_news": ("mono/bho_news_jnu.txt", 0, True),
    "hne_seed": ("parallel/nllb_seed/seed.hne", 0, True),
    "hin_ntrex": ("parallel/ntrex/newstest2019.hin", 0, False),
    "kan_ntrex": ("parallel/ntrex/newstest2019.kan", 0, False),
    "mag_seed": ("parallel/nllb_seed/seed.mag", 0, False),
    "mag_stories": ("mono/mag_kmi.txt", 0, False),
    "sat_flores": ("mono/sat_flores200_dev.txt", 0, False),
}
CHARACTERS = (100, 600, 3000)
SHARES = (0.05, 0.1, 0.15, 0.2)
MOST = 300  # documents of a set and length
SEEDS = (1, 2, 3)


def read(folder: Path, name: str) -> list[str]:
    path, column, _ = SETS[name]
    rows = (folder / path).read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(row.split("\t")[column] for row in rows if row.strip()))


def documents(lines: list[str], characters: int) -> list[list[str]]:
    """Cut running text into documents of whole sentences; the first are of about one sentence."""
    if characters <= 100:
        return [[line] for line in lines if 60 <= len(line) <= 160]
    found: list[list[str]] = [[]]
    for line in lines:
        found[-1].append(line)
        if sum(map(len, found[-1])) >= characters:
            found.append([])
    return found[:-1]


def edit(units: list[str], share: float, rng: random.Random, new: list[str]) -> list[str]:
    units = list(units)
    for _ in range(max(1, round(share * len(units)))):
        place, kind = rng.randrange(len(units)), rng.randrange(3)
        if kind == 0:
            units[place] = rng.choice(new)
        elif kind == 1 and len(units) > 1:
            del units[place]
        else:
            units.insert(place, rng.choice(new))
    return units


def edited(text: str, kind: str, share: float, rng: random.Random, lines: list[str]) -> str:
    if kind == "words":
        return " ".join(edit(text.split(), share, rng, rng.choice(lines).split()))
    return "".join(edit(list(text), share, rng, list(rng.choice(lines))))


def hard(document: list[str], other: list[str], rng: random.Random) -> str:
    """Return a document with 30 % of its sentences (rounded down) taken from another."""
    kept = set(rng.sample(range(len(document)), len(document) * 3 // 10))
    fill = iter(other)
    return " ".join(
        line if place in kept else next(fill, "") for place, line in enumerate(document)
    )


def grouped(texts: list[str]) -> Duplicates:
    with tempfile.TemporaryDirectory() as folder:
        with SignatureFile(Path(folder, "rows")) as file:
            file.append(fingerprints(texts))
        return near_duplicates(Path(folder, "rows"))


def datatrove_buckets() -> Callable[[str], list[tuple[int, ...]]]:
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig

    class Spaces:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    minhash.load_word_tokenizer = lambda _: Spaces()
    settings = minhash.MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # xxhash is not here
    step = minhash.MinhashDedupSignature(tempfile.gettempdir(), settings)

    def buckets(text: str) -> list[tuple[int, ...]]:
        shingles = step.get_shingles(text)
        return [tuple(hashes) for hashes in step.get_signature(shingles)] if shingles.size else []

    return buckets


def planted_once(
    lines: list[str], characters: int, seed: int, theirs: Callable[[str], list[tuple[int, ...]]]
) -> dict[str, dict[str, float]]:
    rng = random.Random(f"{characters} {seed}")
    cut = documents(lines, characters)
    rng.shuffle(cut)
    half = min(MOST, len(cut) // 2)
    originals, rest = cut[:half], cut[half : 2 * half]
    texts = [" ".join(document) for document in originals]
    pairs = zip(originals, rest, strict=True)
    near = [hard(one, two, rng) for one, two in pairs] if len(originals[0]) > 3 else []
    kept_of = grouped(texts + near).kept_of
    found: dict[str, dict[str, float]] = {
        "distinct": {
            "documents": half,
            "letters": statistics.median(len(normal_form(text)) for text in texts),
            "false": float((kept_of[:half] != KEPT).mean()),
            "false_hard": float((kept_of[half:] != KEPT).mean()) if near else 0.0,
        }
    }
    buckets = [theirs(text) for text in texts]
    for kind in ("words", "characters"):
        for share in SHARES:
            copies = [edited(text, kind, share, rng, lines) for text in texts]
            kept_of = grouped(texts + copies).kept_of[half:]
            shared = [
                any(a == b for a, b in zip(one, theirs(copy), strict=False))
                for one, copy in zip(buckets, copies, strict=True)
            ]
            found[f"{kind}_{share:.0%}"] = {
                "found": float((kept_of == np.arange(half)).mean()),
                "datatrove": statistics.fmean(shared),
            }
    return found


def planted(folder: Path) -> dict[str, Any]:
    theirs = datatrove_buckets()
    rows: dict[str, Any] = {}
    for name, (_, _, chosen_on) in SETS.items():
        lines = read(folder, name)
        for characters in CHARACTERS:
            runs = [planted_once(lines, characters, seed, theirs) for seed in SEEDS]
            rows[f"{name}_{characters}"] = {"chosen_on": chosen_on} | {
                test: {
                    key: round(statistics.median(run[test][key] for run in runs), 4)
                    for key in runs[0][test]
                }
                for test in runs[0]
            }
            row = rows[f"{name}_{characters}"]
            print(
                f"{name:12} {characters:5}  words {row['words_10%']['found']:.3f}  characters "
                f"{row['characters_10%']['found']:.3f}  datatrove "
                f"{row['words_10%']['datatrove']:.3f} {row['characters_10%']['datatrove']:.3f}  "
                f"false {row['distinct']['false']:.3f}  hard {row['distinct']['false_hard']:.3f}",
                flush=True,
            )
    return rows


def shingles(text: str) -> set[str]:
    form = normal_form(text)
    return {form[place : place + SHINGLE] for place in range(len(form) - SHINGLE + 1)}


def jaccard(one: str, other: str) -> float:
    first, second = shingles(one), shingles(other)
    return len(first & second) / max(1, len(first | second))


def real(folder: Path) -> dict[str, Any]:
    found = {}
    for path in ("mono/sat_hembram.txt", "dirty/india_sms_promotional.txt"):
        lines = (folder / path).read_text(encoding="utf-8").splitlines()
        kept_of, exact = grouped(lines)
        forms = [normal_form(line) for line in lines]
        near = np.flatnonzero((kept_of != KEPT) & ~exact).tolist()
        exactly = [jaccard(lines[row], lines[kept_of[row]]) for row in near]
        kept = [lines[row] for row in np.flatnonzero(kept_of == KEPT)]
        sets = [shingles(line) for line in kept if len(normal_form(line)) >= SHORTEST]
        left = sum(
            any(len(one & two) / len(one | two) >= 0.5 for two in sets[:place])
            for place, one in enumerate(sets)
        )
        found[path] = {
            "lines": len(lines),
            "exact": int(exact.sum()),
            "exact_by_normal_form": len(forms) - len(set(forms)),
            "near": len(near),
            "kept": len(kept),
            "too_short": sum(len(form) < SHORTEST for form in forms),
            "near_below_threshold": round(
                statistics.fmean(value < THRESHOLD for value in exactly), 4
            ),
            "near_below_threshold_by_0.05": round(
                statistics.fmean(value < THRESHOLD - 0.05 for value in exactly), 4
            ),
            "jaccard_least_median": [
                round(min(exactly), 3),
                round(statistics.median(exactly), 3),
            ],
            "kept_though_jaccard_0.5": left,
        }
        print(path, found[path], flush=True)
    return found


def lost(folder: Path) -> dict[str, Any]:
    found = {}
    for path, column in (("parallel/loresmt2019/train.eng-bho.tsv", 1), (SETS["hin_kangri"][0], 1)):
        rows = (folder / path).read_text(encoding="utf-8").splitlines()
        lines = list(dict.fromkeys(row.split("\t")[column] for row in rows))
        kept_of, exact = grouped(lines)
        sizes = np.array([len(normal_form(line)) for line in lines])
        found[path] = {
            f"{low}-{high}": {
                "lines": int(here.sum()),
                "near": round(float(((kept_of != KEPT) & ~exact)[here].mean()), 4),
            }
            for low, high in ((SHORTEST, 30), (30, 50), (50, 100), (100, 1000))
            for here in ((sizes >= low) & (sizes < high),)
        }
        print(path, found[path], flush=True)
    return found


def stream(folder: Path, kind: str, count: int) -> Iterator[list[str]]:
    """Yield documents, a thousand at once."""
    lines = read(folder, "hin_kangri") + read(folder, "hin_ntrex")
    rng = random.Random(5)
    after: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        words = ["", *line.split(), ""]
        for word, following in pairwise(words):
            after[word].append(following)

    def document() -> str:
        parts, size, word = [], 0, ""
        while size < 600:
            word = rng.choice(after[word] if kind == "chain" else lines)
            parts.append(word)
            size += len(word) + 1
        return " ".join(filter(None, parts))

    earlier: list[str] = []
    for _ in range(0, count, 1000):
        batch = [
            edited(rng.choice(earlier), "words", 0.1, rng, lines)
            if earlier and rng.random() < 0.1
            else document()
            for _ in range(1000)
        ]
        earlier = batch[:300]
        yield batch


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def speed_once(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Measure one size; in a process of its own, whose peak is of this size alone."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "rows")
        seconds, characters = 0.0, 0
        fingerprints(["warm up, so that tables are there"])
        with SignatureFile(path) as file:
            for batch in stream(folder, kind, count):
                started = time.process_time()
                file.append(fingerprints(batch))
                seconds += time.process_time() - started
                characters += sum(map(len, batch))
        before = peak_bytes()
        started, of_process = time.perf_counter(), time.process_time()
        kept_of, _ = near_duplicates(path)
        grouping = time.perf_counter() - started
        of_process = time.process_time() - of_process
        peak = peak_bytes()
        found = {
            "documents": count,
            "characters": round(characters / count),
            "signature_processor_microseconds": round(seconds / count * 1e6, 1),
            "grouping_seconds": round(grouping, 2),
            "grouping_processor_seconds": round(of_process, 2),
            "documents_per_processor_second": round(count / (seconds + of_process)),
            "dropped": round(float((kept_of != KEPT).mean()), 4),
            "peak_bytes_first_pass": before,
            "peak_bytes": peak,
        }
        data = path.read_bytes()[: 20_000 * 528]
        own = [data[place + 16 : place + 528] for place in range(0, len(data), 528)]
        started = time.perf_counter()
        index: SignatureIndex[int] = SignatureIndex(own)
        with path.open("rb") as file_:
            file_.seek(10_000 * 528)
            index.look_up((row, file_.read(528)[16:]) for row in range(10_000, count))
        found["other_sites_signatures_per_second"] = round(
            (count - 10_000) / (time.perf_counter() - started)
        )
    return found


def speed(folder: Path, sizes: list[int]) -> dict[str, Any]:
    found = {}
    for kind in ("chain", "shuffled"):
        for count in sizes:
            command = [sys.executable, __file__, str(folder), "--once", kind, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[f"{kind}_{count}"] = json.loads(done.stdout)
            print(kind, found[f"{kind}_{count}"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "near_duplicates.json")
    parser.add_argument("--only", choices=("planted", "real", "lost", "speed"))
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        kind, count = arguments.once
        print(json.dumps(speed_once(arguments.data, kind, int(count))))
        return
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "planted": lambda: planted(arguments.data),
        "real": lambda: real(arguments.data),
        "lost": lambda: lost(arguments.data),
        "speed": lambda: speed(arguments.data, arguments.rows),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            found[name] = part()
    found["settings"] = {"threshold": THRESHOLD, "shingle": SHINGLE, "shortest": SHORTEST}
    found["machine"] = {"python": platform.python_version(), "processor": platform.machine()}
    arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
