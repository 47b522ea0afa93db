"""An identifier (language.py) ⇄ one checksummed safetensors file; nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.language import (
    SHRINK_CHARACTERS,
    SHRINK_FORMS,
    TARGET_SHRINK_CHARACTERS,
    Identifier,
    Settings,
    Table,
    Views,
)
from boli.corpus.ngrams import BUCKETS
from boli.durable import read_tensors, write_tensors
from boli.errors import CorruptFileError

KIND, FORMAT = "boli language identifier", 1
SHRINKS = {
    "characters": SHRINK_CHARACTERS,
    "forms": SHRINK_FORMS,
    "target_characters": TARGET_SHRINK_CHARACTERS,
    "target_forms": SHRINK_FORMS,
}
TRAINED = ["characters", "forms"]


def save_identifier(identifier: Identifier, path: Path) -> None:
    """Write the identifier as one checksummed safetensors file, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses.
    """
    write_tensors(path, *pack_identifier(identifier))


def pack_identifier(identifier: Identifier) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return what a file holds of an identifier: arrays, and facts."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, table in _tables(identifier).items():
        buckets = np.flatnonzero(table.counts.any(0)).astype(np.int32)
        arrays[f"{name}.buckets"] = buckets
        arrays[f"{name}.counts"] = table.counts[:, buckets]
    settings = identifier.settings
    return arrays, {
        "kind": KIND,
        "format": FORMAT,
        "labels": settings.labels,
        "scripts": settings.scripts,
        "temperature": settings.temperature,
        "adapted_temperature": settings.adapted_temperature,
        "least_known": settings.least_known,
    }


def _tables(identifier: Identifier) -> dict[str, Table]:
    views = [identifier.trained, *([identifier.target] if identifier.target else [])]
    tables = [table for view in views for table in (view.characters, view.forms)]
    return dict(zip(SHRINKS, tables, strict=False))  # without a target, two of four


def load_identifier(path: Path) -> Identifier:
    """Return what `save_identifier` wrote; everything in the file is checked.

    Raises:
        CorruptFileError: the file is missing, torn, altered, or no identifier.
    """
    again = "make it again with boli language train"  # it may be any file of theirs
    if not path.is_file():
        raise CorruptFileError(f"there is no language identifier at {path}", again)
    arrays, facts = read_tensors(path, again)
    try:
        return unpack_identifier(arrays, facts)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a language identifier of this version: {error}",
            again,
        ) from error


def unpack_identifier(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Identifier:
    """Return what `pack_identifier` packed, checked.

    Raises:
        KeyError, TypeError, ValueError: it is not that.
    """
    if facts["kind"] != KIND or facts["format"] != FORMAT:
        raise ValueError(f"kind {facts['kind']!r}, format {facts['format']!r}")
    settings = _checked_settings(facts)
    names = list(SHRINKS) if any(name.startswith("target") for name in arrays) else TRAINED
    if set(arrays) != {f"{name}.{part}" for name in names for part in ("buckets", "counts")}:
        raise ValueError(f"it has {', '.join(sorted(arrays))}")
    tables = [_checked_table(arrays, name, settings) for name in names]
    return Identifier(settings, Views(*tables[:2]), Views(*tables[2:]) if tables[2:] else None)


def _checked_settings(facts: Mapping[str, Any]) -> Settings:
    labels, scripts = tuple(facts["labels"]), tuple(tuple(own) for own in facts["scripts"])
    numbers = [facts[name] for name in ("temperature", "adapted_temperature", "least_known")]
    if len(labels) < 2 or list(labels) != sorted(set(labels)) or len(scripts) != len(labels):
        raise ValueError(f"labels {labels} with scripts {scripts}")
    if not all(isinstance(text, str) and text for own in (labels, *scripts) for text in own):
        raise ValueError(f"labels {labels} with scripts {scripts}")
    if not all(isinstance(number, float) and 0 <= number < 1e6 for number in numbers):
        raise ValueError(f"temperatures and known share {numbers}")
    if not (numbers[0] and numbers[1]):
        raise ValueError("a temperature of 0")
    return Settings(labels, scripts, *numbers)


def _checked_table(arrays: Mapping[str, NDArray[Any]], name: str, settings: Settings) -> Table:
    buckets, counts = arrays[f"{name}.buckets"], arrays[f"{name}.counts"]
    if buckets.dtype != np.int32 or buckets.ndim != 1 or not buckets.size:
        raise ValueError(f"{name} has buckets {buckets.dtype}{list(buckets.shape)}")
    if buckets[0] < 0 or buckets[-1] >= BUCKETS or (np.diff(buckets) <= 0).any():
        raise ValueError(f"{name} has buckets outside [0, {BUCKETS}) or out of order")
    if counts.dtype != np.float32 or counts.shape != (len(settings.labels), buckets.size):
        raise ValueError(f"{name} has counts {counts.dtype}{list(counts.shape)}")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts.sum(1) <= 0).any():
        raise ValueError(f"{name} has counts that are no counts")
    full = np.zeros((len(settings.labels), BUCKETS), np.float32)
    full[:, buckets] = counts
    return Table(full, SHRINKS[name])
