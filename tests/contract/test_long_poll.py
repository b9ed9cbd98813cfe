"""DequeueRollouts with `wait`: which poll is served, when, and what remains after a wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightningstore.client import InvalidArgumentError, ResourceExhaustedError
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, poll, refused

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("limit", DequeueRolloutsRequest(limit=-1)),
        ("wait", DequeueRolloutsRequest(limit=1, wait={"seconds": -1})),
        ("wait", DequeueRolloutsRequest(limit=1, wait={"nanos": -1})),
        ("modes[1]", DequeueRolloutsRequest(limit=1, modes=[1, 9])),
        ("worker_id", DequeueRolloutsRequest(limit=1, worker_id="x" * 257)),
        ("worker_id", DequeueRolloutsRequest(limit=1, worker_id="x\0")),
        ("request_id", DequeueRolloutsRequest(limit=1, request_id="x\0")),
        ("request_id", DequeueRolloutsRequest(limit=1, request_id="x" * 65)),
    ],
)
async def test_bad_request_claims_nothing(
    world: World, field: str, request_: DequeueRolloutsRequest
) -> None:
    await enqueue(world, 1)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("DequeueRollouts", request_)


async def test_limit_above_that_of_a_batch_is_refused(world: World) -> None:
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await world.store.dequeue_rollouts(10_001)


@pytest.mark.parametrize(("limit", "wait"), [(0, 60), (1, 0)])
async def test_nothing_asked_for_is_answered_at_once(world: World, limit: int, wait: int) -> None:
    assert await world.store.dequeue_rollouts(limit, wait=wait) == []


async def test_poll_answers_at_once_where_the_queue_holds_something(world: World) -> None:
    ids = await enqueue(world, 2)
    claimed = await world.store.dequeue_rollouts(5, wait=60)
    assert [r.rollout_id for r in claimed] == ids


async def test_poll_ends_empty_no_later_than_its_wait(world: World) -> None:
    waiting = await poll(world, limit=1, wait=40)
    await world.advance(37.9)
    assert not waiting.done()
    await world.clock.advance(2.1)
    assert await waiting == []
    assert (await world.store.get_statistics()).waiter_count == 0


async def test_poll_answers_before_the_deadline_of_its_call(world: World) -> None:
    request = DequeueRolloutsRequest(limit=1, wait={"seconds": 3600})
    waiting = asyncio.create_task(world.store.call("DequeueRollouts", request))
    while not (await world.store.get_statistics()).waiter_count:
        await asyncio.sleep(0.001)
    await world.clock.advance(10)  # gRPC rounds the time that remains up
    assert len((await waiting).rollouts) == 0


async def test_poll_takes_all_that_came_at_once_up_to_its_limit(world: World) -> None:
    waiting = await poll(world, limit=3, wait=60)
    ids = await enqueue(world, 5)
    assert [r.rollout_id for r in await waiting] == ids[:3]
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == ids[3:]


async def test_poll_takes_the_highest_priority_of_a_batch(world: World) -> None:
    waiting = await poll(world, limit=1, wait=60)
    specs = [{"input": n, "priority": n} for n in (1, 3, 2)]
    made = await world.store.enqueue_rollouts(specs)
    assert [r.rollout_id for r in await waiting] == [made[1].rollout_id]


async def test_poll_for_another_mode_is_passed_over(world: World) -> None:
    first = await poll(world, limit=1, modes=["val"], wait=60)
    second = await poll(world, limit=1, modes=["train", None], wait=60)
    (train,) = await enqueue(world, 1, mode="train")
    assert [r.rollout_id for r in await second] == [train]
    assert not first.done()
    (val,) = await enqueue(world, 1, mode="val")
    assert [r.rollout_id for r in await first] == [val]


async def test_poll_for_no_mode_takes_rollouts_without_one(world: World) -> None:
    waiting = await poll(world, limit=1, modes=[None], wait=60)
    await enqueue(world, 1, mode="test")
    (plain,) = await enqueue(world, 1)
    assert [r.rollout_id for r in await waiting] == [plain]


async def test_new_mode_of_a_queued_rollout_serves_a_poll(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, mode="train")
    waiting = await poll(world, limit=1, modes=["val"], wait=60)
    await world.store.update_rollout(rollout_id, mode="val")
    assert [r.rollout_id for r in await waiting] == [rollout_id]


async def test_started_rollout_serves_no_poll(world: World) -> None:
    waiting = await poll(world, limit=1, wait=60)
    rollout = await world.store.start_rollout(1)
    await world.store.start_attempt(rollout.rollout_id)
    await world.settle()
    assert not waiting.done()
    (rollout_id,) = await enqueue(world, 1)
    assert [r.rollout_id for r in await waiting] == [rollout_id]


async def test_each_rollout_serves_one_of_many_polls_in_their_order(world: World) -> None:
    polls = [await poll(world, limit=1, wait=60, worker_id=f"w{n}") for n in range(30)]
    ids = await enqueue(world, 20)
    answers = await asyncio.gather(*polls[:20])
    assert [r.rollout_id for (r,) in answers] == ids
    assert [r.attempt.worker_id for (r,) in answers] == [f"w{n}" for n in range(20)]
    await world.settle()
    assert not any(waiting.done() for waiting in polls[20:])
    more = await enqueue(world, 10)
    assert [r.rollout_id for (r,) in await asyncio.gather(*polls[20:])] == more


async def test_seventy_polls_end_together(world: World) -> None:
    polls = [await poll(world, limit=1, wait=0.5) for _ in range(70)]
    await world.clock.advance(0.5)
    assert await asyncio.gather(*polls) == [[]] * 70


async def test_claim_by_poll_is_what_any_claim_is(world: World) -> None:
    waiting = await poll(world, limit=1, wait=60, worker_id="w")
    await world.advance(7)
    (rollout_id,) = await enqueue(world, 1, config=RETRY)
    (claimed,) = await waiting
    assert (claimed.status, claimed.attempt.status) == ("preparing", "preparing")
    assert claimed.attempt.message.start_time.ToNanoseconds() == world.clock.wall_ns()
    assert claimed == await world.store.get_rollout(rollout_id)
    worker = await world.store.get_worker("w")
    assert worker.message.last_dequeue_time.ToNanoseconds() == world.clock.wall_ns()
    assert worker.current_rollout_id == rollout_id


@pytest.mark.parametrize("count", [1, 2])
async def test_same_request_id_waiting_twice_gets_one_claim(world: World, count: int) -> None:
    first = await poll(world, limit=1, wait=60, request_id="q")
    second = await poll(world, limit=1, wait=60, request_id="q")
    ids = await enqueue(world, count)
    (one,), (other,) = await first, await second
    assert (one.rollout_id, one.attempt) == (other.rollout_id, other.attempt)
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(5)] == ids[1:]


async def test_request_id_of_two_different_polls_is_the_pollers_error_alone(world: World) -> None:
    first = await poll(world, limit=1, wait=60, request_id="q")
    second = await poll(world, limit=2, wait=60, request_id="q")
    ids = await enqueue(world, 2)
    assert [r.rollout_id for r in await first] == ids[:1]
    with pytest.raises(InvalidArgumentError, match="REQUEST_ID_REUSED"):
        await second
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(5)] == ids[1:]


async def test_lost_answer_of_a_poll_is_given_again(world: World) -> None:
    waiting = await poll(world, limit=2, wait=60, worker_id="w", request_id="q")
    ids = await enqueue(world, 3)
    await waiting
    again = await world.store.dequeue_rollouts(2, wait=60, worker_id="w", request_id="q")
    assert [r.rollout_id for r in again] == ids[:2]
    assert again == await waiting


async def test_poll_ends_empty_when_the_server_goes_down(world: World) -> None:
    waiting = await poll(world, limit=1, wait=60)
    world.service.engine.stop_waiting()
    assert await waiting == []


async def test_worker_busy_on_another_stays_busy_while_it_polls(world: World) -> None:
    _, attempt = await claim(world)
    waiting = await poll(world, limit=1, worker_id="w1", wait=5)
    await world.clock.advance(5)
    assert await waiting == []
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("busy", attempt.attempt_id)


async def test_reports_cost_the_same_whoever_waits_beside_whatever_priorities(world: World) -> None:
    rollout, attempt = await claim(world)
    for priority in range(300):
        await world.store.enqueue_rollout(1, mode="train", priority=priority)
    waiting = [await poll(world, limit=1, modes=["val"], wait=60) for _ in range(20)]
    assert world.service is not None
    looked: list[str] = []
    queue = world.service.engine.live.state.queue
    for name in ("holds", "claimable"):
        original = getattr(queue, name)

        def counted(*args: object, _original: Any = original, _name: str = name) -> object:
            looked.append(_name)
            return _original(*args)

        setattr(queue, name, counted)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, metadata={"step": 1})
    assert looked == []  # nothing has entered the queue
    await world.store.enqueue_rollout(1, mode="train")
    assert len(looked) <= 1
    await world.store.enqueue_rollout(1, mode="val")
    assert len(looked) < 10
    assert len(await waiting[0]) == 1
    for task in waiting[1:]:
        task.cancel()


async def test_polls_for_several_modes_are_served_in_the_order_in_which_they_came(
    world: World,
) -> None:
    either = await poll(world, limit=1, modes=["val", "test"], wait=60)
    val = await poll(world, limit=1, modes=["val"], wait=60)
    any_mode = await poll(world, limit=1, wait=60)
    specs = [{"input": n, "mode": mode} for n, mode in enumerate(["val", "test", "val"])]
    made = await world.store.enqueue_rollouts(specs)
    claimed = [(await task)[0].rollout_id for task in (either, val, any_mode)]
    assert claimed == [made[0].rollout_id, made[2].rollout_id, made[1].rollout_id]
