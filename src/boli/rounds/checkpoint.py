"""Save and restore ServerState; survives a power cut, and one corrupt file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from boli.codec.support import Support
from boli.durable import Generations
from boli.errors import CorruptFileError
from boli.rounds.best import JudgedVersion, Selection
from boli.rounds.update import Folded, ServerState, SiteProgress

SCHEMA = 1
_NOT_KEPT = {"outstanding": {"copies"}}  # named anew whenever an order is sent


def to_parts(state: ServerState) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return a state as named arrays and JSON facts."""
    arrays: dict[str, NDArray[Any]] = {"theta": state.theta}
    arrays |= {f"outer.{name}": moment for name, moment in state.outer.items()}
    if state.partial_sum is not None:
        arrays["partial_sum"] = state.partial_sum
    if state.unsent is not None:
        arrays["unsent"] = state.unsent
    if state.first is not None:
        arrays["first"] = state.first
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "run": state.run,
        "layout": state.layout,
        "version": state.version,
        "outer_round": state.outer_round,
        "sites": {
            name: site.model_dump(mode="json", exclude=_NOT_KEPT)
            for name, site in state.sites.items()
        },
        "coverage": dict(state.coverage),
        "folded": [entry.model_dump(mode="json") for entry in state.folded],
        "norms": list(state.norms),
        "tokens": state.tokens,
        "journal_seq": state.journal_seq,
    }
    if state.journal_hash:
        facts["journal_hash"] = state.journal_hash
    if state.support is not None:
        facts["support"] = state.support.model_dump(mode="json")
    if state.selection.base or state.selection.open:
        facts["selection"] = _selection_facts(state.selection)
        thetas = {"open": state.selection.open_theta, "best": state.selection.best_theta}
        arrays |= {f"{name}_theta": theta for name, theta in thetas.items() if theta is not None}
    return arrays, facts


def _selection_facts(selection: Selection) -> dict[str, Any]:
    return {
        "base": dict(selection.base),
        "open": None if selection.open is None else selection.open.model_dump(mode="json"),
        "kept": [each.model_dump(mode="json") for each in selection.kept],
        "restored": sorted(selection.restored.items()),
    }


def _selection(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Selection:
    return Selection(
        base=facts["base"],
        open=None if facts["open"] is None else JudgedVersion.model_validate(facts["open"]),
        open_theta=arrays.get("open_theta"),
        kept=tuple(JudgedVersion.model_validate(each) for each in facts["kept"]),
        best_theta=arrays.get("best_theta"),
        restored=dict(facts["restored"]),
    )


def from_parts(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> ServerState:
    """Return the state that `to_parts` took apart.

    Raises:
        CorruptFileError: it was written by another format.
    """
    if facts.get("schema") != SCHEMA:
        raise CorruptFileError(
            f"the checkpoint has format {facts.get('schema')}, this program reads {SCHEMA}",
            "resume the run with the version of boli that started it",
        )
    outer = {name[6:]: array for name, array in arrays.items() if name.startswith("outer.")}
    return ServerState(
        run=facts["run"],
        layout=facts["layout"],
        theta=arrays["theta"],
        sites={name: SiteProgress.model_validate(s) for name, s in facts["sites"].items()},
        version=facts["version"],
        outer=outer,
        outer_round=facts["outer_round"],
        partial_sum=arrays.get("partial_sum"),
        unsent=arrays.get("unsent"),
        first=arrays.get("first"),
        support=Support.model_validate(facts["support"]) if "support" in facts else None,
        coverage=facts["coverage"],
        folded=tuple(Folded.model_validate(entry) for entry in facts["folded"]),
        norms=tuple(facts["norms"]),
        tokens=facts["tokens"],
        journal_seq=facts["journal_seq"],
        selection=_selection(arrays, facts["selection"]) if "selection" in facts else Selection(),
        journal_hash=facts.get("journal_hash", ""),
    )


Found = tuple[ServerState, list[Path]]  # the newest that is whole, and the corrupt ones after it


class CheckpointStore:
    """The checkpoints of one run; keeps the last good one beside the newest."""

    def __init__(self, folder: Path) -> None:
        self._generations = Generations(folder)

    def save(self, state: ServerState) -> None:
        """Make the state durable.

        Raises:
            StorageError: the disk is full or refuses; the last checkpoint stays.
        """
        self._generations.save(*to_parts(state))

    def load(self) -> Found | None:
        """Return the newest whole checkpoint and the corrupt files passed over.

        Past a corrupt one, every site is asked anew: it may have answered orders that
        this older state still takes for open. Save the state before anything else,
        and that stays so. Returns None where the run never saved one.

        Raises:
            CorruptFileError: no file is whole, or the format is another.
        """
        found = self._generations.load()
        if found is None:
            return None
        arrays, facts, corrupt = found
        state = from_parts(arrays, facts)
        return state.forget_orders() if corrupt else state, corrupt
