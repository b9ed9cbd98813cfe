"""DeleteRollouts."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import (
    DeleteResult,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from lightningstore.service.operations import deletions

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, finish, query, refused, snapshot

pytestmark = pytest.mark.asyncio


async def listed(world: World) -> list[str]:
    return [r.rollout_id async for r in world.store.iter_rollouts()]


async def test_deleted_rollout_is_gone_with_its_attempts_and_spans(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.add_spans(batch(*names, "a", "b"))
    await world.store.update_attempt(*names, status="succeeded")
    (kept,) = await enqueue(world, 1)
    result = await world.store.delete_rollouts([rollout.rollout_id])
    assert result == DeleteResult([rollout.rollout_id], [], [])
    assert await listed(world) == [kept]
    with pytest.raises(NotFoundError):
        await world.store.get_rollout(rollout.rollout_id)
    with pytest.raises(NotFoundError):
        await world.store.list_attempts(rollout.rollout_id)
    with pytest.raises(NotFoundError):
        await query(world, rollout.rollout_id)
    with pytest.raises(NotFoundError):
        await world.store.add_spans(batch(*names, "late"))
    statistics = await world.store.get_statistics()
    assert (statistics.span_count, statistics.message.span_bytes) == (0, 0)
    assert sum(c.count for c in statistics.message.rollouts) == 1
    assert sum(c.count for c in statistics.message.attempts) == 0
    if world.durable:
        await world.restart()
        assert await listed(world) == [kept]


async def test_repeat_reports_what_is_gone_as_missing(world: World) -> None:
    ids = await enqueue(world, 3)
    await world.store.cancel_rollouts(ids)
    assert await world.store.delete_rollouts(ids[:1]) == DeleteResult(ids[:1], [], [])
    again = await world.store.delete_rollouts([ids[2], "ro-none", *ids, ids[2]])
    assert again == DeleteResult([ids[2], ids[1]], ["ro-none", ids[0]], [])
    assert await world.store.delete_rollouts(ids) == DeleteResult([], ids, [])
    assert await world.store.delete_rollouts([]) == DeleteResult([], [], [])


@pytest.mark.parametrize("state", ["queuing", "preparing", "running"])
async def test_one_unfinished_rollout_keeps_all(world: World, state: str) -> None:
    done, unfinished = await enqueue(world, 2)
    await world.store.cancel_rollouts([done])
    if state != "queuing":
        (claimed,) = await world.store.dequeue_rollouts(1)
    if state == "running":
        await world.store.add_spans(batch(unfinished, claimed.attempt.attempt_id, "a"))
    async with refused(
        world, FailedPreconditionError, "ROLLOUT_NOT_FINISHED", unfinished
    ) as caught:
        await world.store.delete_rollouts([done, unfinished])
    assert caught == {
        "rolloutId": unfinished,
        "status": f"ROLLOUT_STATUS_{state.upper()}",
    }


async def test_rollout_with_a_live_attempt_stays_until_that_has_ended(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    async with refused(world, FailedPreconditionError, "ROLLOUT_NOT_FINISHED", attempt.attempt_id):
        await world.store.delete_rollouts([rollout.rollout_id])
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert (await world.store.delete_rollouts([rollout.rollout_id])).deleted != []
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_invalid_requests_delete_nothing(world: World) -> None:
    (done,) = await enqueue(world, 1)
    await world.store.cancel_rollouts([done])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout_ids[1]"):
        await world.store.delete_rollouts([done, ""])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "latest"):
        await world.store.delete_rollouts([done, "latest"])
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await world.store.delete_rollouts([done] * 10_001)


async def test_id_of_a_deleted_rollout_can_be_used_again(world: World) -> None:
    for n in range(3):
        await world.store.enqueue_rollout(n, rollout_id="r")
        await world.store.cancel_rollouts(["r"])
        assert (await world.store.delete_rollouts(["r"])).deleted == ["r"]
    await world.store.enqueue_rollout("new", rollout_id="r")
    assert [(r.rollout_id, r.input) async for r in world.store.iter_rollouts()] == [("r", "new")]


async def test_watch_passes_over_deleted_rollouts_and_numbers_stay(world: World) -> None:
    ids = await enqueue(world, 4)
    await world.store.cancel_rollouts(ids[:3])
    await world.store.delete_rollouts([ids[1]])
    await world.store.cancel_rollouts(ids[3:])
    found = []
    async for rollout in world.store.watch_rollouts(0):
        found.append((rollout.rollout_id, rollout.completion_number))
        if len(found) == 3:
            break
    assert found == [(ids[0], 1), (ids[2], 3), (ids[3], 4)]


async def test_wait_for_a_deleted_rollout_fails_and_others_are_not_disturbed(world: World) -> None:
    done, other = await enqueue(world, 2)
    wait = world.store.wait_for_rollouts([done, other])
    await world.store.cancel_rollouts([done])
    assert (await anext(wait)).rollout_id == done
    await world.store.delete_rollouts([done])
    await world.store.cancel_rollouts([other])
    assert [r.rollout_id async for r in wait] == [other]
    with pytest.raises(NotFoundError):
        await anext(world.store.wait_for_rollouts([done]))


async def test_deleted_in_the_moment_of_its_finish(world: World) -> None:
    """A rollout whose finish is not durable yet can be deleted; no watch reports it."""
    ids = await enqueue(world, 2)
    assert world.service is not None
    first, second = await asyncio.gather(
        world.store.cancel_rollouts(ids), world.store.delete_rollouts(ids), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    if isinstance(second, BaseException):  # the deletion came first
        await world.store.delete_rollouts(ids)
    (last,) = await enqueue(world, 1)
    await world.store.cancel_rollouts([last])
    async for rollout in world.store.watch_rollouts(0):
        assert rollout.rollout_id == last
        break
    assert await listed(world) == [last]


async def test_many_are_deleted_in_small_commits_between_which_others_are_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "REMOVED_BYTES", 20_000)
    assert world.service is not None
    sizes: list[int] = []
    commit = world.service.engine.storage.commit

    def counted(changes):
        if changes.removed:
            sizes.append(len(changes.removed))
        return commit(changes)

    monkeypatch.setattr(world.service.engine.storage, "commit", counted)
    small = await enqueue(world, 250)
    large = await enqueue(world, 30, input="x" * 5_000)
    await world.store.cancel_rollouts([*small, *large])
    result = await world.store.delete_rollouts([*small, *large])
    assert result.deleted == [*small, *large]
    assert sum(sizes) == 280
    assert max(sizes) <= 100
    assert max(sizes[-5:]) <= 4  # 4 large inputs are 20,000 bytes
    assert await listed(world) == []


async def test_rollout_reopened_meanwhile_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "REMOVED_AT_ONCE", 1)
    ids = await enqueue(world, 3)
    await world.store.cancel_rollouts(ids)
    assert world.service is not None
    engine = world.service.engine
    remove = world.service.deletions.remove

    def then_reopen(entry):
        remove(entry)
        if entry.rollout.rollout_id == ids[0]:
            tasks.append(
                asyncio.ensure_future(world.store.update_rollout(ids[1], status="queuing"))
            )

    tasks: list[asyncio.Future[object]] = []
    commit = engine.durable_since

    async def after_reopening(*arguments):
        await asyncio.gather(*tasks)
        await commit(*arguments)

    monkeypatch.setattr(world.service.deletions, "remove", then_reopen)
    monkeypatch.setattr(engine, "durable_since", after_reopening)
    result = await world.store.delete_rollouts(ids)
    assert result == DeleteResult([ids[0], ids[2]], [], [ids[1]])
    assert await listed(world) == [ids[1]]


async def test_other_rollouts_are_as_before(world: World) -> None:
    ids = await enqueue(world, 3)
    await finish(world, ids[0])
    await finish(world, ids[1])
    before = [r async for r in world.store.iter_rollouts()]
    await world.store.delete_rollouts([ids[0]])
    assert [r async for r in world.store.iter_rollouts()] == before[1:]
    assert (await snapshot(world))[0].last_completion_number == 2
