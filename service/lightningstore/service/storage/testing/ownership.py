"""Cases: who owns a store. Those about a lease that ends need `take_over`."""

from __future__ import annotations

import time

import pytest
from lightningstore.service.rules.errors import OwnershipLost, StorageUnusable
from lightningstore.service.storage.base import UNLIMITED, Counters, Storage
from lightningstore.service.storage.testing.cases import Cases, require_durable
from lightningstore.service.storage.testing.records import found, loaded, put, resources, rollout


class OwnershipCases(Cases):
    """What `open` acquires, `commit` checks and `close` releases."""

    async def _new_owner(self, storage: Storage) -> Storage:
        """Let another storage take over; returns it, open."""
        if storage.owned_until == UNLIMITED:
            pytest.skip("the storage declares that it is owned for as long as it is open")
        await self.take_over(storage)
        owner, _ = await self.open_at(self.place)
        return owner

    async def test_open_storage_is_owned(self, storage: Storage) -> None:
        assert storage.owned_until > time.clock_gettime(time.CLOCK_BOOTTIME)
        storage.check()
        await put(storage, rollout(1))
        storage.check()

    async def test_open_store_cannot_be_opened_by_another(self, storage: Storage) -> None:
        require_durable(storage)
        await put(storage, rollout(1))
        second = await self.make()
        with pytest.raises(StorageUnusable):
            await second.open()
        await put(storage, rollout(2))
        await storage.close()
        snapshot = await second.open()  # the failed attempt left nothing behind
        assert [item.row.key for item in snapshot.live] == [1, 2]
        await put(second, rollout(3))
        assert await found(second) == ["r1", "r2", "r3"]

    async def test_new_owner_has_all_commits_of_the_former(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        owner = await self._new_owner(storage)
        assert list(await loaded(owner, "r1")) == ["r1"]
        await put(owner, rollout(2))
        assert await found(owner) == ["r1", "r2"]

    async def test_new_owner_has_the_versions_of_the_former(self, storage: Storage) -> None:
        numbers = Counters(resources_updates=3)
        await put(storage, resources=resources(1, 1) | resources(2, 2))
        await put(storage, resources=resources(1, 3, version=2), outdated=[1], counters=numbers)
        if storage.owned_until == UNLIMITED:
            pytest.skip("the storage declares that it is owned for as long as it is open")
        await self.take_over(storage)
        owner, snapshot = await self.open_at(self.place)
        assert sorted(v.publish_number for v in snapshot.resources) == [2, 3]
        assert snapshot.counters.resources_updates == 3
        assert await owner.get_resources(3) == resources(1, 3, version=2)[3].record
        assert await owner.get_resources(1) is None

    async def test_former_owner_writes_nothing(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        owner = await self._new_owner(storage)
        for _ in range(2):
            with pytest.raises(OwnershipLost):
                await put(storage, rollout(2))
        with pytest.raises(OwnershipLost):
            storage.check()
        await put(owner, rollout(3))
        assert await found(owner) == ["r1", "r3"]

    async def test_lease_of_a_former_owner_is_over(self, storage: Storage) -> None:
        """Otherwise it would answer reads from its memory while another process writes."""
        await self._new_owner(storage)
        assert storage.owned_until <= time.clock_gettime(time.CLOCK_BOOTTIME)

    async def test_former_owner_that_closes_takes_nothing_from_the_new(
        self, storage: Storage
    ) -> None:
        owner = await self._new_owner(storage)
        await storage.close()
        await put(owner, rollout(1))
        third = await self.make()
        with pytest.raises(StorageUnusable):
            await third.open()
        assert await found(owner) == ["r1"]
