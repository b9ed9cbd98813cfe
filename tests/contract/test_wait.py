"""WaitForRollouts: what is sent, when the stream ends, and what it says at the end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from lightningstore.client import AsyncWaitStream, InvalidArgumentError, NotFoundError, Rollout
from lightningstore.v1.completion_pb2 import WaitForRolloutsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, finish, refused

pytestmark = pytest.mark.asyncio


def ids(rollouts: list[Rollout]) -> list[str]:
    return [rollout.rollout_id for rollout in rollouts]


async def now(world: World, *args: Any, **options: Any) -> AsyncWaitStream:
    """Return a wait that has answered at once."""
    stream = world.store.wait_for_rollouts(*args, timeout=0, **options)
    stream.got = ids(await stream.results())
    return stream


async def begin(world: World, *args: Any, **options: Any) -> tuple[AsyncWaitStream, asyncio.Task]:
    """Return a wait that stands, and the task of its results."""
    stream = world.store.wait_for_rollouts(*args, **options)
    await stream.registered()
    return stream, asyncio.create_task(stream.results())


async def done(task: asyncio.Task) -> list[str]:
    return ids(await asyncio.wait_for(task, 10))


async def test_finished_ones_come_at_once_and_the_stream_ends(world: World) -> None:
    a, b = await enqueue(world, 2)
    await finish(world, b)
    await finish(world, a, "failed")
    _, task = await begin(world, [a, b])
    assert await done(task) == [a, b]


async def test_rollouts_come_as_they_finish(world: World) -> None:
    a, b, c = await enqueue(world, 3)
    await finish(world, c)
    stream = world.store.wait_for_rollouts([a, b, c])
    assert (await stream.__anext__()).rollout_id == c
    for rollout_id in (b, a):
        await finish(world, rollout_id)
        got = await asyncio.wait_for(stream.__anext__(), 10)
        assert got == await world.store.get_rollout(rollout_id)
        assert got.latest_attempt.status == "succeeded"
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()
    assert (stream.finished_count, stream.open_rollout_ids) == (3, [])


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_every_end_of_a_rollout_wakes(world: World, status: str) -> None:
    (a,) = await enqueue(world, 1)
    _, task = await begin(world, [a])
    if status == "cancelled":
        await world.store.cancel_rollouts([a])
    else:
        await finish(world, a, status)
    (got,) = await asyncio.wait_for(task, 10)
    assert got.status == status
    assert got.end_time is not None


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_status_set_by_hand_wakes(world: World, status: str) -> None:
    (a,) = await enqueue(world, 1)
    _, task = await begin(world, [a])
    await world.store.update_rollout(a, status=status)
    (got,) = await asyncio.wait_for(task, 10)
    assert got.status == status


async def test_verdict_of_the_watchdog_wakes(world: World) -> None:
    from lightningstore.client import RolloutConfig

    rollout, _ = await claim(world, config=RolloutConfig(timeout=5))
    _, task = await begin(world, [rollout.rollout_id])
    await world.advance(6)
    (got,) = await asyncio.wait_for(task, 10)
    assert (got.status, got.latest_attempt.status) == ("failed", "timeout")


async def test_retry_is_no_finish(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    _, task = await begin(world, [rollout.rollout_id])
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
    await world.settle()
    assert not task.done()
    await finish(world, rollout.rollout_id)
    assert await done(task) == [rollout.rollout_id]


async def test_timeout_zero_answers_at_once(world: World) -> None:
    a, b, c = await enqueue(world, 3)
    await finish(world, b)
    stream = await now(world, [c, a, b])
    assert stream.got == [b]
    assert (stream.finished_count, stream.open_rollout_ids) == (1, [c, a])


async def test_timeout_that_passes_ends_the_stream_without_error(world: World) -> None:
    a, b = await enqueue(world, 2)
    stream, task = await begin(world, [a, b], timeout=30)
    await finish(world, a)
    await world.advance(29)
    assert not task.done()
    await world.advance(2)
    assert await done(task) == [a]
    assert (stream.finished_count, stream.open_rollout_ids) == (1, [b])


async def test_without_timeout_nothing_but_the_finish_ends_it(world: World) -> None:
    (a,) = await enqueue(world, 1)
    _, task = await begin(world, [a])
    # In one step, for on the way the stream would tick seven thousand times.
    await world.clock.stall(100_000)
    await world.advance(20)
    assert not task.done()
    await finish(world, a)
    assert await done(task) == [a]


async def test_quiet_stream_ticks_every_fifteen_seconds(world: World) -> None:
    (a,) = await enqueue(world, 1)
    # So that nothing else waits for one of the times below: retention looks every 30 s.
    await world.advance(1)
    request = WaitForRolloutsRequest(rollout_ids=[a])
    answers = world.store._transport.server_stream("WaitForRollouts", request, None)
    await answers.ready()
    for _ in range(3):
        waiting = asyncio.ensure_future(answers.__anext__())
        await world.clock.until_asleep(15)
        await world.advance(14)
        assert not waiting.done()
        await world.advance(1)
        tick = await asyncio.wait_for(waiting, 10)
        assert not tick.rollouts
        assert not tick.HasField("summary")
    await answers.aclose()


@pytest.mark.parametrize("before", [0, 1, 2, 3])
async def test_min_count_ends_the_wait(world: World, before: int) -> None:
    rollouts = await enqueue(world, 4)
    for rollout_id in rollouts[:before]:
        await finish(world, rollout_id)
    stream, task = await begin(world, rollouts, min_count=2)
    for rollout_id in rollouts[before:2]:
        assert not task.done()
        await finish(world, rollout_id)
    # All that have already finished are returned, even more than requested.
    expected = rollouts[: max(before, 2)]
    assert await done(task) == expected
    assert stream.finished_count == len(expected)
    assert stream.open_rollout_ids == rollouts[len(expected) :]


async def test_min_count_zero_answers_at_once(world: World) -> None:
    a, b = await enqueue(world, 2)
    await finish(world, a)
    stream, task = await begin(world, [a, b], min_count=0)
    assert await done(task) == [a]
    assert stream.open_rollout_ids == [b]


async def test_min_count_not_reached_ends_with_the_timeout(world: World) -> None:
    a, b = await enqueue(world, 2)
    stream, task = await begin(world, [a, b], min_count=1, timeout=10)
    await world.advance(11)
    assert await done(task) == []
    assert (stream.finished_count, stream.open_rollout_ids) == (0, [a, b])


async def test_ids_given_twice_count_once(world: World) -> None:
    a, b = await enqueue(world, 2)
    await finish(world, a)
    stream = await now(world, [a, b, a, b])
    assert (stream.got, stream.finished_count, stream.open_rollout_ids) == ([a], 1, [b])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "min_count"):
        await now(world, [a, a], min_count=2)


async def test_groups_stand_for_their_rollouts(world: World) -> None:
    first = await enqueue(world, 2, group_id="g1")
    second = await enqueue(world, 1, group_id="g2")
    (alone,) = await enqueue(world, 1)
    await enqueue(world, 1, group_id="other")
    await finish(world, first[1])
    stream = await now(world, [alone, first[0]], group_ids=["g1", "g2", "g1"])
    assert stream.got == [first[1]]
    assert sorted(stream.open_rollout_ids) == sorted([alone, first[0], second[0]])


async def test_group_means_those_in_it_when_the_call_arrives(world: World) -> None:
    first = await enqueue(world, 1, group_id="g")
    _, task = await begin(world, group_ids=["g"])
    await enqueue(world, 1, group_id="g")
    await finish(world, first[0])
    assert await done(task) == first


@pytest.mark.parametrize("timeout", [None, 0, 5])
async def test_unknown_id_is_not_found_before_anything_is_sent(
    world: World, timeout: float | None
) -> None:
    (a,) = await enqueue(world, 1)
    await finish(world, a)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-nope"):
        await world.store.wait_for_rollouts([a, "ro-nope"], timeout=timeout).__anext__()
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-nope"):
        await world.store.wait_for_rollouts([a, "ro-nope"], min_count=1).registered()


async def test_group_without_rollouts_is_not_found(world: World) -> None:
    (a,) = await enqueue(world, 1)
    for group_id in ("nope", ""):
        with pytest.raises((NotFoundError, InvalidArgumentError)) as caught:
            await now(world, [a], group_ids=[group_id])
        if group_id:
            assert caught.value.reason == "ERROR_REASON_GROUP_NOT_FOUND"
    assert (await world.store.get_statistics()).waiter_count == 0


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("min_count", {"min_count": -1}),
        ("min_count", {"min_count": 3}),
        ("timeout", {"timeout": {"seconds": -1}}),
        ("timeout", {"timeout": {"nanos": -1}}),
        ("rollout_ids", {"rollout_ids": []}),
    ],
    ids=str,
)
async def test_bad_fields_are_named(world: World, field: str, change: dict[str, Any]) -> None:
    request = WaitForRolloutsRequest(**{"rollout_ids": await enqueue(world, 2), **change})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store._transport.server_stream("WaitForRollouts", request, None).__anext__()


async def test_ten_thousand_ids_are_waited_for(world: World) -> None:
    count = 10_000
    rollouts = await enqueue(world, count)
    stream, task = await begin(world, rollouts[::-1])
    await world.store.cancel_rollouts(rollouts[: count // 2])
    await world.settle()
    assert not task.done()
    await world.store.cancel_rollouts(rollouts[count // 2 :])
    got = ids(await asyncio.wait_for(task, 50))
    assert len(got) == count
    assert set(got) == set(rollouts)
    assert stream.finished_count == count
    assert (await now(world, rollouts)).got == rollouts


async def test_reopened_rollout_is_open_and_comes_when_it_finishes_again(world: World) -> None:
    (a,) = await enqueue(world, 1)
    await finish(world, a)
    await world.store.start_attempt(a)
    assert (await now(world, [a])).open_rollout_ids == [a]
    _, task = await begin(world, [a])
    await world.settle()
    assert not task.done()
    await world.store.update_attempt(a, "latest", status="failed")
    (got,) = await asyncio.wait_for(task, 10)
    assert (got.status, got.attempt_count) == ("failed", 2)


async def test_rollout_reopened_by_hand_is_open_again(world: World) -> None:
    (a,) = await enqueue(world, 1)
    await world.store.cancel_rollouts([a])
    await world.store.update_rollout(a, status="queuing")
    _, task = await begin(world, [a])
    await world.settle()
    assert not task.done()
    await finish(world, a)
    assert await done(task) == [a]


async def test_rollout_that_finishes_twice_meanwhile_comes_once(world: World) -> None:
    a, b = await enqueue(world, 2)
    stream, task = await begin(world, [a, b])
    await finish(world, a)
    await finish(world, a)
    await finish(world, b)
    assert await done(task) == [a, b]
    assert stream.finished_count == 2


async def test_many_waits_on_one_rollout_all_wake(world: World) -> None:
    (a,) = await enqueue(world, 1)
    # Fewer than the 100 concurrent streams of a connection.
    waits = [await begin(world, [a]) for _ in range(80)]
    assert (await world.store.get_statistics()).waiter_count == 80
    await finish(world, a)
    for _, task in waits:
        assert await done(task) == [a]
    await world.settle()
    assert (await world.store.get_statistics()).waiter_count == 0


async def test_wait_given_up_is_forgotten(world: World) -> None:
    (a,) = await enqueue(world, 1)
    stream = world.store.wait_for_rollouts([a])
    await stream.registered()
    assert (await world.store.get_statistics()).waiter_count == 1
    await stream.aclose()
    while (await world.store.get_statistics()).waiter_count:  # pytest's own timeout ends it
        await asyncio.sleep(0)


async def test_rollouts_from_before_a_restart_are_waited_for(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    a, b, c = await enqueue(world, 3)
    await finish(world, a)
    await world.store.cancel_rollouts([b])
    await world.restart()
    stream, task = await begin(world, [c, b, a])
    await finish(world, c)
    assert await done(task) == [b, a, c]
    assert stream.finished_count == 3


async def test_wait_wakes_within_fifty_milliseconds_of_the_update(world: World) -> None:
    if world.how != "grpc":
        pytest.skip("measured over gRPC")
    rollouts = await enqueue(world, 20)
    stream = world.store.wait_for_rollouts(rollouts)
    await stream.registered()
    delays = []
    for rollout_id in rollouts:
        await world.store.start_attempt(rollout_id)
        await world.store.update_attempt(rollout_id, "latest", status="succeeded")
        begun = time.monotonic()
        assert (await asyncio.wait_for(stream.__anext__(), 10)).rollout_id == rollout_id
        delays.append(time.monotonic() - begun)
    # The median: one late turn of a busy machine is not the store's.
    assert sorted(delays)[len(delays) // 2] < 0.05
