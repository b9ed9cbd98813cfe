"""Cases: a new store, and a store that is opened again."""

from __future__ import annotations

import pytest
from lightningstore.service.rules.rows import (
    GroupQuery,
    RequestRow,
    ResourcesQuery,
    ResourcesVersion,
)
from lightningstore.service.storage.base import Counters, Storage
from lightningstore.service.storage.testing.cases import Cases, require_durable
from lightningstore.service.storage.testing.records import (
    attempt,
    batches,
    completed,
    count,
    finished,
    found,
    group,
    input_of,
    loaded,
    packed,
    put,
    resources,
    rollout,
    spans,
    update,
)
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_FAILED, ATTEMPT_STATUS_RUNNING
from lightningstore.v1.rollout_pb2 import RolloutStatus
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE, Durability
from lightningstore.v1.worker_pb2 import WORKER_STATUS_BUSY, WORKER_STATUS_IDLE, Worker


class OpeningCases(Cases):
    """What `open` returns."""

    async def test_new_store_is_empty(self, storage: Storage) -> None:
        _, snapshot = await self.open_at(self.place / "new")
        assert snapshot.store_id
        assert snapshot.counters == Counters()
        assert snapshot.live == snapshot.workers == []
        assert (snapshot.resources, snapshot.requests) == ([], [])
        assert snapshot.settings == b""
        assert await found(storage) == []
        assert await storage.load(["r1"]) == []
        assert await count(storage) == 0
        assert await storage.group_members("g") == []
        assert await storage.completions(0, 10) == []
        assert await storage.finished((0, 0), 10) == []
        assert await storage.finished((0, 0), 10, 1 << 60) == []
        assert await storage.leftover_spans() == []
        assert await storage.span_ids(1, 1) == []
        assert await storage.get_spans(1, 1) is None
        assert await batches(storage) == []
        assert await storage.list_resources(ResourcesQuery()) == []
        assert await storage.get_resources(1) is None
        assert await storage.load_groups(["g"]) == []
        assert await storage.list_groups(GroupQuery()) == []
        assert await storage.group_completions(0, 10) == []

    async def test_storage_describes_itself(self, storage: Storage) -> None:
        assert storage.name
        assert storage.location
        assert storage.durability in Durability.values()[1:]
        assert storage.damaged_records == 0

    async def test_stores_at_different_places_share_nothing(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        other, snapshot = await self.open_at(self.place / "other")
        another = await self.open_at(self.place / "another")
        assert snapshot.store_id != another[1].store_id
        assert snapshot.live == []
        assert await found(other) == []
        await put(other, rollout(1, rollout_id="else"))
        assert await found(storage) == ["r1"]

    async def test_store_keeps_its_id(self, storage: Storage) -> None:
        storage, first = await self.reopen(storage)
        await put(storage, rollout(1))
        _, second = await self.reopen(storage)
        assert second.store_id == first.store_id

    async def test_live_rollouts_come_back_without_their_inputs(self, storage: Storage) -> None:
        statuses = dict(enumerate(RolloutStatus.values()[1:], 1))
        ended = (4, 5, 6)  # by the keys of `statuses`
        rows = [
            rollout(k, status=v, position=10 * k, available_ns=100 * k, priority=-k)
            for k, v in statuses.items()
        ]
        await put(storage, *rows, attempt(1, 3), attempt(2, 1), attempt(3, 3, last_sequence_id=7))
        _, snapshot = await self.reopen(storage)
        live = {item.row.key: item for item in snapshot.live}
        assert sorted(live) == [k for k in statuses if k not in ended]
        assert len(snapshot.live) == len(live)
        for key, item in live.items():
            assert item.row == rows[key - 1]
            assert (item.input_json, item.input_bytes) == (b"", len(input_of(key)))
        assert live[3].attempts == [attempt(1, 3), attempt(3, 3, last_sequence_id=7)]
        assert live[1].attempts == [attempt(2, 1)]
        assert live[2].attempts == []

    async def test_ended_rollout_with_live_attempt_comes_back(self, storage: Storage) -> None:
        await put(
            storage,
            *(finished(k, k) for k in (1, 2, 3)),
            attempt(1, 1, status=ATTEMPT_STATUS_FAILED),
            attempt(2, 2, status=ATTEMPT_STATUS_RUNNING),
            attempt(3, 2, status=ATTEMPT_STATUS_FAILED),
        )
        _, snapshot = await self.reopen(storage)
        (only,) = snapshot.live
        assert only.row.key == 2
        assert [row.key for row in only.attempts] == [2, 3]

    async def test_finished_rollout_does_not_come_back(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), attempt(1, 1))
        await update(storage, finished(1, 1), attempt(1, 1, status=ATTEMPT_STATUS_FAILED))
        storage, snapshot = await self.reopen(storage)
        assert [item.row.key for item in snapshot.live] == [2]
        assert list(await loaded(storage, "r1")) == ["r1"]

    async def test_reopened_rollout_comes_back(self, storage: Storage) -> None:
        await put(storage, finished(1, 1))
        await update(storage, rollout(1, position=5))
        _, snapshot = await self.reopen(storage)
        assert [item.row.position for item in snapshot.live] == [5]

    async def test_many_live_rollouts_come_back(self, storage: Storage) -> None:
        count = 500
        attempts = [attempt(k, k) for k in range(1, count + 1)]
        await put(storage, *(rollout(k) for k in range(1, count + 1)), *attempts)
        _, snapshot = await self.reopen(storage)
        assert sorted(item.row.key for item in snapshot.live) == list(range(1, count + 1))
        assert all(item.attempts == [attempts[item.row.key - 1]] for item in snapshot.live)

    async def test_counters_come_back_as_last_committed(self, storage: Storage) -> None:
        first = Counters(rollout_key=1, rollouts={1: 1})
        counters = Counters(
            rollout_key=3,
            attempt_key=1 << 40,
            span_key=5,
            position=6,
            completion_number=7,
            resources_updates=8,
            spans=9,
            span_bytes=1 << 50,
            rollouts={1: 1, 4: 2},
            attempts={2: 1},
            clock=[1, "boot", 2, 3, [[4, 5, -6]]],
        )
        await put(storage, rollout(1), counters=first)
        await put(storage, rollout(2), counters=counters)
        _, snapshot = await self.reopen(storage)
        assert snapshot.counters == counters

    async def test_commit_without_counters_keeps_them(self, storage: Storage) -> None:
        await put(storage, rollout(1), counters=Counters(rollout_key=1))
        await put(storage, rollout(2), counters=None)
        _, snapshot = await self.reopen(storage)
        assert snapshot.counters == Counters(rollout_key=1)

    async def test_settings_come_back_as_last_committed(self, storage: Storage) -> None:
        storage, snapshot = await self.reopen(storage)
        assert snapshot.settings == b""
        await put(storage, settings=b"first")
        await put(storage, settings=b"\x00\xff second")
        storage, snapshot = await self.reopen(storage)
        assert snapshot.settings == b"\x00\xff second"
        await put(storage, rollout(1))  # changes no settings
        storage, snapshot = await self.reopen(storage)
        assert snapshot.settings == b"\x00\xff second"
        await put(storage, settings=b"")
        _, snapshot = await self.reopen(storage)
        assert snapshot.settings == b""

    async def test_workers_come_back_as_last_committed(self, storage: Storage) -> None:
        idle = Worker(worker_id="w", status=WORKER_STATUS_IDLE)
        busy = Worker(worker_id="w", status=WORKER_STATUS_BUSY)
        other = Worker(worker_id="v", status=WORKER_STATUS_IDLE)
        await put(storage, workers={"w": idle, "v": other})
        await put(storage, workers={"w": busy})
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.workers, key=lambda worker: worker.worker_id) == [other, busy]

    async def test_versions_of_resources_come_back(self, storage: Storage) -> None:
        await put(storage, resources=resources(1, 1, "b"))
        await put(storage, resources=resources(2, 2, "a"))
        await put(storage, resources=resources(1, 3, "b", version=2))
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.resources, key=lambda version: version.publish_number) == [
            ResourcesVersion("b", 1, 1, 1),
            ResourcesVersion("a", 2, 1, 2),
            ResourcesVersion("b", 1, 2, 3),
        ]

    async def test_requests_come_back_oldest_first(self, storage: Storage) -> None:
        rows = [RequestRow(f"M{n % 2}", f"id{n}", n, f"answer {n}".encode(), n) for n in range(6)]
        await put(storage, requests=[*rows[3:], rows[1]])
        await put(storage, requests=[rows[2], rows[0]])
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == rows

    async def test_request_ids_are_unique_by_method(self, storage: Storage) -> None:
        first = RequestRow("M", "id", 1, b"first", 1)
        second = RequestRow("M", "id", 2, b"second", 2)
        elsewhere = RequestRow("N", "id", 3, b"elsewhere", 3)
        await put(storage, requests=[first, elsewhere])
        await put(storage, requests=[second])
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == [second, elsewhere]

    async def test_old_requests_are_forgotten(self, storage: Storage) -> None:
        rows = [RequestRow("M", f"id{n}", 0, b"", n) for n in range(5)]
        await put(storage, requests=rows)
        await put(
            storage, requests=[RequestRow("M", "id9", 0, b"", 9)], forget_requests_before_ns=3
        )
        storage, snapshot = await self.reopen(storage)
        assert [row.time_ns for row in snapshot.requests] == [3, 4, 9]
        await put(storage, forget_requests_before_ns=100)
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == []

    async def test_history_is_there_after_reopening(self, storage: Storage) -> None:
        await put(
            storage,
            *(finished(k, 6 - k, group_id="g") for k in range(1, 6)),
            *(attempt(k, k, status=ATTEMPT_STATUS_FAILED) for k in range(1, 6)),
            spans(1, 5, 9),
            spans(2, 1, 4),
            spans(3, 1, 4, rollout_key=2, attempt_key=2),
            resources=resources(1, 1, "rs"),
        )
        storage, snapshot = await self.reopen(storage)
        assert snapshot.live == []
        assert await found(storage) == ["r1", "r2", "r3", "r4", "r5"]
        assert [item.row.key for item in await completed(storage)] == [5, 4, 3, 2, 1]
        assert await storage.group_members("g") == ["r1", "r2", "r3", "r4", "r5"]
        assert await batches(storage) == [2, 1]
        assert await storage.span_ids(2, 2) == [(3, packed([1, 2, 3, 4]))]
        assert (await loaded(storage, "r4"))["r4"].row == finished(4, 2, group_id="g")
        assert await storage.get_resources(1) == resources(1, 1, "rs")[1].record

    async def test_closed_storage_can_be_opened_again(self, storage: Storage) -> None:
        require_durable(storage)
        await put(storage, rollout(1))
        await storage.close()
        snapshot = await storage.open()
        assert [item.row.key for item in snapshot.live] == [1]
        await put(storage, rollout(2))
        assert await found(storage) == ["r1", "r2"]

    async def test_storage_without_durability_is_empty_when_opened_again(
        self, storage: Storage
    ) -> None:
        if storage.durability != DURABILITY_NONE:
            pytest.skip("the storage declares that data outlive the process")
        for is_closed in (True, False):
            await put(
                storage,
                *(rollout(1), spans(1, 1, 1)),
                resources=resources(1, 1),
                groups={1: group(1)},
            )
            if is_closed:
                await storage.close()
            snapshot = await storage.open()
            assert (snapshot.live, snapshot.counters) == ([], Counters())
            assert await found(storage) == []
            assert await storage.list_resources(ResourcesQuery()) == []
            assert await storage.list_groups(GroupQuery()) == snapshot.groups == []
            assert await batches(storage) == []

    async def test_open_storage_can_be_opened_again(self, storage: Storage) -> None:
        """That is how the engine recovers from a failure."""
        require_durable(storage)
        await put(storage, rollout(1))
        for k in (2, 3):
            snapshot = await storage.open()
            assert [item.row.key for item in snapshot.live] == list(range(1, k))
            await put(storage, rollout(k))
        assert await found(storage) == ["r1", "r2", "r3"]
