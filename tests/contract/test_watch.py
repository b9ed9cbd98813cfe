"""WatchRollouts: order, resuming, and the errors of a wrong place."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import (
    AsyncWatchStream,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
    Rollout,
)
from lightningstore.v1.completion_pb2 import WatchRolloutsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, finish, refused

pytestmark = pytest.mark.asyncio


async def take(stream: AsyncWatchStream, count: int) -> list[Rollout]:
    return [await asyncio.wait_for(stream.__anext__(), 20) for _ in range(count)]


async def finished(world: World, count: int) -> list[str]:
    rollouts = await enqueue(world, count)
    for rollout_id in rollouts:
        await finish(world, rollout_id)
    return rollouts


async def quiet(world: World, stream: AsyncWatchStream) -> None:
    """Check that a stream has nothing more to say, by the next thing that it does say."""
    (mark,) = await finished(world, 1)
    assert (await take(stream, 1))[0].rollout_id == mark


async def test_finishes_come_in_completion_order(world: World) -> None:
    a, b, c, d = await enqueue(world, 4)
    async with world.store.watch_rollouts(0) as stream:
        await stream.registered()
        await finish(world, c)
        await world.store.cancel_rollouts([a])
        await finish(world, d, "failed")
        await world.store.update_rollout(b, status="succeeded")
        got = await take(stream, 4)
    assert [r.rollout_id for r in got] == [c, a, d, b]
    assert [r.completion_number for r in got] == [1, 2, 3, 4]
    assert [r.status for r in got] == ["succeeded", "cancelled", "failed", "succeeded"]
    assert got[0] == await world.store.get_rollout(c)


async def test_from_the_beginning_sends_all_that_finished(world: World) -> None:
    rollouts = await finished(world, 5)
    async with world.store.watch_rollouts(0) as stream:
        assert [r.rollout_id for r in await take(stream, 5)] == rollouts
        await quiet(world, stream)


async def test_from_now_on_sends_what_finishes_later(world: World) -> None:
    await finished(world, 3)
    async with world.store.watch_rollouts() as stream:
        await stream.registered()
        (later,) = await finished(world, 1)
        (got,) = await take(stream, 1)
        assert (got.rollout_id, got.completion_number) == (later, 4)


async def test_from_a_number_on_sends_what_came_after_it(world: World) -> None:
    rollouts = await finished(world, 5)
    async with world.store.watch_rollouts(3) as stream:
        assert [r.rollout_id for r in await take(stream, 2)] == rollouts[3:]
        await quiet(world, stream)


async def test_from_the_last_number_on_waits_for_the_next(world: World) -> None:
    await finished(world, 2)
    async with world.store.watch_rollouts(2) as stream:
        await stream.registered()
        await quiet(world, stream)


async def test_stream_tells_where_it_stands_and_of_which_store(world: World) -> None:
    await finished(world, 3)
    info = await world.store.get_server_info()
    request = WatchRolloutsRequest(after_completion_number=1)
    answers = world.store._transport.server_stream("WatchRollouts", request, None)
    seen, through = [], []
    while len(seen) < 2:
        answer = await asyncio.wait_for(answers.__anext__(), 10)
        seen += [r.rollout_id for r in answer.rollouts]
        through.append(answer.through_completion_number)
        assert answer.store_id == info.store_id
        if answer.rollouts:
            assert answer.rollouts[-1].completion_number == answer.through_completion_number
    assert through == sorted(through)
    assert through[-1] == 3
    await answers.aclose()


async def test_finishes_of_one_call_come_together(world: World) -> None:
    rollouts = await enqueue(world, 50)
    request = WatchRolloutsRequest(after_completion_number=0)
    answers = world.store._transport.server_stream("WatchRollouts", request, None)
    await answers.__anext__()
    await world.store.cancel_rollouts(rollouts)
    messages, seen = 0, []
    while len(seen) < 50:
        answer = await asyncio.wait_for(answers.__anext__(), 10)
        messages += 1
        seen += [r.rollout_id for r in answer.rollouts]
    assert seen == rollouts
    assert messages < 10
    await answers.aclose()


async def test_quiet_stream_ticks_every_fifteen_seconds(world: World) -> None:
    await finished(world, 2)
    request = WatchRolloutsRequest()
    answers = world.store._transport.server_stream("WatchRollouts", request, None)
    first = await asyncio.wait_for(answers.__anext__(), 10)
    assert (len(first.rollouts), first.through_completion_number) == (0, 2)
    passed = 0  # since the first message: the server may have begun its next wait while a tick came
    for ticks in (1, 2):
        waiting = asyncio.ensure_future(answers.__anext__())
        while not waiting.done():
            await world.advance(1)
            await asyncio.sleep(0.002)
            passed += 1
        assert 15 * ticks - 1 <= passed <= 40 * ticks
        tick = await waiting
        assert (len(tick.rollouts), tick.through_completion_number) == (0, 2)
    await answers.aclose()


@pytest.mark.parametrize("number", [1, 100, (1 << 63) - 1])
async def test_number_beyond_the_last_is_out_of_range(world: World, number: int) -> None:
    async with refused(world, OutOfRangeError, "COMPLETION_NUMBER_BEYOND_END"):
        await world.store.watch_rollouts(number).__anext__()
    await finished(world, 1)
    async with refused(world, OutOfRangeError, "COMPLETION_NUMBER_BEYOND_END"):
        await world.store.watch_rollouts(max(number, 2)).__anext__()


async def test_negative_number_is_refused(world: World) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "after_completion_number"):
        await world.store.watch_rollouts(-1).__anext__()


async def test_another_stores_id_is_refused(world: World) -> None:
    await finished(world, 1)
    async with refused(world, FailedPreconditionError, "STORE_ID_MISMATCH"):
        await world.store.watch_rollouts(0, store_id="another").__anext__()
    # The id says more than the number, which means nothing then.
    async with refused(world, FailedPreconditionError, "STORE_ID_MISMATCH"):
        await world.store.watch_rollouts(99, store_id="another").__anext__()


async def test_own_store_id_is_taken(world: World) -> None:
    rollouts = await finished(world, 1)
    info = await world.store.get_server_info()
    async with world.store.watch_rollouts(0, store_id=info.store_id) as stream:
        assert [r.rollout_id for r in await take(stream, 1)] == rollouts
        assert (stream.store_id, stream.through_completion_number) == (info.store_id, 1)


async def test_lost_connection_is_taken_up_where_it_was(world: World) -> None:
    rollouts = await finished(world, 6)
    first = world.store.watch_rollouts(0)
    seen = [r.rollout_id for r in await take(first, 2)]
    through, store_id = first.through_completion_number, first.store_id
    await first.aclose()
    rollouts += await finished(world, 2)
    async with world.store.watch_rollouts(through, store_id=store_id) as stream:
        seen += [r.rollout_id for r in await take(stream, 6)]
    assert seen == rollouts


async def test_watch_goes_on_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    rollouts = await finished(world, 4)
    stream = world.store.watch_rollouts(0)
    seen = [r.rollout_id for r in await take(stream, 2)]
    through, store_id = stream.through_completion_number, stream.store_id
    await stream.aclose()
    await world.restart()
    rollouts += await finished(world, 1)
    async with world.store.watch_rollouts(through, store_id=store_id) as again:
        got = await take(again, 3)
    assert seen + [r.rollout_id for r in got] == rollouts
    assert [r.completion_number for r in got] == [3, 4, 5]


async def test_store_that_kept_nothing_is_told_apart(world: World) -> None:
    await finished(world, 2)
    before = (await world.store.get_server_info()).store_id
    await world.restart()
    after = (await world.store.get_server_info()).store_id
    assert (before == after) == world.durable
    if not world.durable:
        async with refused(world, FailedPreconditionError, "STORE_ID_MISMATCH"):
            await world.store.watch_rollouts(2, store_id=before).__anext__()


async def test_reopened_rollout_comes_again_under_a_new_number(world: World) -> None:
    a, b = await finished(world, 2)
    async with world.store.watch_rollouts(0) as stream:
        await take(stream, 2)
        await finish(world, a, "failed")
        (again,) = await take(stream, 1)
    assert (again.rollout_id, again.completion_number, again.status) == (a, 3, "failed")
    async with world.store.watch_rollouts(0) as late:
        # Its old number is left out: that finish is no longer true.
        got = await take(late, 2)
    assert [(r.rollout_id, r.completion_number) for r in got] == [(b, 2), (a, 3)]


async def test_reopened_rollout_that_is_open_is_left_out(world: World) -> None:
    a, b = await finished(world, 2)
    await world.store.start_attempt(b)
    await world.store.start_attempt(a)
    assert (await world.store.get_rollout(a)).completion_number == 0
    async with world.store.watch_rollouts(0) as stream:
        await stream.registered()
        await world.store.update_attempt(b, "latest", status="succeeded")
        (got,) = await take(stream, 1)
    assert (got.rollout_id, got.completion_number) == (b, 3)


async def test_reopened_rollout_is_left_out_after_a_restart_too(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    a, b, c = await finished(world, 3)
    await finish(world, a)
    await world.store.start_attempt(c)
    await world.restart()
    async with world.store.watch_rollouts(0) as stream:
        got = await take(stream, 2)
        assert [(r.rollout_id, r.completion_number) for r in got] == [(b, 2), (a, 4)]
        await finish(world, c)
        assert [r.completion_number for r in await take(stream, 1)] == [5]


async def test_retry_is_no_finish(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    async with world.store.watch_rollouts(0) as stream:
        await stream.registered()
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
        await quiet(world, stream)
    assert (await world.store.get_statistics()).last_completion_number == 1


async def test_late_reports_of_a_finished_rollout_are_no_finish(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    async with world.store.watch_rollouts() as stream:
        await stream.registered()
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
        await world.store.cancel_rollouts([rollout.rollout_id])
        await quiet(world, stream)


async def test_a_watch_from_before_shows_what_has_changed_since_the_finish(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    async with world.store.watch_rollouts(0) as stream:
        (seen,) = await take(stream, 1)
    assert seen.latest_attempt is not None
    assert seen.latest_attempt.status == "preparing"
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
    await world.store.update_rollout(rollout.rollout_id, metadata={"note": "late"})
    current = await world.store.get_rollout(rollout.rollout_id)
    async with world.store.watch_rollouts(0) as stream:
        (seen,) = await take(stream, 1)
    assert seen == current
    assert seen.latest_attempt is not None
    assert seen.latest_attempt.status == "failed"
    assert seen.metadata == {"note": "late"}


async def test_numbers_go_on_without_gaps_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    for expected in (1, 2, 3):
        (rollout_id,) = await finished(world, 1)
        assert (await world.store.get_rollout(rollout_id)).completion_number == expected
        await world.restart()


async def test_hundreds_of_finishes_behind_are_caught_up(world: World) -> None:
    rollouts = await enqueue(world, 3000)
    await world.store.cancel_rollouts(rollouts)
    if world.durable:
        await world.restart()
    async with world.store.watch_rollouts(0) as stream:
        got = await take(stream, 3000)
    assert [r.completion_number for r in got] == list(range(1, 3001))
    assert [r.rollout_id for r in got] == rollouts


async def test_many_watchers_see_the_same(world: World) -> None:
    streams = [world.store.watch_rollouts(0) for _ in range(20)]
    for stream in streams:
        await stream.registered()
    rollouts = await finished(world, 5)
    for stream in streams:
        assert [r.rollout_id for r in await take(stream, 5)] == rollouts
        await stream.aclose()
