"""What contract tests of consumers do again and again."""

from __future__ import annotations

import asyncio
from typing import Any

from lightningstore.client import Consumer, Delivery

from tests.contract.conftest import World
from tests.contract.helpers import enqueue, finish


async def trainer(world: World, **options: Any) -> Consumer:
    """Create the consumer "trainer", from the beginning unless told otherwise."""
    return await world.store.create_consumer("trainer", **{"after_completion_number": 0, **options})


async def finished(world: World, count: int, status: str = "succeeded", **spec: Any) -> list[str]:
    """Enqueue rollouts and finish them, in order; returns their ids."""
    ids = await enqueue(world, count, **spec)
    for rollout_id in ids:
        await finish(world, rollout_id, status)
    return ids


async def pull(world: World, count: int = 100, **options: Any) -> list[Delivery]:
    return await world.store.pull_finished("trainer", count, **options)


async def pulled(world: World, count: int = 100, **options: Any) -> list[str]:
    """Return the ids of the items that are delivered."""
    return [delivery.item_id for delivery in await pull(world, count, **options)]


async def pulling(world: World, count: int = 100, **options: Any) -> asyncio.Task[list[Delivery]]:
    """Begin to pull, and return once the store waits."""
    before = (await world.store.get_statistics()).waiter_count
    task = asyncio.create_task(pull(world, count, **options))
    while (await world.store.get_statistics()).waiter_count == before:
        await asyncio.sleep(0.001)
    return task


async def counts(world: World) -> tuple[int, int, int, int, int]:
    """Return backlog, outstanding, delivered, redelivery and set aside."""
    found = await world.store.get_consumer("trainer")
    return (
        found.backlog_count,
        found.outstanding_count,
        found.delivered_count,
        found.redelivery_count,
        found.set_aside_count,
    )
