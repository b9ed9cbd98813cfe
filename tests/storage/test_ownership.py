"""A store whose data becomes another process's: it stops serving, for good, and answers nothing after its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

import pytest
import pytest_asyncio
from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import OwnershipLost, StorageFailed
from lightningstore.service.rules.rows import LoadedRollout
from lightningstore.service.server.config import Config
from lightningstore.service.storage.base import UNLIMITED, Changes, Snapshot
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.v1 import claim_pb2, completion_pb2, rollout_pb2
from lightningstore.v1.statistics_pb2 import DURABILITY_FULL

from tests.calls import Calls
from tests.clock import ManualClock

pytestmark = pytest.mark.asyncio


class Leased(MemoryStorage):
    """A back end with a lease, as one over a network has; the test ends it, or hands the data to another owner."""

    durability = DURABILITY_FULL

    def __init__(self) -> None:
        super().__init__()
        self.owned_until = UNLIMITED
        self.taken_over = False
        self.failing = False
        self.opened = self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self) -> Snapshot:
        self.opened += 1
        if self.taken_over:
            raise OwnershipLost("another server has taken over")
        return await super().open()

    def commit(self, changes: Changes) -> Awaitable[None]:
        return self._commit(changes)

    async def _commit(self, changes: Changes) -> None:
        await self.gate.wait()
        if self.failing:
            raise StorageFailed("connection lost")
        if self.taken_over:
            raise OwnershipLost("another server has taken over")
        await super().commit(changes)

    async def close(self) -> None:
        self.closed += 1


class Rig:
    """A store over it, under a clock that the test moves."""

    def __init__(self) -> None:
        self.storage, self.clock = Leased(), ManualClock()
        self.store = Store(Engine(self.storage, self.clock, Config().limits()))
        self.calls = Calls(self.store)
        self.usable: list[bool] = []
        self.store.engine.watch_usability(self.usable.append)

    async def open(self) -> None:
        await self.store.engine.open()
        self.store.start(Config().retention())

    async def enqueue(self) -> str:
        specs = [rollout_pb2.RolloutSpec(input_json=b"1")]
        request = rollout_pb2.EnqueueRolloutsRequest(rollouts=specs)
        return (await self.calls.enqueue_rollouts(request)).rollouts[0].rollout_id

    async def get(self, rollout_id: str) -> rollout_pb2.Rollout:
        request = rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)
        return (await self.calls.get_rollout(request)).rollout

    async def ended(self) -> None:
        """Return once service has ended."""
        while not self.storage.closed:
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    await made.open()
    yield made
    await made.store.close()


async def test_reads_of_memory_are_answered_until_the_lease_ends_and_not_after(rig: Rig) -> None:
    rollout_id = await rig.enqueue()
    rig.storage.owned_until = rig.clock.boot()[1] / 1e9 + 5
    rig.clock.jump(4.9)
    assert (await rig.get(rollout_id)).rollout_id == rollout_id
    rig.clock.jump(0.1)
    with pytest.raises(OwnershipLost, match="lease is over"):
        await rig.get(rollout_id)
    await rig.ended()
    rig.storage.owned_until = UNLIMITED
    with pytest.raises(OwnershipLost):  # renewing it late brings nothing back
        await rig.get(rollout_id)
    with pytest.raises(OwnershipLost):
        await rig.enqueue()
    assert rig.storage.opened == 1
    assert rig.usable == [False]


async def test_read_that_waits_for_a_commit_beyond_the_lease_is_not_answered(rig: Rig) -> None:
    rollout_id = await rig.enqueue()
    rig.storage.gate.clear()
    written = asyncio.create_task(rig.enqueue())
    await asyncio.sleep(0)
    read = asyncio.create_task(rig.get(rollout_id))
    await asyncio.sleep(0)
    rig.storage.owned_until = rig.clock.boot()[1] / 1e9 + 5
    rig.clock.jump(6)
    rig.storage.gate.set()
    assert await written  # the transaction that wrote it has checked the ownership itself
    with pytest.raises(OwnershipLost):
        await read


async def test_former_owner_brings_nothing_into_memory_that_the_next_one_may_have_written(
    rig: Rig,
) -> None:
    rollout_id = await rig.enqueue()
    entries = rig.store.engine.live.state.entries
    del entries[rollout_id]
    rig.storage.owned_until = rig.clock.boot()[1] / 1e9 + 5
    load = rig.storage.load

    async def load_slowly(ids: Sequence[str]) -> list[LoadedRollout]:
        rig.clock.jump(6)
        return await load(ids)

    rig.storage.load = load_slowly  # type: ignore[method-assign]
    with pytest.raises(OwnershipLost, match="lease is over"):
        await rig.get(rollout_id)
    assert rollout_id not in entries


async def test_commit_of_a_former_owner_ends_service_and_every_wait(rig: Rig) -> None:
    rollout_id = await rig.enqueue()
    claim = claim_pb2.DequeueRolloutsRequest(limit=1)
    await rig.calls.dequeue_rollouts(claim)
    claim.wait.FromSeconds(600)
    poll = asyncio.create_task(rig.calls.dequeue_rollouts(claim))
    waiting = rig.calls.wait_for_rollouts(
        completion_pb2.WaitForRolloutsRequest(rollout_ids=[rollout_id])
    )
    assert await anext(waiting) is None
    wait = asyncio.create_task(anext(waiting))
    await asyncio.sleep(0)
    rig.storage.taken_over = True
    for call in (rig.enqueue(), poll, wait, rig.get(rollout_id), rig.enqueue()):
        with pytest.raises(OwnershipLost, match="taken over"):
            await call
    await rig.ended()
    assert rig.storage.opened == 1
    assert rig.usable == [False]


async def test_owner_that_finds_another_one_when_it_recovers_ends_service(rig: Rig) -> None:
    rig.storage.failing = True
    with pytest.raises(StorageFailed, match="connection lost"):
        rig.storage.taken_over = True
        await rig.enqueue()
    await rig.ended()
    assert rig.storage.opened == 2
    with pytest.raises(OwnershipLost, match="taken over"):
        await rig.enqueue()


async def test_idle_store_stops_when_its_lease_ends(rig: Rig) -> None:
    rig.storage.owned_until = rig.clock.boot()[1] / 1e9 + 5
    claim = claim_pb2.DequeueRolloutsRequest(limit=1)
    claim.wait.FromSeconds(600)
    poll = asyncio.create_task(rig.calls.dequeue_rollouts(claim))
    rig.clock.jump(5)
    with pytest.raises(OwnershipLost):
        await asyncio.wait_for(poll, 60)
    await rig.ended()


async def test_store_without_durability_stops_as_well() -> None:
    """Its commits complete at once, and so does their refusal."""

    class Sudden(Leased):
        durability = MemoryStorage.durability

        def commit(self, changes: Changes) -> Awaitable[None]:
            if self.taken_over:
                raise OwnershipLost("another server has taken over")
            return MemoryStorage.commit(self, changes)

    rig = Rig()
    rig.store = Store(Engine(Sudden(), rig.clock, Config().limits()))
    rig.storage, rig.calls = rig.store.engine.storage, Calls(rig.store)
    await rig.open()
    rollout_id = await rig.enqueue()
    rig.storage.taken_over = True
    for call in (rig.enqueue(), rig.get(rollout_id), rig.enqueue()):
        with pytest.raises(OwnershipLost, match="taken over"):
            await call
    await rig.ended()
    await rig.store.close()
