"""WatchResources: order, resuming, versions that were removed, and the errors of a wrong place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lightningstore.client import (
    AsyncResourceStream,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    Resources,
)
from lightningstore.v1.resources_pb2 import WatchResourcesRequest, WatchResourcesResponse

from tests.contract.conftest import World
from tests.contract.helpers import claim, refused
from tests.contract.test_versions import keeping, publish

pytestmark = pytest.mark.asyncio


async def take(stream: AsyncResourceStream, count: int) -> list[Resources]:
    return [await asyncio.wait_for(stream.__anext__(), 20) for _ in range(count)]


def numbers(versions: list[Resources]) -> list[int]:
    return [version.publish_number for version in versions]


@asynccontextmanager
async def answers_of(
    world: World, after: int | None = None
) -> AsyncIterator[AsyncIterator[WatchResourcesResponse]]:
    request = WatchResourcesRequest(after_publish_number=after)
    answers = world.store._transport.server_stream("WatchResources", request, None)
    try:
        yield answers
    finally:
        await answers.aclose()


async def test_publications_of_all_ids_come_in_order(world: World) -> None:
    async with world.store.watch_resources(0) as stream:
        await stream.registered()
        made = [
            await world.store.add_resources({"x": 1}, resources_id="a"),
            await world.store.update_resources("b", {"x": 2}),
            await world.store.update_resources("a", {"x": 3}),
            await world.store.add_resources({"x": 4}),
        ]
        assert await take(stream, 4) == made
        assert stream.through_publish_number == 4
    assert numbers(made) == [1, 2, 3, 4]


async def test_from_the_beginning_sends_all_that_is_kept(world: World) -> None:
    made = await publish(world, count=5)
    if world.durable:
        await world.restart()
    async with world.store.watch_resources(0) as stream:
        assert await take(stream, 5) == made


async def test_from_now_on_sends_what_is_published_later(world: World) -> None:
    await publish(world, count=3)
    async with world.store.watch_resources() as stream:
        await stream.registered()
        later = await publish(world)
        assert await take(stream, 1) == later


async def test_from_a_number_on_sends_what_came_after_it(world: World) -> None:
    made = await publish(world, count=5)
    async with world.store.watch_resources(3) as stream:
        assert await take(stream, 2) == made[3:]
        assert await take_after(world, stream) == 6
    async with world.store.watch_resources(6) as stream:
        await stream.registered()
        assert await take_after(world, stream) == 7


async def take_after(world: World, stream: AsyncResourceStream) -> int:
    """Publish a version, and return the number of the next one that a stream has."""
    await publish(world)
    (version,) = await take(stream, 1)
    return version.publish_number


async def test_removed_versions_are_left_out(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 2) as world:
        await publish(world, "r", 5)  # 4 and 5 are kept
        await claim(world, resources_id="r")
        await publish(world, "other", 1)
        await publish(world, "r", 3)  # 5, which the attempt uses, and 8 and 9
        async with world.store.watch_resources(0) as stream:
            assert numbers(await take(stream, 4)) == [5, 6, 8, 9]
            assert stream.through_publish_number == 9
        async with world.store.watch_resources(6) as stream:
            assert numbers(await take(stream, 2)) == [8, 9]
        async with answers_of(world, 0) as answers:
            await answers.__anext__()
            answer = await asyncio.wait_for(answers.__anext__(), 10)
            assert [r.publish_number for r in answer.resources] == [5, 6, 8, 9]
            assert answer.through_publish_number == 9


async def test_stream_tells_where_it_stands_and_of_which_store(world: World) -> None:
    await publish(world, count=3)
    info = await world.store.get_server_info()
    async with answers_of(world, 1) as answers:
        first = await asyncio.wait_for(answers.__anext__(), 10)
        assert (len(first.resources), first.through_publish_number) == (0, 1)
        second = await asyncio.wait_for(answers.__anext__(), 10)
        assert [r.publish_number for r in second.resources] == [2, 3]
        assert (second.through_publish_number, second.store_id) == (3, info.store_id)


async def test_large_versions_come_in_messages_of_their_own(world: World) -> None:
    text = "x" * (700 << 10)
    for n in range(3):
        await world.store.update_resources("r", {"n": n, "text": text})
    async with answers_of(world, 0) as answers:
        sizes = []
        while sum(sizes) < 3:
            answer = await asyncio.wait_for(answers.__anext__(), 10)
            sizes.append(len(answer.resources))
    assert sizes == [0, 1, 1, 1]


async def test_quiet_stream_ticks_every_fifteen_seconds(world: World) -> None:
    await publish(world, count=2)
    async with answers_of(world) as answers:
        first = await asyncio.wait_for(answers.__anext__(), 10)
        assert (len(first.resources), first.through_publish_number) == (0, 2)
        waiting = asyncio.ensure_future(answers.__anext__())
        passed = 0
        while not waiting.done():
            await world.advance(1)
            await asyncio.sleep(0.002)
            passed += 1
        assert 14 <= passed <= 40
        tick = await waiting
        assert (len(tick.resources), tick.through_publish_number) == (0, 2)


async def test_publication_is_sent_at_once(world: World) -> None:
    async with world.store.watch_resources() as stream:
        await stream.registered()
        delays = []
        for _ in range(5):
            waiting = asyncio.ensure_future(stream.__anext__())
            await asyncio.sleep(0)
            await publish(world)
            answered = time.perf_counter()
            await asyncio.wait_for(waiting, 20)
            delays.append(time.perf_counter() - answered)
        assert min(delays) < 0.1


@pytest.mark.parametrize("number", [1, (1 << 63) - 1])
async def test_number_beyond_the_latest_is_out_of_range(world: World, number: int) -> None:
    async with refused(world, OutOfRangeError, "PUBLISH_NUMBER_BEYOND_END"):
        await world.store.watch_resources(number).__anext__()
    await publish(world)
    async with refused(world, OutOfRangeError, "PUBLISH_NUMBER_BEYOND_END"):
        await world.store.watch_resources(max(number, 2)).__anext__()


async def test_negative_number_and_another_stores_id_are_refused(world: World) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "after_publish_number"):
        await world.store.watch_resources(-1).__anext__()
    async with refused(world, FailedPreconditionError, "STORE_ID_MISMATCH"):
        await world.store.watch_resources(99, store_id="another").__anext__()


async def test_watch_goes_on_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    made = await publish(world, count=4)
    stream = world.store.watch_resources(0)
    seen = await take(stream, 2)
    through, store_id = stream.through_publish_number, stream.store_id
    await stream.aclose()
    await world.restart()
    made += await publish(world)
    async with world.store.watch_resources(through, store_id=store_id) as again:
        assert seen + await take(again, 3) == made


async def test_watchers_count_as_waiters_until_they_leave(world: World) -> None:
    assert (await world.store.get_statistics()).waiter_count == 0
    stream = world.store.watch_resources()
    await stream.registered()
    assert (await world.store.get_statistics()).waiter_count == 1
    await stream.aclose()
    while (await world.store.get_statistics()).waiter_count:
        await asyncio.sleep(0.001)


async def test_many_watchers_see_the_same(world: World) -> None:
    streams = [world.store.watch_resources(0) for _ in range(20)]
    for stream in streams:
        await stream.registered()
    made = await publish(world, count=5)
    for stream in streams:
        assert await take(stream, 5) == made
        await stream.aclose()


async def test_hundreds_of_versions_behind_are_caught_up(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 0) as world:
        await asyncio.gather(*(publish(world, f"r{n}", 30) for n in range(20)))
        if world.durable:
            await world.restart()
        async with world.store.watch_resources(0) as stream:
            assert numbers(await take(stream, 600)) == list(range(1, 601))
