"""A budget of bytes: what is taken when the room comes as the caller leaves, or as its time ends."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.service.engine.budget import Budget
from lightningstore.service.rules.errors import Busy

pytestmark = pytest.mark.asyncio


async def waiting(budget: Budget, size: int, seconds: float) -> asyncio.Task[None]:
    """Begin to take bytes from a full budget."""
    await budget.take(10)
    task = asyncio.create_task(budget.take(size, seconds))
    await asyncio.sleep(0)
    assert (budget.used, budget.waiting_bytes) == (10, size)
    return task


async def test_cancellation_counts_although_the_room_has_come() -> None:
    budget = Budget(10, "spans")
    task = await waiting(budget, 4, 60)
    budget.give(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (budget.used, budget.waiting_bytes) == (0, 0)


async def test_room_that_comes_as_the_time_ends_is_taken() -> None:
    budget = Budget(10, "spans")
    task = await waiting(budget, 4, 0)
    budget.give(10)
    await task
    assert (budget.used, budget.waiting_bytes) == (4, 0)


async def test_without_room_the_time_ends() -> None:
    budget = Budget(10, "spans")
    task = await waiting(budget, 4, 0)
    with pytest.raises(Busy):
        await task
    assert (budget.used, budget.waiting_bytes) == (10, 0)
