"""The server is killed while rollouts are deleted: what was answered stays deleted, the rest is whole or absent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from contextlib import closing

import pytest
from lightningstore.client import AsyncLightningStore, LightningStoreError, NotFoundError
from lightningstore.service.storage.sqlite import tools
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.lab import Lab, until

pytestmark = pytest.mark.asyncio

#: Rollouts of one round, and of one call.
ROLLOUTS, CALL = 240, 40
SPANS = 3


async def fill(store: AsyncLightningStore, number: int) -> list[str]:
    """Add finished rollouts with spans; returns their ids."""
    ids = [f"r{number}-{n}" for n in range(ROLLOUTS)]
    await store.enqueue_rollouts([{"input": "x" * 500, "rollout_id": i} for i in ids])
    for rollout in await store.dequeue_rollouts(ROLLOUTS):
        names = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        spans = [
            Span(trace_id=b"t" * 16, span_id=n.to_bytes(8, "big"), name="s")
            for n in range(1, SPANS + 1)
        ]
        await store.add_spans(SpanBatch(**names, spans=spans))
        await store.update_attempt(*names.values(), status="succeeded")
    return ids


async def delete(address: str, ids: list[str], answered: set[str], first: asyncio.Event) -> None:
    """Delete rollouts in several calls, until the server is gone; records the answered ones."""
    async with AsyncLightningStore(address, timeout=None) as store:
        for start in range(0, len(ids), CALL):
            request = store.delete_rollouts(ids[start : start + CALL])
            try:
                answered.update((await asyncio.wait_for(request, 2)).deleted)
            except (TimeoutError, LightningStoreError):
                return
            first.set()


async def test_answered_deletions_survive_kill_9(lab: Lab, dice: random.Random, tries) -> None:
    gone: set[str] = set()
    unanswered = 0
    for number in range(tries("kills while deleting")):
        lab.start()
        async with AsyncLightningStore(lab.address, timeout=30) as store:
            ids = await fill(store, number)
        dice.shuffle(ids)
        answered: set[str] = set()
        first = asyncio.Event()
        tasks = [
            asyncio.create_task(delete(lab.address, ids[part::3], answered, first))
            for part in range(3)
        ]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(first.wait(), dice.uniform(0.0, 0.3))
        lab.kill()
        await asyncio.gather(*tasks)
        assert lab.integrity() == "ok"
        gone |= answered
        lab.start()
        async with AsyncLightningStore(lab.address, timeout=30) as store:
            left = [r.rollout_id async for r in store.iter_rollouts()]
            assert not gone & set(left)
            assert set(ids) >= set(left)
            unanswered += len(ids) - len(left) - len(answered)
            for rollout_id in dice.sample(left, min(20, len(left))):
                assert len([span async for span in store.query_spans(rollout_id)]) == SPANS
            for rollout_id in dice.sample(sorted(gone), min(20, len(gone))):
                with pytest.raises(NotFoundError):
                    await store.get_rollout(rollout_id)
            statistics = await store.get_statistics()
            assert statistics.span_count == SPANS * len(left)
            until("the spans that the killed server left are deleted", lambda: not orphans(lab))
            assert (await store.delete_rollouts(ids)).deleted == [i for i in ids if i in left]
        assert lab.end() == 0
        assert tools.check(lab.db) == []
        gone.update(ids)
    print(f"{len(gone)} deleted, {unanswered} of them without an answer")


def orphans(lab: Lab) -> int:
    """Return the number of batches of spans whose rollout is gone."""
    with closing(sqlite3.connect(f"file:{lab.db}?mode=ro", uri=True)) as connection:
        query = "SELECT count(*) FROM spans WHERE rollout_key NOT IN (SELECT key FROM rollouts)"
        (count,) = connection.execute(query).fetchone()
        return int(count)
