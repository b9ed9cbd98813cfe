"""What contract tests do again and again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lightningstore.client import Attempt, LightningStoreError, Rollout, RolloutConfig, Span
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from tests.contract.conftest import World

RETRY = RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


async def enqueue(world: World, count: int, **spec: Any) -> list[str]:
    """Enqueue rollouts with the inputs 0, 1, 2 …; returns their ids."""
    specs = [{"input": n, **spec} for n in range(count)]
    return [r.rollout_id for r in await world.store.enqueue_rollouts(specs)]


async def claim(world: World, worker_id: str = "w1", **spec: Any) -> tuple[Rollout, Attempt]:
    """Enqueue one rollout and claim it."""
    await world.store.enqueue_rollout({"task": 1}, **spec)
    (rollout,) = await world.store.dequeue_rollouts(1, worker_id=worker_id)
    assert rollout.latest_attempt is not None
    return rollout, rollout.latest_attempt


async def finish(world: World, rollout_id: str, status: str = "succeeded") -> None:
    """Start an attempt at a rollout and report its outcome."""
    await world.store.start_attempt(rollout_id)
    await world.store.update_attempt(rollout_id, "latest", status=status)


async def poll(world: World, **options: Any) -> asyncio.Task[list[Rollout]]:
    """Begin a long poll, and return once the store has it."""
    before = (await world.store.get_statistics()).waiter_count
    task = asyncio.create_task(world.store.dequeue_rollouts(**options))
    while (await world.store.get_statistics()).waiter_count == before:
        await asyncio.sleep(0.001)
    return task


def batch(
    rollout_id: str, attempt_id: str, *names: str, numbers: tuple[int, ...] = ()
) -> SpanBatch:
    """Return a batch of new spans with these names, and sequence ids if given."""
    spans = [
        OtlpSpan(
            trace_id=os.urandom(16),
            span_id=os.urandom(8),
            name=name,
            start_time_unix_nano=1000 + i,
            end_time_unix_nano=2000 + i,
        )
        for i, name in enumerate(names)
    ]
    return SpanBatch(
        rollout_id=rollout_id, attempt_id=attempt_id, spans=spans, sequence_ids=numbers
    )


async def query(world: World, rollout_id: str, *args: Any, **options: Any) -> list[Span]:
    """Return all spans that a query yields."""
    return [span async for span in world.store.query_spans(rollout_id, *args, **options)]


async def names(world: World, rollout_id: str, *args: Any, **options: Any) -> list[str]:
    """Return the names of the spans that a query yields."""
    return [span.name for span in await query(world, rollout_id, *args, **options)]


async def snapshot(world: World) -> tuple[Any, ...]:
    """Return all that can be seen of the control plane, to show that nothing changed."""
    statistics = (await world.store.get_statistics()).message
    statistics.ClearField("uptime")
    for name in ("file_bytes", "disk_free_bytes", "finished_last_minute_count"):
        statistics.ClearField(name)
    rollouts = [r.message async for r in world.store.iter_rollouts()]
    workers = [w.message for w in await world.store.list_workers()]
    resources = [r.message for r in await world.store.list_resources()]
    return statistics, rollouts, workers, resources


@asynccontextmanager
async def refused(
    world: World, kind: type[LightningStoreError], reason: str, text: str = ""
) -> AsyncIterator[dict[str, str]]:
    """Expect an error of this class and reason that names `text`, and that nothing changed.

    Yields a dictionary that holds the metadata of the error afterwards.
    """
    before = await snapshot(world)
    metadata: dict[str, str] = {}
    with pytest.raises(kind) as caught:
        yield metadata
    metadata.update(caught.value.metadata)
    assert caught.value.reason == f"ERROR_REASON_{reason}"
    assert text in str(caught.value)
    assert await snapshot(world) == before
