"""What the memory back end does beyond the rules of every back end, which are in test_suite.py."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from lightningstore.service.rules import filters
from lightningstore.service.rules.measures import Measures
from lightningstore.service.rules.rewards import sortable
from lightningstore.service.rules.rows import GroupQuery, RolloutQuery
from lightningstore.service.rules.series import SeriesQuery
from lightningstore.service.rules.times import NANOS
from lightningstore.service.storage import memory_lists
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.testing.records import finished, found, group, put, rollout
from lightningstore.v1.group_pb2 import GROUP_STATUS_OPEN
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_FAILED,
    ROLLOUT_STATUS_QUEUING,
    ROLLOUT_STATUS_SUCCEEDED,
)

from tests.costs import cost_of, is_about

pytestmark = pytest.mark.asyncio

FEW, MANY = 3000, 12_000
OPEN = frozenset([GROUP_STATUS_OPEN])

Read = Callable[[MemoryStorage, int], Awaitable[Any]]


async def stored(count: int) -> MemoryStorage:
    """Return a store that had many rollouts and groups, of which a few are left.

    The finished ones that are left are the first one, and 21 each up to the middle and up to the last one.
    """
    storage = MemoryStorage()
    await storage.open()
    for start in range(1, count + 1, 1000):
        keys = range(start, start + 1000)
        done = [
            finished(key, key)._replace(measures=Measures(reward=sortable(key))) for key in keys
        ]
        groups = {key: group(key, number=key) for key in keys}
        await put(storage, *done, groups=groups)
    kept = {1, *range(count // 2 - 20, count // 2 + 1), *range(count - 20, count + 1)}
    gone = [key for key in range(1, count + 1) if key not in kept]
    await storage.commit(Changes(removed=gone, removed_groups=gone, counters=Counters()))
    return storage


async def with_gap(count: int) -> MemoryStorage:
    """Return a store with many rollouts and groups, a few of which were removed."""
    storage = MemoryStorage()
    await storage.open()
    for start in range(1, count + 1, 1000):
        keys = range(start, start + 1000)
        done = (finished(key, key) for key in keys)
        groups = {key: group(key, number=key) for key in keys}
        groups |= {count + key: group(count + key) for key in keys}
        await put(storage, *done, groups=groups)
    gone = [2, count // 2, count - 1]
    await storage.commit(Changes(removed=gone, removed_groups=gone, counters=Counters()))
    return storage


async def first_page(storage: MemoryStorage, _count: int) -> Any:
    return await found(storage, limit=10)


async def last_page(storage: MemoryStorage, count: int) -> Any:
    return await found(storage, after=(count - 11, count - 11), limit=10)


async def first_page_descending(storage: MemoryStorage, _count: int) -> Any:
    return await found(storage, limit=10, descending=True)


async def last_page_descending(storage: MemoryStorage, _count: int) -> Any:
    return await found(storage, after=(12, 12), limit=10, descending=True)


async def groups_first(storage: MemoryStorage, _count: int) -> Any:
    return await storage.list_groups(GroupQuery(limit=10))


async def groups_deep(storage: MemoryStorage, count: int) -> Any:
    return await storage.list_groups(GroupQuery(after=count - 11, limit=10))


async def open_groups_first(storage: MemoryStorage, _count: int) -> Any:
    return await storage.list_groups(GroupQuery(statuses=OPEN, limit=10))


async def open_groups_deep(storage: MemoryStorage, count: int) -> Any:
    return await storage.list_groups(GroupQuery(statuses=OPEN, after=2 * count - 10, limit=10))


PAGES = (
    first_page,
    last_page,
    first_page_descending,
    last_page_descending,
    groups_first,
    groups_deep,
    open_groups_first,
    open_groups_deep,
)


@pytest.mark.parametrize("read", PAGES)
async def test_a_page_costs_the_same_in_a_long_list(read: Read) -> None:
    """Also after removals, which leave gaps between the keys."""
    few, many = await with_gap(FEW), await with_gap(MANY)
    assert len(await read(few, FEW)) == len(await read(many, MANY)) >= 9
    cost = await cost_of(lambda: read(few, FEW))
    assert is_about(await cost_of(lambda: read(many, MANY)), cost)


@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_by_status_costs_the_same_in_a_long_list(
    monkeypatch: pytest.MonkeyPatch, *, descending: bool
) -> None:
    monkeypatch.setattr(memory_lists, "SORTED_AT_ONCE", 1000)
    costs = []
    for count in (FEW, MANY):
        storage = await with_gap(count)
        after = (ROLLOUT_STATUS_SUCCEEDED, count // 2)
        page = partial(
            found, storage, order_by="status", after=after, limit=10, descending=descending
        )
        assert len(await page()) == 10
        costs.append(await cost_of(page))
    assert is_about(costs[1], costs[0])


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"statuses": frozenset([ROLLOUT_STATUS_FAILED])},
        {"statuses": frozenset([ROLLOUT_STATUS_QUEUING, ROLLOUT_STATUS_SUCCEEDED])},
        {
            "statuses": frozenset([ROLLOUT_STATUS_FAILED]),
            "rollout_ids": frozenset(["r7", "r8"]),
            "any_of": True,
        },
    ],
)
async def test_pages_by_status_are_those_of_a_sorted_list(
    monkeypatch: pytest.MonkeyPatch, query: dict[str, Any], *, descending: bool
) -> None:
    """Of a status that few have, which is sorted, and of one that many have, which is not."""
    monkeypatch.setattr(memory_lists, "SORTED_AT_ONCE", 20)
    monkeypatch.setattr(memory_lists, "SORTED_FOR_A_PAGE", 0)
    dice = random.Random(3)
    statuses = (ROLLOUT_STATUS_QUEUING, ROLLOUT_STATUS_FAILED, ROLLOUT_STATUS_SUCCEEDED)
    rows = [rollout(key, status=dice.choices(statuses, (1, 10, 10))[0]) for key in range(1, 101)]
    storage = MemoryStorage()
    await storage.open()
    await put(storage, *dice.sample(rows, len(rows)))
    match = filters.matches(RolloutQuery(**query))
    places = [(row.rollout.status, row.key) for row in rows if match(row)]
    places.sort(reverse=descending)
    pages, after = [], None
    while page := await found(
        storage, order_by="status", descending=descending, after=after, limit=7, **query
    ):
        pages += page
        after = places[len(pages) - 1]
    assert pages == [f"r{key}" for _, key in places]


async def test_a_rollout_whose_status_changes_meanwhile_is_on_a_page_once() -> None:
    storage = MemoryStorage()
    await storage.open()
    await put(storage, rollout(1), rollout(2), rollout(3), finished(4, 1))
    page = storage.scan_rollouts(RolloutQuery(order_by="status"))
    first = await anext(page)
    await put(storage, finished(1, 2), finished(3, 3))
    rest = [loaded async for loaded in page]
    assert [loaded.row.key for loaded in (first, *rest)] == [1, 2, 3, 4]


async def completions(storage: MemoryStorage, _count: int) -> Any:
    return await storage.completions(0, 10)


async def finishes(storage: MemoryStorage, _count: int) -> Any:
    return await storage.finished((0, 0), 10)


async def finishes_by_time(storage: MemoryStorage, count: int) -> Any:
    return await storage.finished((0, 0), 10, ended_by_ns=count * NANOS)


async def group_completions(storage: MemoryStorage, _count: int) -> Any:
    return await storage.group_completions(0, 10)


async def numbered(storage: MemoryStorage, count: int) -> Any:
    return await found(storage, completed=(1, count // 2 - 11))


async def series(storage: MemoryStorage, count: int) -> Any:
    query = SeriesQuery("completion_number", "attempt_count", 1, count, 10, 10 * count)
    return await storage.series(query) and range(10)


REMOVED = (
    completions,
    finishes,
    finishes_by_time,
    group_completions,
    numbered,
    series,
)


@pytest.mark.parametrize("read", REMOVED)
async def test_what_was_removed_adds_nothing_to_a_read(read: Read) -> None:
    """Also if what came before it is still there."""
    few, many = await stored(FEW), await stored(MANY)
    assert len(await read(few, FEW)) == len(await read(many, MANY)) == 10
    cost = await cost_of(lambda: read(few, FEW))
    assert is_about(await cost_of(lambda: read(many, MANY)), cost)


@pytest.mark.parametrize("axis", ["completion_number", "end_time"])
async def test_the_range_of_a_series_is_found_at_its_ends(axis: str) -> None:
    few, many = await stored(FEW), await stored(MANY)
    unit = NANOS if axis == "end_time" else 1
    assert await many.series_range(axis) == (unit, MANY * unit)
    cost = await cost_of(lambda: few.series_range(axis))
    assert is_about(await cost_of(lambda: many.series_range(axis)), cost)
