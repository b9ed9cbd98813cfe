"""Groups: completion, reopening, deadlines, removal."""

from __future__ import annotations

import asyncio
import sys

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    GroupSpec,
    NotFoundError,
    RolloutConfig,
)

from tests.contract.conftest import World
from tests.contract.grouped import add, create, shown
from tests.contract.helpers import RETRY, enqueue, finish, refused

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled"])
async def test_group_is_complete_when_all_have_finished(world: World, how: str) -> None:
    ids = await create(world, 3)
    for i, rollout_id in enumerate(ids):
        assert await shown(world) == ("open", 0, 3, i)
        if how == "cancelled":
            await world.store.cancel_rollouts([rollout_id])
        else:
            await finish(world, rollout_id, how)
    group = await world.store.get_group("g")
    assert (group.status, group.completion_number, group.statuses) == ("complete", 1, {how: 3})
    assert group.closed
    assert not group.deadline_passed
    assert group.end_time is not None


async def test_members_of_one_call_complete_their_groups(world: World) -> None:
    specs = [{"input": n, "group_id": f"g{n % 3}"} for n in range(9)]
    groups = [GroupSpec(f"g{n}", 3) for n in range(3)]
    ids = [r.rollout_id for r in await world.store.enqueue_rollouts(specs, groups=groups)]
    await world.store.cancel_rollouts(ids[:8])
    assert [g.completion_number for g in await world.store.list_groups()] == [1, 2, 0]
    await world.store.update_rollout(ids[8], status="succeeded")
    assert [g.completion_number for g in await world.store.list_groups()] == [1, 2, 3]


async def test_group_with_free_places_is_not_complete(world: World) -> None:
    await world.store.cancel_rollouts(await create(world, 3, 2))
    assert await shown(world) == ("open", 0, 2, 2)
    await world.store.cancel_rollouts(await add(world, 1))
    assert await shown(world) == ("complete", 1, 3, 3)


async def test_retry_is_not_finished(world: World) -> None:
    (rollout_id,) = await create(world, 1, 0) or await add(world, 1, config=RETRY)
    for status in ("failed", "failed"):
        await world.store.dequeue_rollouts(1)
        await world.store.update_attempt(rollout_id, "latest", status=status)
        assert await shown(world) == ("open", 0, 1, 0)
    assert (await world.store.get_group("g")).statuses == {"requeuing": 1}
    await world.store.dequeue_rollouts(1)
    await world.store.update_attempt(rollout_id, "latest", status="failed")
    assert await shown(world) == ("complete", 1, 1, 1)


async def test_expiry_of_the_last_attempt_completes_the_group(world: World) -> None:
    await create(world, 1, 0)
    await add(world, 1, config=RolloutConfig(timeout=5))
    await world.store.dequeue_rollouts(1)
    await world.advance(6)
    assert await shown(world) == ("complete", 1, 1, 1)


@pytest.mark.parametrize("how", ["attempt", "queue"])
async def test_reopened_member_reopens_the_group(world: World, how: str) -> None:
    ids = await create(world, 2)
    for rollout_id in ids:
        await finish(world, rollout_id)
    assert await shown(world) == ("complete", 1, 2, 2)
    if world.durable:
        await world.restart()
    if how == "attempt":
        await world.store.start_attempt(ids[0])
    else:
        await world.store.update_rollout(ids[0], status="queuing")
    assert await shown(world) == ("open", 0, 2, 1)
    group = await world.store.get_group("g")
    assert group.closed
    assert group.end_time is None
    if world.durable:
        await world.restart()
    await world.store.update_rollout(ids[0], status="failed")
    assert await shown(world) == ("complete", 2, 2, 2)


async def test_late_reports_of_finished_members_change_nothing(world: World) -> None:
    ids = await create(world, 2)
    await world.store.dequeue_rollouts(2)
    await world.store.cancel_rollouts(ids)
    before = (await world.store.get_group("g")).message
    await world.store.update_attempt(ids[0], "latest", status="succeeded")
    await world.store.heartbeat("w", attempts=[(ids[1], "latest")])
    assert (await world.store.get_group("g")).message == before


async def test_member_that_moves_away_completes_a_closed_group(world: World) -> None:
    ids = await create(world, 2)
    await world.store.cancel_rollouts([ids[1]])
    await finish(world, ids[0])
    await world.store.start_attempt(ids[0])
    await world.store.update_rollout(ids[0], group_id=None)
    assert await shown(world) == ("complete", 2, 1, 1)


async def test_finished_rollout_that_moves_in_completes_the_group(world: World) -> None:
    await world.store.cancel_rollouts(await create(world, 2, 1))
    (other,) = await enqueue(world, 1)
    await finish(world, other)
    await world.store.update_rollout(other, group_id="g")
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_open_groups_live_on_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    ids = await create(world, 3)
    await finish(world, ids[0])
    await world.restart()
    assert await shown(world) == ("open", 0, 3, 1)
    await world.store.cancel_rollouts(ids)
    assert await shown(world) == ("complete", 1, 3, 3)
    await world.restart()
    await world.store.cancel_rollouts(await create_other(world))
    assert (await world.store.get_group("h")).completion_number == 2


async def create_other(world: World) -> list[str]:
    specs = [{"input": 1, "group_id": "h"}]
    rollouts = await world.store.enqueue_rollouts(specs, groups=[GroupSpec("h", 1)])
    return [rollout.rollout_id for rollout in rollouts]


async def test_plain_labels_are_no_groups(world: World) -> None:
    await add(world, 3, "label")
    with pytest.raises(NotFoundError) as caught:
        await world.store.get_group("label")
    assert caught.value.reason == "ERROR_REASON_GROUP_NOT_FOUND"
    assert await world.store.list_groups() == []
    await create(world, 1)
    await add(world, 3, "label")
    assert len(await world.store.list_groups()) == 1


async def test_deadline_counts_from_the_first_claim(world: World) -> None:
    await create(world, 3, deadline=60)
    await world.advance(100)
    assert await shown(world) == ("open", 0, 3, 0)
    await world.store.dequeue_rollouts(1)
    await world.advance(50)
    await world.store.dequeue_rollouts(1)
    assert await shown(world) == ("open", 0, 3, 0)
    await world.advance(11)
    assert await shown(world) == ("complete", 1, 3, 3)


async def test_deadline_cancels_the_rest(world: World) -> None:
    ids = await create(world, 4, 3, deadline=60)
    claimed = await world.store.dequeue_rollouts(2, worker_id="w")
    await world.store.update_attempt(ids[0], "latest", status="succeeded")
    await world.advance(61)
    group = await world.store.get_group("g")
    assert (group.status, group.completion_number) == ("complete", 1)
    assert group.closed
    assert group.deadline_passed
    assert group.statuses == {"succeeded": 1, "cancelled": 2}
    assert group.first_claim_time is not None
    assert group.end_time is not None
    assert 60 <= (group.end_time - group.first_claim_time).total_seconds() <= 61
    reply = await world.store.heartbeat("w", attempts=[claimed[1]])
    assert [stop.reason for stop in reply.stops] == ["rollout_cancelled"]
    assert await world.store.dequeue_rollouts(5) == []


async def test_deadline_that_keeps_waiting_closes_the_group(world: World) -> None:
    ids = await create(world, 4, 3, deadline=60, on_deadline="keep_waiting")
    await finish(world, ids[0])
    await world.advance(61)
    group = await world.store.get_group("g")
    assert (group.status, group.closed, group.deadline_passed) == ("open", True, True)
    assert group.statuses == {"succeeded": 1, "queuing": 2}
    async with refused(world, FailedPreconditionError, "GROUP_FULL", "closed"):
        await add(world, 1)
    if world.durable:
        await world.restart()
    await finish(world, ids[1])
    assert await shown(world) == ("open", 0, 3, 2)
    await finish(world, ids[2])
    assert await shown(world) == ("complete", 1, 3, 3)


@pytest.mark.parametrize("action", ["cancel_rest", "keep_waiting"])
async def test_deadline_completes_a_group_whose_members_have_finished(
    world: World, action: str
) -> None:
    ids = await create(world, 3, 2, deadline=60, on_deadline=action)
    for rollout_id in ids:
        await finish(world, rollout_id)
    assert await shown(world) == ("open", 0, 2, 2)
    await world.advance(61)
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_complete_group_has_no_deadline_any_more(world: World) -> None:
    ids = await create(world, 2, deadline=60)
    for rollout_id in ids:
        await finish(world, rollout_id)
    await world.store.start_attempt(ids[0])
    await world.advance(600)
    assert await shown(world) == ("open", 0, 2, 1)
    assert not (await world.store.get_group("g")).deadline_passed


async def test_member_reopened_after_the_deadline_is_waited_for(world: World) -> None:
    ids = await create(world, 2, deadline=60)
    await finish(world, ids[0])
    await world.advance(61)
    assert await shown(world) == ("complete", 1, 2, 2)
    await world.store.start_attempt(ids[0])
    await world.advance(600)
    assert await shown(world) == ("open", 0, 2, 1)
    if world.durable:
        await world.restart()
        await world.advance(600)
    assert await shown(world) == ("open", 0, 2, 1)
    await world.store.update_attempt(ids[0], "latest", status="failed")
    assert await shown(world) == ("complete", 2, 2, 2)


async def test_claimed_rollout_from_before_starts_the_deadline_with_the_spec(world: World) -> None:
    await add(world, 1)
    await world.store.dequeue_rollouts(1)
    await world.advance(100)
    await create(world, 2, 1, deadline=60)
    await world.advance(59)
    assert await shown(world) == ("open", 0, 2, 0)
    await world.advance(2)
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_start_rollout_starts_the_deadline(world: World) -> None:
    await create(world, 2, 0, deadline=60)
    await world.store.start_rollout({"n": 1}, group_id="g")
    await world.advance(61)
    assert await shown(world) == ("complete", 1, 1, 1)


async def test_deadline_survives_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    await create(world, 2, deadline=60)
    await world.store.dequeue_rollouts(1)
    await world.advance(30)
    await world.restart(down=20)
    await world.advance(5)
    assert await shown(world) == ("open", 0, 2, 0)
    await world.advance(6)
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_deadline_that_passed_while_the_server_was_down_applies_at_once(
    world: World,
) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    await create(world, 2, deadline=60)
    await world.store.dequeue_rollouts(1)
    await world.restart(down=100)
    await world.advance(0.5)
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_many_deadlines_at_once_all_apply(world: World) -> None:
    specs = [{"input": n, "group_id": f"g{n % 50}"} for n in range(200)]
    groups = [GroupSpec(f"g{n}", 5, 60) for n in range(50)]
    await world.store.enqueue_rollouts(specs, groups=groups)
    await world.store.dequeue_rollouts(200)
    await world.advance(61)
    for name in range(50):
        async with asyncio.timeout(20):
            while (await world.store.get_group(f"g{name}")).status != "complete":
                await world.settle()
    shown = [group async for group in world.store.iter_groups()]
    assert sorted(group.completion_number for group in shown) == list(range(1, 51))
    assert all(group.statuses == {"cancelled": 4} for group in shown)


async def test_large_group_is_cancelled_at_its_deadline(world: World) -> None:
    await create(world, 3000, deadline=60)
    await world.store.dequeue_rollouts(1)
    await world.advance(61)
    async with asyncio.timeout(20):
        while (await shown(world))[
            0
        ] != "complete":  # it is cancelled in as many slices as it takes
            await world.settle()
    group = await world.store.get_group("g")
    assert group.statuses == {"cancelled": 3000}
    assert len(group.rollout_ids) == 3000


async def test_deleted_member_frees_its_place(world: World) -> None:
    ids = await create(world, 2)
    await world.store.cancel_rollouts(ids[:1])
    await world.store.delete_rollouts(ids[:1])
    assert await shown(world) == ("open", 0, 1, 0)
    ids += await add(world, 1)
    assert (await world.store.get_group("g")).rollout_ids == ids[1:]


async def test_complete_group_stays_complete_until_its_last_member_is_deleted(
    world: World,
) -> None:
    ids = await create(world, 3)
    await world.store.cancel_rollouts(ids)
    if world.durable:
        await world.restart()
    await world.store.delete_rollouts(ids[:2])
    group = await world.store.get_group("g")
    assert (group.status, group.completion_number) == ("complete", 1)
    assert (group.member_count, group.statuses) == (1, {"cancelled": 1})
    assert group.rollout_ids == ids[2:]
    async with refused(world, FailedPreconditionError, "GROUP_FULL"):
        await add(world, 1)
    await world.store.delete_rollouts(ids[2:])
    with pytest.raises(NotFoundError):
        await world.store.get_group("g")
    assert await world.store.list_groups() == []


async def test_group_of_a_removed_id_can_be_created_again(world: World) -> None:
    for number in (1, 2, 3):
        ids = await create(world, number)
        await world.store.cancel_rollouts(ids)
        assert await shown(world) == ("complete", number, number, number)
        await world.store.delete_rollouts(ids)
    await add(world, 5)
    with pytest.raises(NotFoundError):
        await world.store.get_group("g")


async def test_last_member_that_moves_away_removes_the_group(world: World) -> None:
    ids = await create(world, 2, deadline=60)
    await finish(world, ids[0])
    for rollout_id in ids:
        await world.store.update_rollout(rollout_id, group_id="label")
    assert await world.store.list_groups() == []
    await world.advance(61)
    assert (await world.store.get_rollout(ids[1])).status == "queuing"


# What groups show of attempts


async def test_group_shows_the_range_of_publish_numbers(world: World) -> None:
    ids = await create(world, 4)
    await world.store.start_attempt(ids[0])
    assert (await world.store.get_group("g")).max_publish_number == 0
    for number in (1, 2, 3):
        await world.store.update_resources("rs", {})
        await world.store.update_rollout(ids[number], resources_id="latest")
        await world.store.start_attempt(ids[number])
        group = await world.store.get_group("g")
        assert (group.min_publish_number, group.max_publish_number) == (1, number)
    await world.store.update_rollout(ids[1], resources_id="latest")
    await world.store.start_attempt(ids[1])
    group = await world.store.get_group("g")
    assert (group.min_publish_number, group.max_publish_number) == (2, 3)


async def test_group_summarises_the_rewards_of_latest_attempts(world: World) -> None:
    ids = await create(world, 4)
    assert (await world.store.get_group("g")).rewards is None
    for rollout_id, reward in zip(ids[:3], (1.0, 2.0, 6.0), strict=True):
        await world.store.start_attempt(rollout_id)
        await world.store.update_attempt(rollout_id, "latest", status="succeeded", reward=reward)
    rewards = (await world.store.get_group("g")).rewards
    assert rewards is not None
    assert (rewards.count, rewards.mean, rewards.min, rewards.max) == (3, 3.0, 1.0, 6.0)
    assert rewards.std == pytest.approx((14 / 3) ** 0.5)
    await world.store.update_attempt(ids[2], "latest", reward=2.0)  # scored again
    await world.store.cancel_rollouts(ids[3:])
    rewards = (await world.store.get_group("g")).rewards
    assert rewards is not None
    assert (rewards.count, rewards.min, rewards.max) == (3, 1.0, 2.0)
    await world.store.start_attempt(ids[0])
    (group,) = await world.store.list_groups()
    assert group.rewards is not None
    assert (group.rewards.count, group.rewards.std) == (2, 0.0)


@pytest.mark.parametrize(
    ("rewards", "mean", "std"),
    [
        ((1e308, -1e308), 0.0, 1e308),
        ((1.75e308, 1.75e308), 1.75e308, 0.0),
        ((sys.float_info.max, -sys.float_info.max), 0.0, sys.float_info.max),
        ((3e200, 1e200), 2e200, 1e200),
        ((3e-200, 1e-200), 2e-200, 1e-200),
        ((-0.0, 0.0), 0.0, 0.0),
    ],
)
async def test_group_summarises_any_finite_rewards(
    world: World, rewards: tuple[float, float], mean: float, std: float
) -> None:
    await world.store.create_consumer("trainer", unit="group")
    ids = await create(world, 2)
    for rollout_id, reward in zip(ids, rewards, strict=True):
        await world.store.start_attempt(rollout_id)
        await world.store.update_attempt(rollout_id, "latest", status="succeeded", reward=reward)
    summary = (await world.store.get_group("g")).rewards
    assert summary is not None
    assert (summary.count, summary.min, summary.max) == (2, min(rewards), max(rewards))
    assert (summary.mean, summary.std) == pytest.approx((mean, std), rel=1e-12, abs=0)
    (delivery,) = await world.store.pull_finished("trainer")
    assert delivery.group is not None
    assert delivery.group.rewards == summary


# Memory and other calls


async def test_complete_groups_leave_memory(world: World) -> None:
    assert world.service is not None
    groups = world.service.engine.live.groups
    for batch in range(3):
        names = [f"g{batch}-{n}" for n in range(800)]
        specs = [{"input": 1, "group_id": name} for name in names]
        created = [GroupSpec(name, 1) for name in names]
        rollouts = await world.store.enqueue_rollouts(specs, groups=created)
        await world.store.cancel_rollouts([rollout.rollout_id for rollout in rollouts])
    await finish(world, (await create(world, 1))[0])  # a call of one rollout evicts what exceeds
    assert len(groups.loaded) <= 1001
    assert (await world.store.get_group("g0-0")).completion_number == 1
    async with refused(world, FailedPreconditionError, "GROUP_FULL"):
        await add(world, 1, "g0-0")
    await world.store.update_rollout(
        (await world.store.get_group("g0-1")).rollout_ids[0], status="queuing"
    )
    assert (await world.store.get_group("g0-1")).status == "open"


async def test_imported_rollouts_are_members(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, group_id="g")
    await finish(world, rollout_id)
    exported = [each async for each in world.store.export_rollouts()]
    await world.store.delete_rollouts([rollout_id])
    await create(world, 2, 1)
    await world.store.import_rollouts(exported)
    assert await shown(world) == ("open", 0, 2, 1)
    await world.store.delete_rollouts([rollout_id])
    await add(world, 1)
    with pytest.raises(FailedPreconditionError):
        await world.store.import_rollouts(exported)


async def test_deadline_counts_while_claims_are_paused(world: World) -> None:
    await create(world, 2, deadline=60)
    await world.store.dequeue_rollouts(1)
    await world.store.pause_claims("weights")
    await world.advance(61)
    assert await shown(world) == ("complete", 1, 2, 2)
