"""How much of the personal data in real text is found, and how much else.

silver       the raw blog: recall and precision against spans made with regular expressions; two
             spans agree where they overlap and are of one kind (SECRET_URL counts as URL)
clean        encyclopedia and declaration text without personal data: hits per million characters
speed        code points and bytes per second, one process

Only counts are written, no text of a record.

python benchmarks/personal_data.py [--corpora FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

from boli.corpus.normalize import normalize
from boli.corpus.pii import find

HERE = Path(__file__).parent
KINDS = ("EMAIL", "PHONE", "URL")
CLEAN = (
    "parallel/nllb_seed/seed.bho",
    "parallel/nllb_seed/seed.mag",
    "parallel/nllb_seed/seed.hne",
    "parallel/ntrex/newstest2019.hin",
    "mono/awa_ramcharitmanas.txt",
    "udhr/*.txt",
)
# Read by a person when the committed result was made: how many of the spans that only we find
# are right, and what the two sides disagree on.
RIGHT = {"EMAIL": 1, "PHONE": 0, "URL": 5}
REVIEW = {
    "EMAIL": "The one that only we find is an address with a space behind its @, which the "
    "silver pattern missed.",
    "PHONE": "None.",
    "URL": "All five that only we find are URLs: misspelled schemes (htttp://, http//:) and a bare "
    "host between words. Most silver spans run on into words glued behind the URL; ours end there.",
    "clean": "The hits in ntrex are right: three sites, a telephone number and an e-mail address "
    "of news stories. There is none in the other files.",
}


def of(kind: str) -> str:
    return "URL" if kind == "SECRET_URL" else kind


def silver(folder: Path) -> dict[str, Any]:
    texts, wanted = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("magahi_blog_raw.jsonl", "magahi_blog_pii_spans.jsonl")
    )
    spans = {record["id"]: record["spans"] for record in wanted}
    count: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    other = Counter[str]()
    for record in texts:
        ours = [(span.start, span.end, of(span.kind)) for span in find(record["text"])]
        theirs = [tuple(span) for span in spans[record["id"]]]
        for start, end, kind in theirs:
            count[kind]["silver"] += 1
            count[kind]["silver_found"] += any(
                kind == k and s < end and start < e for s, e, k in ours
            )
            count[kind]["same_bounds"] += (start, end, kind) in ours
        for start, end, kind in ours:
            if kind not in KINDS:
                other[kind] += 1
                continue
            count[kind]["ours"] += 1
            count[kind]["ours_in_silver"] += any(
                kind == k and s < end and start < e for s, e, k in theirs
            )
    return {
        "documents": len(texts),
        "kinds": {
            kind: {
                **row,
                "recall": round(row["silver_found"] / row["silver"], 4),
                "precision": round(row["ours_in_silver"] / row["ours"], 4),
                "precision_as_read": round((row["ours_in_silver"] + RIGHT[kind]) / row["ours"], 4),
                "disagreements": REVIEW[kind],
            }
            for kind, row in count.items()
        },
        "other_kinds": dict(other),
    }


def clean(corpora: Path) -> dict[str, Any]:
    rows = {}
    for pattern in CLEAN:
        text = [
            line
            for path in sorted(corpora.glob(pattern))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        size = sum(map(len, text))
        hits = Counter(span.kind for line in text for span in find(line))
        rows[pattern] = {
            "code_points": size,
            "hits": dict(hits),
            "per_million": round(sum(hits.values()) / size * 1e6, 2),
        }
    return {"files": rows, "read": REVIEW["clean"]}


def speed(corpora: Path) -> dict[str, Any]:
    lines = (corpora / "parallel/ntrex/newstest2019.hin").read_text(encoding="utf-8").splitlines()
    news = [" ".join(lines[first : first + 12]) for first in range(0, len(lines), 12)]
    blog = [
        json.loads(line)["text"]
        for line in (corpora / "dirty/magahi_blog_raw.jsonl").read_text("utf-8").splitlines()
    ]
    found = {}
    for name, texts in (("news", news), ("blog", blog)):
        size, size_bytes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
        for step in (find, normalize):
            seconds = []
            for _ in range(5):
                started = time.process_time()
                for text in texts:
                    step(text)
                seconds.append(time.process_time() - started)
            found[f"{step.__name__}_{name}"] = {
                "documents": len(texts),
                "code_points": size,
                "best_seconds": round(min(seconds), 4),
                "megabytes_per_second": round(size_bytes / min(seconds) / 1e6, 1),
                "documents_per_second": round(len(texts) / min(seconds)),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpora", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "personal_data.json")
    arguments = parser.parse_args()
    found = {
        "silver": silver(arguments.corpora / "dirty"),
        "clean": clean(arguments.corpora),
        "speed": speed(arguments.corpora),
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
    }
    arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
