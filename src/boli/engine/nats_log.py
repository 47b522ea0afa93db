"""What the server turned away after the handshake, from its log: only there it says whose key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from boli.rounds.transport import Refused

READ_BYTES = 1 << 20  # at a time, of a log that strangers may make grow
DETAIL_LENGTH = 160  # characters
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# [pid] date time [ERR] address - cid:7 - "program" - "SITE_gaya/nkey:U…" - what
_LINE = re.compile(
    r"^\[\d+\] \S+ \S+ \[ERR\] (?P<address>\S+) - cid:\d+ - "
    rf'(?:{_QUOTED} - )??(?:"SITE_(?P<site>[^/"]+)/nkey:\w+" - )?(?P<what>[^"].*)$'
)
_KEY = re.compile(r'Nkey "(U[A-Z2-7]{55})"')
_KINDS = {
    "authentication timeout": "no key",
    "authentication error": "no key",  # or one that is not known
    "Publish Violation": "not allowed",
    "Subscription Violation": "not allowed",
    "maximum payload exceeded": "too large",
    "maximum connections exceeded": "too many connections",
    "maximum account active connections exceeded": "too many connections",
    "maximum subscriptions exceeded": "too many subscriptions",
    "maximum control line exceeded": "too large",
}


@dataclass
class ServerLog:
    """Reads on from the end of the log as it is now, also into the file that follows it."""

    path: Path
    owners: Callable[[], Mapping[str, str]]  # key to site, also of keys that were revoked

    def __post_init__(self) -> None:
        self._file, self._at = self._there()
        self._rest = b""

    def _there(self) -> tuple[int, int]:
        """Return the number of the log's file, and its length."""
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_size

    def read(self) -> list[Refused]:
        """Return what was turned away since the last time, one for each kind and site."""
        found: dict[tuple[str, str], Refused] = {}
        lines = self._lines()
        owners = self.owners() if lines else {}
        for line in lines:
            one = _refused(line, owners)
            if one is not None:
                before = found.get((one.kind, one.site))
                count = 1 if before is None else before.count + 1
                found[one.kind, one.site] = Refused(one.kind, one.site, count, one.detail)
        return list(found.values())

    def _lines(self) -> list[str]:
        file, length = self._there()
        if file != self._file or length < self._at:  # the server has begun another one
            self._file, self._at, self._rest = file, 0, b""
        if length == self._at:
            return []
        try:
            with self.path.open("rb") as log:
                log.seek(self._at)
                data = log.read(READ_BYTES)
        except OSError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-READ_BYTES:]
        return [line.decode(errors="replace") for line in lines]


def _refused(line: str, owners: Mapping[str, str]) -> Refused | None:
    matched = _LINE.match(line)
    if matched is None:
        return None
    what = matched["what"]
    kind = next((kind for start, kind in _KINDS.items() if what.startswith(start)), None)
    if kind is None:
        return None
    site = matched["site"] or ""
    key = _KEY.search(what)
    if kind == "no key" and key is not None:
        site = owners.get(key[1], "")
        kind = "revoked key" if site else "unknown key"
    return Refused(kind, site, 1, f"{matched['address']}: {what}"[:DETAIL_LENGTH])
