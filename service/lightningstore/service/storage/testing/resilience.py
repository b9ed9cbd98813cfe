"""Cases: concurrent and cancelled calls, sizes, probes, and closed storages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import GroupQuery, ResourcesQuery, RolloutQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, require_durable
from lightningstore.service.storage.testing.records import (
    attempt,
    batches,
    count,
    finished,
    found,
    group,
    items,
    loaded,
    put,
    resources,
    rollout,
    spans,
    sweep,
    update,
)
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

#: Turns of the event loop after which a call is cancelled: before it has begun, and at its first steps.
TURNS = range(6)

Read = Callable[[Storage], Awaitable[Any]]
#: Every read, over what `_fill` writes; none has an empty answer.
READS: dict[str, Read] = {
    "load": lambda s: s.load(["r1"]),
    "load_many": lambda s: s.load([f"r{k}" for k in range(1, 40)]),
    "scan_rollouts": lambda s: items(s.scan_rollouts(RolloutQuery(limit=1000))),
    "scan_rollouts_sorted": lambda s: items(s.scan_rollouts(RolloutQuery(order_by="priority"))),
    "count_rollouts": lambda s: s.count_rollouts(RolloutQuery()),
    "group_members": lambda s: s.group_members("g"),
    "completions": lambda s: s.completions(0, 10),
    "finished": lambda s: s.finished((0, 0), 10),
    "finished_by": lambda s: s.finished((0, 0), 10, 1 << 60),
    "leftover_spans": lambda s: s.leftover_spans(),
    "span_ids": lambda s: s.span_ids(1, 1),
    "get_spans": lambda s: s.get_spans(1, 1),
    "scan_spans": lambda s: items(s.scan_spans(1, None, 1 << 60)),
    "list_resources": lambda s: s.list_resources(ResourcesQuery()),
    "get_resources": lambda s: s.get_resources(1),
    "load_groups": lambda s: s.load_groups(["g1"]),
    "list_groups": lambda s: s.list_groups(GroupQuery()),
    "group_completions": lambda s: s.group_completions(0, 10),
}


async def _fill(storage: Storage) -> None:
    await put(
        storage,
        *(finished(k, k, group_id="g") for k in range(1, 200)),
        *(attempt(k, k) for k in range(1, 200)),
        *(spans(k, k, k) for k in range(1, 50)),
        spans(50, 1, 1, rollout_key=500),
        rollout(500),
        resources=resources(1, 1, "rs"),
        groups={1: group(1), 2: group(2, number=1)},
    )
    await update(storage, removed=[500])


async def _cancel_after(turns: int, call: Awaitable[Any]) -> bool:
    """Cancel a call after some turns of the event loop; returns False if it had completed by then."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


class ResilienceCases(Cases):
    """How a storage reacts to concurrent, cancelled and late calls."""

    async def test_many_reads_at_once_beside_commits(self, storage: Storage) -> None:
        await _fill(storage)
        expected = {name: await read(storage) for name, read in READS.items()}
        done = asyncio.Event()

        async def write() -> None:
            for k in range(1000, 1030):
                await put(storage, rollout(k), spans(k, k, k, rollout_key=k, attempt_key=k))
            done.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            while not done.is_set():
                reads = [read(storage) for name, read in READS.items() for _ in range(5)]
                answers = await asyncio.gather(*reads)
                for i, name in enumerate(READS):
                    if name not in ("scan_rollouts", "scan_rollouts_sorted", "count_rollouts"):
                        assert answers[5 * i : 5 * i + 5] == [expected[name]] * 5, name
        assert await count(storage) == 229

    async def test_cancelled_read_harms_no_other_call(self, storage: Storage) -> None:
        await _fill(storage)
        expected = {name: await read(storage) for name, read in READS.items()}
        for name, read in READS.items():
            for turns in TURNS:
                await _cancel_after(turns, read(storage))
                assert await read(storage) == expected[name], (name, turns)
        await put(storage, rollout(300))
        assert await count(storage) == 200

    async def test_cancelled_commit_is_written_whole_or_not_at_all(self, storage: Storage) -> None:
        """The next commit works, whatever the cancelled one had done."""
        for key, (turns, size) in enumerate(
            ((turns, size) for size in (1, 200_000) for turns in TURNS), 1
        ):
            commit = put(storage, rollout(key), attempt(key, key), _of(key, size))
            if await _cancel_after(turns, commit):
                await self._recover(storage)
            await put(storage, rollout(100 + key), attempt(100 + key, 100 + key))
            assert list(await loaded(storage, f"r{100 + key}")) == [f"r{100 + key}"]
        await self._assert_whole(storage)
        storage, _ = await self.reopen(storage)
        await self._assert_whole(storage)

    async def _recover(self, storage: Storage) -> None:
        """Open the storage again, as the engine does when the outcome of a commit is unknown."""
        if storage.durability != DURABILITY_NONE:
            await storage.open()

    async def _assert_whole(self, storage: Storage) -> None:
        by_id = await loaded(storage, *(f"r{k}" for k in range(1, 13)))
        for item in by_id.values():
            assert [row.key for row in item.attempts] == [item.row.key]
        for key in range(1, 13):
            assert await batches(storage, key) == ([key] if f"r{key}" in by_id else [])

    async def test_cancelled_removal_is_written_whole_or_not_at_all(self, storage: Storage) -> None:
        for key in range(1, len(TURNS) + 1):
            await put(storage, rollout(key), attempt(key, key), _of(key, 100))
            if await _cancel_after(key - 1, update(storage, removed=[key])):
                for batch in await storage.leftover_spans():
                    assert f"r{batch}" not in await found(storage)
                await self._recover(storage)
            await put(storage, rollout(100 + key))
        left = await found(storage, rollout_id_contains="r")
        await sweep(storage)
        for key in range(1, len(TURNS) + 1):
            present = f"r{key}" in left
            assert len(await storage.load([f"r{key}"])) == present
            assert await batches(storage, key) == ([key] if present else [])

    async def test_scan_that_is_left_half_way_harms_no_other_call(self, storage: Storage) -> None:
        await _fill(storage)
        for _ in range(20):
            scans: list[Any] = [
                storage.scan_rollouts(RolloutQuery(limit=1000)),
                storage.scan_spans(1, None, 1 << 60),
            ]
            for scan in scans:
                assert await anext(scan)
                await scan.aclose()
        await put(storage, rollout(300))
        assert await count(storage) == 200

    async def test_bytes_without_a_disk_are_none(self, storage: Storage) -> None:
        if storage.durability != DURABILITY_NONE:
            pytest.skip("the storage declares that data outlive the process")
        await put(storage, rollout(1), spans(1, 1, 1))
        assert (await storage.file_bytes(), await storage.used_bytes()) == (0, 0)
        assert await storage.disk_bytes() == (0, 0)

    async def test_disk_is_larger_than_what_is_free_on_it(self, storage: Storage) -> None:
        free, size = await storage.disk_bytes()
        assert 0 <= free <= size

    async def test_used_bytes_follow_what_is_stored(self, storage: Storage) -> None:
        """Retention removes rollouts until this is below its limit, so it has to be up to date."""
        require_durable(storage)
        before = await storage.used_bytes()
        assert await storage.file_bytes() >= 0
        batch = os.urandom(1 << 20)
        for k in range(1, 9):
            await put(storage, rollout(k), spans(k, 1, 1, rollout_key=k, data=batch))
        full = await storage.used_bytes()
        assert full - before >= 8 << 20
        assert full - before < 24 << 20
        assert await storage.file_bytes() >= 8 << 20
        await update(storage, removed=list(range(1, 9)))
        await sweep(storage)
        assert await storage.used_bytes() - before < 1 << 20

    async def test_probe_leaves_nothing(self, storage: Storage) -> None:
        await _fill(storage)
        used = await storage.used_bytes()
        for size in (0, 1, 2 << 20):
            await storage.probe(size)
        assert await storage.used_bytes() < used + (1 << 20)
        await put(storage, rollout(300))
        assert await count(storage) == 200
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == []

    async def test_closed_storage_says_so(self, storage: Storage) -> None:
        await _fill(storage)
        await storage.close()
        for read in READS.values():
            with pytest.raises(StorageFailed):
                await read(storage)
        with pytest.raises(StorageFailed):
            await put(storage, rollout(600))
        with pytest.raises(StorageFailed):
            await storage.probe(1)

    async def test_storage_can_be_closed_at_any_time_and_twice(self, storage: Storage) -> None:
        fresh = await self.make(self.place / "never opened")
        await fresh.close()
        await fresh.close()
        await put(storage, rollout(1))
        await storage.close()
        await storage.close()

    async def test_storage_is_closed_while_a_scan_is_half_way(self, storage: Storage) -> None:
        await _fill(storage)
        scan = storage.scan_rollouts(RolloutQuery(limit=1000))
        await anext(scan)
        storage, _ = await self.reopen(storage)
        await put(storage, rollout(300))
        assert await count(storage) == 200
        await scan.aclose()  # type: ignore[attr-defined]


def _of(key: int, size: int) -> Any:
    return spans(key, 1, 1, rollout_key=key, attempt_key=key, data=bytes(size))
