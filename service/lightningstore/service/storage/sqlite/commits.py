"""A commit as SQL: a few large statements, since each gives up the interpreter lock and queues for it again."""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
from lightningstore.service.rules import filters
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import AttemptRow, RolloutRow, SpanRow
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.base import Changes
from lightningstore.service.storage.sqlite import queries

logger = logging.getLogger(__name__)

SQL = queries.load("sqlite.sql")
#: Answers to request ids that one commit deletes.
FORGOTTEN_AT_ONCE = 100_000
PLAIN, ZLIB = 0, 1


def statements(
    changes: Changes, leaving: list[int], *, compress: bool
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the statements of a commit with their parameters.

    `leaving`: the keys of all removed rollouts whose batches of spans are still there.
    """
    if changes.removed:
        marks = filters.marks(len(changes.removed))
        for name in ("remove_attempts", "remove_inputs", "remove_rollouts"):
            yield SQL[name].format(marks=marks), changes.removed
        yield from _rows("put_meta", [("leaving", json.dumps(leaving))])
    if changes.swept:
        marks = filters.marks(len(changes.swept))
        yield SQL["sweep"].format(marks=marks), changes.swept
    yield from _rows("put_inputs", changes.inputs)
    yield from _rows("put_rollouts", map(rollout_values, changes.rollouts.values()))
    yield from _rows("put_attempts", map(attempt_values, changes.attempts.values()))
    yield from _rows("put_spans", (_span_values(row, compress=compress) for row in changes.spans))
    yield from _rows(
        "put_resources",
        (
            (None, i, record.version, updated, record.SerializeToString())
            for i, (updated, record) in changes.resources.items()
        ),
    )
    yield from _rows(
        "put_workers", ((i, w.SerializeToString()) for i, w in changes.workers.items())
    )
    yield from _rows(
        "put_requests",
        ((r.method, r.request_id, r.digest, r.time_ns, r.answer) for r in changes.requests),
    )
    if changes.forget_requests_before_ns:
        limit = FORGOTTEN_AT_ONCE
        yield SQL["forget_requests"], [changes.forget_requests_before_ns, limit]
    if changes.counters is not None:
        counters = msgspec.json.encode(changes.counters).decode()
        yield from _rows("put_meta", [("counters", counters)])


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


def write(connection: sqlite3.Connection, rows: list[tuple[str, list[Any]]]) -> None:
    """Run a transaction's statements: they change pages in memory, and wait for no disk."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for text, parameters in rows:
            connection.execute(text, parameters)
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def commit(connection: sqlite3.Connection) -> None:
    """End a transaction: its pages go to disk. On the writer's thread."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def write_and_commit(connection: sqlite3.Connection, rows: list[tuple[str, list[Any]]]) -> None:
    """Do both. On the writer's thread."""
    write(connection, rows)
    commit(connection)


def fold_log(connection: sqlite3.Connection) -> None:
    """Fold the log back into the file. On the writer's thread."""
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error:
        logger.exception("the log could not be folded back into the file; trying again later")


def _rows(name: str, rows: Iterable[Sequence[Any]]) -> Iterable[tuple[str, list[Any]]]:
    """Yield a statement for many rows, in few shapes so that each stays prepared."""
    left = list(rows)
    start = 0
    while start < len(left):
        count = min(64, 1 << (len(left) - start).bit_length() - 1)
        part = left[start : start + count]
        start += count
        yield _text(name, count, len(part[0])), list(chain.from_iterable(part))


@lru_cache(maxsize=256)
def _text(name: str, count: int, width: int) -> str:
    """Return the statement for so many rows of so many values."""
    return SQL[name].format(rows=",".join([f"({filters.marks(width)})"] * count))


def rollout_values(row: RolloutRow) -> tuple[Any, ...]:
    """Return the columns of a rollout, in the order of the table."""
    record = row.rollout
    return (
        row.key,
        record.rollout_id,
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
        record.SerializeToString(),
    )


def attempt_values(row: AttemptRow) -> tuple[Any, ...]:
    """Return the columns of an attempt, in the order of the table."""
    record = row.attempt
    return (
        row.key,
        row.rollout_key,
        record.status,
        row.last_sequence_id,
        record.SerializeToString(),
    )
