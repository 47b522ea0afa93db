"""A site's answer to the question for its pieces of words: counted, shown, then sent.

What is sent is the content of a file in the site's state folder, to the last byte. The site's
people can read it beforehand, and take lines out of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.corpus.pieces import Floors, as_text, count_pieces, pack_pieces, read_pieces
from boli.corpus.sources import read_documents
from boli.durable import write_file
from boli.errors import CorpusError, SiteError, StorageError
from boli.model.layout import Layout, Vector
from boli.plan import PiecesPlan, Plan, SitePlan
from boli.rounds.update import Copy, Order
from boli.site.copies import copies_of
from boli.site.node import Done

# The node trains nothing; what travels besides pieces is a version of one entry.
LAYOUT = Layout.of({"pieces": ((1,), "whole")})


def floors_of(plan: PiecesPlan) -> Floors:
    """Return what a plan asks of a piece."""
    return Floors(plan.least_lines, plan.least_documents, plan.most_pieces)


def pieces_file(folder: Path, floors: Floors) -> Path:
    """Return where what is sent under these floors lies, and can be read."""
    return folder / f"pieces-{floors.least_lines}-{floors.least_documents}.tsv"


def write_pieces(plan: Plan, site: SitePlan, floors: Floors, path: Path) -> dict[str, int]:
    """Count a site's pieces and write them down; those that were written before stay.

    Raises:
        CorpusError: the text is missing or empty, or the file was altered so that it is none.
        SiteError: no piece has the support that it needs.
        StorageError: the file cannot be written.
    """
    if not path.exists():
        found = count_pieces(read_documents(plan, site.text, site.language), floors)
        kept = read_pieces(pack_pieces(found), len(found), site.name) if found else {}
        if not kept:
            raise SiteError(
                f"no word of site {site.name} is in {floors.least_lines} lines of "
                f"{floors.least_documents} documents",
                "add text, or name its documents: held_out_by in the plan",
                "text.short",
            )
        write_file(path, as_text(kept).encode(), private=True)
    return _read(path, floors)


def _read(path: Path, floors: Floors) -> dict[str, int]:
    try:
        data = zlib.compress(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check the disk") from None
    try:
        return read_pieces(data, floors.most_pieces, str(path))
    except CorpusError as error:
        raise CorpusError(
            error.problem, "delete the file: it is made anew; lines may be taken out of it"
        ) from None


class PieceWork:
    """Answers one order with the pieces of a file."""

    rank: int | None = None
    layout: Layout = LAYOUT
    full_layout: Layout = LAYOUT

    def __init__(
        self,
        plan: Plan,
        site: SitePlan,
        floors: Floors,
        path: Path,
        note: Callable[[Mapping[str, int], bytes], None] = lambda _pieces, _data: None,
    ) -> None:
        self.num_lines: Mapping[str, Mapping[str, int]] = {}  # nothing is judged
        self.first: Vector = np.zeros(1, np.float32)
        self.copies: Sequence[Copy] = copies_of(plan, site)
        self._plan, self._site, self._floors, self._path = plan, site, floors, path
        self._note = note  # told what is about to leave

    def perform(
        self,
        order: Order,
        theta: Vector,  # noqa: ARG002
        start: Vector,  # noqa: ARG002
        steps_wanted: Callable[[], int],  # noqa: ARG002
        after_step: Callable[[int, float, float], bool],  # noqa: ARG002
    ) -> Done | None:
        """Return the pieces as they travel.

        Raises:
            SiteError: something else is asked; no piece has the support that it needs.
        """
        if order.local_steps or order.evaluate:
            raise SiteError(
                f"order {order.order} asks to train or to judge, where pieces were announced",
                "tell the coordinator's people",
                "limits.order",
            )
        pieces = write_pieces(self._plan, self._site, self._floors, self._path)
        data = pack_pieces(pieces)
        self._note(pieces, data)
        return Done(None, content=data)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return nothing: the file is all."""
        return {}, {}

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """Nothing was done that could be undone."""

    def close(self) -> None:
        """Nothing was started."""
