"""Pulls, while what they read changes and time passes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from lightningstore.service.engine import waiters
from lightningstore.service.rules.rows import LoadedRollout

from tests.contract.conftest import World
from tests.contract.consuming import counts, finished, pull, pulled, trainer
from tests.contract.helpers import enqueue

pytestmark = pytest.mark.asyncio


class Reads:
    """Reads of finished rollouts from the back end."""

    def __init__(self) -> None:
        #: The completion numbers after which they read.
        self.numbers: list[int] = []
        self._then: Callable[[], Awaitable[object]] | None = None
        self._count = 0

    def follow(self, then: Callable[[], Awaitable[object]], count: int = 1) -> None:
        """Have something happen after each of the next reads."""
        self._then, self._count = then, count

    async def end(self) -> None:
        """Do what follows a read."""
        if self._then is not None and self._count:
            self._count -= 1
            await self._then()


@pytest.fixture
def reads(world: World, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Have finished rollouts be loaded each time, and note it."""
    monkeypatch.setattr(waiters, "RECENT_COMPLETIONS", 0)
    assert world.service is not None
    storage, noted = world.service.engine.storage, Reads()
    completions = storage.completions

    async def read(after: int, limit: int) -> list[LoadedRollout]:
        noted.numbers.append(after)
        found = await completions(after, limit)
        await noted.end()
        return found

    monkeypatch.setattr(storage, "completions", read)
    return noted


async def far(world: World, between: int) -> list[str]:
    """Create the consumer with an item behind finished rollouts that do not match; return the ids of these."""
    await trainer(world, labels={"a": "1"})
    await finished(world, 1, labels={"a": "1"})
    ids = await enqueue(world, between)
    await world.store.cancel_rollouts(ids)
    ids += await finished(world, 1, labels={"a": "1"})
    await world.store.acknowledge("trainer", await pull(world, 1))
    return ids


async def test_a_pull_stops_reading_at_its_deadline(world: World, reads: Reads) -> None:
    ids = await far(world, 300)
    reads.follow(lambda: world.clock.advance(4), 3)
    assert await pulled(world, 1) == []
    assert 1 < (await world.store.get_consumer("trainer")).after_completion_number < 301
    assert await pulled(world, 1) == ids[-1:]


async def test_nothing_is_delivered_after_the_deadline(world: World, reads: Reads) -> None:
    await trainer(world)
    ids = await finished(world, 1)
    reads.follow(lambda: world.clock.advance(11))
    assert await pulled(world) == []
    assert await counts(world) == (1, 1, 0, 0, 0)
    assert await pulled(world) == ids


async def test_the_search_for_the_oldest_item_goes_on_where_it_ended(
    world: World, reads: Reads
) -> None:
    ids = await far(world, 100)
    reads.numbers.clear()
    first = await world.store.get_consumer("trainer")
    assert reads.numbers[0] < 10
    reads.numbers.clear()
    assert await world.store.get_consumer("trainer") == first
    assert reads.numbers[0] > 50
    await world.store.update_rollout(ids[20], labels={"a": "1"})
    assert await pulled(world) == [ids[20], ids[-1]]


async def test_a_rollout_that_begins_to_match_during_a_pull(world: World, reads: Reads) -> None:
    await trainer(world, labels={"a": "1"})
    (first,) = await finished(world, 1)
    (second,) = await finished(world, 1, labels={"a": "1"})
    reads.follow(lambda: world.store.update_rollout(first, labels={"a": "1"}))
    assert await pulled(world) == [first, second]
    assert (await counts(world))[:3] == (0, 2, 2)


async def test_a_rollout_that_leaves_memory_during_a_pull(world: World, reads: Reads) -> None:
    await trainer(world)
    ids = await finished(world, 3)

    async def evict() -> None:
        await world.store.update_rollout(ids[0], metadata={"a": 1})
        assert world.service is not None
        del world.service.engine.live.state.entries[ids[0]]

    reads.follow(evict)
    assert await pulled(world) == ids
