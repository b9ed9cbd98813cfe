"""Limits that stores share: bytes that wait for the disk, and spans in memory."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.service.engine.committer import Committer
from lightningstore.service.engine.eviction import Pool, Shelf
from lightningstore.service.engine.shared import RESERVED_SHARE, Pending
from lightningstore.service.engine.shares import Caches, Share
from lightningstore.service.engine.state import State
from lightningstore.service.engine.waiters import Waiters
from lightningstore.service.rules.errors import Busy, StorageFailed
from lightningstore.service.rules.rows import Completion, LoadedRollout, RolloutRow, Shown
from lightningstore.service.storage.base import Counters
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_SUCCEEDED, Rollout

from tests.unit.test_committer import Disk

FINISHED = Rollout(status=ROLLOUT_STATUS_SUCCEEDED)

LIMIT = 64_000
RESERVE = LIMIT // RESERVED_SHARE


class Store:
    """A committer over a disk that is held until `gate` is set."""

    def __init__(self, pending: Pending) -> None:
        self.disk = Disk()
        self.disk.gate.clear()
        self.recovered = asyncio.Event()
        self.committer = Committer(self.disk, lambda: None, self._recover, pending)  # type: ignore[arg-type]
        self.committer.start()

    async def _recover(self) -> bool:
        await self.recovered.wait()
        self.disk.failing = False
        return True

    def write(self, size: int) -> int:
        self.committer.changes.size += size
        self.committer.changes.swept.append(1)
        return self.committer.seal()


@pytest.mark.asyncio
async def test_pending_bytes_of_all_stores_have_one_limit() -> None:
    pending = Pending(LIMIT)
    full, other = Store(pending), Store(pending)
    full.write(LIMIT + 1)
    with pytest.raises(Busy, match=str(LIMIT)):
        full.committer.admit()
    other.committer.admit()  # what is reserved for each store
    other.write(RESERVE + 1)
    with pytest.raises(Busy):
        other.committer.admit()
    other.committer.admit(report=True)
    assert pending.total == LIMIT + RESERVE + 2


@pytest.mark.asyncio
async def test_store_that_waits_for_room_goes_on_when_another_has_committed() -> None:
    pending = Pending(LIMIT)
    full, other = Store(pending), Store(pending)
    number = full.write(LIMIT)
    other.write(RESERVE + 1)
    waiting = asyncio.ensure_future(other.committer.room())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    full.disk.gate.set()
    await full.committer.durable(number)
    await waiting
    assert pending.total == RESERVE + 1


@pytest.mark.asyncio
async def test_store_that_has_failed_or_is_closed_takes_no_room() -> None:
    pending = Pending(LIMIT)
    failing, other = Store(pending), Store(pending)
    failing.disk.failing = True
    failing.write(LIMIT + 1)
    failing.disk.gate.set()
    while failing.committer.failure is None:
        await asyncio.sleep(0)
    assert pending.total == 0
    other.write(RESERVE + 1)
    other.committer.admit()
    other.disk.gate.set()
    await other.committer.drain()
    failing.recovered.set()
    await failing.committer.drain()
    assert pending.total == 0


def test_spans_are_evicted_from_the_store_that_has_most() -> None:
    pool = Pool(threshold=100, safe=80)
    shelves = {name: Shelf(pool) for name in ("large", "small")}
    calls: list[tuple[str, bool, list[int]]] = []

    def join(name: str) -> None:
        def evict(for_another: bool) -> None:
            calls.append((name, for_another, [item.key for item in shelves[name].evict()]))

        pool.join(shelves[name], evict)

    for name in shelves:
        join(name)
    for key in range(9):
        shelves["large"].add(key, key, 10, 1, FINISHED)
        pool.evict(shelves["large"])
    shelves["small"].add(1, 1, 10, 1, FINISHED)
    pool.evict(shelves["small"])
    assert calls == []
    shelves["small"].add(2, 2, 10, 1, FINISHED)
    pool.evict(shelves["small"])
    assert calls == [("large", True, [0, 1, 2])]
    assert (pool.total, shelves["large"].total, shelves["small"].total) == (80, 60, 20)
    pool.leave(shelves["large"])
    pool.leave(shelves["large"])
    assert pool.total == 20


def rollout(key: int) -> LoadedRollout:
    record = Rollout(rollout_id=f"r{key}", status=ROLLOUT_STATUS_SUCCEEDED)
    return LoadedRollout(RolloutRow(key, record, 0, 0), b"x" * 1000, [], 0)


def test_caches_of_all_stores_have_one_limit() -> None:
    caches = Caches(inputs=0, rollouts=10 * 2024, span_ids=0, completions=0)
    first, second = State(Counters(), caches), State(Counters(), caches)
    for state in (first, second):
        for key in range(8):
            state.touch(state.install(rollout(key)))
    second.trim(0)
    assert (len(first.cache), len(second.cache)) == (8, 2)
    first.release()
    assert caches.rollouts.used == 2 * 2024
    for key in range(10, 30):
        second.touch(second.install(rollout(key)))
    second.trim(0)
    assert len(second.cache) == 10


def test_small_inputs_of_all_stores_have_one_limit() -> None:
    caches = Caches(inputs=2500, rollouts=0, span_ids=0, completions=0)
    first, second = State(Counters(), caches), State(Counters(), caches)
    entries = [state.install(rollout(1)) for state in (first, second, second)]
    kept = []
    for state, entry in zip((first, second, second), entries, strict=True):
        state.inputs.add(entry, 0)
        kept.append(caches.inputs.used)
    assert kept == [1000, 2000, 2000]
    first.inputs.discard(entries[0])
    assert caches.inputs.used == 1000


def completion(number: int) -> Completion:
    return Completion(Shown(Rollout(rollout_id="r", completion_number=number), b"x" * 900, None))


def test_recent_finishes_of_all_stores_have_one_limit() -> None:
    share = Share(5 * completion(1).size // 2)
    first, second = Waiters(share), Waiters(share)

    def finish(waiters: Waiters, number: int) -> None:
        waiters.publish([completion(number)])

    for number in (1, 2):
        finish(first, number)
    finish(second, 1)
    assert second.recent(0, 10) is None  # a watch reads it from the back end
    assert len(first.recent(0, 10) or ()) == 2
    first.fail(StorageFailed("gone"))
    finish(second, 2)
    assert [completion.number for completion in second.recent(1, 10) or ()] == [2]
