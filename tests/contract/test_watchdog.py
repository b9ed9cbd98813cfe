"""Deadlines: timeouts, restarts, stalls, clock jumps, and attempts without calls."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import RolloutConfig
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_FAILED

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, finish, poll

pytestmark = pytest.mark.asyncio

#: An overdue attempt changes status within this of its deadline.
WITHIN = 0.25
TIMED = RolloutConfig(timeout=10)
SILENT = RolloutConfig(unresponsive_timeout=10)


async def status(world: World, rollout_id: str, attempt_id: str = "latest") -> str:
    return (await world.store.get_attempt(rollout_id, attempt_id)).status


async def beat(world: World, rollout_id: str, attempt_id: str = "latest") -> None:
    await world.store.heartbeat("w1", attempts=[(rollout_id, attempt_id)])


@pytest.mark.parametrize(("config", "verdict"), [(TIMED, "timeout"), (SILENT, "unresponsive")])
async def test_overdue_attempt_ends_within_a_quarter_second(
    world: World, config: RolloutConfig, verdict: str
) -> None:
    rollout, attempt = await claim(world, config=config)
    await world.advance(9.99)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.advance(0.01 + WITHIN)
    ended = await world.store.get_attempt(rollout.rollout_id)
    assert ended.status == verdict
    lasted = (ended.end_time - attempt.start_time).total_seconds()
    assert 10 <= lasted <= 10 + WITHIN
    assert ended.message.failure.type == ""


async def test_no_limit_means_no_deadline(world: World) -> None:
    rollout, _ = await claim(world)
    await world.advance(100_000)
    assert await status(world, rollout.rollout_id) == "preparing"


async def test_waiting_in_the_queue_is_no_part_of_an_attempt(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, config=TIMED)
    await world.advance(100)
    await world.store.dequeue_rollouts(1)
    await world.advance(9.9)
    assert await status(world, rollout_id) == "preparing"


async def test_each_attempt_has_a_timeout_of_its_own(world: World) -> None:
    config = RolloutConfig(timeout=10, max_attempts=2, retry_condition=["timeout"])
    rollout, _ = await claim(world, config=config)
    await world.advance(10.3)
    await world.store.dequeue_rollouts(1)
    await world.advance(9.7)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.advance(0.6)
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.attempt.status) == ("failed", "timeout")


@pytest.mark.parametrize("sign", ["span", "heartbeat", "update"])
async def test_every_sign_of_life_puts_the_silence_off(world: World, sign: str) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    names = (rollout.rollout_id, attempt.attempt_id)
    for _ in range(3):
        await world.advance(8)
        if sign == "span":
            await world.store.add_spans(batch(*names, "a"))
        elif sign == "heartbeat":
            await beat(world, *names)
        else:
            now = (await world.store.heartbeat("clock")).worker.last_heartbeat_time
            await world.store.update_attempt(*names, last_heartbeat_time=now)
    await world.advance(9.9)
    assert await status(world, *names) in ("preparing", "running")
    await world.advance(0.1 + WITHIN)
    assert await status(world, *names) == "unresponsive"


async def test_duplicate_spans_are_a_sign_of_life(world: World) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    spans = batch(rollout.rollout_id, attempt.attempt_id, "a")
    await world.store.add_spans(spans)
    await world.advance(8)
    assert (await world.store.add_spans(spans)).duplicate_count == 1
    await world.advance(8)
    assert await status(world, rollout.rollout_id) == "running"


async def test_many_deadlines_at_once_all_pass(world: World) -> None:
    ids = await enqueue(world, 200, config=TIMED)
    await world.store.dequeue_rollouts(150)
    done = {r.rollout_id for r in await world.store.dequeue_rollouts(20)}
    for rollout_id in done:
        await world.store.update_attempt(rollout_id, "latest", status="succeeded")
    await world.advance(10 + WITHIN)
    failed = [r.rollout_id async for r in world.store.iter_rollouts(statuses=["failed"])]
    assert failed == ids[:150]
    waiting = await world.store.list_rollouts(statuses=["queuing"])
    assert [r.rollout_id for r in waiting] == ids[170:]


@pytest.mark.parametrize("live", ["latest", "superseded"])
async def test_revived_attempt_keeps_its_timeout(world: World, live: str) -> None:
    config = RolloutConfig(
        timeout=10, unresponsive_timeout=3, max_attempts=5, retry_condition=["unresponsive"]
    )
    rollout, attempt = await claim(world, config=config)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.advance(3.3)
    if live == "superseded":
        await world.store.start_attempt(rollout.rollout_id)
    for _ in range(3):
        await beat(world, *names)
        await world.advance(2.2)
    assert await status(world, *names) == "running"
    await beat(world, *names)
    await world.advance(0.5)
    assert await status(world, *names) == "timeout"


async def test_superseded_attempt_ends_without_touching_the_rollout(world: World) -> None:
    rollout, old = await claim(world, config=SILENT)
    await world.advance(5)
    await world.store.start_attempt(rollout.rollout_id, worker_id="w2")
    await world.advance(5 + WITHIN)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "unresponsive"
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.attempt.status, stored.end_time) == (
        "preparing",
        "preparing",
        None,
    )
    assert (await world.store.get_worker("w1")).status == "unknown"
    assert (await world.store.get_worker("w2")).status == "busy"


@pytest.mark.parametrize("config", [TIMED, SILENT])
async def test_live_attempt_under_a_finished_rollout_ends_at_its_deadline(
    world: World, config: RolloutConfig
) -> None:
    rollout, _ = await claim(world, config=config)
    (before,) = await world.store.cancel_rollouts([rollout.rollout_id])
    await world.advance(9.9)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.advance(0.1 + WITHIN)
    after = await world.store.get_rollout(rollout.rollout_id)
    assert after.attempt.status == "unresponsive"
    assert (after.status, after.end_time) == ("cancelled", before.end_time)
    assert after.completion_number == 1


async def test_signs_of_life_put_off_the_end_of_an_orphan(world: World) -> None:
    rollout, old = await claim(world)
    await world.store.start_attempt(rollout.rollout_id)
    await world.advance(700)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "preparing"
    await beat(world, rollout.rollout_id, old.attempt_id)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    await world.advance(500)
    await beat(world, rollout.rollout_id, old.attempt_id)
    await world.advance(599)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "preparing"
    await world.advance(1 + WITHIN)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "unresponsive"


async def test_reopening_frees_an_orphan_of_its_ten_minutes(world: World) -> None:
    rollout, old = await claim(world)
    await world.store.update_rollout(rollout.rollout_id, status="failed")
    await world.advance(300)
    await world.store.start_attempt(rollout.rollout_id)
    await world.advance(1000)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "preparing"
    await beat(world, rollout.rollout_id, old.attempt_id)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    await world.advance(599)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "preparing"
    await world.advance(1 + WITHIN)
    assert await status(world, rollout.rollout_id, old.attempt_id) == "unresponsive"


async def test_timeout_given_later_counts_from_the_start(world: World) -> None:
    rollout, _ = await claim(world)
    await world.advance(20)
    await world.store.update_rollout(rollout.rollout_id, config=RolloutConfig(timeout=30))
    await world.advance(9.9)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.store.update_rollout(rollout.rollout_id, config=RolloutConfig(timeout=5))
    await world.advance(WITHIN)
    assert await status(world, rollout.rollout_id) == "timeout"


async def test_deadline_that_is_taken_away_does_not_pass(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(timeout=10, unresponsive_timeout=5))
    await world.store.update_rollout(rollout.rollout_id, config=None)
    await world.advance(50)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.store.update_rollout(rollout.rollout_id, config=RolloutConfig(timeout=60))
    await world.advance(9.9)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.advance(0.1 + WITHIN)
    assert await status(world, rollout.rollout_id) == "timeout"


@pytest.mark.parametrize("jump", [7200, -7200])
@pytest.mark.parametrize("again", ["update", "cancel", "revive"])
async def test_wall_clock_jump_moves_no_timeout_that_is_armed_again(
    world: World, jump: int, again: str
) -> None:
    config = RolloutConfig(
        timeout=100, unresponsive_timeout=20, max_attempts=2, retry_condition=["unresponsive"]
    )
    rollout, _ = await claim(world, config=config)
    await world.advance(20 + WITHIN if again == "revive" else 5)
    world.clock.jump_wall(jump)
    if again == "update":
        changed = RolloutConfig(timeout=100)
        await world.store.update_rollout(rollout.rollout_id, config=changed)
    elif again == "cancel":
        await world.store.cancel_rollouts([rollout.rollout_id])
    await beat(world, rollout.rollout_id)
    await world.advance(10)
    assert await status(world, rollout.rollout_id) in ("preparing", "running")
    for _ in range(12):
        await beat(world, rollout.rollout_id)
        await world.advance(8)
    assert await status(world, rollout.rollout_id) in ("timeout", "unresponsive")


async def test_stall_does_not_stop_the_timeout(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(timeout=10, unresponsive_timeout=5))
    await world.clock.stall(60)
    await world.settle()
    assert await status(world, rollout.rollout_id) == "timeout"


async def test_stall_that_is_heard_before_the_watchdog_wakes_ends_nobody(world: World) -> None:
    rollout, _ = await claim(world, config=SILENT)
    await world.advance(9)
    await world.clock.stall(100)
    await world.settle()
    await beat(world, rollout.rollout_id)
    await world.advance(9.7)
    assert await status(world, rollout.rollout_id) == "preparing"
    await world.advance(0.3 + WITHIN)
    assert await status(world, rollout.rollout_id) == "unresponsive"


async def test_verdict_wakes_a_long_poll_with_the_retry(world: World) -> None:
    config = RolloutConfig(timeout=10, max_attempts=2, retry_condition=["timeout"])
    rollout, _ = await claim(world, config=config)
    waiting = await poll(world, limit=1, worker_id="w2", wait=60)
    await world.clock.advance(10 + WITHIN)
    (again,) = await waiting
    assert (again.rollout_id, again.attempt.sequence_number) == (rollout.rollout_id, 2)


async def test_verdict_is_durable_before_it_is_seen(world: World) -> None:
    rollout, _ = await claim(world, config=TIMED)
    await world.advance(10 + WITHIN)
    before = await world.store.get_rollout(rollout.rollout_id)
    assert before.status == "failed"
    if world.durable:
        await world.restart()
        assert await world.store.get_rollout(rollout.rollout_id) == before


async def test_ended_attempts_leave_nothing_for_the_watchdog(world: World) -> None:
    ids = await enqueue(world, 20, config=RolloutConfig(timeout=10, unresponsive_timeout=5))
    for rollout_id in ids:
        await finish(world, rollout_id)
    await world.advance(20)
    done = [r async for r in world.store.iter_rollouts()]
    assert {(r.status, r.attempt.status) for r in done} == {("succeeded", "succeeded")}
    assert len(world.service.engine.live.deadlines.attempts) == 0


async def test_reading_in_a_tight_loop_does_not_keep_the_watchdog_from_its_work(
    world: World,
) -> None:
    rollout, _ = await claim(world, config=TIMED)
    passing = asyncio.create_task(world.clock.advance(10 + WITHIN))
    seen = set()
    for _ in range(50_000):
        seen.add(await status(world, rollout.rollout_id))
        if "timeout" in seen:
            break
    assert "timeout" in seen
    await passing


@pytest.mark.parametrize("end", ["report", "cancel", "update"])
async def test_attempt_superseded_by_its_own_worker_ends_with_its_rollout(
    world: World, end: str
) -> None:
    rollout = await world.store.start_rollout(1, worker_id="w1")
    assert rollout.latest_attempt is not None
    old = rollout.latest_attempt.attempt_id
    await world.store.start_attempt(rollout.rollout_id, worker_id="w1")
    if end == "report":
        await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    elif end == "cancel":
        await world.store.cancel_rollouts([rollout.rollout_id])
        await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    else:
        await world.store.update_rollout(rollout.rollout_id, status="failed")
        await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    ended = await world.store.get_attempt(rollout.rollout_id, old)
    assert (ended.status, ended.end_time is None) == ("unresponsive", False)
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("idle", "")
    late = await world.store.update_attempt(rollout.rollout_id, old, status="succeeded")
    assert (late.attempt.status, late.stop_reason is None) == ("succeeded", False)


async def test_nothing_ends_before_it_began_where_the_clock_is_set_back(world: World) -> None:
    rollout, attempt = await claim(world, config=TIMED)
    queued = await world.store.enqueue_rollout(1)
    world.clock.jump_wall(-3600)
    await world.advance(10 + WITHIN)
    ended = await world.store.get_rollout(rollout.rollout_id)
    assert (ended.status, ended.attempt.status) == ("failed", "timeout")
    assert ended.attempt.message.end_time == attempt.message.start_time
    assert ended.message.end_time == rollout.message.start_time
    (cancelled,) = await world.store.cancel_rollouts([queued.rollout_id])
    assert cancelled.message.end_time == queued.message.start_time


async def test_lag_of_the_watchdog_can_be_read_after_a_stall(world: World) -> None:
    assert world.service is not None
    await world.advance(1)
    assert world.service.engine.live.deadlines.watchdog_lag < 0.01
    await world.clock.stall(3)
    await world.advance(30)
    assert 1.9 < world.service.engine.live.deadlines.watchdog_lag <= 3
    await world.advance(121)
    assert world.service.engine.live.deadlines.watchdog_lag < 0.01


async def test_many_that_are_due_at_once_let_others_have_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightningstore.service.engine.clock.TURN_SECONDS", 0.0)
    ids = await enqueue(world, 300, config=TIMED)
    claimed = await world.store.dequeue_rollouts(300)
    assert world.service is not None
    store = world.service
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    references = [(r.rollout_id, r.latest_attempt_id) for r in claimed]
    await world.store.heartbeat("w", attempts=references)
    assert turns >= 250
    turns = 0
    await world.advance(10 + WITHIN)
    while store.engine.live.state.counters.rollouts.get(ROLLOUT_STATUS_FAILED, 0) < 300:
        await asyncio.sleep(0)
    assert turns >= 250
    task.cancel()
    await world.settle()
    failed = [r.rollout_id async for r in world.store.iter_rollouts(statuses=["failed"])]
    assert failed == ids
