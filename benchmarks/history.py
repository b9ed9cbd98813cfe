"""Fills a data file with history: `python -m benchmarks.history FILE FINISHED RUNNING`.

Rows are written through the storage layer, as the server does, several thousand per commit. Each rollout
has a random id and one attempt; every tenth finished rollout has a batch of two spans. New
rows are appended to an existing file. A million takes about a minute.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rules.rows import AttemptRow, RolloutRow, SpanRow
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_RUNNING,
    ATTEMPT_STATUS_SUCCEEDED,
    Attempt,
)
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_RUNNING,
    ROLLOUT_STATUS_SUCCEEDED,
    Rollout,
)
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch

from benchmarks import spans

INPUT = b'{"question": "What is the capital of France?", "seed": 1}'
ROWS_A_COMMIT = 5000
SPANS_EVERY = 10
SPANS_EACH = 2
START_SECONDS = 1_780_000_000


def rollout_id(number: int) -> str:
    """Return the id of a rollout of the past: unique, and in no order."""
    return f"ro-{number * 0x5DEECE66D1 & 0xFFFFFFFFFFFF:012x}"


def attempt_id(number: int) -> str:
    """Return the id of its attempt."""
    return f"at-{number & 0xFFFFFFFF:08x}"


class Past:
    """Makes rows."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._spans = spans.block(SPANS_EACH, 3)
        self._span_ids = b"".join(span.span_id for span in self._spans)

    def add(self, changes: Changes, number: int, *, finished: bool) -> None:
        """Add a rollout with its attempt, and spans to some."""
        counters = self.counters
        counters.rollout_key += 1
        counters.attempt_key += 1
        key, attempt_key = counters.rollout_key, counters.attempt_key
        start, end = Timestamp(seconds=START_SECONDS + number), None
        if finished:
            counters.completion_number += 1
            end = Timestamp(seconds=START_SECONDS + number + 60)
        rollout = Rollout(
            rollout_id=rollout_id(number),
            status=ROLLOUT_STATUS_SUCCEEDED if finished else ROLLOUT_STATUS_RUNNING,
            start_time=start,
            end_time=end,
            attempt_count=1,
            latest_attempt_id=attempt_id(number),
            completion_number=counters.completion_number if finished else 0,
        )
        rollout.config.max_attempts = 1
        attempt = Attempt(
            rollout_id=rollout.rollout_id,
            attempt_id=attempt_id(number),
            sequence_number=1,
            status=ATTEMPT_STATUS_SUCCEEDED if finished else ATTEMPT_STATUS_RUNNING,
            worker_id=f"worker-{number % 64}" if finished else "",
            start_time=start,
            end_time=end,
        )
        for counts, status in (
            (counters.rollouts, rollout.status),
            (counters.attempts, attempt.status),
        ):
            counts[status] = counts.get(status, 0) + 1
        last = 0
        if finished and number % SPANS_EVERY == 0:
            last = attempt.span_count = SPANS_EACH
            self._add_spans(changes, key, attempt_key, attempt)
        changes.inputs.append((key, INPUT))
        changes.rollouts[key] = RolloutRow(key, rollout, 0, 0)
        changes.attempts[attempt_key] = AttemptRow(attempt_key, key, attempt, last)

    def _add_spans(self, changes: Changes, key: int, attempt_key: int, attempt: Attempt) -> None:
        batch = SpanBatch(
            rollout_id=attempt.rollout_id,
            attempt_id=attempt.attempt_id,
            resource=spans.resource(),
            scope=spans.SCOPE,
            spans=self._spans,
        )
        data = IngestSpansRequest(batch=batch).SerializeToString()
        counters = self.counters
        counters.span_key += 1
        counters.spans += SPANS_EACH
        counters.span_bytes += len(data)
        row = SpanRow(
            counters.span_key,
            key,
            attempt_key,
            1,
            SPANS_EACH,
            SPANS_EACH,
            self._span_ids,
            data,
            True,
        )
        changes.spans.append(row)
        changes.size += len(data)


async def fill(path: Path, finished: int, running: int) -> None:
    """Add finished and then running rollouts to a data file."""
    storage = SqliteStorage(path)
    past = Past((await storage.open()).counters)
    first = past.counters.rollout_key
    for start in range(0, finished + running, ROWS_A_COMMIT):
        changes = Changes(counters=past.counters)
        for offset in range(start, min(start + ROWS_A_COMMIT, finished + running)):
            past.add(changes, first + offset, finished=offset < finished)
        changes.size += 1000 * len(changes.rollouts)
        await storage.commit(changes)
    await storage.close()


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
