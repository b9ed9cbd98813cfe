"""Groups: creation, room for members, GetGroup and ListGroups."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightningstore.client import (
    AlreadyExistsError,
    FailedPreconditionError,
    Group,
    GroupSpec,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest

from tests.contract.conftest import World
from tests.contract.grouped import add, create, fails, shown
from tests.contract.helpers import enqueue, finish, refused

pytestmark = pytest.mark.asyncio


async def test_group_shows_its_spec_and_its_members(world: World) -> None:
    before = world.clock.wall_ns()
    ids = await create(world, 3, deadline=60, on_deadline="keep_waiting")
    group = await world.store.get_group("g")
    assert (group.group_id, group.size, group.deadline) == ("g", 3, 60)
    assert (group.on_deadline, group.status) == ("keep_waiting", "open")
    assert (group.member_count, group.finished_count, group.rollout_ids) == (3, 0, ids)
    assert group.statuses == {"queuing": 3}
    assert group.start_time is not None
    assert group.start_time.timestamp() >= int(before / 1e9)
    assert group.first_claim_time is group.end_time is None
    assert (group.closed, group.deadline_passed, group.completion_number) == (False, False, 0)
    assert (group.rewards, group.min_publish_number, group.max_publish_number) == (None, 0, 0)


async def test_group_without_members_is_open(world: World) -> None:
    assert await world.store.enqueue_rollouts([], groups=[GroupSpec("g", 2)]) == []
    assert await shown(world) == ("open", 0, 0, 0)
    group = await world.store.get_group("g")
    assert (group.deadline, group.on_deadline, group.rollout_ids) == (None, None, [])


async def test_members_come_in_later_calls_and_in_every_way(world: World) -> None:
    ids = await create(world, 4, 1)
    ids += await add(world, 1)
    ids.append((await world.store.start_rollout({"n": 1}, group_id="g")).rollout_id)
    (other,) = await enqueue(world, 1)
    await world.store.update_rollout(other, group_id="g")
    group = await world.store.get_group("g")
    assert group.rollout_ids == [*ids, other]
    assert group.statuses == {"queuing": 3, "preparing": 1}


async def test_rollouts_from_before_the_spec_are_members(world: World) -> None:
    early = await add(world, 3)
    await finish(world, early[0])
    ids = await create(world, 4, 1)
    assert await shown(world) == ("open", 0, 4, 1)
    assert (await world.store.get_group("g")).rollout_ids == early + ids


async def test_group_of_rollouts_that_have_finished_is_complete(world: World) -> None:
    early = await add(world, 2)
    await world.store.cancel_rollouts(early)
    await create(world, 2, 0)
    assert await shown(world) == ("complete", 1, 2, 2)


async def test_more_rollouts_from_before_than_the_size_are_refused(world: World) -> None:
    await add(world, 3)
    await fails(world, FailedPreconditionError, "GROUP_FULL", GroupSpec("g", 2), text="2 members")
    with pytest.raises(NotFoundError):
        await world.store.get_group("g")


async def test_same_spec_again_changes_nothing(world: World) -> None:
    await create(world, 2, deadline=60)
    before = (await world.store.get_group("g")).message
    same = [
        GroupSpec("g", 2, 60),
        {"group_id": "g", "size": 2, "deadline": 60, "on_deadline": "cancel_rest"},
    ]
    await world.store.enqueue_rollouts([], groups=same)
    assert (await world.store.get_group("g")).message == before


async def test_same_spec_of_a_complete_group_changes_nothing(world: World) -> None:
    await world.store.cancel_rollouts(await create(world, 2))
    for _ in range(2):
        await world.store.enqueue_rollouts([], groups=[GroupSpec("g", 2)])
        assert await shown(world) == ("complete", 1, 2, 2)
        if world.durable:
            await world.restart()


@pytest.mark.parametrize(
    "other",
    [
        GroupSpec("g", 3, 60),
        GroupSpec("g", 2),
        GroupSpec("g", 2, 61),
        GroupSpec("g", 2, 60, "keep_waiting"),
    ],
)
async def test_another_spec_is_refused(world: World, other: GroupSpec) -> None:
    await create(world, 2, deadline=60)
    await fails(world, AlreadyExistsError, "GROUP_EXISTS", other, text="'g'")
    await world.store.cancel_rollouts((await world.store.get_group("g")).rollout_ids)
    if world.durable:
        await world.restart()
    await fails(world, AlreadyExistsError, "GROUP_EXISTS", other, text="'g'")


async def test_specs_of_one_call_are_compared_too(world: World) -> None:
    await fails(
        world, AlreadyExistsError, "GROUP_EXISTS", GroupSpec("g", 2), GroupSpec("g", 3), text="'g'"
    )
    await world.store.enqueue_rollouts([], groups=[GroupSpec("g", 2), GroupSpec("g", 2)])
    assert len(await world.store.list_groups()) == 1


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (GroupSpec("", 2), "groups[0].group_id"),
        (GroupSpec("g" * 257, 2), "groups[0].group_id"),
        (GroupSpec("a\0b", 2), "groups[0].group_id"),
        (GroupSpec("g", 0), "groups[0].size"),
        (GroupSpec("g", -1), "groups[0].size"),
        (GroupSpec("g", 10_001), "groups[0].size"),
        (GroupSpec("g", 2, 0), "groups[0].deadline"),
        (GroupSpec("g", 2, -1), "groups[0].deadline"),
        (GroupSpec("g", 2, 60, 99), "groups[0].on_deadline"),
        (GroupSpec("g", 2, None, "keep_waiting"), "groups[0].on_deadline"),
    ],
)
async def test_invalid_spec_is_refused(world: World, spec: GroupSpec, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await world.store.enqueue_rollouts([{"input": 1}], groups=[spec])
    assert [v.field for v in caught.value.field_violations] == [field]
    await fails(world, InvalidArgumentError, "FIELD_INVALID", spec, text=field)


async def test_more_specs_than_a_batch_are_refused(world: World) -> None:
    specs = [GroupSpec(f"g{n}", 1) for n in range(10_001)]
    await fails(world, ResourceExhaustedError, "BATCH_TOO_LARGE", *specs, text="groups")
    await world.store.enqueue_rollouts([], groups=specs[:-1])
    assert len([group async for group in world.store.iter_groups(page_size=1000)]) == 10_000


async def test_repeated_request_id_creates_nothing_twice(world: World) -> None:
    request = EnqueueRolloutsRequest(request_id="r", groups=[GroupSpec("g", 2).to_message()])
    for _ in range(2):
        request.rollouts.add(input_json=b"1", group_id="g")
    first = await world.store.call("EnqueueRollouts", request)
    if world.durable:
        await world.restart()
    again = await world.store.call("EnqueueRollouts", request)
    assert [r.rollout_id for r in first.rollouts] == [r.rollout_id for r in again.rollouts]
    assert await shown(world) == ("open", 0, 2, 0)
    request.groups[0].size = 3
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED"):
        await world.store.call("EnqueueRollouts", request)


async def test_no_call_adds_more_members_than_the_size(world: World) -> None:
    await create(world, 2)
    (other,) = await enqueue(world, 1)
    async with refused(world, FailedPreconditionError, "GROUP_FULL", "'g'") as metadata:
        await world.store.enqueue_rollouts([{"input": 1}, {"input": 2, "group_id": "g"}])
    assert metadata == {"groupId": "g", "size": "2"}
    async with refused(world, FailedPreconditionError, "GROUP_FULL", "'g'"):
        await world.store.start_rollout({"n": 1}, group_id="g")
    async with refused(world, FailedPreconditionError, "GROUP_FULL", "'g'"):
        await world.store.update_rollout(other, group_id="g", priority=3)
    assert await shown(world) == ("open", 0, 2, 0)


async def test_call_with_one_member_too_many_adds_none(world: World) -> None:
    await create(world, 3, 1)
    async with refused(world, FailedPreconditionError, "GROUP_FULL"):
        await world.store.enqueue_rollouts([{"input": n, "group_id": "g"} for n in range(3)])
    async with refused(world, FailedPreconditionError, "GROUP_FULL"):
        await world.store.enqueue_rollouts(
            [{"input": n, "group_id": "h"} for n in range(3)], groups=[GroupSpec("h", 2)]
        )
    await add(world, 2)
    assert await shown(world) == ("open", 0, 3, 0)


async def test_known_rollouts_need_no_room(world: World) -> None:
    spec = {"input": 1, "group_id": "g", "rollout_id": "mine"}
    groups = [GroupSpec("g", 1)]
    await world.store.enqueue_rollouts([spec], groups=groups)
    await world.store.enqueue_rollouts([spec, spec], groups=groups)
    await world.store.update_rollout("mine", group_id="g", priority=1)
    assert await shown(world) == ("open", 0, 1, 0)


async def test_complete_group_takes_no_members_after_a_restart_either(world: World) -> None:
    ids = await create(world, 3, 2, deadline=10)
    await world.store.start_attempt(ids[0])
    await world.advance(11)
    assert await shown(world) == ("complete", 1, 2, 2)
    for _ in range(2):
        async with refused(world, FailedPreconditionError, "GROUP_FULL", "closed"):
            await add(world, 1)
        async with refused(world, FailedPreconditionError, "GROUP_FULL", "closed"):
            await world.store.start_rollout({"n": 1}, group_id="g")
        if world.durable:
            await world.restart()


async def test_member_that_moves_frees_its_place_and_takes_one(world: World) -> None:
    ids = await create(world, 2)
    await world.store.enqueue_rollouts([], groups=[GroupSpec("h", 2)])
    await world.store.update_rollout(ids[0], group_id="h")
    assert await shown(world) == ("open", 0, 1, 0)
    assert (await world.store.get_group("h")).rollout_ids == ids[:1]
    await add(world, 1)
    assert await shown(world) == ("open", 0, 2, 0)
    await finish(world, ids[0])
    group = await world.store.get_group("h")
    assert (group.finished_count, group.member_count) == (1, 1)


async def test_calls_at_the_same_time_never_exceed_the_size(world: World) -> None:
    await create(world, 5, 0)

    async def enter(n: int) -> bool:
        try:
            if n % 3:
                await add(world, 1)
            else:
                await world.store.start_rollout({"n": n}, group_id="g")
        except FailedPreconditionError:
            return False
        return True

    taken = await asyncio.gather(*(enter(n) for n in range(20)))
    assert sum(taken) == 5
    assert await shown(world) == ("open", 0, 5, 0)


async def test_group_and_labels_at_the_same_time_count_every_member(world: World) -> None:
    calls: list[Any] = [add(world, 1) for _ in range(10)]
    calls.insert(5, create(world, 20, 3))
    calls += [add(world, 1) for _ in range(5)]
    await asyncio.gather(*calls)
    group = await world.store.get_group("g")
    assert (group.member_count, len(group.rollout_ids)) == (18, 18)
    assert group.statuses == {"queuing": 18}
    await add(world, 2)
    async with refused(world, FailedPreconditionError, "GROUP_FULL"):
        await add(world, 1)


async def test_unknown_and_missing_ids(world: World) -> None:
    async with refused(world, NotFoundError, "GROUP_NOT_FOUND", "'nope'"):
        await world.store.get_group("nope")
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "group_id"):
        await world.store.get_group("")


async def many(world: World, count: int) -> list[str]:
    names = [f"g{n}" for n in range(count)]
    specs = [{"input": 1, "group_id": name} for name in names]
    groups = [GroupSpec(name, 1) for name in names]
    rollouts = await world.store.enqueue_rollouts(specs, groups=groups)
    await world.store.cancel_rollouts([r.rollout_id for r in rollouts[::2]])
    return names


def ids_of(groups: list[Group]) -> list[str]:
    return [group.group_id for group in groups]


async def test_list_is_filtered_and_in_order_of_creation(world: World) -> None:
    names = await many(world, 9)
    assert ids_of(await world.store.list_groups()) == names
    assert ids_of(await world.store.list_groups(statuses=["complete"])) == names[::2]
    assert ids_of(await world.store.list_groups(statuses=["open"])) == names[1::2]
    assert ids_of(await world.store.list_groups(statuses=["open", "complete"])) == names
    wanted = ["g3", "nope", "g1", "g2"]
    assert ids_of(await world.store.list_groups(group_ids=wanted)) == ["g1", "g2", "g3"]
    assert ids_of(await world.store.list_groups(group_ids=wanted, statuses=["open"])) == [
        "g1",
        "g3",
    ]
    (one,) = await world.store.list_groups(group_ids=["g4"])
    assert one == await world.store.get_group("g4")


@pytest.mark.parametrize("statuses", [(), ("complete",), ("open",)])
async def test_pages_are_complete_while_groups_are_created(
    world: World, statuses: tuple[str, ...]
) -> None:
    names = await many(world, 25)
    expected = {(): names, ("complete",): names[::2], ("open",): names[1::2]}[statuses]
    page = await world.store.list_groups(statuses=statuses, page_size=3)
    seen = ids_of(page)
    while page.next_page_token:
        await world.store.enqueue_rollouts([], groups=[GroupSpec(f"later{len(seen)}", 1)])
        token = page.next_page_token
        page = await world.store.list_groups(statuses=statuses, page_size=3, page_token=token)
        seen += ids_of(page)
        assert len(page) <= 3
    assert [name for name in seen if not name.startswith("later")] == expected
    assert (await world.store.list_groups(page_size=1000)).next_page_token == ""


async def test_invalid_list_requests_are_refused(world: World) -> None:
    await many(world, 3)
    token = (await world.store.list_groups(page_size=1)).next_page_token
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_groups(statuses=["open"], page_token=token)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "page_size"):
        await world.store.list_groups(page_size=-1)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "statuses[1]"):
        await world.store.list_groups(statuses=["open", 9])
