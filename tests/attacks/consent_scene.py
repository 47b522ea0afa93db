"""What the attacks on consent share: an archive with a diary that may not leave, and a pool.

The archive's source.toml lets its text go anywhere; `diary/` has one of its own, which keeps it
on the premises. Every line of the diary holds SECRET, so that a leak is found by looking.
"""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pyarrow.parquet
from attack import boli

from boli.pool.table import create_pool

SECRET = "गोपनीयडायरी"
OPEN = 'licence = "CC0-1.0"\n[consent]\npurposes = ["training"]\n[residency]\nlimit = "any"\n'
PREMISES = OPEN.replace('"any"', '"premises"')
_WORDS = (
    *("आज", "बाजार", "में", "बहुत", "भीड़", "बा", "लोग", "सब", "दुकान", "पर"),
    *("खड़ा", "बाड़े", "गाँव", "के", "रास्ता", "नदी", "खेत", "पानी", "बरखा", "धान"),
)


def lines(count: int, word: str = "") -> str:
    """Return so many different sentences, with a word in each."""
    size = len(_WORDS)
    return "\n".join(
        " ".join(
            [
                *(_WORDS[(row * k + k * k + row // size) % size] for k in range(3, 11)),
                word,
                f"{row}",
            ]
        )
        for row in range(count)
    )


class Scene:
    """A machine with an archive, and the commands that are given on it."""

    def __init__(self, folder: Path, count: int = 40) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.out = folder / "clean"
        self.pool = folder / "pool"
        create_pool(str(self.pool), "pool", "IN-BR")
        self.write("archive/a.txt", lines(20))
        self.write("archive/source.toml", OPEN)
        self.write("archive/diary/d.txt", lines(count, SECRET))
        self.write("archive/diary/source.toml", PREMISES)

    def write(self, name: str, text: str) -> Path:
        """Write a file below the folder of the scene."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def boli(self, *arguments: str | Path, **environment: str) -> CompletedProcess[str]:
        """Give a command."""
        return boli(*arguments, home=self.folder / "home", **environment)

    def prepare(self, *sources: Path, out: Path | None = None) -> str:
        """Prepare sources, or the archive if none is named; return what the command says."""
        words = ["--language", "bho", "--duplicates", "exact", "--workers", "1"]
        named = sources or (self.archive,)
        done = self.boli("prepare", *named, *words, "--out", out or self.out)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def note(self) -> None:
        """Note anew what the sources allow now."""
        done = self.boli("prepare", "--out", self.out, "--note")
        assert done.returncode == 0, done.stderr

    def share(self, site: str = "arrah", out: Path | None = None, **environment: str) -> str:
        """Share what was prepared; return what the command says."""
        words = ["--pool", self.pool, "--site", site]
        done = self.boli("share", out or self.out, *words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def leaked(self, site: str = "", word: str = SECRET) -> int:
        """Count the rows in the files of the pool that hold the secret, of one site or of all."""
        rows = [
            row
            for path in (self.pool / "records").glob("**/*.parquet")
            if "_delta_log" not in path.parts
            for row in pyarrow.parquet.ParquetFile(path).read().to_pylist()
        ]
        return sum(word in row["text"] and site in ("", row["site"]) for row in rows)

    def rows(self) -> int:
        """Count all rows in the files of the pool."""
        return self.leaked(word="")
