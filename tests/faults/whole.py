"""Check a run's folder after a power cut: nothing torn is loaded, what was told is there.

    whole.py FOLDER, with the last claim of `mortal.py` in $ACKED

Loads as a resume does. A corrupt file fails the check, although boli could fall back
past it: a careful writer leaves none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from boli.durable import Generations
from boli.journal import Journal
from boli.plan import Plan
from boli.rounds.checkpoint import CheckpointStore


def check(folder: Path, claimed: dict[str, Any]) -> str:
    """Return what is there.

    Raises:
        AssertionError: something that was claimed is lost, or parts do not fit together.
        BoliError: a file is torn.
    """
    plan = folder / "plan.json"
    if plan.exists():
        Plan.model_validate_json(plan.read_bytes())
    found = CheckpointStore(folder / "checkpoints").load()
    if found is None:
        assert not claimed, f"lost: no checkpoint, claimed {claimed}"
        return "no checkpoint yet"
    assert plan.exists(), "lost: the plan"
    state, corrupt = found
    assert not corrupt, f"torn: {corrupt}"
    version = claimed.get("version", 0)
    assert state.version >= version, f"lost: version {state.version}, claimed {version}"
    lines = Journal(folder / "journal.jsonl").seq  # cuts a torn last line off
    assert lines >= state.journal_seq, f"lost: {lines} lines, the state knows {state.journal_seq}"
    for site, progress in state.sites.items():
        known = max(progress.accepted, default=0)
        told = max(known, claimed.get("answers", {}).get(site, 0))
        check_site(folder / "sites" / site, told)
    return f"version {state.version}"


def check_site(folder: Path, told: int) -> None:
    """Check that a site remembers its answer to the sequence that it told, or a later one."""
    found = Generations(folder).load()
    if found is None:
        assert not told, f"lost: {folder.name} told {told} and remembers nothing"
        return
    _, facts, corrupt = found
    assert not corrupt, f"torn: {corrupt}"
    sequence = facts["answer"]["sequence"]
    assert sequence >= told, f"lost: {folder.name} remembers {sequence}, told {told}"


if __name__ == "__main__":
    sys.stdout.write(check(Path(sys.argv[1]), json.loads(os.environ["ACKED"] or "{}")) + "\n")
