"""Pages of lists and ranges of series cost the same however many rollouts there are, and are the same either way."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import open_store
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.rules.series import SeriesQuery
from lightningstore.service.storage import memory_lists
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.postgres import filters as postgres_filters
from lightningstore.service.storage.postgres import lists as postgres_lists
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.sqlite import filters, series
from lightningstore.service.storage.sqlite import lists as sqlite_lists
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing.records import put, rollout
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_FAILED

from benchmarks.console import history
from tests.postgres import namespace_of

pytestmark = pytest.mark.asyncio

COUNT = 120
#: The others are in the queue.
FINISHED = 110
FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "failed": {"statuses": frozenset({ROLLOUT_STATUS_FAILED})},
    "label": {"labels": frozenset({("topic", "sums")})},
    "label and mode": {"labels": frozenset({("topic", "sums")}), "modes": frozenset({2})},
    "two labels": {"labels": frozenset({("topic", "sums"), ("shard", "1")})},
    "queue": {"queues": frozenset({"cpu"})},
    "failed in a queue": {
        "queues": frozenset({"cpu", ""}),
        "statuses": frozenset({ROLLOUT_STATUS_FAILED}),
    },
    "group": {"group_ids": frozenset({"step-1/3"})},
    "either": {"group_ids": frozenset({"step-1/3"}), "modes": frozenset({2}), "any_of": True},
    "reward": {"reward_range": ("A", "~")},
    "id": {"rollout_id_contains": "ab"},
    "failure": {"failure_contains": "error: IT"},
    "failure or group": {
        "failure_contains": "lost",
        "group_ids": frozenset({"step-1/3"}),
        "any_of": True,
    },
    "none": {"rollout_id_contains": "nothing"},
}
ORDERS = (
    *("key", "rollout_id", "start_time", "reward", "status"),
    *("completion_number", "end_time", "mode"),
)


@pytest_asyncio.fixture(params=["memory", "sqlite", "postgres"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    """A storage with finished rollouts, and a few that are in the queue."""
    made: Storage = MemoryStorage()
    if request.param == "sqlite":
        made = SqliteStorage(tmp_path / "x.db", full_sync=False)
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres").url
        made = PostgresStorage(Database(url), namespace_of(tmp_path))
    await made.open()
    for changes in history(FINISHED):
        for key, row in changes.rollouts.items():
            if key % 3:
                row.rollout.queue = "cpu"
            if key % 7 == 1:
                changes.labels[key]["shard"] = row.rollout.labels["shard"] = "1"
        await made.commit(changes)
    await put(made, *(rollout(key) for key in range(FINISHED + 1, COUNT + 1)))
    yield made
    await made.close()


async def keys(storage: Storage, query: RolloutQuery) -> list[int]:
    return [loaded.row.key async for loaded in storage.scan_rollouts(query)]


async def pages(storage: Storage, query: RolloutQuery) -> list[int]:
    """Return the keys on all pages."""
    found: list[int] = []
    value = filters_of_order(query.order_by)
    while True:
        page = [loaded async for loaded in storage.scan_rollouts(query)]
        found += [loaded.row.key for loaded in page]
        if len(page) < query.limit:
            return found
        row = page[-1].measured()
        query = replace(query, after=(value(row), row.key))


def filters_of_order(column: str) -> Any:
    from lightningstore.service.rules.filters import COLUMNS

    return COLUMNS.get(column, lambda row: row.key)


@pytest.mark.parametrize("name", FILTERS)
async def test_pages_hold_each_match_once_in_order(
    storage: Storage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order, descending in itertools.product(ORDERS, (False, True)):
        query = RolloutQuery(**FILTERS[name], order_by=order, descending=descending, limit=9)
        results = []
        for few in (0, 20, 10_000):
            monkeypatch.setattr(filters, "FIRST_ROWS", few)
            monkeypatch.setattr(postgres_filters, "FIRST_ROWS", few)
            monkeypatch.setattr(sqlite_lists, "COUNTED_ROLLOUTS", 1)
            monkeypatch.setattr(postgres_lists, "COUNTED_ROLLOUTS", 1)
            monkeypatch.setattr(memory_lists, "SORTED_AT_ONCE", few)
            monkeypatch.setattr(memory_lists, "SCAN_AT_ONCE", few or 10)
            results.append(await pages(storage, query))
            skipped = replace(query, limit=3, skip=2)
            assert await keys(storage, skipped) == results[-1][2:5], (order, descending, few)
        assert results[0] == results[1] == results[2], (order, descending)
        if name == "all":
            assert sorted(results[0]) == list(range(1, COUNT + 1))
        assert len(set(results[0])) == len(results[0])


async def test_page_of_many_matches_sorts_nothing(tmp_path: Path) -> None:
    made = SqliteStorage(tmp_path / "x.db", full_sync=False)
    await made.open()
    for order, chosen in itertools.product(filters.INDEXED, ("failed", "label", "id", "failure")):
        query = RolloutQuery(**FILTERS[chosen], order_by=order, descending=True, limit=5)
        page, selected = filters.first_rows(query), filters.selection(query, led=False)
        assert page is not None
        reader = made._reader
        text = reader._text(
            "matches_among", {"value": query.order_by, "first": page[0], "where": selected.where}
        )
        values = [*page[1], *selected.parameters, 5, 0]
        plan = str(reader._here.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall())
        assert "SCAN rollouts USING INDEX rollouts_by" in plan
        assert "TEMP B-TREE" not in plan
    await made.close()


async def test_page_of_memory_sorts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MemoryStorage()
    await made.open()
    for changes in history(COUNT):
        made.commit(changes)
    monkeypatch.setattr(memory_lists, "SORTED_FOR_A_PAGE", 5)
    monkeypatch.delattr(memory_lists.MemoryLists, "_sorted")
    for order, chosen in itertools.product(
        ("start_time", "reward", "status", "completion_number", "end_time"),
        ("all", "failed", "label", "reward"),
    ):
        query = RolloutQuery(**FILTERS[chosen], order_by=order, limit=5)
        assert len(await keys(made, query)) == 5
    await made.close()


@pytest.mark.parametrize("axis", ["completion_number", "end_time"])
async def test_series_of_a_range_is_part_of_the_whole(
    storage: Storage, axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest, highest = await storage.series_range(axis) or (0, 0)
    assert axis == "end_time" or (lowest, highest) == (1, FINISHED)
    width = (highest - lowest) // 10
    first = lowest + 3 * width
    for chosen in FILTERS.values():
        query = SeriesQuery(
            axis, "reward", first, width, 4, first + 4 * width, "", RolloutQuery(**chosen)
        )
        results = []
        for few in (0, 1 << 62):
            monkeypatch.setattr(series, "FEW_NUMBERS", few)
            monkeypatch.setattr(memory_lists, "SORTED_AT_ONCE", 0 if few else 10_000)
            results.append(await storage.series(query))
        assert results[0] == results[1], chosen
        if not chosen:
            assert sum(bucket.count for bucket in results[0].values()) > COUNT // 4


async def test_memory_orders_follow_changes() -> None:
    made = MemoryStorage()
    await made.open()
    (changes,) = history(50)
    made.commit(changes)
    row = changes.rollouts[7]
    changed = row._replace(measures=row.measures._replace(reward="~"))
    again = type(changes)(size=1, rollouts={7: changed})
    made.commit(again)
    top = RolloutQuery(order_by="reward", descending=True, limit=1)
    assert await keys(made, top) == [7]
    made.commit(type(changes)(size=1, removed=[7]))
    assert 7 not in await keys(made, replace(top, limit=100))
    assert len(await keys(made, replace(top, limit=100))) == 49
    await asyncio.sleep(0)
    await made.close()


async def test_list_goes_on_after_a_page_with_damaged_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(f"sqlite:///{path}") as store:
        await store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(7)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for damaged in ("r1", "r3", "r6"):
            connection.execute("UPDATE rollouts SET record = x'ff' WHERE rollout_id = ?", [damaged])
    async with open_store(f"sqlite:///{path}") as store:
        for order in ("", "start_time desc", "rollout_id", "priority"):
            listed = [r.rollout_id async for r in store.iter_rollouts(page_size=2, order_by=order)]
            assert sorted(listed) == ["r0", "r2", "r4", "r5"], order
        assert [r.rollout_id for r in await store.list_rollouts(page_size=2)] == ["r0", "r2"]


async def test_page_is_filled_when_a_rollout_is_removed_while_it_is_read() -> None:
    made = MemoryStorage()
    await made.open()
    await put(made, *(rollout(key) for key in range(1, 6)))
    page = made.scan_rollouts(RolloutQuery(order_by="priority", limit=3))
    found = [await anext(page)]
    await put(made, removed=[2])
    found += [item async for item in page]
    assert [item.row.key for item in found] == [1, 3, 4]
