"""Consumers of groups."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from lightningstore.client import Delivery
from lightningstore.service.rules.rows import LoadedRollout, RolloutQuery

from tests.contract.conftest import World
from tests.contract.consuming import counts, pull, pulling, trainer
from tests.contract.helpers import finish

pytestmark = pytest.mark.asyncio


async def group(world: World, group_id: str, count: int = 2, **spec: object) -> list[str]:
    """Create a group and enqueue its members; returns their ids."""
    members = [{"input": n, "group_id": group_id, **spec} for n in range(count)]
    groups = [{"group_id": group_id, "size": count}]
    return [r.rollout_id for r in await world.store.enqueue_rollouts(members, groups=groups)]


async def complete(world: World, group_id: str, count: int = 2, **spec: object) -> list[str]:
    ids = await group(world, group_id, count, **spec)
    for rollout_id in ids:
        await finish(world, rollout_id)
    return ids


def shown(deliveries: list[Delivery]) -> list[tuple[str, int]]:
    return [(delivery.item_id, delivery.completion_number) for delivery in deliveries]


async def test_groups_come_with_their_members(world: World) -> None:
    await trainer(world, unit="group")
    first = await complete(world, "a")
    await group(world, "b")
    await complete(world, "c")
    assert await counts(world) == (2, 4, 0, 0, 0)
    deliveries = await pull(world)
    assert shown(deliveries) == [("a", 1), ("c", 2)]
    found = deliveries[0]
    assert found.group is not None
    assert (found.group.rollout_ids, found.group.finished_count) == (first, 2)
    assert [(m.rollout_id, m.input) for m in found.members] == list(zip(first, [0, 1], strict=True))
    assert all(member.latest_attempt is not None for member in found.members)
    assert found.rollout is None
    assert await counts(world) == (0, 4, 2, 0, 0)
    await world.store.acknowledge("trainer", deliveries)
    assert await counts(world) == (0, 0, 0, 0, 0)


async def test_waiting_for_groups(world: World) -> None:
    await trainer(world, unit="group")
    await complete(world, "a")
    waiting = await pulling(world, 2, min_items=2, wait=60)
    await complete(world, "b")
    assert shown(await waiting) == [("a", 1), ("b", 2)]


async def test_a_group_matches_if_a_member_does(world: World) -> None:
    await trainer(world, unit="group", statuses=["failed"], queues=["q"])
    await complete(world, "a", queue="q")
    ids = await group(world, "b", queue="q")
    await finish(world, ids[0], "failed")
    assert await counts(world) == (0, 1, 0, 0, 0)
    await finish(world, ids[1])
    await complete(world, "c")
    late = await world.store.create_consumer(
        "late", unit="group", statuses=["failed"], queues=["q"], after_completion_number=0
    )
    assert (late.backlog_count, late.outstanding_count) == (1, 1)
    (delivery,) = await pull(world)
    assert shown([delivery]) == [("b", 2)]
    assert [m.rollout_id for m in delivery.members] == ids
    assert await pull(world) == []


async def test_a_reopened_group_is_a_new_item(world: World) -> None:
    await trainer(world, unit="group", queues=["q"])
    first = await complete(world, "a", queue="q")
    second = await complete(world, "b", queue="q")
    (delivery,) = await pull(world, 1)
    await world.store.start_attempt(first[0])
    await world.store.start_attempt(second[0])
    assert await counts(world) == (0, 4, 1, 0, 0)
    await world.store.acknowledge("trainer", delivery)
    for rollout_id in (second[0], first[0]):
        await world.store.update_attempt(rollout_id, "latest", status="succeeded")
    assert shown(await pull(world)) == [("b", 3), ("a", 4)]


async def test_a_group_is_counted_again_when_it_is_reopened_after_its_end(world: World) -> None:
    await trainer(world, unit="group", queues=["q"])
    ids = await complete(world, "a", 3, queue="q")
    await world.store.acknowledge("trainer", await pull(world))
    await world.store.update_rollout(ids[2], queue="")
    await world.store.start_attempt(ids[0])
    assert await counts(world) == (0, 2, 0, 0, 0)
    await world.store.update_attempt(ids[0], "latest", status="failed")
    assert await counts(world) == (1, 2, 0, 0, 0)
    assert shown(await pull(world)) == [("a", 2)]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("call", ["start_attempt", "update_rollout", "update_group"])
async def test_every_way_to_reopen_counts_the_members_that_match(
    world: World, call: str, is_restarted: bool
) -> None:
    """The consumers differ in what they count: the group is acknowledged, is not, or has other members that match."""
    await trainer(world, unit="group", statuses=["succeeded"])
    await world.store.create_consumer("other", unit="group", after_completion_number=0)
    ids = await group(world, "a", 3)
    for rollout_id, status in zip(ids, ("succeeded", "failed", "succeeded"), strict=True):
        await finish(world, rollout_id, status)
    await world.store.acknowledge("trainer", await pull(world))
    if is_restarted and world.durable:
        await world.restart()
    if call == "start_attempt":
        await world.store.start_attempt(ids[0])
    elif call == "update_rollout":
        await world.store.update_rollout(ids[0], status="queuing")
    else:  # it leaves the group, which stays complete
        await world.store.update_rollout(ids[0], status="queuing", group_id="label")
    is_open = call != "update_group"
    assert (await world.store.get_group("a")).status == ("open" if is_open else "complete")
    # One member that matches has finished; the other is claimed, or waits for its next attempt.
    expected = 2 if is_open else 0
    assert (await counts(world))[1] == expected
    await world.store.delete_consumer("other")


async def test_removed_groups_are_left_out(world: World) -> None:
    await trainer(world, unit="group")
    first, second = await complete(world, "a"), await complete(world, "b")
    await complete(world, "c")
    await world.store.delete_rollouts(first)
    await world.store.delete_rollouts(second[:1])
    assert await counts(world) == (2, 3, 0, 0, 0)
    deliveries = await pull(world)
    assert shown(deliveries) == [("b", 2), ("c", 3)]
    assert [m.rollout_id for m in deliveries[0].members] == second[1:]


async def test_the_lag_of_a_group_is_that_of_its_oldest_member(world: World) -> None:
    await trainer(world, unit="group", max_lag=1)
    await world.store.update_resources("policy", {})
    ids = await group(world, "a")
    await finish(world, ids[0])
    await world.store.update_resources("policy", {})
    await finish(world, ids[1])
    await complete(world, "b")
    await world.store.update_resources("policy", {})
    assert [(d.item_id, d.lag) for d in await pull(world)] == [("b", 1)]
    assert (await world.store.get_consumer("trainer")).skipped_count == 1
    assert await counts(world) == (0, 2, 1, 0, 0)


async def test_groups_that_are_set_aside_are_not_outstanding(world: World) -> None:
    await trainer(world, unit="group", max_deliveries=1)
    await complete(world, "a")
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery, "released")
    assert await counts(world) == (0, 0, 0, 0, 1)
    await world.store.acknowledge(
        "trainer", await world.store.list_deliveries("trainer"), "released"
    )
    assert await counts(world) == (0, 2, 0, 1, 0)


async def test_groups_survive_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("memory")
    await trainer(world, unit="group", queues=["q"], max_deliveries=1)
    for name in ("a", "b", "c", "d"):
        await complete(world, name, queue="q")
    await complete(world, "e")
    ids = await group(world, "f", queue="q")
    await finish(world, ids[0])
    deliveries = await pull(world, 3)
    await world.store.acknowledge("trainer", deliveries[0])
    await world.store.acknowledge("trainer", deliveries[1], "released")
    before = await world.store.get_consumer("trainer")
    await world.restart()
    assert await world.store.get_consumer("trainer") == before
    assert shown(await pull(world)) == [("d", 4)]
    await finish(world, ids[1])
    assert shown(await pull(world)) == [("f", 6)]


async def test_settings_change_while_a_pull_reads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trainer(world, unit="group", max_lag=0)
    await world.store.update_resources("policy", {})
    await complete(world, "a")
    await world.store.update_resources("policy", {})
    await complete(world, "b")
    assert world.service is not None
    storage, reads = world.service.engine.storage, []
    scan = storage.scan_rollouts

    def then_change(query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        reads.append(query)
        return changed(query) if len(reads) == 2 else scan(query)

    async def changed(query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        await world.store.update_consumer("trainer", on_stale="deliver")
        async for loaded in scan(query):
            yield loaded

    monkeypatch.setattr(storage, "scan_rollouts", then_change)
    deliveries = await pull(world)
    assert shown(deliveries) == [("a", 1), ("b", 2)]
    assert [len(delivery.members) for delivery in deliveries] == [2, 2]
