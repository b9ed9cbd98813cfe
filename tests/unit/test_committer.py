"""Group commit: sharing, order, cancellation, back pressure, failure."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable
from dataclasses import fields

import pytest
from lightningstore.service.engine import clock, committer
from lightningstore.service.engine.committer import GATHER_SECONDS, Committer
from lightningstore.service.engine.shared import Pending
from lightningstore.service.rules.errors import Busy, StorageFailed
from lightningstore.service.rules.rows import RequestRow
from lightningstore.service.storage.base import COMMITTED, Changes, Counters
from lightningstore.service.storage.testing.records import rollout
from lightningstore.v1.statistics_pb2 import DURABILITY_FULL, DURABILITY_NONE
from lightningstore.v1.worker_pb2 import WORKER_STATUS_BUSY, Worker

pytestmark = pytest.mark.asyncio


class Disk:
    """A storage whose commits the test lets through, or fails."""

    durability = DURABILITY_FULL

    def __init__(self) -> None:
        self.commits: list[Changes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing = False

    async def commit(self, changes: Changes) -> None:
        await self.gate.wait()
        if self.failing:
            raise RuntimeError("disk on fire")
        self.commits.append(changes)


class Rig:
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.published: list[int] = []
        self.recovered = asyncio.Event()
        self.committer = Committer(disk, self.publish, self.recover, Pending(1000))  # type: ignore[arg-type]
        self.committer.start()

    def publish(self) -> None:
        self.published.append(self.committer.durable_through)

    async def recover(self) -> bool:
        await self.recovered.wait()
        self.disk.failing = False
        return True

    def write(self, name: str, size: int = 10) -> int:
        self.committer.changes.requests.append(RequestRow("", name, 0, b"", 0))
        self.committer.changes.size += size
        return self.committer.seal()

    def written(self) -> list[list[str]]:
        return [[row.request_id for row in c.requests] for c in self.disk.commits]


async def spin() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_writers_that_wait_share_one_commit_in_their_order() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    first = rig.write("a")
    await spin()
    others = [rig.write(name) for name in "bcd"]
    waits = [asyncio.create_task(rig.committer.durable(n)) for n in [first, *others]]
    rig.disk.gate.set()
    await asyncio.gather(*waits)
    assert rig.written() == [["a"], ["b", "c", "d"]]
    assert rig.published == [1, 4]
    await rig.committer.drain()


class Passes:
    """A clock by which each pass of the event loop takes as long as the test says."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += self.seconds
        return self.now


async def test_commit_waits_for_more_operations_while_the_loop_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock, "time", Passes(GATHER_SECONDS / 20))
    rig = Rig(Disk())
    numbers = [rig.write("a"), rig.write("b")]
    for name in "cdefg":
        await asyncio.sleep(0)
        numbers.append(rig.write(name))
    await rig.committer.durable(numbers[-1])
    assert rig.written() == [list("abcdefg")]
    await rig.committer.drain()


async def test_commit_of_a_busy_loop_starts_after_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = Passes(GATHER_SECONDS / 20)
    monkeypatch.setattr(clock, "time", passes)
    rig = Rig(Disk())
    rig.write("a")
    while not rig.disk.commits:
        rig.write("more")
        await asyncio.sleep(0)
    assert passes.now <= GATHER_SECONDS * 1.2
    await rig.committer.drain()


@pytest.mark.parametrize("waiting", [1, 2])
async def test_commit_does_not_wait_on_an_idle_loop(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(0.0)  # the clock stands still: only the passes end the wait
    monkeypatch.setattr(clock, "time", passes)
    rig = Rig(Disk())
    for _ in range(waiting):
        rig.write("a")
    for _ in range(3 if waiting == 1 else 20):
        await asyncio.sleep(0)
    assert rig.written() == [["a"] * waiting]
    await rig.committer.drain()


async def test_nobody_is_told_before_the_disk_has_it() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    wait = asyncio.create_task(rig.committer.durable(rig.write("a")))
    await spin()
    assert not wait.done()
    assert rig.published == []
    rig.disk.gate.set()
    await wait
    await rig.committer.drain()


async def test_read_during_a_commit_waits_for_it_and_no_longer() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    number = rig.write("a")
    await spin()
    read = asyncio.create_task(rig.committer.durable(number))
    await spin()
    rig.disk.gate.set()
    await asyncio.wait_for(read, 5)
    await asyncio.wait_for(rig.committer.durable(number), 5)
    await rig.committer.drain()


async def test_cancelled_caller_cancels_no_commit() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    gone = asyncio.create_task(rig.committer.durable(rig.write("a")))
    stays = asyncio.create_task(rig.committer.durable(rig.write("b")))
    await spin()
    gone.cancel()
    await spin()
    rig.disk.gate.set()
    await stays
    assert rig.written() == [["a", "b"]]
    await rig.committer.drain()


async def test_too_much_waiting_refuses_unary_writes_and_holds_streams() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    number = rig.write("big", size=2000)
    await spin()
    with pytest.raises(Busy) as caught:
        rig.committer.admit()
    assert caught.value.retry_delay
    room = asyncio.create_task(rig.committer.room())
    await spin()
    assert not room.done()
    rig.disk.gate.set()
    await room
    await rig.committer.durable(number)
    rig.committer.admit()
    await rig.committer.drain()


async def test_write_that_cannot_be_repeated_waits_for_room_and_goes_on() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    rig.write("big", size=2000)
    held = asyncio.create_task(rig.committer.admit_soon(600, 30))
    await spin()
    assert not held.done()
    with pytest.raises(Busy):  # what is held has a limit as well
        await rig.committer.admit_soon(600, 30)
    rig.disk.gate.set()
    await asyncio.wait_for(held, 5)
    await rig.committer.admit_soon(600, 30)
    await rig.committer.drain()


async def test_write_that_found_no_room_in_time_is_refused_and_held_no_more() -> None:
    rig = Rig(Disk())
    rig.disk.gate.clear()
    rig.write("big", size=2000)
    for _ in range(3):
        with pytest.raises(Busy):
            await rig.committer.admit_soon(600, 0.01)
    rig.disk.gate.set()
    await rig.committer.drain()


async def test_failed_commit_fails_all_who_wait_until_recovered() -> None:
    rig = Rig(Disk())
    rig.disk.failing = True
    waits = [asyncio.create_task(rig.committer.durable(rig.write(name))) for name in "ab"]
    for wait in waits:
        with pytest.raises(StorageFailed, match="disk on fire"):
            await wait
    with pytest.raises(StorageFailed):
        rig.committer.admit()
    with pytest.raises(StorageFailed):
        await rig.committer.durable(rig.committer.sealed)
    rig.recovered.set()
    await spin()
    rig.committer.admit()
    await rig.committer.durable(rig.write("c"))
    assert rig.written() == [["c"]]
    await rig.committer.drain()


async def test_drain_commits_what_was_sealed() -> None:
    rig = Rig(Disk())
    rig.write("a")
    rig.write("b")
    await rig.committer.drain()
    assert rig.written() == [["a", "b"]]


async def test_what_a_commit_was_handed_does_not_change_under_it() -> None:
    """Counters and workers are changed in place by operations that come while the commit is under way."""
    rig = Rig(Disk())
    rig.disk.gate.clear()
    counters, worker = Counters(completion_number=1, rollouts={1: 2}), Worker(worker_id="w")
    rig.committer.changes.counters = counters
    rig.committer.changes.workers["w"] = worker
    rig.write("a")
    await spin()
    counters.completion_number = 2
    counters.rollouts[1] = 3
    worker.status = WORKER_STATUS_BUSY
    rig.disk.gate.set()
    await rig.committer.drain()
    (commit,) = rig.disk.commits
    assert commit.counters == Counters(completion_number=1, rollouts={1: 2})
    assert commit.workers == {"w": Worker(worker_id="w")}


async def test_storage_without_durability_commits_within_the_operation() -> None:
    class Memory(Disk):
        durability = DURABILITY_NONE

        def commit(self, changes: Changes) -> Awaitable[None]:
            self.commits.append(copy.copy(changes))
            self.names = [row.request_id for row in changes.requests]
            return COMMITTED

    disk = Memory()
    rig = Rig(disk)
    rig.write("a")
    assert disk.names == ["a"]
    assert rig.published == [1]
    assert rig.committer.changes == Changes()
    await COMMITTED
    await rig.committer.drain()


async def test_storage_without_durability_must_complete_at_once() -> None:
    class Late(Disk):
        name = "late"
        durability = DURABILITY_NONE

        def commit(self, changes: Changes) -> Awaitable[None]:
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    rig = Rig(Late())
    with pytest.raises(TypeError, match="late has no durability: commit must return COMMITTED"):
        rig.write("a")
    await rig.committer.drain()


async def test_cleared_changes_are_as_new_ones() -> None:
    changes = Changes()
    for item in fields(changes):
        value = getattr(changes, item.name)
        if isinstance(value, list):
            value.append(1)
        elif isinstance(value, dict):
            value[1] = 1
        else:
            setattr(changes, item.name, 1)
    assert all(getattr(changes, item.name) for item in fields(changes))
    changes.clear()
    assert changes == Changes()


async def test_many_rows_without_durability_are_committed_in_parts_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others run between two parts. What they write follows, and nothing is published before the last part."""
    monkeypatch.setattr(committer, "ROWS_AT_ONCE", 2)
    parts: list[Changes] = []

    class Memory:
        name = "memory"
        durability = DURABILITY_NONE

        def commit(self, changes: Changes) -> Awaitable[None]:
            parts.append(copy.copy(changes))
            parts[-1].requests = list(changes.requests)
            return COMMITTED

    rig = Rig(Memory())  # type: ignore[arg-type]
    changes = rig.committer.changes
    rows = {key: rollout(key) for key in range(1, 6)}
    changes.rollouts.update(rows)
    changes.labels[3] = {"topic": "sums"}
    changes.inputs += [(key, b"1") for key in rows]
    changes.removed += [7, 8, 9]
    changes.rollouts[8] = rollout(8)
    changes.settings = b"new"
    first = rig.write("many", 100)
    assert not parts
    assert not rig.published
    while not parts:
        await asyncio.sleep(0)
    later = rig.write("few")
    assert rig.published == []
    await rig.committer.durable(first)
    assert rig.published == [first]
    await rig.committer.durable(later)
    assert rig.published == [first, later]
    assert max(part.row_count for part in parts) == 2
    assert [key for part in parts for key in part.removed] == [7, 8, 9]
    assert [key for part in parts for key in part.rollouts] == [1, 2, 3, 4, 5]
    assert [key for part in parts for key, _ in part.inputs] == [1, 2, 3, 4, 5]
    assert [part.labels for part in parts if 3 in part.rollouts] == [{3: {"topic": "sums"}}]
    assert sum(bool(part.labels) for part in parts) == 1
    assert [part.settings for part in parts if part.settings] == [b"new"]
    assert [r.request_id for part in parts for r in part.requests] == ["many", "few"]
    one = rig.write("one")
    assert rig.published == [first, later, one]
    await rig.committer.drain()
