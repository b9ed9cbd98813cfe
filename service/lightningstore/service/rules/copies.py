"""Copies of records: a record is replaced, never changed."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def copied(record: M) -> M:
    """Return a copy of a record."""
    copy = record.__class__()
    copy.CopyFrom(record)
    return copy


def evolve(record: M, **changes: Any) -> M:
    """Return a copy of `record` with the given fields set; None clears one.

    The only way in which a record changes: what a reply or a row holds stays as it was.
    """
    copy = copied(record)
    for name, value in changes.items():
        if value is None:
            copy.ClearField(name)
        elif isinstance(value, Message):
            getattr(copy, name).CopyFrom(value)
        else:
            setattr(copy, name, value)
    return copy
