"""Ages, durations, sizes and counts as people read them, and what people write for a time. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

#: The greatest numbers that fields of messages hold, and the longest duration in seconds.
MAX_INT32, MAX_INT64 = (1 << 31) - 1, (1 << 63) - 1
MAX_SECONDS = 315_576_000_000

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B?", re.IGNORECASE)
_SPANS = re.compile(rf"(?:{_SPAN.pattern})+")


def number_of(text: str, maximum: int = MAX_INT64) -> int:
    """Return a whole number. Raises ValueError."""
    try:
        found = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None
    if found > maximum:
        raise ValueError(f"{text!r} must be at most {maximum}")
    return found


def seconds_of(text: str) -> float:
    """Return the seconds of a duration: 90, 30s, 5m, 2h, 7d or 1h30m. Raises ValueError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        if not _SPANS.fullmatch(text):
            raise ValueError(f"{text!r} is not a duration like 90, 30s, 5m, 2h, 7d or 1h30m")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(text))
    if abs(seconds) > MAX_SECONDS:
        raise ValueError(f"{text!r} must be at most {MAX_SECONDS} s")
    return seconds


def size_of(text: str) -> int:
    """Return the bytes of a size: 4096, 500MB, 20GiB. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size like 4096, 500MB or 20GiB")
    number, prefix, binary = match.groups()
    step = 1024 if binary else 1000
    size = float(number) * step ** (" KMGT".index(prefix.upper()) if prefix else 0)
    if size >= MAX_INT64:
        raise ValueError(f"{text!r} must be below {MAX_INT64} bytes")
    return int(size)


def moment_of(text: str, now: datetime) -> datetime:
    """Return the time that a text names: a duration ago, or a date, in UTC unless it says otherwise.

    Raises ValueError.
    """
    try:
        return _moment_of(text, now)
    except OverflowError:
        raise ValueError(f"{text!r} must be in the years 1 to 9999") from None


def _moment_of(text: str, now: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - timedelta(seconds=seconds_of(text))
        except ValueError:
            raise ValueError(
                f"{text!r} is neither a duration like 30m, 2h or 7d nor a time like 2026-01-31 or "
                "2026-01-31T12:00:00Z"
            ) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def span(seconds: float) -> str:
    """Return a duration in at most two units, as kubectl does: 20µs, 350ms, 12s, 3m5s, 2h10m, 5d4h, 250d."""
    seconds = max(seconds, 0)
    if 0 < seconds < 0.001:
        return f"{seconds * 1e6:.0f}µs"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if days < 8 and hours else f"{days}d"


def age(seconds: float) -> str:
    """Return how long ago something was, in whole seconds or more."""
    return span(int(max(seconds, 0)))


def size(count: int) -> str:
    """Return a number of bytes in the unit that suits it: 512 B, 12.3 KiB, 4.0 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 rollout, 12,345 rollouts, 2 sets of resources."""
    first, of, rest = noun.partition(" of ")
    return f"{number:,} {first if number == 1 else f'{first}s'}{of}{rest}"


def moment(value: Any) -> datetime | None:
    """Return the time of a Timestamp message, None for an unset one."""
    if not value.seconds and not value.nanos:
        return None
    return datetime.fromtimestamp(value.seconds, UTC) + timedelta(microseconds=value.nanos // 1000)
