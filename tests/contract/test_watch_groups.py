"""WatchGroups: order, resuming, what is left out, and the errors of a wrong place."""

from __future__ import annotations

import asyncio
import random

import pytest
from lightningstore.client import (
    AsyncGroupStream,
    FailedPreconditionError,
    Group,
    GroupSpec,
    InvalidArgumentError,
    LightningStoreError,
    OutOfRangeError,
)
from lightningstore.v1.group_pb2 import WatchGroupsRequest

from tests.contract.conftest import World
from tests.contract.helpers import finish, refused

pytestmark = pytest.mark.asyncio


async def take(stream: AsyncGroupStream, count: int) -> list[Group]:
    return [await asyncio.wait_for(stream.__anext__(), 20) for _ in range(count)]


async def create(world: World, *names: str, size: int = 2, **options: object) -> list[list[str]]:
    """Create groups with their members; returns the ids of each group's members."""
    specs = [{"input": n, "group_id": name} for name in names for n in range(size)]
    groups = [{"group_id": name, "size": size, **options} for name in names]
    ids = [r.rollout_id for r in await world.store.enqueue_rollouts(specs, groups=groups)]
    return [ids[i * size : (i + 1) * size] for i in range(len(names))]


async def completed(world: World, *names: str) -> list[list[str]]:
    members = await create(world, *names)
    for ids in members:
        await world.store.cancel_rollouts(ids)
    return members


def ids_of(groups: list[Group]) -> list[str]:
    return [group.group_id for group in groups]


async def test_groups_come_in_completion_order(world: World) -> None:
    a, b, c = await create(world, "a", "b", "c")
    async with world.store.watch_groups(0) as stream:
        await stream.registered()
        for rollout_id in (b[0], c[0], a[0], c[1], a[1], b[1]):
            await finish(world, rollout_id)
        got = await take(stream, 3)
        assert ids_of(got) == ["c", "a", "b"]
        assert [group.completion_number for group in got] == [1, 2, 3]
        assert got[0] == await world.store.get_group("c")
        assert got[0].rollout_ids == c
        info = await world.store.get_server_info()
        assert (stream.store_id, stream.through_completion_number) == (info.store_id, 3)


async def test_from_now_on_and_from_a_number_on(world: World) -> None:
    await completed(world, "a", "b", "c")
    async with world.store.watch_groups() as now, world.store.watch_groups(2) as later:
        await now.registered()
        await completed(world, "d")
        assert ids_of(await take(now, 1)) == ["d"]
        assert ids_of(await take(later, 2)) == ["c", "d"]


async def test_watch_goes_on_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    await completed(world, "a", "b", "c")
    stream = world.store.watch_groups(0)
    await take(stream, 2)
    through, store_id = stream.through_completion_number, stream.store_id
    await stream.aclose()
    await world.restart()
    await completed(world, "d")
    async with world.store.watch_groups(through, store_id=store_id) as again:
        got = await take(again, 2)
    assert [(g.group_id, g.completion_number) for g in got] == [("c", 3), ("d", 4)]


async def test_reopened_group_comes_again_under_a_new_number(world: World) -> None:
    members = await create(world, "a", "b")
    for rollout_id in (*members[0], *members[1]):
        await finish(world, rollout_id)
    async with world.store.watch_groups(0) as stream:
        await take(stream, 2)
        await world.store.start_attempt(members[0][0])
        await world.store.update_attempt(members[0][0], "latest", status="failed")
        (again,) = await take(stream, 1)
    assert (again.group_id, again.completion_number) == ("a", 3)
    assert again.statuses == {"failed": 1, "succeeded": 1}
    async with world.store.watch_groups(0) as late:
        assert ids_of(await take(late, 2)) == ["b", "a"]


async def test_reopened_and_removed_groups_are_left_out(world: World) -> None:
    members = await create(world, "a", "b", "c")
    for ids in members:
        for rollout_id in ids:
            await finish(world, rollout_id)
    await world.store.delete_rollouts(members[0])
    await world.store.start_attempt(members[2][1])
    async with world.store.watch_groups(0) as stream:
        assert ids_of(await take(stream, 1)) == ["b"]
        await completed(world, "d")
        (got,) = await take(stream, 1)
        assert (got.group_id, got.completion_number) == ("d", 4)


async def test_deadline_completes_for_watches_too(world: World) -> None:
    await create(world, "a", deadline=60)
    async with world.store.watch_groups(0) as stream:
        await stream.registered()
        await world.store.dequeue_rollouts(1)
        await world.advance(61)
        (got,) = await take(stream, 1)
    assert (got.group_id, got.statuses) == ("a", {"cancelled": 2})


async def test_quiet_stream_ticks_every_fifteen_seconds(world: World) -> None:
    await completed(world, "a")
    answers = world.store._transport.server_stream("WatchGroups", WatchGroupsRequest(), None)
    first = await asyncio.wait_for(answers.__anext__(), 10)
    assert (len(first.groups), first.through_completion_number) == (0, 1)
    waiting = asyncio.ensure_future(answers.__anext__())
    passed = 0
    while not waiting.done():
        await world.advance(1)
        await asyncio.sleep(0.002)
        passed += 1
    assert 14 <= passed <= 40
    tick = await waiting
    assert (len(tick.groups), tick.through_completion_number) == (0, 1)
    await answers.aclose()


async def test_wrong_places_are_refused(world: World) -> None:
    async with refused(world, OutOfRangeError, "COMPLETION_NUMBER_BEYOND_END"):
        await world.store.watch_groups(1).__anext__()
    await completed(world, "a")
    async with refused(world, OutOfRangeError, "COMPLETION_NUMBER_BEYOND_END"):
        await world.store.watch_groups(2).__anext__()
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "after_completion_number"):
        await world.store.watch_groups(-1).__anext__()
    async with refused(world, FailedPreconditionError, "STORE_ID_MISMATCH"):
        await world.store.watch_groups(9, store_id="another").__anext__()


async def test_hundreds_of_groups_behind_are_caught_up(world: World) -> None:
    names = [f"g{n}" for n in range(500)]
    for ids in await create(world, *names, size=3):
        await world.store.cancel_rollouts(ids)
    if world.durable:
        await world.restart()
    async with world.store.watch_groups(0) as stream:
        got = await take(stream, 500)
    assert ids_of(got) == names
    assert [group.completion_number for group in got] == list(range(1, 501))
    assert all(group.member_count == len(group.rollout_ids) == 3 for group in got)


async def test_many_watchers_see_the_same(world: World) -> None:
    streams = [world.store.watch_groups(0) for _ in range(20)]
    for stream in streams:
        await stream.registered()
    names = [f"g{n}" for n in range(5)]
    await completed(world, *names)
    for stream in streams:
        assert ids_of(await take(stream, 5)) == names
        await stream.aclose()


async def test_interleaved_calls_never_lose_or_repeat_a_completion(world: World) -> None:
    """Random calls at the same time; afterwards each group is as its members say, with a number of its own."""
    dice = random.Random(7)
    names = [f"g{n}" for n in range(12)]
    members = await create(world, *names, size=3)
    stop = asyncio.Event()

    async def act(ids: list[str]) -> None:
        while not stop.is_set():
            rollout_id = dice.choice(ids)
            try:
                match dice.randrange(4):
                    case 0:
                        await world.store.start_attempt(rollout_id)
                    case 1:
                        await world.store.update_attempt(rollout_id, "latest", status="succeeded")
                    case 2:
                        await world.store.update_rollout(rollout_id, status="failed")
                    case 3:
                        await world.store.update_rollout(rollout_id, status="queuing")
            except LightningStoreError as error:
                assert "NOT_FOUND" in str(error) or "TRANSITION" in str(error), error
            await asyncio.sleep(0)

    actors = [asyncio.create_task(act(ids)) for ids in members for _ in range(2)]
    stream = world.store.watch_groups(0)
    seen: list[int] = [group.completion_number for group in await take(stream, 40)]
    stop.set()
    await asyncio.gather(*actors)
    for ids in members:
        for rollout_id in ids:
            if not (await world.store.get_rollout(rollout_id)).status.is_finished:
                await world.store.update_rollout(rollout_id, status="failed")
    await world.store.enqueue_rollouts([], groups=[GroupSpec("last", 1)])
    (last,) = await world.store.enqueue_rollouts([{"input": 1, "group_id": "last"}])
    await world.store.cancel_rollouts([last.rollout_id])
    end = await world.store.get_group("last")
    while seen[-1] < end.completion_number:
        seen += [group.completion_number for group in await take(stream, 1)]
    assert seen == sorted(set(seen))
    shown = await world.store.list_groups()
    assert {group.status.value for group in shown} == {"complete"}
    numbers = [group.completion_number for group in shown]
    assert len(set(numbers)) == len(numbers) == 13
    assert set(numbers) <= set(seen)
    assert max(numbers) == end.completion_number
    await stream.aclose()
