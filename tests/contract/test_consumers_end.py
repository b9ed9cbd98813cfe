"""Work always ends: what a limited consumer holds back is claimed in the end, and what it counts is what there is."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import FailedPreconditionError

from tests.contract.conftest import World
from tests.contract.consuming import counts, finished, pull, pulled, pulling, trainer
from tests.contract.helpers import finish
from tests.contract.test_consumed_groups import complete, group

pytestmark = pytest.mark.asyncio


async def claimed(world: World, count: int = 10, wait: float = 0) -> list[str]:
    call = world.store.dequeue_rollouts(count, wait=wait)
    return [r.rollout_id for r in await asyncio.wait_for(call, 20)]


async def test_a_group_has_begun_when_a_queued_member_finishes(world: World) -> None:
    await trainer(world, unit="group", max_outstanding=1)
    first, second = await group(world, "a")
    (other,) = await group(world, "b", 1)
    await world.store.cancel_rollouts([first])
    if world.durable:
        await world.restart()
    assert await claimed(world) == [second]
    await finish(world, second)
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery)
    assert await claimed(world) == [other]


@pytest.mark.parametrize("unit", ["rollout", "group"])
async def test_stale_items_hold_no_claims_back(world: World, unit: str) -> None:
    await world.store.update_resources("policy", {})
    await trainer(world, unit=unit, max_lag=0, max_outstanding=2)
    for name in "abcd":
        await group(world, name, 1, rollout_id=name, resources_id="latest")
    assert await claimed(world) == ["a", "b"]
    await world.store.update_attempt("a", "latest", status="succeeded")
    await world.store.update_resources("policy", {})
    await world.store.update_attempt("b", "latest", status="succeeded")
    # Both are stale: a pull that waits for two finds none, and so two more are claimed.
    waiting = await pulling(world, 2, min_items=2, wait=60)
    assert await claimed(world, wait=60) == ["c", "d"]
    for name in "cd":
        await world.store.update_attempt(name, "latest", status="succeeded")
    assert sorted(d.item_id for d in await waiting) == ["c", "d"]
    assert (await world.store.get_consumer("trainer")).skipped_count == 2


@pytest.mark.parametrize("unit", ["rollout", "group"])
async def test_stale_items_beside_too_few_others_hold_no_claims_back(
    world: World, unit: str
) -> None:
    await world.store.update_resources("policy", {})
    await trainer(world, unit=unit, max_lag=0, max_outstanding=2)
    for name in "abc":
        await group(world, name, 1, rollout_id=name, resources_id="latest")
    (first,) = await claimed(world, 1)
    await world.store.update_attempt(first, "latest", status="succeeded")
    await world.store.update_resources("policy", {})
    (second,) = await claimed(world)
    await world.store.update_attempt(second, "latest", status="succeeded")
    assert await counts(world) == (2, 2, 0, 0, 0)
    waiting = await pulling(world, 2, min_items=2, wait=60)
    assert await claimed(world, wait=60) == ["c"]
    assert await counts(world) == (2, 2, 0, 0, 0)
    # A consumer that delivers them after all counts them again.
    await world.store.update_attempt("c", "latest", status="succeeded")
    assert sorted(d.item_id for d in await waiting) == ["b", "c"]
    assert await counts(world) == (0, 2, 2, 0, 0)


async def test_a_changed_lag_counts_stale_items_again(world: World) -> None:
    await world.store.update_resources("policy", {})
    await trainer(world, unit="group", max_lag=0)
    await complete(world, "a", 1, resources_id="latest")
    await world.store.update_resources("policy", {})
    await complete(world, "b", 1, resources_id="latest")
    assert await pull(world, 2, min_items=2) == []
    assert await counts(world) == (2, 1, 0, 0, 0)
    await world.store.update_consumer("trainer", max_lag=1)
    assert await counts(world) == (2, 2, 0, 0, 0)
    assert await pulled(world, 2, min_items=2) == ["a", "b"]


async def test_an_acknowledged_group_that_completes_again_is_delivered_again(world: World) -> None:
    await trainer(world, unit="group")
    (member,) = await complete(world, "a", 1)
    await world.store.acknowledge("trainer", await pull(world))
    await world.store.start_attempt(member)
    assert await counts(world) == (0, 1, 0, 0, 0)
    await world.store.update_attempt(member, "latest", status="succeeded")
    await complete(world, "b", 1)
    assert await counts(world) == (2, 2, 0, 0, 0)
    assert await pulled(world) == ["a", "b"]


@pytest.mark.parametrize("unit", ["rollout", "group"])
async def test_an_update_that_makes_an_item_match_wakes_a_pull(world: World, unit: str) -> None:
    await trainer(world, unit=unit, labels={"run": "1"})
    (member,) = await complete(world, "a", 1)
    waiting = await pulling(world, 1, wait=60)
    await world.store.update_rollout(member, labels={"run": "1"})
    (delivery,) = await waiting
    assert delivery.item_id == ("a" if unit == "group" else member)


async def test_a_release_that_sets_an_item_aside_ends_its_delivery(world: World) -> None:
    await trainer(world, max_deliveries=1)
    await finished(world, 1)
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery, "released")
    with pytest.raises(FailedPreconditionError):
        await world.store.acknowledge("trainer", delivery, "released")
    assert await counts(world) == (0, 0, 0, 0, 1)
    (aside,) = await world.store.list_deliveries("trainer")
    await world.store.acknowledge("trainer", aside, "released")
    assert await pulled(world) == [delivery.item_id]
