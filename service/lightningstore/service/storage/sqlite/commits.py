"""A commit as SQL: a few multi-row statements, because every statement releases the interpreter lock and reacquires it."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import msgspec
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rewards import packed_scores
from lightningstore.service.rules.rows import (
    AttemptRow,
    ConsumerRow,
    DeliveryRow,
    GroupRow,
    RequestRow,
    ResourcesRow,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.base import Changes
from lightningstore.service.storage.sqlite import filters

logger = logging.getLogger(__name__)

SQL = sql_files.load(__package__, "sqlite.sql")
#: Maximum number of answers to request ids that one commit deletes.
FORGOTTEN_AT_ONCE = 100_000
#: Maximum number of keys in one statement that deletes rows. SQLite allows 32,766 parameters.
DELETED_AT_ONCE = 1000
#: Maximum number of rows in one statement that writes rows.
ROWS_AT_ONCE = 64
PLAIN, ZLIB = 0, 1


#: A statement's text and parameters.
Statement = tuple[str, Sequence[Any] | dict[str, Any]]

#: The columns that each statement writes, in the order in which the functions below give their values. Values are
#: bound by position: names for 64 rows in one statement cost 20 us a row, positions 1.2.
COLUMNS = {
    "put_rollouts": (
        *("key", "rollout_id", "live", "status", "mode", "priority", "group_id", "resources_id"),
        *("start_time", "end_time", "attempt_count", "latest_attempt_id", "completion_number"),
        *("position", "available_ns", "reward", "scores", "duration", "queue_time"),
        *("publish_number", "lag", "record", "queue"),
    ),
    "put_labels": ("rollout_key", "name", "value"),
    "put_inputs": ("rollout_key", "input_json"),
    "put_attempts": ("key", "rollout_key", "live", "status", "last_sequence_id", "record"),
    "put_spans": (
        *("key", "rollout_key", "attempt_key", "first_sequence_id", "last_sequence_id"),
        *("span_count", "contiguous", "encoding", "span_ids", "data"),
    ),
    "put_resources": ("key", "resources_id", "version", "updated", "record"),
    "put_groups": (*("key", "group_id", "status", "completion_number", "deadline_ns", "record"),),
    "put_consumers": ("name", "key", "created", "record"),
    "put_deliveries": ("consumer", "number", "deadline_ns", "gone", "end_ns", "record"),
    "put_workers": ("worker_id", "record"),
    "put_requests": ("method", "request_id", "digest", "time_ns", "answer"),
}


def statements(changes: Changes, leaving: list[int], *, compress: bool) -> Iterator[Statement]:
    """Yield the statements of a commit with their parameters.

    `leaving`: the keys of all removed rollouts whose batches of spans are not all deleted yet.
    """
    if changes.removed:
        for name in ("remove_attempts", "remove_inputs", "remove_labels", "remove_rollouts"):
            yield from _deletes(name, changes.removed)
        yield SQL["put_meta"], {"name": "leaving", "value": json.dumps(leaving)}
    yield from _deletes("remove_groups", changes.removed_groups)
    yield from _deletes("sweep", changes.swept)
    yield from _rows("put_inputs", changes.inputs)
    yield from _rows("put_rollouts", map(rollout_values, changes.rollouts.values()))
    if changes.labels:
        yield from _deletes("remove_labels", list(changes.labels))
        labels = changes.labels.items()
        yield from _rows(
            "put_labels", ((key, *label) for key, of in labels for label in of.items())
        )
    yield from _rows("put_attempts", map(attempt_values, changes.attempts.values()))
    yield from _rows("put_spans", (_span_values(row, compress=compress) for row in changes.spans))
    yield from _rows("put_resources", map(_resources_values, changes.resources.values()))
    yield from _deletes("remove_resources", changes.outdated)
    yield from _rows("put_groups", map(group_values, changes.groups.values()))
    yield from _consumers(changes)
    yield from _rows(
        "put_workers", ((i, w.SerializeToString()) for i, w in changes.workers.items())
    )
    yield from _rows("put_requests", map(_request_values, changes.requests))
    if changes.forget_requests_before_ns:
        before_ns = changes.forget_requests_before_ns
        yield SQL["forget_requests"], {"before_ns": before_ns, "limit": FORGOTTEN_AT_ONCE}
    yield from _facts(changes)


def _facts(changes: Changes) -> Iterator[Statement]:
    """Yield the statements that write the counters and the settings."""
    if changes.counters is not None:
        counters = msgspec.json.encode(changes.counters).decode()
        yield SQL["put_meta"], {"name": "counters", "value": counters}
    if changes.settings is not None:
        yield SQL["put_meta"], {"name": "settings", "value": changes.settings}


def write(connection: sqlite3.Connection, statements: list[Statement]) -> None:
    """Run the statements of a transaction. They change pages in memory and do not wait for the disk."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for text, parameters in statements:
            connection.execute(text, parameters)
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def commit(connection: sqlite3.Connection) -> None:
    """Commit a transaction, which writes its pages to disk. Call it on the writer's thread."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def write_and_commit(connection: sqlite3.Connection, statements: list[Statement]) -> None:
    """Run a whole transaction. Call it on the writer's thread."""
    write(connection, statements)
    commit(connection)


def fold_log(connection: sqlite3.Connection) -> None:
    """Checkpoint: copy the log into the file. Call it on the writer's thread."""
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error:
        logger.exception("the log could not be copied into the file; trying again later")


def probe(connection: sqlite3.Connection, size: int) -> None:
    """Write `size` bytes and remove them, in two transactions. Call it on the writer's thread. Raises StorageFailed."""
    write_and_commit(connection, [(SQL["put_probe"], {"size": size})])
    write_and_commit(connection, [(SQL["remove_probe"], ())])


def _deletes(name: str, keys: list[int]) -> Iterator[Statement]:
    """Yield statements that delete rows by key, each within SQLite's limit of parameters.

    A group commit may hold the removals of any number of calls.
    """
    for start in range(0, len(keys), DELETED_AT_ONCE):
        part = keys[start : start + DELETED_AT_ONCE]
        yield SQL[name].format(marks=filters.marks(len(part))), part


def _consumers(changes: Changes) -> Iterator[Statement]:
    """Yield the statements that write consumers and deliveries."""
    for name in ("remove_deliveries", "remove_consumers"):
        yield from _deletes(name, changes.removed_consumers)
    yield from _removed_deliveries(changes.removed_deliveries)
    yield from _rows("put_consumers", map(consumer_values, changes.consumers.values()))
    yield from _rows("put_deliveries", map(delivery_values, changes.deliveries.values()))


def _removed_deliveries(places: list[tuple[int, int]]) -> Iterator[Statement]:
    """Yield statements that delete deliveries, those of each consumer apart."""
    numbers: dict[int, list[int]] = {}
    for key, number in places:
        numbers.setdefault(key, []).append(number)
    for key, own in numbers.items():
        for start in range(0, len(own), DELETED_AT_ONCE):
            part = own[start : start + DELETED_AT_ONCE]
            yield SQL["end_deliveries"].format(marks=filters.marks(len(part))), [key, *part]


def _rows(name: str, rows: Iterable[Sequence[Any]]) -> Iterator[Statement]:
    """Yield statements of 64 rows, and of 32, 16 … 1 for the rest: few different texts, so that all stay prepared.

    Rows are taken as they are needed, because encoding thousands at once would hold the event loop.
    """
    left = iter(rows)
    while part := list(islice(left, ROWS_AT_ONCE)):
        start = 0
        while start < len(part):
            count = 1 << (len(part) - start).bit_length() - 1
            yield _text(name, count), list(chain.from_iterable(part[start : start + count]))
            start += count


@lru_cache(maxsize=256)
def _text(name: str, count: int) -> str:
    """Return the statement for that many rows."""
    columns = COLUMNS[name]
    rows = ",".join([f"({filters.marks(len(columns))})"] * count)
    return SQL[name].format(columns=", ".join(columns), rows=rows)


def rollout_values(row: RolloutRow) -> tuple[Any, ...]:
    """Return the columns of a rollout."""
    record, measures = row.rollout, row.measures
    return (
        row.key,
        record.rollout_id,
        row.live,
        record.status,
        record.mode,
        record.priority,
        record.group_id,
        record.resources_id,
        nanoseconds(record.start_time),
        nanoseconds(record.end_time),
        record.attempt_count,
        record.latest_attempt_id,
        record.completion_number,
        row.position,
        row.available_ns,
        measures.reward,
        packed_scores(measures.scores) if measures.scores else "",
        measures.duration_ns,
        measures.queue_ns,
        measures.publish_number,
        measures.lag,
        record.SerializeToString(),
        record.queue,
    )


def attempt_values(row: AttemptRow) -> tuple[Any, ...]:
    """Return the columns of an attempt."""
    record = row.attempt
    return (
        row.key,
        row.rollout_key,
        row.live,
        record.status,
        row.last_sequence_id,
        record.SerializeToString(),
    )


def _span_values(row: SpanRow, *, compress: bool) -> tuple[Any, ...]:
    data, encoding = row.data, PLAIN
    if compress:
        data, encoding = zlib.compress(row.data, 1), ZLIB
    return (
        row.key,
        row.rollout_key,
        row.attempt_key,
        row.first_sequence_id,
        row.last_sequence_id,
        row.span_count,
        row.contiguous,
        encoding,
        row.span_ids,
        data,
    )


def _resources_values(row: ResourcesRow) -> tuple[Any, ...]:
    record = row.record
    number = record.publish_number
    return row.key, record.resources_id, record.version, number, record.SerializeToString()


def group_values(row: GroupRow) -> tuple[Any, ...]:
    """Return the columns of a group."""
    record = row.record
    return (
        row.key,
        record.group_id,
        record.status,
        record.completion_number,
        row.deadline_ns,
        record.SerializeToString(),
    )


def consumer_values(row: ConsumerRow) -> tuple[Any, ...]:
    """Return the columns of a consumer."""
    return row.record.name, row.key, row.created, row.record.SerializeToString()


def delivery_values(row: DeliveryRow) -> tuple[Any, ...]:
    """Return the columns of a delivery."""
    *numbers, record = row
    return (*numbers, record.SerializeToString())


def _request_values(row: RequestRow) -> tuple[Any, ...]:
    return row.method, row.request_id, row.digest, row.time_ns, row.answer
