"""Cases: records that cannot be read."""

from __future__ import annotations

import pytest
from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.rows import GroupQuery, ResourcesQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, without_faults
from lightningstore.service.storage.testing.records import (
    attempt,
    completed,
    finished,
    found,
    group,
    loaded,
    put,
    resources,
    rollout,
)
from lightningstore.v1.worker_pb2 import Worker


class DamageCases(Cases):
    """A damaged record costs the calls that name it, and no other: it is left out and counted. They need `damage`.

    FaultSuite leaves them out: it compares answers about the record with answers that leave it out.
    """

    @without_faults
    async def test_damaged_worker_is_left_out_and_counted(self, storage: Storage) -> None:
        workers = {f"w{n}": Worker(worker_id=f"w{n}") for n in (1, 2, 3)}
        await put(storage, rollout(1), workers=workers)
        storage, snapshot = await self.damaged(storage, "worker", "w2")
        assert sorted(worker.worker_id for worker in snapshot.workers) == ["w1", "w3"]
        assert [item.row.key for item in snapshot.live] == [1]
        assert storage.damaged_records == 1
        await put(storage, workers={"w2": workers["w2"]})
        storage, snapshot = await self.reopen(storage)
        assert len(snapshot.workers) == 3
        assert storage.damaged_records == 0

    @without_faults
    async def test_damaged_resources_are_left_out_and_counted(self, storage: Storage) -> None:
        await put(
            storage,
            rollout(1),
            resources=resources(1, 1) | resources(2, 2) | resources(3, 3),
        )
        storage, snapshot = await self.damaged(storage, "resources", "rs2")
        assert [item.row.key for item in snapshot.live] == [1]
        for limit, names in ((9, ["rs1", "rs3"]), (2, ["rs1", "rs3"]), (1, ["rs1"])):
            listed = await storage.list_resources(ResourcesQuery(limit=limit))
            assert [record.resources_id for _, record in listed] == names
        with pytest.raises(DataDamaged):
            await storage.get_resources(2)
        assert await storage.get_resources(3) is not None
        assert storage.damaged_records == 1

    @without_faults
    async def test_damaged_live_rollout_is_left_out_and_counted(self, storage: Storage) -> None:
        await put(storage, *(rollout(k) for k in (1, 2, 3)), *(attempt(k, k) for k in (1, 2, 3)))
        storage, snapshot = await self.damaged(storage, "rollout", "r2")
        assert [item.row.key for item in snapshot.live] == [1, 3]
        assert storage.damaged_records == 1
        assert await found(storage) == ["r1", "r3"]
        with pytest.raises(DataDamaged):
            await storage.load(["r2"])
        assert sorted(await loaded(storage, "r1", "r3")) == ["r1", "r3"]
        assert storage.damaged_records == 1

    @without_faults
    async def test_other_rollouts_take_the_place_of_damaged_ones_in_a_page(
        self, storage: Storage
    ) -> None:
        await put(storage, *(rollout(k) for k in range(1, 8)))
        for name in ("r2", "r3", "r6"):
            storage, _ = await self.damaged(storage, "rollout", name)
        for order in ("key", "rollout_id", "start_time", "priority", "reward"):
            page = {"order_by": order, "limit": 3}
            assert await found(storage, **page) == ["r1", "r4", "r5"], order
            assert await found(storage, **page, descending=True) == ["r7", "r5", "r4"], order
            assert await found(storage, **page, skip=4) == ["r5", "r7"], order
        assert await found(storage, limit=3, statuses=frozenset([1])) == ["r1", "r4", "r5"]

    @without_faults
    async def test_damaged_finished_rollout_is_left_out_and_counted(self, storage: Storage) -> None:
        await put(storage, *(finished(k, k) for k in (1, 2, 3)))
        storage, snapshot = await self.damaged(storage, "rollout", "r1")
        assert snapshot.live == []
        assert [item.row.key for item in await completed(storage)] == [2, 3]
        assert await found(storage) == ["r2", "r3"]
        assert storage.damaged_records == 1
        assert len(await storage.finished((0, 0), 10)) == 3  # so that retention removes it

    @without_faults
    async def test_damaged_groups_are_left_out_and_counted(self, storage: Storage) -> None:
        rows = [group(1), group(2), group(3), group(4, number=1), group(5, number=2)]
        await put(storage, groups={row.key: row for row in rows})
        storage, snapshot = await self.damaged(storage, "group", "g2")
        assert sorted(snapshot.groups) == [rows[0], rows[2]]
        assert storage.damaged_records == 1
        storage, _ = await self.damaged(storage, "group", "g4")
        assert await storage.list_groups(GroupQuery(limit=3)) == [rows[0], rows[2], rows[4]]
        assert await storage.group_completions(0, 1) == [rows[4]]
        assert await storage.load_groups(["g1", "g5"]) == [rows[0], rows[4]]
        for names in (["g2"], ["g1", "g4"]):
            with pytest.raises(DataDamaged):
                await storage.load_groups(names)
        assert storage.damaged_records == 2
