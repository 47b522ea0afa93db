"""What a payload says of a vector: all of its entries, or the few that are not zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Entries:
    """Values at ascending positions of a (length,) vector; every other entry is zero."""

    length: int
    values: NDArray[np.float32]  # (k,)
    positions: NDArray[np.int64] | None = None  # (k,); None: all, and k is the length

    def vector(self) -> NDArray[np.float32]:
        """Return all entries, (length,)."""
        if self.positions is None:
            return self.values
        vector = np.zeros(self.length, np.float32)
        vector[self.positions] = self.values
        return vector
