"""What a restart keeps. The memory back end keeps nothing, by design."""

from __future__ import annotations

import asyncio
import random

import pytest
from lightningstore.client import FailedPreconditionError, RetryBackoff, RolloutConfig

from tests.contract.conftest import WAYS, World, prepare_way
from tests.contract.helpers import RETRY, batch, claim, enqueue, finish, refused, snapshot

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=[way for way in WAYS if not way.startswith("memory")])
def way(request: pytest.FixtureRequest) -> str:
    """The ways that have a disk."""
    prepare_way(request.param, request)
    return str(request.param)


async def test_restart_keeps_everything_that_can_be_seen(world: World) -> None:
    await world.store.add_resources({"weights": [1, 2]})
    ids = await enqueue(world, 8, config=RETRY, group_id="g", metadata={"a": 1})
    await finish(world, ids[0])
    await world.store.cancel_rollouts(ids[1:2])
    await world.store.dequeue_rollouts(3, worker_id="w")
    await world.store.add_spans(batch(ids[2], "latest", "a", "b"))
    await world.store.update_attempt(ids[3], "latest", status="failed")
    await world.store.heartbeat("w", stats={"x": 1})
    before = await snapshot(world)
    await world.restart()
    assert await snapshot(world) == before


async def test_restart_keeps_the_order_of_the_queue(world: World) -> None:
    random.seed(7)
    ids = []
    for _ in range(20):
        ids += await enqueue(world, 1, priority=random.randrange(3))
    await world.store.update_rollout(ids[4], status="requeuing")
    await world.store.start_attempt(ids[0])
    await world.store.update_rollout(ids[0], status="queuing")
    listed = {r.rollout_id: r.priority async for r in world.store.iter_rollouts()}
    order = [i for i in ids if i not in (ids[0], ids[4])] + [ids[4], ids[0]]
    await world.restart()
    claimed = [r.rollout_id for r in await world.store.dequeue_rollouts(50)]
    assert claimed == sorted(order, key=lambda i: -listed[i])


async def test_timeout_that_passed_while_down_fires_at_start(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(timeout=30))
    await world.restart(down=60)
    await world.advance(0)
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("failed", "timeout")


async def test_timeout_goes_on_counting_across_a_restart(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(timeout=30))
    await world.advance(10)
    await world.restart(down=10)
    await world.advance(9.5)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(0.75)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "timeout"


async def test_silence_while_down_does_not_count(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(unresponsive_timeout=30))
    await world.advance(20)
    await world.restart(down=100)
    await world.advance(29.5)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(0.75)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "unresponsive"


async def test_completion_numbers_and_store_id_go_on(world: World) -> None:
    ids = await enqueue(world, 3)
    store_id = (await world.store.get_server_info()).store_id
    await finish(world, ids[0])
    await world.restart()
    await finish(world, ids[1])
    assert (await world.store.get_rollout(ids[1])).completion_number == 2
    assert (await world.store.get_server_info()).store_id == store_id
    stream = world.store.watch_rollouts(1, store_id=store_id)
    assert (await anext(aiter(stream))).rollout_id == ids[1]
    await stream.aclose()


async def test_worker_of_a_live_attempt_is_still_busy_and_becomes_idle(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.restart()
    assert (await world.store.get_worker("w1")).current_attempt_id == attempt.attempt_id
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_superseded_live_attempt_is_still_watched_after_a_restart(world: World) -> None:
    rollout, old = await claim(world, config=RolloutConfig(unresponsive_timeout=5))
    await world.store.start_attempt(rollout.rollout_id)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    await world.restart()
    await world.advance(5.3)
    assert (await world.store.get_attempt(rollout.rollout_id, old.attempt_id)).status == (
        "unresponsive"
    )


async def test_concurrent_writes_are_all_there_after_a_restart(world: World) -> None:
    async def life(n: int) -> None:
        rollout = await world.store.start_rollout(n)
        await world.store.add_spans(batch(rollout.rollout_id, "latest", "a", "b"))
        await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")

    await asyncio.gather(*(life(n) for n in range(100)))
    await world.restart()
    finished = [r async for r in world.store.iter_rollouts(statuses=["succeeded"])]
    assert sorted(r.input for r in finished) == list(range(100))
    assert sorted(r.completion_number for r in finished) == list(range(1, 101))
    assert {r.latest_attempt.span_count for r in finished} == {2}


async def test_timeout_that_passed_while_down_requeues_at_start(world: World) -> None:
    config = RolloutConfig(timeout=30, max_attempts=2, retry_condition=["timeout"])
    rollout, _ = await claim(world, config=config)
    (other,) = await enqueue(world, 1)
    await world.restart(down=60)
    await world.advance(0.25)
    claimed = await world.store.dequeue_rollouts(5)
    assert [r.rollout_id for r in claimed] == [other, rollout.rollout_id]


async def test_restart_gives_a_silent_attempt_its_whole_interval_every_time(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(unresponsive_timeout=30))
    for _ in range(3):
        await world.advance(25)
        await world.restart(down=25)
    await world.advance(29.9)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"


async def test_orphan_has_ten_minutes_from_the_restart(world: World) -> None:
    rollout, _ = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    await world.advance(500)
    await world.restart(down=500)
    await world.advance(599)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(1.25)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "unresponsive"


async def test_back_off_goes_on_while_the_server_is_down(world: World) -> None:
    config = RolloutConfig(
        max_attempts=2, retry_condition=["failed"], retry_backoff=RetryBackoff(initial_delay=100)
    )
    rollout, _ = await claim(world, config=config)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    await world.advance(10)
    await world.restart(down=60)
    await world.advance(29.9)
    assert await world.store.dequeue_rollouts(1) == []
    await world.advance(0.35)
    assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_unresponsive_attempt_is_revived_after_a_restart(world: World) -> None:
    config = RolloutConfig(unresponsive_timeout=5, max_attempts=2, retry_condition=["unresponsive"])
    rollout, attempt = await claim(world, config=config)
    await world.advance(5.3)
    await world.restart()
    await world.store.heartbeat("w1", attempts=[attempt])
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.attempt.status) == ("running", "running")
    await world.restart()
    assert await world.store.get_rollout(rollout.rollout_id) == stored
    assert await world.store.dequeue_rollouts(1) == []


@pytest.mark.parametrize("jump", [7200, -7200])
async def test_wall_clock_jump_after_a_restart_moves_no_timeout_of_a_revived_attempt(
    world: World, jump: int
) -> None:
    config = RolloutConfig(
        timeout=30, unresponsive_timeout=10, max_attempts=2, retry_condition=["unresponsive"]
    )
    rollout, attempt = await claim(world, config=config)
    await world.advance(10.25)
    await world.restart()
    world.clock.jump_wall(jump)
    for passed in (0, 9, 9):
        await world.advance(passed)
        await world.store.heartbeat("w", attempts=[attempt])
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "running"
    await world.advance(2)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "timeout"


async def test_numbers_of_attempts_and_spans_go_on(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.add_spans(batch(*names, "a", "b"))
    await world.store.allocate_sequence_ids([(*names, 3)])
    await world.restart()
    (numbers,) = await world.store.allocate_sequence_ids([(*names, 1)])
    assert numbers.first_sequence_id == 6
    again = await world.store.start_attempt(rollout.rollout_id)
    assert again.attempt.sequence_number == 2


async def test_newest_of_several_attempts_of_a_worker_is_still_shown(world: World) -> None:
    first, _ = await claim(world)
    second, newest = await claim(world)
    before = await world.store.get_worker("w1")
    await world.restart()
    assert await world.store.get_worker("w1") == before
    await world.store.update_attempt(second.rollout_id, newest.attempt_id, status="failed")
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_rollout_id) == ("busy", first.rollout_id)


async def test_final_word_is_final_after_a_restart(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="succeeded")
    await world.restart()
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
        await world.store.update_attempt(*names, status="failed")
    await world.store.update_attempt(*names, status="succeeded")


async def test_reopened_rollout_stays_open_and_gets_a_new_number(world: World) -> None:
    ids = await enqueue(world, 2)
    await finish(world, ids[0])
    await world.store.update_rollout(ids[0], status="queuing")
    await world.restart()
    stored = await world.store.get_rollout(ids[0])
    assert (stored.status, stored.end_time, stored.completion_number) == ("queuing", None, 0)
    claimed = await world.store.dequeue_rollouts(5)
    assert [r.rollout_id for r in claimed] == [ids[1], ids[0]]
    await finish(world, ids[0])
    assert (await world.store.get_rollout(ids[0])).completion_number == 2


async def test_request_ids_are_forgotten_ten_minutes_of_running_after_the_call_not_the_start(
    world: World,
) -> None:
    await enqueue(world, 2)
    (first,) = await world.store.dequeue_rollouts(1, request_id="q")
    world.clock.jump(300)
    await world.store.cancel_rollouts([], request_id="other")
    await world.restart(down=3000)
    (again,) = await world.store.dequeue_rollouts(1, request_id="q")
    assert again == first
    world.clock.jump(302)
    await world.store.cancel_rollouts([], request_id="sweep")
    (other,) = await world.store.dequeue_rollouts(1, request_id="q")
    assert other.rollout_id != first.rollout_id


@pytest.mark.parametrize("jump", [-86_400, -3600, 3600, 86_400])
async def test_clock_set_over_a_restart_moves_no_deadline(world: World, jump: float) -> None:
    timed = await world.store.start_rollout(1, config=RolloutConfig(timeout=30))
    retried = RolloutConfig(
        max_attempts=2,
        retry_condition=["failed"],
        retry_backoff=RetryBackoff(initial_delay=40, jitter=0),
    )
    failing = await world.store.start_rollout(2, config=retried)
    await world.store.update_attempt(failing.rollout_id, "latest", status="failed")
    await world.advance(5)
    await world.stop()
    world.clock.jump_wall(jump)
    world.clock.jump(15)
    await world.start()
    await world.advance(9.5)
    assert (await world.store.get_attempt(timed.rollout_id)).status == "preparing"
    assert await world.store.dequeue_rollouts(1) == []
    await world.advance(0.8)
    assert (await world.store.get_attempt(timed.rollout_id)).status == "timeout"
    await world.advance(10)
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(1)] == [failing.rollout_id]


@pytest.mark.parametrize("jump", [-3600, 3600])
async def test_clock_set_while_the_server_runs_moves_no_deadline_of_the_next(
    world: World, jump: float
) -> None:
    before = await world.store.start_rollout(1, config=RolloutConfig(timeout=30))
    await world.advance(10)
    world.clock.jump_wall(jump)
    after = await world.store.start_rollout(2, config=RolloutConfig(timeout=30))
    await world.advance(5)
    await world.restart(down=5)
    await world.advance(9.5)
    for rollout in (before, after):
        assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(0.8)
    assert (await world.store.get_attempt(before.rollout_id)).status == "timeout"
    assert (await world.store.get_attempt(after.rollout_id)).status == "preparing"
    await world.advance(10)
    assert (await world.store.get_attempt(after.rollout_id)).status == "timeout"


@pytest.mark.parametrize(("jump", "left"), [(-86_400, 20), (0, 10), (5, 5)])
async def test_after_a_boot_the_wall_clock_tells_the_time_down_and_never_runs_back(
    world: World, jump: float, left: float
) -> None:
    rollout = await world.store.start_rollout(1, config=RolloutConfig(timeout=30))
    await world.advance(10)
    await world.store.heartbeat("w")  # the last commit is from now
    await world.stop()
    world.clock.boot_id = "another boot"
    world.clock.jump_wall(jump)
    world.clock.jump(10)
    await world.start()
    await world.advance(left - 0.5)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(0.8)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "timeout"
