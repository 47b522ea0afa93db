"""Say which tests were skipped, and why; fail in continuous integration unless that is expected.

    python tests/skipped.py FOLDER    # of the files that pytest --skipped FILE wrote

A tool that is missing is no reason in continuous integration, which installs what it needs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# What a machine of continuous integration may lack, because nobody can install it there.
EXPECTED = re.compile(
    r"no real text"  # licences forbid shipping it
    r"|no GPU"
    r"|not root"
    r"|no device /dev/"
    r"|no /proc"
    r"|cannot mount a file system here"
    r"|cannot make network namespaces here"
    r"|needs ray, which no extra of boli installs"
    r"|needs DeepSpeed, which is built against the torch that is there"
    r"|does not apply"
)


def counted(folder: Path) -> Counter[str]:
    """Return how many tests each reason skipped, over all files."""
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json")):
        reasons.update(json.loads(path.read_text(encoding="utf-8")))
    return reasons


def unexpected(reasons: Iterable[str]) -> list[str]:
    """Return the reasons that continuous integration does not accept."""
    return [reason for reason in reasons if not EXPECTED.match(reason)]


def main(folder: Path) -> int:
    reasons = counted(folder)
    print(f"\n{reasons.total()} tests were skipped" + ":" * bool(reasons))
    for reason, count in reasons.most_common():
        print(f"{count:>6}  {reason}")
    refused = unexpected(reasons) if os.environ.get("CI") else []
    for reason in refused:
        print(f"error: continuous integration may not skip a test because: {reason}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
