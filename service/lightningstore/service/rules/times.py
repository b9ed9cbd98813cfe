"""Timestamps and durations."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rules.errors import FieldInvalid

NANOS = 1_000_000_000


MAX_DURATION_SECONDS = 100 * 365 * 86_400


def stamp(wall_ns: int) -> Timestamp:
    """Return nanoseconds since the epoch as a Timestamp."""
    time = Timestamp()  # keywords cost three times as much as assignments
    time.seconds, time.nanos = divmod(wall_ns, NANOS)
    return time


def nanoseconds(time: Timestamp) -> int:
    """Return a Timestamp as nanoseconds since the epoch."""
    return time.seconds * NANOS + time.nanos


def seconds(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return duration.seconds + duration.nanos / NANOS


def check_duration(field: str, duration: Duration, *, positive: bool = False) -> None:
    """Raise FieldInvalid for a duration that is negative, malformed or, if `positive`, zero."""
    if not -NANOS < duration.nanos < NANOS or duration.seconds * duration.nanos < 0:
        raise FieldInvalid(
            field, "seconds and nanos must have the same sign, and nanos must be below a second"
        )
    if duration.seconds < 0 or duration.nanos < 0:
        raise FieldInvalid(field, "must not be negative")
    if duration.seconds > MAX_DURATION_SECONDS:
        raise FieldInvalid(field, f"must be at most {MAX_DURATION_SECONDS} s (100 years)")
    if positive and not (duration.seconds or duration.nanos):
        raise FieldInvalid(field, "must be positive; leave it out for no limit")
