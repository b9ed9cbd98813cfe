"""CancelRollouts."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, finish, refused, snapshot

pytestmark = pytest.mark.asyncio


async def test_cancelled_rollout_has_an_end_and_leaves_the_queue(world: World) -> None:
    ids = await enqueue(world, 3)
    await world.advance(2)
    (cancelled,) = await world.store.cancel_rollouts([ids[1]])
    assert (cancelled.status, cancelled.completion_number) == ("cancelled", 1)
    assert cancelled.message.end_time.ToNanoseconds() == world.clock.wall_ns()
    assert cancelled == await world.store.get_rollout(ids[1])
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == [ids[0], ids[2]]


@pytest.mark.parametrize("state", ["queuing", "preparing", "running", "requeuing"])
async def test_every_open_rollout_can_be_cancelled(world: World, state: str) -> None:
    rollout = await world.store.enqueue_rollout(1, config=RETRY)
    names = (rollout.rollout_id, "latest")
    if state != "queuing":
        await world.store.dequeue_rollouts(1, worker_id="w")
    if state == "running":
        await world.store.add_spans(batch(*names, "a"))
    elif state == "requeuing":
        await world.store.update_attempt(*names, status="failed")
    before = await world.store.get_rollout(rollout.rollout_id)
    assert before.status == state
    (after,) = await world.store.cancel_rollouts([rollout.rollout_id])
    assert after.status == "cancelled"
    assert after.latest_attempt == before.latest_attempt
    assert await world.store.dequeue_rollouts(1) == []


async def test_answer_keeps_the_order_and_the_doubles_of_the_request(world: World) -> None:
    ids = await enqueue(world, 3)
    asked = [ids[2], ids[0], ids[2]]
    done = await world.store.cancel_rollouts(asked)
    assert [r.rollout_id for r in done] == asked
    assert done[0] == done[2]
    assert [r.completion_number for r in done] == [1, 2, 1]


async def test_empty_list_cancels_nothing(world: World) -> None:
    assert await world.store.cancel_rollouts([]) == []


async def test_one_unknown_id_cancels_none(world: World) -> None:
    ids = await enqueue(world, 2)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-none"):
        await world.store.cancel_rollouts([ids[0], "ro-none", ids[1]])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout_ids[1]"):
        await world.store.cancel_rollouts([ids[0], ""])
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await world.store.cancel_rollouts(ids[:1] * 10_001)


async def test_repeat_changes_nothing(world: World) -> None:
    ids = await enqueue(world, 2)
    first = await world.store.cancel_rollouts(ids)
    await world.advance(1)
    before = await snapshot(world)
    assert await world.store.cancel_rollouts(ids) == first
    assert await snapshot(world) == before


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_outcome_of_a_finished_rollout_stays(world: World, status: str) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await finish(world, rollout_id, status)
    before = await world.store.get_rollout(rollout_id)
    assert await world.store.cancel_rollouts([rollout_id]) == [before]


async def test_worker_of_a_cancelled_rollout_is_busy_until_its_attempt_ends(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("busy", attempt.attempt_id)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_no_update_of_its_attempt_revives_a_cancelled_rollout(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    names = (rollout.rollout_id, attempt.attempt_id)
    (cancelled,) = await world.store.cancel_rollouts([rollout.rollout_id])
    now = cancelled.end_time
    for change in (
        {"metadata": {"a": 1}},
        {"worker_id": "w2"},
        {"last_heartbeat_time": now},
        {"status": "running"},
        {"status": "unresponsive"},
        {"status": "failed"},
        {"status": "succeeded"},
    ):
        update = await world.store.update_attempt(*names, **change)
        assert update.stop_reason == "rollout_cancelled"
    assert (await world.store.add_spans(batch(*names, "a"))).stops[0].reason == "rollout_cancelled"
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.end_time) == ("cancelled", cancelled.end_time)
    assert await world.store.dequeue_rollouts(1) == []


async def test_many_are_cancelled_in_one_call(world: World) -> None:
    ids = await enqueue(world, 1000)
    done = await world.store.cancel_rollouts(ids)
    assert [r.completion_number for r in done] == list(range(1, 1001))
    assert (await world.store.get_statistics()).queue_depth == 0
