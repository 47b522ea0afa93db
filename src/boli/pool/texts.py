"""What a pool remembers of erased text, so that it does not come back from another place.

The id of a record is a hash of its place: blank lines on top of a file, or a folder that moved,
give the same text a new one. Of each erased text the ledger keeps two hashes of 64 bits, of the
text and of its normal form (letters, marks and digits alone). They are hashed together with the
pool's id: they match no list of hashes of texts, and those of two pools do not match each other.
Somebody who reads the ledger and guesses a whole text can still test it.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from boli.corpus.record import content_hash
from boli.corpus.signatures import fingerprints
from boli.pool.ledger import Line, newest_ledger, read
from boli.pool.table import Pool

if TYPE_CHECKING:
    import pyarrow

Marks = NDArray[np.uint64]
TEXTS_AT_ONCE = 1024
MARKS_IN_LINE = 4096  # 44 kB


def marks_of(pool: Pool, texts: Sequence[str]) -> Marks:
    """Return two hashes of each text, (n, 2): as it is, and in its normal form."""
    salt = f"erased text\0{pool.description.id}\0".encode()
    found = [
        int.from_bytes(hashlib.sha256(salt + kind + value).digest()[:8], "little")
        for text, (form, _) in zip(texts, fingerprints(texts), strict=True)
        for kind, value in ((b"text\0", content_hash(text).encode()), (b"form\0", form))
    ]
    return np.array(found, np.uint64).reshape(-1, 2)


def lines_of(token: str, marks: Marks) -> Iterator[Line]:
    """Yield the lines of the ledger that keep texts out."""
    flat = np.unique(marks).astype("<u8")
    for first in range(0, flat.size, MARKS_IN_LINE):
        packed = b64encode(flat[first : first + MARKS_IN_LINE].tobytes()).decode()
        yield Line("text", token, {"hashes": packed})


def erased_marks(pool: Pool) -> Marks:
    """Return the hashes of all texts that must not come back, in order.

    Raises:
        PoolError: the pool cannot be reached.
    """
    # A send every 1,024 records asks; the files of the ledger say whether anything is new.
    files = tuple(sorted(newest_ledger(pool, "text")))
    if pool.erased_texts is None or pool.erased_texts[0] != files:
        parts = [
            np.frombuffer(b64decode(line.facts["hashes"]), "<u8") for line in read(pool, "text")
        ]
        merged = np.unique(np.concatenate(parts)) if parts else np.zeros(0)
        pool.erased_texts = files, merged.astype(np.uint64)
    return pool.erased_texts[1]


def are_among(marks: Marks, known: Marks) -> NDArray[np.bool_]:
    """Return of each text, (n,), whether one of its hashes is among `known`, which is in order."""
    if not known.size:
        return np.zeros(len(marks), np.bool_)
    places = np.minimum(np.searchsorted(known, marks), known.size - 1)
    found: NDArray[np.bool_] = (known[places] == marks).any(1)
    return found


def erased_of(pool: Pool, texts: Sequence[str]) -> NDArray[np.bool_]:
    """Return of each text, (n,), whether it was erased from the pool, from whatever site.

    Raises:
        PoolError: the pool cannot be reached.
    """
    known = erased_marks(pool)
    if not known.size:
        return np.zeros(len(texts), np.bool_)
    return are_among(marks_of(pool, texts), known)


def marked(
    pool: Pool, batches: Iterable[pyarrow.RecordBatch]
) -> Iterator[tuple[pyarrow.RecordBatch, Marks]]:
    """Yield batches with a column `text` in small parts, each with the hashes of its texts."""
    for batch in batches:
        for first in range(0, batch.num_rows, TEXTS_AT_ONCE):
            part = batch.slice(first, TEXTS_AT_ONCE)
            # Another program may have written a row without a text.
            yield part, marks_of(pool, [text or "" for text in part["text"].to_pylist()])
