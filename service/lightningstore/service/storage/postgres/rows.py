"""Records from rows of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg
from google.protobuf.message import DecodeError
from lightningstore.service.rules.errors import DataDamaged
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
from lightningstore.service.storage.postgres.commits import decoded_spans
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.consumer_pb2 import Consumer, Delivery
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.worker_pb2 import Worker

logger = logging.getLogger(__name__)

#: Damaged records that are remembered. Further ones are neither logged nor counted.
MOST_RECORDS = 10_000
#: What the functions below raise for a damaged row.
UNREADABLE = (DecodeError, ValueError)

_Record = TypeVar("_Record")


class Damage:
    """The damaged records of a namespace that were found so far."""

    def __init__(self) -> None:
        self._records: set[str] = set()

    @property
    def count(self) -> int:
        """Number of distinct ones."""
        return len(self._records)

    def note(self, record: str, cause: object) -> None:
        """Count a damaged record, and log it when it is found first."""
        if record not in self._records and len(self._records) < MOST_RECORDS:
            self._records.add(record)
            logger.error(
                "%s is damaged (%s): it is left out of lists, claims, watches and exports, and calls that name it fail",
                record,
                cause,
            )

    def readable(
        self,
        what: str,
        parse: Callable[[Sequence[Any]], _Record],
        rows: Iterable[Sequence[Any]],
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
                name = row[1]
                name = name.decode(errors="replace") if isinstance(name, bytes) else name
                self.note(f"{what} {name!r}", error)
                if (rest := damaged(row)) is not None:
                    found.append(rest)
        return found

    def rollouts(
        self, rows: Iterable[asyncpg.Record], *, skip: bool = True
    ) -> Iterator[LoadedRollout]:
        """Yield rollouts from rows of `loaded`, without damaged ones, or raising DataDamaged for the first of them."""
        for row in rows:
            try:
                yield loaded_rollout(row)
            except DataDamaged as error:
                name = row["rollout_id"].decode(errors="replace")
                self.note(f"rollout {name!r} (key {row['key']})", error.cause)
                if not skip:
                    raise


def loaded_rollout(row: asyncpg.Record) -> LoadedRollout:
    """Return a rollout from a row of `loaded`. Raises DataDamaged."""
    key, name, position, available_ns, record, input_json, input_bytes, *attempts = row[:-1]
    rollout_id = name.decode()
    try:
        if input_bytes is None:
            raise ValueError("its input is missing")
        rollout = Rollout.FromString(record)
        if rollout.rollout_id != rollout_id:
            raise ValueError("its record is of another rollout")
        return LoadedRollout(
            RolloutRow(key, rollout, position, available_ns),
            input_json,
            [
                AttemptRow(own, key, Attempt.FromString(data), last)
                for own, last, data in zip(*(column or () for column in attempts), strict=True)
            ],
            0 if input_json else input_bytes,
        )
    except (DecodeError, ValueError) as error:
        raise DataDamaged(error, rollout_id) from error


def group(columns: Sequence[Any]) -> GroupRow:
    """Return a group. Raises UNREADABLE."""
    key, group_id, deadline_ns, record, *_ = columns
    message = Group.FromString(record)
    if message.group_id != group_id.decode():
        raise ValueError("its record is of another group")
    return GroupRow(key, deadline_ns, message)


def consumer(columns: Sequence[Any]) -> ConsumerRow:
    """Return a consumer. Raises UNREADABLE."""
    key, name, created, record = columns
    message = Consumer.FromString(record)
    if message.name != name.decode():
        raise ValueError("its record is of another consumer")
    return ConsumerRow(key, created, message)


def delivery(columns: Sequence[Any]) -> DeliveryRow:
    """Return a delivery. Raises UNREADABLE."""
    key, number, deadline_ns, gone, end_ns, record = columns
    message = Delivery.FromString(record)
    if message.completion_number != number or not message.delivery_id:
        raise ValueError("its record is of another delivery")
    return DeliveryRow(key, number, deadline_ns, gone, end_ns, message)


def request(columns: Sequence[Any]) -> RequestRow:
    """Return the answer to a request id. Raises UNREADABLE."""
    method, request_id, *rest = columns
    return RequestRow(method.decode(), request_id.decode(), *rest)


def resources(columns: Sequence[Any]) -> tuple[int, Resources]:
    """Return a version of resources with its key. Raises UNREADABLE."""
    key, resources_id, publish_number, record = columns
    message = Resources.FromString(record)
    if message.resources_id != resources_id.decode():
        raise ValueError("its record is of other resources")
    message.publish_number = publish_number
    return key, message


def resources_version(columns: Sequence[Any]) -> ResourcesVersion:
    """Return what the engine keeps of a version of resources. Raises UNREADABLE."""
    key, resources_id, version, publish_number = columns
    return ResourcesVersion(resources_id.decode(), key, version, publish_number)


def worker(columns: Sequence[Any]) -> Worker:
    """Return a worker. Raises UNREADABLE."""
    record, worker_id = columns
    message = Worker.FromString(record)
    if message.worker_id != worker_id.decode():
        raise ValueError("its record is of another worker")
    return message


def span_row(rollout_key: int, row: Sequence[Any]) -> SpanRow:
    """Return a batch of spans without its span ids. Raises zstandard.ZstdError."""
    key, attempt_key, first, last, count, contiguous, encoding, data = row
    plain = decoded_spans(encoding, data)
    return SpanRow(key, rollout_key, attempt_key, first, last, count, b"", plain, contiguous)
