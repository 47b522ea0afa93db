"""Save and restore ServerState; survives a power cut, and one corrupt file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boli.codec.support import Support
from boli.durable import Generations
from boli.errors import CorruptFileError
from boli.rounds.best import JudgedVersion, Selection
from boli.rounds.update import Folded, ServerState, SiteProgress
from boli.signature import SigningKey, is_signed_by

SCHEMA = 1
_NOT_KEPT = {"outstanding": {"copies"}}  # named anew whenever an order is sent
# Fields that came later: left out where they are not set, so that nothing else changes.
_LATER = {
    SiteProgress: ("suspended", "seen", "weight", "contribution"),
    Folded: ("base_version", "size", "weight", "rate", "reach", "bound", "scaled"),
}


def _facts(message: SiteProgress | Folded) -> dict[str, Any]:
    kind = type(message)
    exclude = _NOT_KEPT if kind is SiteProgress else None
    found = message.model_dump(mode="json", exclude=exclude)
    for name in _LATER[kind]:
        if getattr(message, name) == kind.model_fields[name].default:
            del found[name]
    return found


def to_parts(state: ServerState) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return a state as named arrays and JSON facts."""
    arrays: dict[str, NDArray[Any]] = {"theta": state.theta}
    arrays |= {f"outer.{name}": moment for name, moment in state.outer.items()}
    if state.partial_sum is not None:
        arrays["partial_sum"] = state.partial_sum
    if state.average is not None:
        arrays["average"] = state.average
    if state.unsent is not None:
        arrays["unsent"] = state.unsent
    if state.first is not None:
        arrays["first"] = state.first
    if state.center is not None:
        arrays["center"] = state.center
    arrays |= {f"frame.{key}": np.frombuffer(f, np.uint8) for key, f in state.frames.items()}
    arrays |= {f"heading.{name}": sketch for name, sketch in state.headings.items()}
    arrays |= {f"moved.{name}": bits for name, bits in state.moved_rows.items()}
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "run": state.run,
        "layout": state.layout,
        "version": state.version,
        "outer_round": state.outer_round,
        "sites": {name: _facts(site) for name, site in state.sites.items()},
        "coverage": dict(state.coverage),
        "folded": [_facts(entry) for entry in state.folded],
        "tokens": state.tokens,
        "journal_seq": state.journal_seq,
    }
    if state.journal_hash:
        facts["journal_hash"] = state.journal_hash
    if state.recent:
        facts["recent"] = [list(names) for names in state.recent]
    if state.sketch_seed:
        facts["sketch_seed"] = state.sketch_seed
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

    def named(kind: str) -> dict[str, NDArray[Any]]:
        start = len(kind) + 1
        return {name[start:]: a for name, a in arrays.items() if name.startswith(f"{kind}.")}

    return ServerState(
        run=facts["run"],
        layout=facts["layout"],
        theta=arrays["theta"],
        sites={name: SiteProgress.model_validate(s) for name, s in facts["sites"].items()},
        version=facts["version"],
        outer=named("outer"),
        outer_round=facts["outer_round"],
        partial_sum=arrays.get("partial_sum"),
        average=arrays.get("average"),
        unsent=arrays.get("unsent"),
        first=arrays.get("first"),
        support=Support.model_validate(facts["support"]) if "support" in facts else None,
        coverage=facts["coverage"],
        folded=tuple(Folded.model_validate(entry) for entry in facts["folded"]),
        frames={key: frame.tobytes() for key, frame in named("frame").items()},
        center=arrays.get("center"),
        recent=tuple(map(tuple, facts.get("recent", ()))),
        headings=named("heading"),
        moved_rows=named("moved"),
        sketch_seed=facts.get("sketch_seed", 0),
        tokens=facts["tokens"],
        journal_seq=facts["journal_seq"],
        selection=_selection(arrays, facts["selection"]) if "selection" in facts else Selection(),
        journal_hash=facts.get("journal_hash", ""),
    )


Found = tuple[ServerState, list[Path]]  # the newest that is whole, and the corrupt ones after it


def _message(digest: str) -> bytes:
    """Return the bytes that a signature covers."""
    return f"boli checkpoint 1\n{digest}".encode()


class CheckpointStore:
    """The checkpoints of one run; keeps the last good one beside the newest.

    `key` signs what is saved. One that the public key `signer` has not signed counts as corrupt.
    """

    def __init__(
        self,
        folder: Path,
        key: SigningKey | None = None,  # None: nothing is signed
        signer: str = "",  # empty: anybody, or nobody, may have signed
    ) -> None:
        def sign(digest: str) -> Mapping[str, str]:
            if key is None:
                return {}
            return {"key": key.public, "signature": key.sign(_message(digest))}

        def is_signed(digest: str, metadata: Mapping[str, str]) -> bool:
            return not signer or is_signed_by(
                signer, _message(digest), metadata.get("signature", "")
            )

        self._generations = Generations(folder, sign=sign, is_signed=is_signed)

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
