"""Fill a site's memory with one small page: empty tags, attributes, or tags that a comment hides.

The parser takes 500 bytes for each `<p>`: 31 MB of them took 5.3 GB. The page lies in a folder
that a site prepares, beside an honest one; whoever can put a page there ends everything that the
machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from attack import Outcome

from boli.corpus.starter import starter_lines

PROMISE = (
    "a page takes a worker of boli prepare at most a few hundred megabytes, whatever its size; "
    "what is refused is in the report with a reason, and the other pages are kept."
)
MOST_MEGABYTES = 300
HONEST = (
    "<html><body>"
    + "".join(f"<p>{line}</p>" for line in starter_lines("bho", 8))
    + "</body></html>"
)
# Run a command, and print the largest resident memory of any process below it, in kilobytes.
MEASURED = (
    "import resource, subprocess, sys; ran = subprocess.run(sys.argv[1:], capture_output=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(ran.returncode)"
)
# What the parser takes without a bound before it.
UNBOUNDED = (
    "import sys; from selectolax.lexbor import LexborHTMLParser; "
    "tree = LexborHTMLParser(open(sys.argv[1]).read()); "
    "list(tree.root.traverse(include_text=True))"
)


def attack(folder: Path, *, fast: bool) -> Outcome:
    size = 4_000_000 if fast else 31_000_000
    pages = {
        "tags": "<p>" * (size // 3),
        "attributes": ("<p " + "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3 + ">")
        * (size // 160),
        "hidden": "<!-->" + "<p>" * (size // 3),
        "deep": "<div>" * (size // 5),
        "formatting": "".join(f"<b a{n}>" for n in range(size // 2000)) + "<p>x" * (size // 8),
        "words": "<p>" + "गया में आज " * (size // 28),
    }
    source = folder / "pages"
    source.mkdir()
    (source / "honest.html").write_text(HONEST, encoding="utf-8")
    for name, page in pages.items():
        (source / f"{name}.html").write_text(page, encoding="utf-8")
    out = folder / "out"
    peak = megabytes(
        Path(sys.executable).with_name("boli"), "prepare", source, "--language", "bho",
        "--out", out, "--workers", "1",
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    dropped = sum(report["dropped"].values())
    few = folder / "few.html"
    few.write_text(pages["tags"][:8_000_000], encoding="utf-8")
    control = megabytes(sys.executable, "-c", UNBOUNDED, few)
    return Outcome(
        refused=peak < MOST_MEGABYTES and report["kept"] == 1 and dropped == len(pages),
        observed=(
            f"{len(pages)} hostile pages of up to {size / 1e6:.0f} MB took {peak} MB, are dropped "
            f"({report['dropped']}), and the honest page beside them is kept"
        ),
        control=(
            f"the parser alone takes {control} MB for {few.stat().st_size / 1e6:.0f} MB of tags"
            if control > MOST_MEGABYTES
            else ""
        ),
        figures={"page_megabytes": size / 1e6, "peak_megabytes": peak, "parser_megabytes": control},
    )


def megabytes(*command: Any) -> int:
    """Run a command; return the peak of the resident memory of it and its children."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return int(ran.stdout) // 1024
