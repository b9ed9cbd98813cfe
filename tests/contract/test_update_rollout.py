"""UpdateRollout: which status leads where, the place in the queue, and the mask."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    RetryBackoff,
    RolloutConfig,
)
from lightningstore.v1.rollout_pb2 import Rollout, UpdateRolloutRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, enqueue, refused, snapshot

pytestmark = pytest.mark.asyncio

OPEN = ["queuing", "preparing", "running", "requeuing"]
FINAL = ["succeeded", "failed", "cancelled"]


async def rollout_in(world: World, status: str) -> str:
    """Make a rollout with this status; returns its id."""
    rollout = await world.store.enqueue_rollout(1, config=RETRY)
    names = (rollout.rollout_id, "latest")
    if status not in ("queuing", "cancelled"):
        await world.store.start_attempt(rollout.rollout_id, worker_id="w")
    if status == "running":
        await world.store.add_spans(batch(*names, "a"))
    elif status == "requeuing":
        await world.store.update_attempt(*names, status="failed")
    elif status == "succeeded":
        await world.store.update_attempt(*names, status="succeeded")
    elif status == "failed":
        await world.store.update_rollout(rollout.rollout_id, status="failed")
    elif status == "cancelled":
        await world.store.cancel_rollouts([rollout.rollout_id])
    assert (await world.store.get_rollout(rollout.rollout_id)).status == status
    return rollout.rollout_id


@pytest.mark.parametrize("new", OPEN + FINAL)
@pytest.mark.parametrize("old", OPEN + FINAL)
async def test_status_leads_where_the_contract_says(world: World, old: str, new: str) -> None:
    rollout_id = await rollout_in(world, old)
    await world.advance(1)
    before = await world.store.get_rollout(rollout_id)
    if new == old:
        assert await world.store.update_rollout(rollout_id, status=new) == before
        return
    if new in ("preparing", "running") or (old in FINAL and new in FINAL):
        async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
            await world.store.update_rollout(rollout_id, status=new)
        return
    after = await world.store.update_rollout(rollout_id, status=new)
    assert after == await world.store.get_rollout(rollout_id)
    assert (after.status, after.latest_attempt) == (new, before.latest_attempt)
    depth = (await world.store.get_statistics()).queue_depth
    if new in FINAL:
        assert (after.completion_number, depth) == (1, 0)
        assert after.message.end_time.ToNanoseconds() == world.clock.wall_ns()
    else:
        assert (after.completion_number, after.end_time, depth) == (0, None, 1)
    assert len(await world.store.dequeue_rollouts(5)) == depth


async def test_refused_transition_says_from_and_to(world: World) -> None:
    rollout_id = await rollout_in(world, "succeeded")
    with pytest.raises(FailedPreconditionError) as caught:
        await world.store.update_rollout(rollout_id, status="failed")
    assert caught.value.metadata["from"].endswith("SUCCEEDED")
    assert caught.value.metadata["to"].endswith("FAILED")


@pytest.mark.parametrize("status", ["queuing", "requeuing"])
async def test_status_that_it_has_keeps_its_place_and_another_goes_to_the_tail(
    world: World, status: str
) -> None:
    ids = await enqueue(world, 3)
    await world.store.update_rollout(ids[0], status=status)
    order = ids if status == "queuing" else [*ids[1:], ids[0]]
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == order


async def test_no_stale_entry_keeps_an_old_place(world: World) -> None:
    ids = await enqueue(world, 3)
    await world.store.cancel_rollouts([ids[0]])
    await world.store.update_rollout(ids[0], status="queuing")
    await world.store.start_attempt(ids[1])
    await world.store.update_rollout(ids[1], status="requeuing")
    order = [r.rollout_id for r in await world.store.dequeue_rollouts(9)]
    assert order == [ids[2], ids[0], ids[1]]
    assert await world.store.dequeue_rollouts(9) == []


async def test_new_priority_keeps_the_place_among_equals(world: World) -> None:
    ids = await enqueue(world, 4)
    await world.store.update_rollout(ids[2], priority=1)
    await world.store.update_rollout(ids[0], priority=1)
    await world.store.update_rollout(ids[3], priority=-1)
    order = [r.rollout_id for r in await world.store.dequeue_rollouts(9)]
    assert order == [ids[0], ids[2], ids[1], ids[3]]


async def test_priority_there_and_back_keeps_the_place(world: World) -> None:
    ids = await enqueue(world, 3)
    for priority in (5, 0, 5, 0):
        await world.store.update_rollout(ids[1], priority=priority)
    if world.durable:
        await world.restart()
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(9)] == ids


async def test_fields_of_any_rollout_may_change_without_its_status(world: World) -> None:
    for status in OPEN + FINAL:
        rollout_id = await rollout_in(world, status)
        before = await world.store.get_rollout(rollout_id)
        depth = (await world.store.get_statistics()).queue_depth
        after = await world.store.update_rollout(rollout_id, metadata={"a": 1}, group_id="g")
        assert (after.metadata, after.group_id) == ({"a": 1}, "g")
        assert (after.status, after.end_time, after.completion_number) == (
            before.status,
            before.end_time,
            before.completion_number,
        )
        assert (await world.store.get_statistics()).queue_depth == depth


async def test_status_and_fields_change_together(world: World) -> None:
    rollout_id = await rollout_in(world, "failed")
    await enqueue(world, 2)
    await world.store.update_rollout(
        rollout_id, status="queuing", priority=3, mode="val", config=None
    )
    (first,) = await world.store.dequeue_rollouts(1)
    assert (first.rollout_id, first.mode, first.config.max_attempts) == (rollout_id, "val", 1)


async def test_group_changes_what_group_filters_see(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, group_id="old")
    await world.store.update_rollout(rollout_id, group_id="new")
    assert await world.store.list_rollouts(group_ids=["old"]) == []
    assert len(await world.store.list_rollouts(group_ids=["new"])) == 1


async def test_new_resources_count_from_the_next_claim(world: World) -> None:
    await world.store.add_resources({"a": 1}, resources_id="one")
    await world.store.add_resources({"a": 2}, resources_id="two")
    rollout_id = await rollout_in(world, "preparing")
    await world.store.update_rollout(rollout_id, resources_id="one")
    assert (await world.store.get_attempt(rollout_id)).resources_id == "two"
    again = await world.store.start_attempt(rollout_id)
    assert again.attempt.resources_id == "one"


async def test_new_retry_rule_counts_at_once(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await world.store.dequeue_rollouts(1)
    await world.store.update_rollout(rollout_id, config=RETRY)
    await world.store.update_attempt(rollout_id, "latest", status="failed")
    assert (await world.store.get_rollout(rollout_id)).status == "requeuing"


async def test_without_a_mask_the_fields_that_have_a_value_are_taken(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, group_id="g", metadata={"a": 1})
    request = UpdateRolloutRequest(rollout=Rollout(rollout_id=rollout_id, priority=4))
    answer = await world.store.call("UpdateRollout", request)
    assert (answer.rollout.priority, answer.rollout.group_id) == (4, "g")
    assert answer.rollout.metadata_json == b'{"a":1}'
    empty = UpdateRolloutRequest(rollout=Rollout(rollout_id=rollout_id))
    assert (await world.store.call("UpdateRollout", empty)).rollout == answer.rollout


@pytest.mark.parametrize("path", ["rollout_id", "start_time", "attempt_count", "latest_attempt"])
async def test_path_that_is_the_servers_is_refused(world: World, path: str) -> None:
    (rollout_id,) = await enqueue(world, 1)
    request = UpdateRolloutRequest(
        rollout=Rollout(rollout_id=rollout_id, priority=1),
        update_mask={"paths": ["priority", path]},
    )
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "update_mask.paths[1]"):
        await world.store.call("UpdateRollout", request)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("max_attempts", RolloutConfig(max_attempts=-1)),
        ("timeout", RolloutConfig(timeout=-1)),
        ("unresponsive_timeout", RolloutConfig(unresponsive_timeout=0)),
        ("retry_condition[0]", RolloutConfig(retry_condition=["succeeded"])),
        ("retry_backoff.factor", RolloutConfig(retry_backoff=RetryBackoff(factor=0.5))),
        ("retry_backoff.jitter", RolloutConfig(retry_backoff=RetryBackoff(jitter=1.5))),
        ("retry_backoff.initial_delay", RolloutConfig(retry_backoff=RetryBackoff(-1))),
        ("retry_backoff.max_delay", RolloutConfig(retry_backoff=RetryBackoff(max_delay=-1))),
    ],
)
async def test_bad_config_is_refused_with_all_that_came_with_it(
    world: World, field: str, config: RolloutConfig
) -> None:
    (rollout_id,) = await enqueue(world, 1)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", f"rollout.config.{field}"):
        await world.store.update_rollout(
            rollout_id, config=config, priority=9, status="cancelled", metadata={"x": 1}
        )


async def test_refused_status_takes_the_other_fields_with_it(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    before = await snapshot(world)
    with pytest.raises(FailedPreconditionError):
        await world.store.update_rollout(rollout_id, status="running", priority=9)
    assert await snapshot(world) == before
    for group_id in ("g" * 257, "g\0"):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout.group_id"):
            await world.store.update_rollout(rollout_id, group_id=group_id, priority=9)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout.rollout_id"):
        await world.store.update_rollout("", priority=9)
