"""Run every attack in its full form, and write what came of it to benchmarks/results/attacks.json.

    python tests/attacks/run.py            # all of them
    python tests/attacks/run.py NAME ...   # some; the others' rows stay as they are

Exit code 1: an attack succeeded, or ended with an error.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from attack import load, names

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "attacks.json"


def run(name: str) -> dict[str, Any]:
    """Run one attack in a folder of its own."""
    module = load(name)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="boli-attack-") as folder:
        try:
            row = module.attack(Path(folder), fast=False).row()
        except Exception as error:
            traceback.print_exc()
            row = {"refused": False, "observed": f"{type(error).__name__}: {error}", "control": ""}
    row["observed"] = row["observed"].replace(f"{folder}/", "")
    title = (module.__doc__ or "").partition("\n")[0]
    seconds = round(time.monotonic() - started, 1)
    return {"attack": name, "what": title, "promise": module.PROMISE, **row, "seconds": seconds}


def main(wanted: list[str]) -> int:
    rows = []
    for name in wanted or names():
        row = run(name)
        rows.append(row)
        verdict = "refused " if row["refused"] and row["control"] else "SUCCEEDED"
        print(f"{verdict} {name}: {row['observed']}  [control: {row['control']}]", flush=True)
    failed = [row["attack"] for row in rows if not (row["refused"] and row["control"])]
    print(f"{len(rows) - len(failed)} of {len(rows)} attacks refused", *failed)
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if wanted and RESULT.exists() else []
    made = {row["attack"]: row for row in (*kept, *rows)}
    rows = [made[name] for name in names() if name in made]
    RESULT.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
