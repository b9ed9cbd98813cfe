"""Large inputs of queued rollouts are stored and not in memory; no caller can tell."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import AlreadyExistsError, Rollout
from lightningstore.service.engine.state import SMALL_INPUT_BYTES

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, poll

pytestmark = pytest.mark.asyncio

LARGE = 2 * SMALL_INPUT_BYTES


def large(number: int) -> dict[str, object]:
    """Return an input that does not stay in memory."""
    return {"number": number, "text": "x" * LARGE}


async def enqueue(world: World, count: int, **spec: object) -> list[str]:
    """Enqueue rollouts r0, r1 … with large inputs, which leave memory."""
    ids = [f"r{n}" for n in range(count)]
    specs = [{"input": large(n), "rollout_id": i, **spec} for n, i in enumerate(ids)]
    await world.store.enqueue_rollouts(specs)
    assert await in_memory(world) == 0
    return ids


async def in_memory(world: World) -> int:
    """Return the bytes of inputs of queued rollouts that are in memory once everything is durable."""
    await world.settle()
    assert world.service is not None
    world.service.engine.live.state.trim(world.service.engine.committer.durable_through)
    entries = world.service.engine.live.state.entries.values()
    return sum(len(entry.input_json) for entry in entries if entry.position)


async def wait(world: World, ids: list[str]) -> list[Rollout]:
    return [rollout async for rollout in world.store.wait_for_rollouts(ids)]


async def watch(world: World, count: int) -> list[Rollout]:
    """Return the first `count` finishes, from the first one of the store on."""
    finished: list[Rollout] = []
    async for rollout in world.store.watch_rollouts(0):
        finished.append(rollout)
        if len(finished) == count:
            break
    return finished


def numbers(rollouts: list[Rollout]) -> list[int]:
    return [rollout.input["number"] for rollout in rollouts]


async def test_claim_has_the_inputs_of_its_rollouts(world: World) -> None:
    await enqueue(world, 5)
    assert numbers(await world.store.dequeue_rollouts(1)) == [0]
    assert numbers(await world.store.dequeue_rollouts(10, worker_id="w")) == [1, 2, 3, 4]
    assert await world.store.dequeue_rollouts(1) == []


async def test_claims_beside_one_another_get_each_rollout_once(world: World) -> None:
    await enqueue(world, 12)
    claims = [world.store.dequeue_rollouts(3) for _ in range(5)]
    claimed = [n for rollouts in await asyncio.gather(*claims) for n in numbers(rollouts)]
    assert sorted(claimed) == list(range(12))


async def test_repeated_claim_has_the_same_attempts_with_inputs(world: World) -> None:
    await enqueue(world, 2)
    first = await world.store.dequeue_rollouts(2, request_id="q")
    again = await world.store.dequeue_rollouts(2, request_id="q")
    assert numbers(again) == numbers(first) == [0, 1]
    assert [r.attempt.attempt_id for r in again] == [r.attempt.attempt_id for r in first]


async def test_long_poll_gets_the_input(world: World) -> None:
    waiting = await poll(world, limit=1, wait=60)
    await world.store.enqueue_rollout(large(7))
    assert numbers(await waiting) == [7]


async def test_retry_that_was_waiting_has_the_input(world: World) -> None:
    await enqueue(world, 1, config=RETRY)
    (claimed,) = await world.store.dequeue_rollouts(1)
    await world.store.update_attempt(
        claimed.rollout_id, claimed.attempt.attempt_id, status="failed"
    )
    assert await in_memory(world) == 0
    assert numbers(await world.store.dequeue_rollouts(1)) == [0]


async def test_reads_and_lists_have_the_input(world: World) -> None:
    await enqueue(world, 2)
    assert (await world.store.get_rollout("r1")).input == large(1)
    assert numbers(await world.store.list_rollouts()) == [0, 1]
    started = await world.store.start_attempt("r1")
    assert started.input == large(1)
    updated = await world.store.update_rollout("r0", priority=1)
    assert updated.input == large(0)
    assert await in_memory(world) == 0


async def test_changed_input_is_claimed(world: World) -> None:
    await enqueue(world, 3)
    await world.store.update_rollout("r0", input=large(10))
    await world.store.update_rollout("r1", input=11)
    await world.settle()
    claimed = await world.store.dequeue_rollouts(3)
    assert [rollout.input for rollout in claimed] == [large(10), 11, large(2)]


async def test_rollout_enqueued_again_is_compared_with_what_is_stored(world: World) -> None:
    await enqueue(world, 2)
    again = {"input": large(1), "rollout_id": "r1"}
    assert (await world.store.enqueue_rollouts([again]))[0].input == large(1)
    for other in ({**large(1), "text": "y" * LARGE}, {"number": 1}):
        with pytest.raises(AlreadyExistsError):
            await world.store.enqueue_rollouts([{"input": other, "rollout_id": "r1"}])
    assert numbers(await world.store.dequeue_rollouts(2)) == [0, 1]


async def test_cancelled_rollouts_have_their_inputs_for_all_who_learn_of_it(world: World) -> None:
    ids = await enqueue(world, 3)
    watching = asyncio.create_task(watch(world, 3))
    waiting = asyncio.create_task(wait(world, ids))
    while (await world.store.get_statistics()).waiter_count < 2:
        await asyncio.sleep(0.001)
    assert numbers(await world.store.cancel_rollouts(ids)) == [0, 1, 2]
    assert numbers(await waiting) == [0, 1, 2]
    assert numbers(await watching) == [0, 1, 2]
    assert numbers(await wait(world, ids)) == [0, 1, 2]
    assert (await world.store.get_rollout("r1")).input == large(1)


async def test_restart_reads_no_inputs(world: World) -> None:
    if not world.durable:
        pytest.skip("a restart keeps nothing")
    await enqueue(world, 3)
    await world.store.dequeue_rollouts(1)
    await world.store.enqueue_rollout(4, rollout_id="small")
    await world.restart()
    assert world.service is not None
    entries = world.service.engine.live.state.entries
    assert [len(entry.input_json) for entry in entries.values()] == [0] * 4
    assert (await world.store.get_rollout("r0")).input == large(0)
    claimed = await world.store.dequeue_rollouts(5)
    assert [rollout.input for rollout in claimed] == [large(1), large(2), 4]
    await world.store.update_attempt("r0", "latest", status="succeeded")
    assert numbers(await wait(world, ["r0"])) == [0]


async def test_small_inputs_stay_in_memory_up_to_a_limit(world: World) -> None:
    assert world.service is not None
    inputs = world.service.engine.live.state.inputs
    await world.store.enqueue_rollouts([{"input": "x" * 100} for _ in range(3)])
    assert await in_memory(world) == inputs.kept.used == 3 * 102
    world.service.engine.shared.caches.inputs.limit = 4 * 102
    await world.store.enqueue_rollouts([{"input": "y" * 100} for _ in range(3)])
    assert await in_memory(world) == inputs.kept.used == 4 * 102
    claimed = await world.store.dequeue_rollouts(10)
    assert [rollout.input[0] for rollout in claimed] == list("xxxyyy")
    assert await in_memory(world) == inputs.kept.used == 0
