"""Pause of claims: nothing begins until claims are resumed, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random

import pytest
from lightningstore.client import FailedPreconditionError, InvalidArgumentError
from lightningstore.v1.claim_pb2 import PauseClaimsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, poll, refused

pytestmark = pytest.mark.asyncio


async def test_paused_claims_hand_out_nothing_and_running_attempts_go_on(world: World) -> None:
    rollout, attempt = await claim(world)
    ids = await enqueue(world, 2, queue="gpu")
    paused = await world.store.pause_claims("weights")
    assert paused.pause is not None
    assert (paused.pause.reason, paused.running_attempt_count) == ("weights", 1)
    assert paused.pause.start_time.timestamp() == pytest.approx(world.clock.wall_ns() / 1e9)
    assert await world.store.dequeue_rollouts(9, queues=["", "gpu"]) == []
    statistics = await world.store.get_statistics()
    assert (statistics.claim_pause, statistics.running_attempt_count) == tuple(paused)
    assert statistics.queues == {"gpu": 2}
    await world.store.heartbeat("w1", attempts=[attempt])
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    assert (await world.store.get_statistics()).running_attempt_count == 0
    assert await world.store.resume_claims() == (paused.pause, 0)
    assert (await world.store.get_statistics()).claim_pause is None
    found = await world.store.dequeue_rollouts(9, queues=["", "gpu"])
    assert [r.rollout_id for r in found] == ids
    assert await world.store.resume_claims() == (None, 2)


async def test_long_polls_wait_and_are_served_in_order_when_claims_resume(world: World) -> None:
    await world.store.pause_claims()
    early = await enqueue(world, 1)  # claimable before the polls come
    polls = [
        await poll(world, limit=1, wait=60, queues=queues)
        for queues in ([], ["gpu"], ["", "gpu"], ["gpu"])
    ]
    late = await enqueue(world, 1, queue="gpu")
    await world.settle()
    assert not any(task.done() for task in polls)
    resumed = await world.store.resume_claims()
    assert resumed.running_attempt_count == 2
    assert [r.rollout_id for r in await polls[0]] == early
    assert [r.rollout_id for r in await polls[1]] == late
    (last,) = await enqueue(world, 1, queue="gpu")
    assert [r.rollout_id for r in await polls[2]] == [last]
    assert not polls[3].done()
    polls[3].cancel()


async def test_wait_ends_while_claims_are_paused(world: World) -> None:
    await enqueue(world, 1)
    await world.store.pause_claims()
    waiting = await poll(world, limit=1, wait=5)
    await world.clock.advance(5)
    assert await waiting == []


async def test_retries_stay_queued_while_claims_are_paused(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    waiting = await poll(world, limit=1, wait=60)
    await world.store.pause_claims()
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
    await world.settle()
    assert not waiting.done()
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
    await world.store.resume_claims()
    assert [r.rollout_id for r in await waiting] == [rollout.rollout_id]


async def test_claims_by_name_are_refused_while_claims_are_paused(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    started = await world.store.start_rollout(1, request_id="started")
    again = await world.store.start_attempt(started.rollout_id, request_id="again")
    await world.store.pause_claims("why not")
    async with refused(world, FailedPreconditionError, "CLAIMS_PAUSED", "why not") as metadata:
        await world.store.start_attempt(rollout_id)
    assert metadata["reason"] == "why not"
    assert metadata["startTime"].endswith("Z")
    async with refused(world, FailedPreconditionError, "CLAIMS_PAUSED"):
        await world.store.start_rollout(1)
    # Repeats of calls that had claimed get their claims.
    same = await world.store.start_rollout(1, request_id="started")
    assert same.rollout_id == started.rollout_id
    repeated = await world.store.start_attempt(started.rollout_id, request_id="again")
    assert repeated.attempt.attempt_id == again.attempt.attempt_id
    await world.store.resume_claims()
    assert (await world.store.start_attempt(rollout_id)).attempt.sequence_number == 1


async def test_repeated_claim_gets_its_claims_while_claims_are_paused(world: World) -> None:
    ids = await enqueue(world, 2)
    first = await world.store.dequeue_rollouts(1, request_id="q")
    await world.store.pause_claims()
    again = await world.store.dequeue_rollouts(1, request_id="q")
    assert [r.rollout_id for r in again] == ids[:1]
    assert again[0].attempt.attempt_id == first[0].attempt.attempt_id
    assert await world.store.dequeue_rollouts(1, request_id="other") == []
    await world.store.resume_claims()
    # Nothing was claimed, so nothing is kept for this id.
    assert len(await world.store.dequeue_rollouts(1, request_id="other")) == 1


async def test_pause_keeps_its_start_and_takes_the_last_reason(world: World) -> None:
    first = await world.store.pause_claims("one")
    await world.advance(7)
    second = await world.store.pause_claims("two")
    assert first.pause is not None
    assert second.pause == first.pause._replace(reason="two")
    ended = await world.store.resume_claims()
    assert ended.pause == second.pause
    third = await world.store.pause_claims()
    assert third.pause is not None
    assert third.pause.start_time > first.pause.start_time


async def test_repeats_change_nothing_that_came_after(world: World) -> None:
    paused = await world.store.pause_claims("one", request_id="p")
    assert await world.store.pause_claims("one", request_id="p") == paused
    resumed = await world.store.resume_claims(request_id="r")
    assert await world.store.pause_claims("one", request_id="p") == (None, 0)
    assert (await world.store.get_statistics()).claim_pause is None
    await world.store.pause_claims("two")
    assert await world.store.resume_claims(request_id="r") == resumed
    pause = (await world.store.get_statistics()).claim_pause
    assert pause is not None
    assert pause.reason == "two"
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED"):
        await world.store.pause_claims("other", request_id="p")


async def test_bad_reason_is_named(world: World) -> None:
    for reason in ("x" * 257, "x\0"):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", "reason"):
            await world.store.call("PauseClaims", PauseClaimsRequest(reason=reason))


async def test_pause_survives_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    rollout, _ = await claim(world)
    ids = await enqueue(world, 1)
    paused = await world.store.pause_claims("weights", request_id="p")
    await world.restart(down=30)
    statistics = await world.store.get_statistics()
    assert (statistics.claim_pause, statistics.running_attempt_count) == tuple(paused)
    waiting = await poll(world, limit=1, wait=60)
    assert not waiting.done()
    await world.store.resume_claims()
    assert [r.rollout_id for r in await waiting] == ids
    await world.restart()
    assert (await world.store.get_statistics()).claim_pause is None
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "preparing"


async def test_pause_that_is_answered_comes_after_every_claim(world: World) -> None:
    """Polls, claims, pauses and resumes in any order: between a pause and its resume, no attempt begins."""
    dice = random.Random(11)
    tasks: list[asyncio.Task] = []
    began = 0
    for _ in range(15):
        for _ in range(dice.randrange(6)):
            step = dice.randrange(3)
            if step == 0:
                await enqueue(world, dice.randrange(1, 3), queue=dice.choice(["", "gpu"]))
            else:
                queues = dice.choice([[], ["gpu"], ["", "gpu"]])
                wait = 600 if step == 1 else 0
                call = world.store.dequeue_rollouts(1, wait=wait, queues=queues)
                tasks.append(asyncio.create_task(call))
            if dice.random() < 0.3:
                await asyncio.sleep(0)
        paused = await world.store.pause_claims()
        assert paused.running_attempt_count >= began
        await enqueue(world, 1, queue=dice.choice(["", "gpu"]))
        assert await world.store.dequeue_rollouts(5, queues=["", "gpu"]) == []
        await world.settle()
        running = (await world.store.get_statistics()).running_attempt_count
        assert running == paused.running_attempt_count
        began = (await world.store.resume_claims()).running_attempt_count
    await world.settle()
    claimed = [r.rollout_id for task in tasks if task.done() for r in task.result()]
    assert len(set(claimed)) == len(claimed)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
