"""Cases: a commit is written whole or not at all, and is visible when it has returned."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import GroupQuery, RequestRow, ResourcesQuery, RolloutQuery
from lightningstore.service.storage.base import COMMITTED, Changes, Counters, Storage
from lightningstore.service.storage.testing.cases import Cases, large, require_durable
from lightningstore.service.storage.testing.records import (
    ANY_KEY,
    Row,
    attempt,
    batches,
    changes_of,
    completed,
    count,
    finished,
    found,
    group,
    input_of,
    items,
    loaded,
    packed,
    put,
    resources,
    rollout,
    spans,
    update,
)
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED
from lightningstore.v1.rollout_pb2 import ROLLOUT_MODE_VAL
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE
from lightningstore.v1.worker_pb2 import Worker


class CommitCases(Cases):
    """What `commit` writes."""

    async def test_commit_is_visible_to_every_read_when_it_returns(self, storage: Storage) -> None:
        for k in range(1, 31):
            await put(
                storage,
                finished(k, k, group_id="g"),
                attempt(k, k, status=ATTEMPT_STATUS_SUCCEEDED),
                spans(k, k, k, rollout_key=k, attempt_key=k),
                resources=resources(k, k),
                groups={k: group(k, number=k)},
            )
            assert (await loaded(storage, f"r{k}"))[f"r{k}"].attempts[0].key == k
            assert await found(storage, descending=True, limit=1) == [f"r{k}"]
            assert await count(storage) == k
            assert len(await storage.group_members("g")) == k
            assert [item.row.key for item in await storage.completions(k - 1, 10)] == [k]
            assert len(await storage.finished((0, 0), 100)) == k
            assert await batches(storage, k) == [k]
            assert await storage.span_ids(k, k) == [(k, packed([k]))]
            assert await storage.get_spans(k, k) is not None
            assert await storage.get_resources(k) is not None
            assert len(await storage.list_resources(ResourcesQuery())) == k
            assert len(await storage.load_groups([f"g{k}"])) == 1
            assert len(await storage.list_groups(GroupQuery())) == k
            assert len(await storage.group_completions(0, 100)) == k

    async def test_later_values_replace_earlier_ones(self, storage: Storage) -> None:
        await put(storage, rollout(1, position=3), rollout(2), attempt(1, 1))
        row = rollout(
            1, position=0, available_ns=5, priority=3, mode=ROLLOUT_MODE_VAL, resources_id="rs"
        )
        tried = attempt(1, 1, status=ATTEMPT_STATUS_SUCCEEDED, last_sequence_id=9)
        await update(storage, row, tried)
        item = (await loaded(storage, "r1"))["r1"]
        assert (item.row, item.attempts) == (row, [tried])
        assert item.input_json == input_of(1)
        assert await found(storage, modes=frozenset([ROLLOUT_MODE_VAL])) == ["r1"]
        assert await found(storage, order_by="priority", descending=True) == ["r1", "r2"]

    async def test_input_can_be_replaced(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2))
        await put(storage, rollout(1), inputs=[(1, b'"new"')])
        items_by_id = await loaded(storage, "r1", "r2")
        assert items_by_id["r1"].input_json == b'"new"'
        assert items_by_id["r2"].input_json == input_of(2)

    async def test_last_of_two_values_in_a_commit_is_kept(self, storage: Storage) -> None:
        requests = [RequestRow("M", "id", 1, b"first", 1), RequestRow("M", "id", 2, b"second", 2)]
        inputs = [(1, b'"first"'), (1, b'"second"')]
        changes = changes_of(rollout(1), requests=requests)
        changes.inputs = inputs
        await storage.commit(changes)
        assert (await loaded(storage, "r1"))["r1"].input_json == b'"second"'
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == requests[1:]

    async def test_empty_commit_changes_nothing(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        await storage.commit(Changes())
        await put(storage)
        assert await found(storage) == ["r1"]

    async def test_commit_without_durability_completes_at_once(self, storage: Storage) -> None:
        if storage.durability != DURABILITY_NONE:
            pytest.skip("the storage declares that data outlive the process")
        assert storage.commit(changes_of(rollout(1))) is COMMITTED
        assert await found(storage) == ["r1"]

    @large
    async def test_commit_of_many_rows_is_written_whole(self, storage: Storage) -> None:
        keys = range(1, 1201)
        await put(
            storage,
            *(finished(k, k) for k in keys),
            *(attempt(k, k) for k in keys),
            *(spans(k, k, k, rollout_key=k, attempt_key=k, data=b"x") for k in keys),
        )
        assert await count(storage) == len(keys)
        assert [item.row.key for item in await completed(storage)] == list(keys)
        last = (await loaded(storage, "r1200"))["r1200"]
        assert [row.key for row in last.attempts] == [1200]
        assert await batches(storage, 600) == [600]

    async def test_changes_can_be_filled_again_after_the_commit(self, storage: Storage) -> None:
        changes = changes_of(rollout(1), attempt(1, 1), spans(1, 1, 2))
        await storage.commit(changes)
        changes.clear()
        changes.rollouts[2] = rollout(2)
        changes.inputs.append((2, input_of(2)))
        await storage.commit(changes)
        assert list(await loaded(storage, "r1", "r2")) == ["r1", "r2"]
        assert await batches(storage) == [1]

    async def test_commit_that_fails_leaves_nothing(self, storage: Storage) -> None:
        require_durable(storage)
        await put(storage, rollout(1), rollout(2), attempt(1, 1), spans(1, 1, 1))
        for removed in ([], [2]):
            await self._fail(storage, removed=removed)
            await self._assert_unchanged(storage)
            await storage.open()
            await self._assert_unchanged(storage)
            await put(storage, rollout(3))
            assert await found(storage) == ["r1", "r2", "r3"]
            await update(storage, removed=[3])
        storage, snapshot = await self.reopen(storage)
        await self._assert_unchanged(storage)
        assert (snapshot.workers, snapshot.resources, snapshot.requests) == ([], [], [])
        assert snapshot.counters == Counters()

    async def _fail(self, storage: Storage, **fields: object) -> None:
        """Make a commit fail: batches of spans are stored once, so a key that is taken is an error."""
        rows: list[Row] = [
            rollout(1, priority=9),
            rollout(3, group_id="g"),
            attempt(2, 1),
            spans(2, 2, 2),
            spans(1, 5, 5),
        ]
        changes = changes_of(
            *rows,
            counters=Counters(rollout_key=99),
            workers={"w": Worker(worker_id="w")},
            resources=resources(1, 1, "rs"),
            requests=[RequestRow("M", "id", 0, b"", 1)],
            **fields,
        )
        with pytest.raises(StorageFailed):
            await storage.commit(changes)

    async def _assert_unchanged(self, storage: Storage) -> None:
        assert await found(storage) == ["r1", "r2"]
        item = (await loaded(storage, "r1"))["r1"]
        assert (item.row, item.attempts) == (rollout(1), [attempt(1, 1)])
        assert await storage.load(["r3"]) == []
        assert await storage.group_members("g") == []
        assert await batches(storage) == [1]
        assert await storage.span_ids(1, 1) == [(1, packed([1]))]
        assert await storage.get_resources(1) is None
        assert await storage.leftover_spans() == []

    async def test_large_commit_that_fails_leaves_nothing(self, storage: Storage) -> None:
        require_durable(storage)
        await put(storage, rollout(1), spans(1, 1, 1))
        keys = range(2, 1500)
        with pytest.raises(StorageFailed):
            await put(storage, *(rollout(k) for k in keys), spans(2, 2, 2), spans(1, 3, 3))
        assert await found(storage) == ["r1"]
        storage, _ = await self.reopen(storage)
        assert await found(storage) == ["r1"]
        assert await batches(storage) == [1]

    async def test_records_of_one_commit_become_visible_together(self, storage: Storage) -> None:
        """While commits run, no read shows a rollout without its input, attempt or latest values."""
        await put(storage, rollout(1, latest_attempt_id="a1", attempt_count=1), attempt(1, 1))
        done = asyncio.Event()

        async def write() -> None:
            for k in range(2, 40):
                new = rollout(k, latest_attempt_id=f"a{100 + k}")
                changed = rollout(1, latest_attempt_id=f"a{k}", attempt_count=k)
                changes = changes_of(changed, new, attempt(k, 1), attempt(100 + k, k))
                await storage.commit(changes)
                await asyncio.sleep(0)
            done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            while not done.is_set():
                (item,) = await storage.load(["r1"])
                assert item.row.rollout.latest_attempt_id == item.attempts[-1].attempt.attempt_id
                assert item.row.rollout.attempt_count == len(item.attempts)
                for item in await items(storage.scan_rollouts(RolloutQuery())):
                    assert item.input_json == input_of(item.row.key)
                    (latest,) = item.attempts
                    assert item.row.rollout.latest_attempt_id == latest.attempt.attempt_id
                await asyncio.sleep(0)
        assert await count(storage) == 39

    async def test_spans_of_later_commits_stay_out_of_a_scan(self, storage: Storage) -> None:
        await put(storage, rollout(1), *(spans(k, 10 * k, 10 * k) for k in range(1, 41)))
        keys: list[int] = []
        late = 40
        async for row in storage.scan_spans(1, None, 40):
            keys.append(row.key)
            late += 1
            await put(storage, spans(late, 10 * row.key + 5, 10 * row.key + 5))
        assert keys == list(range(1, 41))
        assert len(await batches(storage, max_key=ANY_KEY)) == 80
