"""Copies of records, which are replaced and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

#: Types of most fields. A Mapping is recognised in ten times the time.
_PLAIN = (int, str, bytes, float)


def copied(record: M) -> M:
    """Return a copy of a record."""
    copy = record.__class__()
    copy.CopyFrom(record)
    return copy


def evolve(record: M, **changes: Any) -> M:
    """Return a copy of `record` with the given fields set; None clears a field.

    Records change only in this way, so replies and rows that refer to the old record stay valid.
    """
    copy = copied(record)
    for name, value in changes.items():
        if isinstance(value, _PLAIN):
            setattr(copy, name, value)
        elif value is None:
            copy.ClearField(name)
        elif isinstance(value, Message):
            getattr(copy, name).CopyFrom(value)
        elif isinstance(value, Mapping):
            copy.ClearField(name)
            getattr(copy, name).update(value)
        else:
            setattr(copy, name, value)
    return copy
