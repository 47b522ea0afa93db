"""Markers and identifier (fidelity.py) ⇄ one checksummed safetensors file; nothing is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.language_file import pack_identifier, unpack_identifier
from boli.durable import read_tensors, write_tensors
from boli.errors import CorruptFileError
from boli.evaluation.fidelity import ENDING, MOST_ODDS, Fidelity

KIND, FORMAT = "boli fidelity", 1
IDENTIFIER = "identifier."


def save_fidelity(fidelity: Fidelity, path: Path) -> None:
    """Write it as one checksummed safetensors file, whole or not at all.

    Raises:
        StorageError: the disk is full or refuses.
    """
    arrays, facts = pack_identifier(fidelity.identifier)
    packed: dict[str, NDArray[Any]] = {IDENTIFIER + name: own for name, own in arrays.items()}
    text = "\n".join(fidelity.markers).encode()
    packed["markers"] = np.frombuffer(text, np.uint8)
    packed["weights"] = fidelity.weights
    write_tensors(path, packed, {"kind": KIND, "format": FORMAT, "identifier": facts})


def load_fidelity(path: Path) -> Fidelity:
    """Return what `save_fidelity` wrote; everything in the file is checked.

    Raises:
        CorruptFileError: the file is missing, torn, altered, or of another kind.
    """
    again = "make it again with boli fidelity train"
    if not path.is_file():
        raise CorruptFileError(f"there is no fidelity model at {path}", again)
    arrays, facts = read_tensors(path, again)
    try:
        if facts["kind"] != KIND or facts["format"] != FORMAT:
            raise ValueError(f"kind {facts['kind']!r}, format {facts['format']!r}")
        own = {
            name.removeprefix(IDENTIFIER): array
            for name, array in arrays.items()
            if name.startswith(IDENTIFIER)
        }
        identifier = unpack_identifier(own, facts["identifier"])
        return _checked(Fidelity(identifier, _markers(arrays["markers"]), arrays["weights"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a fidelity model of this version: {error}", again
        ) from error


def _markers(packed: NDArray[Any]) -> tuple[str, ...]:
    if packed.dtype != np.uint8 or packed.ndim != 1 or not packed.size:
        raise ValueError(f"markers {packed.dtype}{list(packed.shape)}")
    return tuple(packed.tobytes().decode().split("\n"))


def _checked(fidelity: Fidelity) -> Fidelity:
    names, weights = fidelity.markers, fidelity.weights
    if list(names) != sorted(set(names)):
        raise ValueError("markers out of order")
    count = len(fidelity.languages)
    if weights.dtype != np.float32 or weights.shape != (count, count, len(names)):
        raise ValueError(f"weights {weights.dtype}{list(weights.shape)}")
    if not np.isfinite(weights).all() or np.abs(weights).max() > max(1.0, ENDING) * MOST_ODDS:
        raise ValueError("weights that are no log odds")
    if (weights != -weights.transpose(1, 0, 2)).any():
        raise ValueError("weights of a pair that do not mirror each other")
    return fidelity
