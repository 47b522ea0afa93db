"""What a journal tells of each site: whether it is there, how fast, and when it last said so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from boli.durable import is_locked
from boli.journal import (
    AttemptsRefused,
    OrderSent,
    RunResumed,
    SiteBenched,
    SiteForgiven,
    SiteJoined,
    SiteLeft,
    UpdateAccepted,
    UpdateRejected,
    read_journal,
)


@dataclass
class Presence:
    """One site, as the newest lines have it."""

    state: str = "never seen"
    seconds: float | None = None  # Unix time of its last sign of life
    tokens_per_second: float = 0.0
    line_seconds: float | None = None  # of the last order and its answer, besides the work
    version: int = 0  # that it trained from last
    bytes_up: int = 0
    bytes_down: int = 0
    asked_at: float = 0.0


def last_seen(journal: Path) -> dict[str, Presence]:
    """Return what is known of each site of a run; empty where there is no journal yet.

    Nobody notes who goes when the coordinator itself has ended: who was there last, was there then.

    Raises:
        CorruptFileError: the journal was altered.
    """
    found: dict[str, Presence] = {}
    for entry in read_journal(journal) if journal.exists() else ():
        event, now = entry.event, entry.time
        if isinstance(event, RunResumed):
            _change(found, "there", "not back yet")
        name = getattr(event, "site", "")
        if not name or isinstance(event, AttemptsRefused):  # who is refused is not there
            continue
        site = found.setdefault(name, Presence())
        match event:
            case SiteJoined():
                site.state, site.seconds = "there", now
            case SiteLeft(reason=reason):
                site.state = f"gone: {reason}"
            case SiteBenched(reason=reason):
                site.state = f"benched: {reason}"
            case SiteForgiven():
                site.state = "not back yet"
            case OrderSent():
                site.asked_at = now
                site.bytes_down += event.bytes_down
            case UpdateAccepted():
                site.seconds, site.version = now, event.base_version
                site.bytes_up += event.bytes_up
                if event.train_seconds:
                    site.tokens_per_second = event.tokens / event.train_seconds
                if site.asked_at:
                    site.line_seconds = max(0.0, now - site.asked_at - event.work_seconds)
            case UpdateRejected():
                site.seconds = now
    if not is_locked(journal.parent):
        _change(found, "there", "there at the end")
    return found


def _change(sites: dict[str, Presence], before: str, after: str) -> None:
    for site in sites.values():
        if site.state == before:
            site.state = after
