"""Numbers as people read them: bits, counts, shares, bytes, times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

SPACE = "\N{NO-BREAK SPACE}"


def bits(value: float | None) -> str:
    """Return bits per byte as text."""
    return "–" if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """Return a number with thousands marked, to about three digits below one hundred."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Return a share as text."""
    return "–" if value is None else f"{value:.1f}{SPACE}%".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def size(num_bytes: float | None) -> str:
    """Return bytes in the unit that reads best; 1 kB is 1000 bytes."""
    if num_bytes is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g}{SPACE}{unit}" if num_bytes < 999.5 else f"{num_bytes:,.0f}{SPACE}TB"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them, in at most two units."""
    if seconds is None:
        return "–"
    if 0 < seconds < 0.0995:
        return f"{max(1, round(1000 * seconds))}{SPACE}ms"
    if seconds < 59.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f}{SPACE}s"
    if seconds < 3599.5:
        big, small, unit, each = "min", "s", 1, 60
    elif seconds < 48 * 3600:
        big, small, unit, each = "h", "min", 60, 60
    else:
        big, small, unit, each = "d", "h", 3600, 24
    whole, rest = divmod(round(seconds / unit), each)
    return SPACE.join((f"{whole:,}", big, str(rest), small))


def utc(seconds: float) -> str:
    """Return Unix time as a date and a time of day."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return names with "and" before the last."""
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [*names[-1:]])
