"""A commit as one statement: data-modifying CTEs behind a fence, of which only those with rows are in the text.

One statement is one round trip, and it leaves no transaction open that waits for this process. So a process that is stopped
cannot hold up the one that takes over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import zstandard
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
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.postgres.link import Connection

SQL = sql_files.load(__package__, "commits.sql")
#: Maximum number of answers to request ids that one commit deletes.
FORGOTTEN_AT_ONCE = 10_000
#: Commits that are kept, so that the outcome of one whose answer was lost can be asked for.
KEPT_COMMITS = 64
#: Encodings of spans. 1 is zlib, which only data files use.
PLAIN, ZSTD = 0, 2
#: Bytes of spans that are compressed before other tasks run.
SLICE_BYTES = 1 << 20

#: The columns that each part writes, with their types, in the order in which the functions below give their values.
COLUMNS = {
    "put_inputs": {"rollout_key": "bigint", "input_json": "bytea"},
    "put_rollouts": {
        "key": "bigint",
        "rollout_id": "bytea",
        "live": "boolean",
        "status": "smallint",
        "mode": "smallint",
        "priority": "integer",
        "group_id": "bytea",
        "resources_id": "bytea",
        "start_time": "bigint",
        "end_time": "bigint",
        "attempt_count": "integer",
        "latest_attempt_id": "bytea",
        "completion_number": "bigint",
        "position": "bigint",
        "available_ns": "bigint",
        "reward": "bytea",
        "scores": "bytea",
        "duration": "bigint",
        "queue_time": "bigint",
        "publish_number": "bigint",
        "lag": "bigint",
        "record": "bytea",
        "queue": "bytea",
    },
    "put_labels": {"rollout_key": "bigint", "name": "bytea", "value": "bytea"},
    "put_attempts": {
        "key": "bigint",
        "rollout_key": "bigint",
        "live": "boolean",
        "status": "smallint",
        "last_sequence_id": "bigint",
        "record": "bytea",
    },
    "put_spans": {
        "key": "bigint",
        "rollout_key": "bigint",
        "attempt_key": "bigint",
        "first_sequence_id": "bigint",
        "last_sequence_id": "bigint",
        "span_count": "integer",
        "contiguous": "boolean",
        "encoding": "smallint",
        "span_ids": "bytea",
        "data": "bytea",
    },
    "put_resources": {
        "key": "bigint",
        "resources_id": "bytea",
        "version": "integer",
        "updated": "bigint",
        "record": "bytea",
    },
    "put_groups": {
        "key": "bigint",
        "group_id": "bytea",
        "status": "smallint",
        "completion_number": "bigint",
        "deadline_ns": "bigint",
        "record": "bytea",
    },
    "put_consumers": {"name": "bytea", "key": "bigint", "created": "bigint", "record": "bytea"},
    "put_deliveries": {
        "consumer": "bigint",
        "number": "bigint",
        "deadline_ns": "bigint",
        "gone": "boolean",
        "end_ns": "bigint",
        "record": "bytea",
    },
    "put_workers": {"worker_id": "bytea", "record": "bytea"},
    "put_requests": {
        "method": "bytea",
        "request_id": "bytea",
        "digest": "bigint",
        "time_ns": "bigint",
        "answer": "bytea",
    },
}
#: The same of statements that delete rows by several columns.
ENDED = {"end_deliveries": {"consumer": "bigint", "number": "bigint"}}
#: Statements whose rows may have the unique values of rows that another one deletes, which has to come first.
AFTER = {
    "put_rollouts": "remove_rollouts",
    "put_labels": "replace_labels",
    "put_groups": "remove_groups",
    "put_consumers": "remove_consumers",
    "put_requests": "forget_requests",
}
#: What removing rollouts, and sweeping batches of spans, consists of.
REMOVAL = ("remove_rollouts", "remove_attempts", "remove_inputs", "remove_labels", "put_leftovers")
CONSUMER_REMOVAL = ("remove_consumers", "remove_deliveries")
SWEEP = ("sweep", "remove_leftovers")
#: Statements that free bytes of spans and inputs.
FREEING = ("remove_inputs", "sweep")


class Statement(NamedTuple):
    """A commit, encoded."""

    text: str
    values: list[Any]


class Part(NamedTuple):
    """A part of a commit: names of statements that share their values, and these."""

    names: tuple[str, ...]
    values: list[Any]
    #: Bytes of inputs and spans in them.
    size: int = 0


def encoded_counters(counters: Counters) -> bytes:
    """Return counters as they are stored."""
    return msgspec.json.encode(counters)


def decoded_counters(data: bytes) -> Counters:
    """Return counters from what is stored. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Counters)


def parts_of(changes: Changes) -> list[Part]:
    """Return everything but the batches of spans, encoded. `removed` is already left out of the rows."""
    parts = []
    if changes.removed:
        parts.append(Part(REMOVAL, [list(changes.removed)]))
    if changes.removed_groups:
        parts.append(Part(("remove_groups",), [list(changes.removed_groups)]))
    if changes.swept:
        parts.append(Part(SWEEP, [list(changes.swept)]))
    if changes.forget_requests_before_ns:
        parts.append(Part(("forget_requests",), [changes.forget_requests_before_ns]))
    if changes.settings is not None:
        parts.append(Part(("put_settings",), [changes.settings]))
    # Rows with the same key would fail: the last one counts.
    if changes.inputs:
        inputs = list(dict(changes.inputs).items())
        parts.append(_part("put_inputs", inputs, sum(len(data) for _, data in inputs)))
    if changes.rollouts:
        parts.append(_part("put_rollouts", map(_rollout_values, changes.rollouts.values())))
    if changes.labels:
        parts += _labels_parts(changes.labels)
    if changes.attempts:
        parts.append(_part("put_attempts", map(_attempt_values, changes.attempts.values())))
    if changes.resources:
        parts.append(_part("put_resources", map(_resources_values, changes.resources.values())))
    if changes.outdated:
        parts.append(Part(("remove_resources",), [list(changes.outdated)]))
    if changes.groups:
        parts.append(_part("put_groups", map(_group_values, changes.groups.values())))
    parts += _consumer_parts(changes)
    if changes.workers:
        workers = ((i.encode(), w.SerializeToString()) for i, w in changes.workers.items())
        parts.append(_part("put_workers", workers))
    if changes.requests:
        requests = {(row.method, row.request_id): row for row in changes.requests}
        parts.append(_part("put_requests", map(_request_values, requests.values())))
    return parts


def _consumer_parts(changes: Changes) -> list[Part]:
    """Return consumers and their deliveries."""
    parts = []
    if changes.removed_consumers:
        parts.append(Part(CONSUMER_REMOVAL, [list(changes.removed_consumers)]))
    if changes.removed_deliveries:
        parts.append(_part("end_deliveries", changes.removed_deliveries))
    if changes.consumers:
        parts.append(_part("put_consumers", map(_consumer_values, changes.consumers.values())))
    if changes.deliveries:
        parts.append(_part("put_deliveries", map(_delivery_values, changes.deliveries.values())))
    return parts


def _labels_parts(labels: dict[int, dict[str, str]]) -> list[Part]:
    """Return labels by key of their rollouts, which replace those that the rollouts had."""
    parts = [Part(("replace_labels",), [list(labels)])]
    rows = [(k, n.encode(), v.encode()) for k, of in labels.items() for n, v in of.items()]
    return [*parts, _part("put_labels", rows)] if rows else parts


def spans_part(rows: Sequence[tuple[Any, ...]]) -> Part:
    """Return batches of spans, from `SpanEncoder.columns`, as a part of a commit."""
    return _part("put_spans", rows, sum(len(row[-1]) + len(row[-2]) for row in rows))


def _part(name: str, rows: Iterable[tuple[Any, ...]], size: int = 0) -> Part:
    return Part((name,), list(zip(*rows, strict=True)), size)


def statement(
    parts: Sequence[Part], commit: tuple[int, int, int], counters: bytes, owner: str
) -> Statement:
    """Return the statement of a commit.

    Args:
        parts: The content.
        commit: The namespace's number, the owner's epoch, and the number of the commit.
        counters: The engine's counters.
        owner: The id of the server.

    """
    values: list[Any] = [*commit, counters, sum(part.size for part in parts), owner]
    for part in parts:
        values += part.values
    names = tuple(part.names for part in parts)
    if commit[2] % KEPT_COMMITS == 0:
        names += (("remove_commits",),)
    return Statement(_text(names), values)


@lru_cache(maxsize=1024)
def _text(parts: tuple[tuple[str, ...], ...]) -> str:
    """Return the statement with these parts. The first six parameters are those of every commit."""
    all_names = [name for names in parts for name in names]
    clauses = [f"fence AS MATERIALIZED ({SQL['fence']})"]
    number = 7
    for names in parts:
        columns = COLUMNS.get(names[0]) or ENDED.get(names[0], {})
        arrays = ", ".join(f"${number + i}::{kind}[]" for i, kind in enumerate(columns.values()))
        for name in names:
            earlier = AFTER.get(name)
            first = f", (SELECT count(*) FROM {earlier}) first" if earlier in all_names else ""
            text = SQL[name].format(
                columns=", ".join(columns),
                arrays=arrays,
                first=first,
                keys=f"${number}::bigint[]",
                value=f"${number}",
                limit=FORGOTTEN_AT_ONCE,
                kept=KEPT_COMMITS,
            )
            clauses.append(f"{name} AS ({text})")
        number += len(columns) or 1
    freed = [
        f"- (SELECT coalesce(sum(size), 0) FROM {name})" for name in FREEING if name in all_names
    ]
    clauses.append(f"put_commit AS ({SQL['put_commit'].format(freed=' '.join(freed))})")
    return f"WITH {', '.join(clauses)} SELECT bytes FROM put_commit"


async def outcome(connection: Connection, ns: int, epoch: int, seq: int) -> int | None:
    """Return the bytes after a commit if it was written, else None."""
    found = await connection.fetchrow(SQL["find_commit"], ns, seq)
    return found["bytes"] if found is not None and found["epoch"] == epoch else None


class SpanEncoder:
    """Encodes batches of spans, compressed where that makes them smaller."""

    def __init__(self, *, compress: bool) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1) if compress else None

    def columns(self, row: SpanRow) -> tuple[Any, ...]:
        """Return the columns of a batch."""
        return (*row[:6], row.contiguous, *self.encoded(row.span_ids, row.data))

    def encoded(self, span_ids: bytes, data: bytes) -> tuple[int, bytes, bytes]:
        """Return the last columns of a batch: the encoding, the span ids and the data."""
        if self._compressor is not None:
            packed = self._compressor.compress(data)
            if len(packed) < len(data):
                return ZSTD, span_ids, packed
        return PLAIN, span_ids, data

    @staticmethod
    def slices(rows: Iterable[SpanRow]) -> Iterator[list[SpanRow]]:
        """Yield rows in groups that take a few milliseconds to encode."""
        group: list[SpanRow] = []
        size = 0
        for row in rows:
            group.append(row)
            size += len(row.data)
            if size >= SLICE_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def decoded_spans(encoding: int, data: bytes) -> bytes:
    """Return a batch of spans as it came in. Raises zstandard.ZstdError."""
    return zstandard.ZstdDecompressor().decompress(data) if encoding == ZSTD else data


def _rollout_values(row: RolloutRow) -> tuple[Any, ...]:
    record = row.rollout
    return (
        row.key,
        record.rollout_id.encode(),
        row.live,
        record.status,
        record.mode,
        record.priority,
        record.group_id.encode(),
        record.resources_id.encode(),
        nanoseconds(record.start_time),
        nanoseconds(record.end_time),
        record.attempt_count,
        record.latest_attempt_id.encode(),
        record.completion_number,
        row.position,
        row.available_ns,
        row.measures.reward.encode(),
        packed_scores(row.measures.scores).encode(),
        row.measures.duration_ns,
        row.measures.queue_ns,
        row.measures.publish_number,
        row.measures.lag,
        record.SerializeToString(),
        record.queue.encode(),
    )


def _attempt_values(row: AttemptRow) -> tuple[Any, ...]:
    record = row.attempt
    return (
        row.key,
        row.rollout_key,
        row.live,
        record.status,
        row.last_sequence_id,
        record.SerializeToString(),
    )


def _resources_values(row: ResourcesRow) -> tuple[Any, ...]:
    record = row.record
    name = record.resources_id.encode()
    return row.key, name, record.version, record.publish_number, record.SerializeToString()


def _group_values(row: GroupRow) -> tuple[Any, ...]:
    record = row.record
    return (
        row.key,
        record.group_id.encode(),
        record.status,
        record.completion_number,
        row.deadline_ns,
        record.SerializeToString(),
    )


def _consumer_values(row: ConsumerRow) -> tuple[Any, ...]:
    return row.record.name.encode(), row.key, row.created, row.record.SerializeToString()


def _delivery_values(row: DeliveryRow) -> tuple[Any, ...]:
    *numbers, record = row
    return (*numbers, record.SerializeToString())


def _request_values(row: RequestRow) -> tuple[Any, ...]:
    return row.method.encode(), row.request_id.encode(), row.digest, row.time_ns, row.answer
