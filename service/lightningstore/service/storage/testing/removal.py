"""Cases: rollouts that are removed, and what they leave behind."""

from __future__ import annotations

import asyncio
import os

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.base import Counters, Storage
from lightningstore.service.storage.testing.cases import Cases, large, require_durable
from lightningstore.service.storage.testing.records import (
    Row,
    attempt,
    batches,
    changes_of,
    completed,
    count,
    finished,
    found,
    input_of,
    items,
    loaded,
    packed,
    put,
    rollout,
    spans,
    sweep,
    update,
)
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED


class RemovalCases(Cases):
    """`Changes.removed`, `leftover_spans` and `Changes.swept`."""

    async def test_removed_rollout_is_in_no_answer(self, storage: Storage) -> None:
        rows = [finished(k, k, group_id="g", queue="q", labels={"a": "1"}) for k in range(1, 6)]
        await put(storage, *rows, *(attempt(k, k) for k in range(1, 6)), spans(1, 1, 1))
        await update(storage, removed=[1, 3])
        await update(storage, removed=[5])
        assert await found(storage) == ["r2", "r4"]
        assert await found(storage, order_by="end_time", descending=True) == ["r4", "r2"]
        assert await found(storage, group_ids=frozenset(["g"])) == ["r2", "r4"]
        assert await found(storage, statuses=frozenset([4])) == ["r2", "r4"]
        assert await found(storage, rollout_ids=frozenset(["r1", "r2"])) == ["r2"]
        assert await found(storage, queues=frozenset(["q"])) == ["r2", "r4"]
        assert await found(storage, labels=frozenset([("a", "1")])) == ["r2", "r4"]
        assert await count(storage, labels=frozenset([("a", "1")])) == 2
        assert await count(storage) == 2
        assert list(await loaded(storage, "r1", "r2", "r3")) == ["r2"]
        assert await storage.load(["r5"]) == []
        assert await storage.group_members("g") == ["r2", "r4"]
        assert [item.row.key for item in await completed(storage)] == [2, 4]
        assert [row.rollout_id for row in await storage.finished((0, 0), 9)] == ["r2", "r4"]
        ended = await storage.finished((0, 0), 9, 1 << 60)
        assert sorted(row.rollout_id for row in ended) == ["r2", "r4"]

    async def test_removed_rollouts_do_not_come_back(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), attempt(1, 1), attempt(2, 2))
        await update(storage, removed=[1])
        _, snapshot = await self.reopen(storage)
        assert [item.row.key for item in snapshot.live] == [2]

    async def test_unknown_key_can_be_removed(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        await update(storage, removed=[99])
        await update(storage, removed=[1])
        await update(storage, removed=[1])
        assert await found(storage) == []

    async def test_commit_keeps_nothing_of_a_rollout_that_it_removes(
        self, storage: Storage
    ) -> None:
        await put(storage, rollout(1), rollout(2), attempt(1, 1), spans(1, 1, 3))
        rest: list[Row] = [rollout(2, priority=1), attempt(3, 2), spans(3, 1, 1, rollout_key=2)]
        gone: list[Row] = [
            rollout(1, priority=3),
            attempt(1, 1, status=ATTEMPT_STATUS_SUCCEEDED),
            attempt(2, 1),
            spans(2, 4, 5),
        ]
        await put(storage, *gone, *rest, removed=[1])
        assert await found(storage) == ["r2"]
        assert await storage.load(["r1"]) == []
        (item,) = await storage.load(["r2"])
        assert (item.row.rollout.priority, item.attempts) == (1, [attempt(3, 2)])
        await sweep(storage)
        assert await batches(storage) == []
        assert await batches(storage, 2) == [3]

    async def test_rollout_can_be_made_and_removed_in_one_commit(self, storage: Storage) -> None:
        await put(storage, rollout(1), attempt(1, 1), spans(1, 1, 1), removed=[1])
        await sweep(storage)
        assert await found(storage) == []
        assert await batches(storage) == []
        assert await storage.span_ids(1, 1) == []

    async def test_id_of_a_removed_rollout_can_be_used_again(self, storage: Storage) -> None:
        await put(storage, rollout(1, group_id="g"), attempt(1, 1), spans(1, 1, 1))
        await put(storage, rollout(2, rollout_id="r1"), removed=[1])
        (item,) = await storage.load(["r1"])
        assert (item.row.key, item.input_json, item.attempts) == (2, input_of(2), [])
        assert await storage.group_members("g") == []
        await update(storage, removed=[2])
        assert await storage.load(["r1"]) == []
        await put(storage, rollout(3, rollout_id="r1"))
        (item,) = await storage.load(["r1"])
        assert item.row.key == 3
        await sweep(storage)
        assert await found(storage) == ["r1"]
        assert await batches(storage, 3) == []

    @large
    async def test_leftover_spans_are_swept_until_none_is_left(self, storage: Storage) -> None:
        kept = [spans(k, k, k, rollout_key=2, data=b"x") for k in range(10_001, 10_011)]
        rows = [spans(k, k, k, rollout_key=1 + 2 * (k % 2), data=b"x") for k in range(1, 10_001)]
        await put(storage, rollout(1), rollout(2), rollout(3), *rows, *kept)
        await update(storage, removed=[1, 3])
        sweeps = await sweep(storage)
        assert len(sweeps) >= 3, "one commit must not delete everything"
        assert max(sweeps) <= 4000
        assert await storage.leftover_spans() == []
        for key in (1, 3):
            assert await batches(storage, key) == []
        assert await batches(storage, 2) == list(range(10_001, 10_011))

    @large
    async def test_large_leftover_spans_are_swept_in_parts(self, storage: Storage) -> None:
        require_durable(storage)
        content = os.urandom(4 << 20)
        for k in range(1, 9):
            await put(storage, spans(k, k, k, data=content))
        await put(storage, rollout(1), removed=[1])
        assert len(await sweep(storage)) >= 2

    async def test_leftover_spans_survive_reopening(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), *(spans(k, k, k) for k in range(1, 6)))
        await update(storage, removed=[1])
        storage, _ = await self.reopen(storage)
        keys = await storage.leftover_spans()
        assert sorted(keys) == [1, 2, 3, 4, 5]
        await update(storage, swept=keys[:2])
        storage, _ = await self.reopen(storage)
        assert sorted(await storage.leftover_spans()) == sorted(keys[2:])
        await sweep(storage)
        storage, _ = await self.reopen(storage)
        assert await storage.leftover_spans() == []
        assert await batches(storage) == []

    async def test_spans_of_others_are_left_alone(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), spans(1, 1, 1, rollout_key=2), spans(2, 1, 1))
        await update(storage, removed=[1])
        await put(storage, spans(3, 2, 2, rollout_key=2))
        await sweep(storage)
        assert await batches(storage, 2) == [1, 3]
        assert await storage.span_ids(2, 1) == [(1, packed([1])), (3, packed([2]))]

    @large
    async def test_many_rollouts_are_removed_at_once(self, storage: Storage) -> None:
        keys = list(range(1, 1201))
        await put(storage, *(finished(k, k) for k in keys), *(attempt(k, k) for k in keys))
        await put(storage, finished(1201, 1201))
        await update(storage, removed=keys)
        assert await found(storage) == ["r1201"]
        assert [item.row.key for item in await completed(storage)] == [1201]

    async def test_scans_beside_removals_show_whole_rollouts(self, storage: Storage) -> None:
        keys = range(1, 301)
        await put(storage, *(finished(k, k) for k in keys), *(attempt(k, k) for k in keys))
        done = asyncio.Event()

        async def remove() -> None:
            for key in range(1, 301, 5):
                await update(storage, removed=list(range(key, key + 5)))
                await asyncio.sleep(0)
            done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(remove())
            while not done.is_set():
                scanned = await items(storage.scan_rollouts(RolloutQuery(limit=5000)))
                for item in [*scanned, *await storage.completions(0, 50)]:
                    assert item.input_json == input_of(item.row.key)
                    assert [row.key for row in item.attempts] == [item.row.key]
                await asyncio.sleep(0)
        assert await found(storage) == []

    async def test_scan_that_has_begun_goes_on_after_a_removal(self, storage: Storage) -> None:
        await put(storage, *(rollout(k) for k in range(1, 6)))
        scan = storage.scan_rollouts(RolloutQuery())
        assert (await anext(scan)).row.key == 1
        await update(storage, removed=[1, 2, 3])
        rest = [item.row.key async for item in scan]
        assert rest[-2:] == [4, 5]
        assert await found(storage) == ["r4", "r5"]

    async def test_removal_and_counters_are_one_commit(self, storage: Storage) -> None:
        await put(storage, finished(1, 1), counters=Counters(rollouts={4: 1}))
        await storage.commit(changes_of(removed=[1], counters=Counters(rollouts={4: 0})))
        storage, snapshot = await self.reopen(storage)
        assert snapshot.counters == Counters(rollouts={4: 0})
        assert await count(storage) == 0
