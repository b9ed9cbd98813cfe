"""DequeueRollouts, its long poll, and StartAttempt."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import (
    AsyncLightningStore,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, finish, poll, refused

pytestmark = pytest.mark.asyncio


async def test_claim_makes_a_preparing_attempt(world: World) -> None:
    await world.store.add_resources({"a": 1}, resources_id="rs")
    await world.store.update_resources("rs", {"a": 2})
    rollout, attempt = await claim(world)
    assert rollout.status == "preparing"
    assert (rollout.attempt_count, rollout.latest_attempt_id) == (1, attempt.attempt_id)
    assert (attempt.sequence_number, attempt.status, attempt.worker_id) == (1, "preparing", "w1")
    assert (attempt.resources_id, attempt.resources_version) == ("rs", 2)
    message = attempt.message
    assert message.start_time.ToNanoseconds() == world.clock.wall_ns()
    assert not message.HasField("end_time")
    assert not message.HasField("last_heartbeat_time")


async def test_claims_go_by_priority_and_first_in_first_out(world: World) -> None:
    low = await enqueue(world, 2, priority=-1)
    normal = await enqueue(world, 2)
    high = await enqueue(world, 2, priority=5)
    claimed = await world.store.dequeue_rollouts(10)
    assert [r.rollout_id for r in claimed] == [*high, *normal, *low]


async def test_claims_are_filtered_by_mode(world: World) -> None:
    (train,) = await enqueue(world, 1, mode="train")
    (val,) = await enqueue(world, 1, mode="val")
    (none,) = await enqueue(world, 1)
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(5, modes=["val"])] == [val]
    request = DequeueRolloutsRequest(limit=5, modes=[0, 1])
    answer = await world.store.call("DequeueRollouts", request)
    assert [r.rollout_id for r in answer.rollouts] == [train, none]


async def test_limit_bounds_the_claims(world: World) -> None:
    ids = await enqueue(world, 5)
    assert await world.store.dequeue_rollouts(0) == []
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(2)] == ids[:2]
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == ids[2:]
    for limit, text in ((-1, "limit"),):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", text):
            await world.store.dequeue_rollouts(limit)


async def test_what_has_left_the_queue_is_skipped(world: World) -> None:
    ids = await enqueue(world, 4)
    await world.store.cancel_rollouts([ids[0]])
    await world.store.start_attempt(ids[1])
    await world.store.update_rollout(ids[2], status="succeeded")
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == ids[3:]


async def test_empty_answer_marks_the_worker_idle(world: World) -> None:
    await world.store.dequeue_rollouts(1, worker_id="w")
    worker = await world.store.get_worker("w")
    assert worker.status == "idle"
    assert worker.message.last_dequeue_time.ToNanoseconds() == world.clock.wall_ns()
    assert worker.message.last_idle_time.ToNanoseconds() == world.clock.wall_ns()


async def test_empty_answer_leaves_a_busy_worker_busy(world: World) -> None:
    await claim(world, worker_id="w")
    await world.advance(1)
    assert await world.store.dequeue_rollouts(1, worker_id="w") == []
    worker = await world.store.get_worker("w")
    assert worker.status == "busy"
    assert worker.message.last_dequeue_time.ToNanoseconds() == world.clock.wall_ns()


async def test_request_id_gives_the_same_claims_again(world: World) -> None:
    await enqueue(world, 3)
    first = await world.store.dequeue_rollouts(2, worker_id="w", request_id="q1")
    again = await world.store.dequeue_rollouts(2, worker_id="w", request_id="q1")
    assert again == first
    if world.durable:
        await world.restart()
        assert await world.store.dequeue_rollouts(2, worker_id="w", request_id="q1") == first
    assert (await world.store.get_statistics()).queue_depth == 1


async def test_repeated_claim_keeps_its_own_attempt_after_a_newer_one(world: World) -> None:
    await enqueue(world, 1)
    (first,) = await world.store.dequeue_rollouts(1, request_id="q1")
    await world.store.start_attempt(first.rollout_id)
    (again,) = await world.store.dequeue_rollouts(1, request_id="q1")
    assert again.latest_attempt == first.latest_attempt
    assert again.attempt_count == 2


async def test_empty_answer_is_not_kept_for_its_request_id(world: World) -> None:
    assert await world.store.dequeue_rollouts(1, request_id="q1") == []
    (rollout_id,) = await enqueue(world, 1)
    (claimed,) = await world.store.dequeue_rollouts(1, request_id="q1")
    assert claimed.rollout_id == rollout_id


async def test_long_poll_is_served_by_an_enqueue(world: World) -> None:
    waiting = await poll(world, limit=1, worker_id="w", wait=9)
    (rollout_id,) = await enqueue(world, 1)
    (claimed,) = await waiting
    assert claimed.rollout_id == rollout_id
    assert (await world.store.get_worker("w")).status == "busy"


async def test_long_poll_ends_empty_and_marks_the_worker_idle(world: World) -> None:
    waiting = await poll(world, limit=1, worker_id="w", wait=5)
    await world.clock.advance(5)
    assert await waiting == []
    assert (await world.store.get_worker("w")).status == "idle"


async def test_long_polls_are_served_first_come_first_served(world: World) -> None:
    first = await poll(world, limit=1, wait=9)
    second = await poll(world, limit=5, wait=9)
    ids = await enqueue(world, 3)
    assert [r.rollout_id for r in await first] == ids[:1]
    assert [r.rollout_id for r in await second] == ids[1:]


async def test_long_poll_waits_for_its_mode(world: World) -> None:
    waiting = await poll(world, limit=1, modes=["val"], wait=9)
    await enqueue(world, 1, mode="train")
    await world.settle()
    assert not waiting.done()
    (val,) = await enqueue(world, 1, mode="val")
    assert [r.rollout_id for r in await waiting] == [val]


async def test_long_poll_is_served_by_a_retry_and_by_a_requeue(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    waiting = await poll(world, limit=1, wait=9)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert [r.attempt_count for r in await waiting] == [2]
    waiting = await poll(world, limit=1, wait=9)
    await world.store.update_rollout(rollout.rollout_id, status="queuing")
    assert [r.attempt_count for r in await waiting] == [3]


async def test_cancelled_long_poll_claims_nothing(world: World) -> None:
    waiting = await poll(world, limit=1, wait=9)
    waiting.cancel()
    while (await world.store.get_statistics()).waiter_count:
        await asyncio.sleep(0.001)
    await enqueue(world, 1)
    assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_start_attempt_counts_on_and_takes_out_of_the_queue(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    first = await world.store.start_attempt(rollout_id, worker_id="w")
    second = await world.store.start_attempt(rollout_id, worker_id="w")
    assert (first.latest_attempt.sequence_number, second.latest_attempt.sequence_number) == (1, 2)
    assert await world.store.dequeue_rollouts(1) == []
    listed = await world.store.list_attempts(rollout_id)
    assert [a.sequence_number for a in listed] == [1, 2]
    assert (await world.store.get_attempt(rollout_id)) == second.latest_attempt


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_start_attempt_reopens_a_finished_rollout(world: World, status: str) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await finish(world, rollout_id, status)
    if world.durable:
        await world.restart()
    again = await world.store.start_attempt(rollout_id)
    assert again.status == "preparing"
    assert again.end_time is None
    assert again.completion_number == 0
    assert again.latest_attempt.sequence_number == 2


async def test_start_attempt_at_a_cancelled_rollout_is_refused(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await world.store.cancel_rollouts([rollout_id])
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED", "CANCELLED"):
        await world.store.start_attempt(rollout_id)


async def test_start_attempt_repeated_by_request_id_makes_one(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    first = await world.store.start_attempt(rollout_id, request_id="a")
    again = await world.store.start_attempt(rollout_id, request_id="a")
    assert again == first
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND"):
        await world.store.start_attempt("ro-nobody")


async def test_sixty_four_clients_claim_five_thousand_rollouts_each_once(world: World) -> None:
    if world.how != "grpc":
        clients = [world.store] * 64
    else:
        clients = [AsyncLightningStore(world.server.address, timeout=30) for _ in range(64)]
    for _ in range(5):
        await enqueue(world, 1000)
    claimed: list[str] = []

    async def work(store: AsyncLightningStore, name: str) -> None:
        while rollouts := await store.dequeue_rollouts(7, worker_id=name):
            claimed.extend(r.latest_attempt.message.rollout_id for r in rollouts)

    await asyncio.gather(*(work(client, f"w{i}") for i, client in enumerate(clients)))
    assert len(claimed) == 5000
    assert len(set(claimed)) == 5000
    if world.how == "grpc":
        await asyncio.gather(*(client.close() for client in clients))
