"""Rows as they were read, as records. SQLite keeps a value of any type in any column, so every type is checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from lightningstore.service.rules.rows import (
    AttemptRow,
    ConsumerRow,
    DeliveryRow,
    GroupRow,
    LoadedRollout,
    RequestRow,
    ResourcesVersion,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.storage.sqlite.commits import ZLIB
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.consumer_pb2 import Consumer, Delivery
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.worker_pb2 import Worker

#: What the functions below raise for a damaged row, and FromString of a message.
UNREADABLE = (DecodeError, ValueError, TypeError, zlib.error)

_Record = TypeVar("_Record")


def readable(
    what: str,
    parse: Callable[[Sequence[Any]], _Record],
    rows: Iterable[Sequence[Any]],
    note: Callable[[str, object], None],
    damaged: Callable[[Sequence[Any]], _Record | None] = lambda _: None,
) -> list[_Record]:
    """Return rows as records. The second column of a row is its name.

    Damaged rows are noted, and left out unless `damaged` makes a record of what is left of them.
    """
    found = []
    for row in rows:
        try:
            found.append(parse(row))
        except UNREADABLE as error:
            note(f"{what} {row[1]!r}", error)
            if (rest := damaged(row)) is not None:
                found.append(rest)
    return found


def rollout(row: Sequence[Any], attempts: Iterable[Sequence[Any]]) -> LoadedRollout:
    """Return a rollout from its columns. Raises UNREADABLE."""
    key, rollout_id, position, available_ns, record, input_json, input_bytes = row
    if input_bytes is None or type(input_json) is not bytes:
        raise ValueError("its input is missing or not a blob")
    if not input_bytes:
        raise ValueError("its input is empty")
    if type(position) is not int or type(available_ns) is not int:
        raise TypeError("its position is not a number")
    message = Rollout.FromString(record)
    if message.rollout_id != rollout_id:
        raise ValueError("its record is of another rollout")
    return LoadedRollout(
        RolloutRow(key, message, position, available_ns),
        input_json,
        [_attempt(key, *columns) for columns in attempts],
        0 if input_json else input_bytes,
    )


def _attempt(rollout_key: int, key: int, last: Any, record: Any) -> AttemptRow:
    if type(last) is not int:
        raise TypeError("the last sequence id of an attempt is not a number")
    return AttemptRow(key, rollout_key, Attempt.FromString(record), last)


def spans(rollout_key: int, columns: Sequence[Any]) -> SpanRow:
    """Return a batch of spans from its columns, without its span ids. Raises UNREADABLE."""
    key, attempt_key, first, last, count, contiguous, encoding, data = columns
    if any(type(number) is not int for number in columns[:-1]) or type(data) is not bytes:
        raise TypeError("a batch of spans has a value of the wrong type")
    plain = zlib.decompress(data) if encoding == ZLIB else data
    return SpanRow(key, rollout_key, attempt_key, first, last, count, b"", plain, bool(contiguous))


def request(columns: Sequence[Any]) -> RequestRow:
    """Return the answer to a request id. Raises UNREADABLE."""
    row = RequestRow(*columns)
    if tuple(map(type, row)) != (str, str, int, bytes, int):
        raise TypeError("it has a value of the wrong type")
    return row


def group(columns: Sequence[Any]) -> GroupRow:
    """Return a group. Raises UNREADABLE."""
    key, group_id, deadline_ns, record = columns
    message = Group.FromString(record)
    if type(deadline_ns) is not int:
        raise TypeError("its deadline is not a number")
    if message.group_id != group_id:
        raise ValueError("its record is of another group")
    return GroupRow(key, deadline_ns, message)


def consumer(columns: Sequence[Any]) -> ConsumerRow:
    """Return a consumer. Raises UNREADABLE."""
    key, name, created, record = columns
    message = Consumer.FromString(record)
    if type(key) is not int or type(created) is not int:
        raise TypeError("it has a value of the wrong type")
    if message.name != name:
        raise ValueError("its record is of another consumer")
    return ConsumerRow(key, created, message)


def delivery(columns: Sequence[Any]) -> DeliveryRow:
    """Return a delivery. Raises UNREADABLE."""
    key, number, deadline_ns, gone, end_ns, record = columns
    message = Delivery.FromString(record)
    if any(type(value) is not int for value in columns[:-1]):
        raise TypeError("it has a value of the wrong type")
    if message.completion_number != number or not message.delivery_id:
        raise ValueError("its record is of another delivery")
    return DeliveryRow(key, number, deadline_ns, bool(gone), end_ns, message)


def resources(columns: Sequence[Any]) -> tuple[int, Resources]:
    """Return a version of resources with its key. Raises UNREADABLE."""
    key, resources_id, publish_number, record = columns
    message = Resources.FromString(record)
    if message.resources_id != resources_id:
        raise ValueError("its record is of other resources")
    message.publish_number = publish_number
    return key, message


def resources_version(columns: Sequence[Any]) -> ResourcesVersion:
    """Return what the engine keeps of a version of resources. Raises UNREADABLE."""
    found = ResourcesVersion(*columns)
    if tuple(map(type, found)) != (str, int, int, int):
        raise TypeError("it has a value of the wrong type")
    return found


def worker(columns: Sequence[Any]) -> Worker:
    """Return a worker. Raises UNREADABLE."""
    _, worker_id, record = columns
    message = Worker.FromString(record)
    if message.worker_id != worker_id:
        raise ValueError("its record is of another worker")
    return message
