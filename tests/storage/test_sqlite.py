"""What the SQLite back end does beyond the rules of every back end, which are in test_suite.py."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.measures import Measures
from lightningstore.service.rules.rewards import sortable
from lightningstore.service.rules.rows import GroupQuery, RolloutQuery
from lightningstore.service.rules.series import SeriesQuery
from lightningstore.service.rules.times import NANOS
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.sqlite import filters
from lightningstore.service.storage.sqlite.commits import SQL, statements
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing.records import (
    attempt,
    finished,
    group,
    put,
    rollout,
    spans,
    sweep,
)
from lightningstore.v1.group_pb2 import GROUP_STATUS_COMPLETE

from tests.costs import cost_of

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def storage(tmp_path: Path) -> AsyncIterator[SqliteStorage]:
    made = SqliteStorage(tmp_path / "s.db")
    await made.open()
    yield made
    await made.close()


def rows(folder: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{folder}/s.db?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


async def test_committed_rows_are_in_the_file_before_it_is_closed(
    storage: SqliteStorage, tmp_path: Path
) -> None:
    await put(storage, rollout(1))
    assert rows(tmp_path, "SELECT rollout_id FROM rollouts") == [("r1",)]


async def test_removed_rollout_leaves_no_row(storage: SqliteStorage, tmp_path: Path) -> None:
    await put(storage, rollout(1, labels={"a": "1"}), attempt(1, 1), spans(1, 1, 3))
    changed = rollout(1, priority=3, labels={"b": "2"})
    await put(storage, changed, attempt(2, 1), spans(2, 4, 5), removed=[1])
    await sweep(storage)
    for table in ("rollouts", "inputs", "labels", "attempts", "spans"):
        assert rows(tmp_path, f"SELECT count(*) FROM {table}") == [(0,)]


PLANS = {
    "queue": (RolloutQuery(queues=frozenset(["a", "b"])), "rollouts_by_queue (queue=?)"),
    "label": (RolloutQuery(labels=frozenset([("a", "1")])), "labels_by_value (name=? AND value=?)"),
    "page of a label": (
        RolloutQuery(labels=frozenset([("a", "1")]), after=(0, 7), statuses=frozenset([1])),
        "labels_by_value (name=? AND value=? AND rollout_key>?)",
    ),
    "labels backwards": (
        RolloutQuery(labels=frozenset([("a", "1"), ("b", "2")]), descending=True, any_of=True),
        "labels_by_value (name=? AND value=?)",
    ),
    "label and ids": (
        RolloutQuery(labels=frozenset([("a", "1")]), rollout_ids=frozenset(["r1"])),
        "rollouts_by_id (rollout_id=?)",
    ),
}


@pytest.mark.parametrize("name", PLANS)
async def test_filter_is_served_by_an_index_in_the_order_of_keys(
    storage: SqliteStorage, tmp_path: Path, name: str
) -> None:
    await put(storage, rollout(1, labels={"a": "1"}))
    query, used = PLANS[name]
    source, key, where, parameters = filters.selection(query)
    page, more = filters.page(query, key)
    columns = {"value": key, "key": key}
    text = SQL["scan_rollouts"].format(**columns, source=source, where=where, page=page)
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {text}", [*parameters, *more]).fetchall()
    plan = [step[-1] for step in steps]
    assert used in plan[0]
    if "labels" in source:
        assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_failed_removal_leaves_no_spans_to_sweep(storage: SqliteStorage) -> None:
    """Those of a rollout that was not removed after all would be deleted."""
    await put(storage, rollout(1), spans(1, 1, 3))
    with pytest.raises(StorageFailed):
        await put(storage, spans(1, 1, 3, rollout_key=2), removed=[1])
    assert await storage.leftover_spans() == []
    await storage.open()
    await storage.commit(Changes(removed=[1], counters=Counters()))
    assert await storage.leftover_spans() == [1]


async def test_probe_leaves_nothing_behind(storage: SqliteStorage, tmp_path: Path) -> None:
    await storage.probe(1 << 20)
    await storage.close()
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        (size,) = connection.execute("SELECT sum(length(value)) FROM meta").fetchone()
        assert size < 10_000
        connection.execute("INSERT INTO meta (name, value) VALUES ('probe', zeroblob(1048576))")
        connection.commit()  # as a crash leaves it
    await storage.open()
    await storage.close()
    assert rows(tmp_path, "SELECT sum(length(value)) FROM meta") == [(size,)]


async def test_probe_finds_a_full_disk(storage: SqliteStorage) -> None:
    assert storage._writer is not None
    (pages,) = storage._writer.execute("PRAGMA page_count").fetchone()
    storage._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    await storage.probe(100)
    with pytest.raises(StorageFailed, match="full"):
        await storage.probe(1 << 20)


async def test_commit_of_many_removals_stays_within_the_parameters_of_a_statement() -> None:
    """A group commit holds the removals of many calls. SQLite may be built with a limit of 32,766."""
    keys = list(range(100_000))
    found = list(statements(Changes(removed=keys, swept=keys), [], compress=False))
    assert max(len(parameters) for _, parameters in found) <= 32_766
    for name in ("attempts", "inputs", "rollouts", "spans"):
        deleted = [p for text, p in found if text.strip().startswith(f"DELETE FROM {name} ")]
        assert [key for part in deleted for key in part] == keys


async def test_an_id_that_is_not_stored_is_looked_up_by_one_statement(
    storage: SqliteStorage,
) -> None:
    await put(storage, rollout(1))
    run: list[str] = []
    storage._reader._here.set_trace_callback(run.append)
    assert await storage.load(["r2"]) == []
    assert len(run) == 1
    assert [found.row.key for found in await storage.load(["r1"])] == [1]


COUNT = 5000


async def finishes_at(storage: SqliteStorage, at: int) -> Any:
    return await storage.finished((at, 0), 10)


async def completions_at(storage: SqliteStorage, at: int) -> Any:
    return await storage.completions(at, 10)


async def groups_at(storage: SqliteStorage, at: int) -> Any:
    return await storage.group_completions(at, 10)


async def groups_by_id_at(storage: SqliteStorage, at: int) -> Any:
    """Return groups by id and status. The index on the status leads to many more."""
    ids = frozenset([f"g{at}", f"g{at + 1}"])
    return await storage.list_groups(GroupQuery(ids, frozenset([GROUP_STATUS_COMPLETE])))


async def series_at(storage: SqliteStorage, at: int) -> Any:
    query = SeriesQuery("completion_number", "attempt_count", at, 5, 2, at + 10)
    return (await storage.series(query)).values()


async def matches_at(storage: SqliteStorage, at: int) -> Any:
    query = RolloutQuery(completed=(at, at + 10))
    return [row async for row in storage.scan_rollouts(query)]


async def rewarded_at(storage: SqliteStorage, at: int, *, descending: bool = False) -> Any:
    """Return a page of a list by reward, in a range that holds all rewards."""
    query = RolloutQuery(
        order_by="reward",
        reward_range=(sortable(0), sortable(COUNT)),
        after=(sortable(at), at),
        limit=10,
        descending=descending,
    )
    return [row async for row in storage.scan_rollouts(query)]


async def rewarded_below(storage: SqliteStorage, at: int) -> Any:
    return await rewarded_at(storage, COUNT - at, descending=True)


async def rewarded_first(storage: SqliteStorage, _at: int) -> Any:
    """Return the first rewarded rollouts in enqueue order, which is not that of the index on rewards."""
    query = RolloutQuery(reward_range=(sortable(0), sortable(COUNT)), limit=10)
    return [row async for row in storage.scan_rollouts(query)]


async def last_page(storage: SqliteStorage, _at: int) -> Any:
    """Return the last page of a filter that all rollouts match, in the order of time: it is not full."""
    query = RolloutQuery(
        queues=frozenset(["q"]),
        order_by="start_time",
        after=((COUNT - 2) * NANOS, COUNT - 2),
        limit=10,
    )
    return [row async for row in storage.scan_rollouts(query)]


def labelled(at: int) -> RolloutQuery:
    """Return a query of two rollouts with a label that all have, and one that two have."""
    return RolloutQuery(labels=frozenset([("all", "1"), ("pair", str(at // 2))]))


async def labelled_at(storage: SqliteStorage, at: int) -> Any:
    return [row async for row in storage.scan_rollouts(labelled(at))]


async def with_rare_label_at(storage: SqliteStorage, at: int) -> Any:
    """Return rollouts in the order of time, of which nearly no other has the label."""
    query = RolloutQuery(labels=frozenset([("pair", str(at // 2))]), order_by="start_time")
    return [row async for row in storage.scan_rollouts(query)]


async def labels_counted_at(storage: SqliteStorage, at: int) -> Any:
    counts = await storage.count_rollouts(labelled(at))
    return range(sum(counts.values()))


async def series_of_labels_at(storage: SqliteStorage, at: int) -> Any:
    whole, chosen = (COUNT + 1) * NANOS, labelled(at)
    query = SeriesQuery("end_time", "attempt_count", 0, whole, 1, whole, rollouts=chosen)
    found = await storage.series(query)
    return range(sum(summary.count for summary in found.values()))


READS = (
    finishes_at,
    labelled_at,
    with_rare_label_at,
    labels_counted_at,
    series_of_labels_at,
    completions_at,
    groups_at,
    groups_by_id_at,
    rewarded_first,
    last_page,
    series_at,
    matches_at,
    rewarded_at,
    rewarded_below,
)


@pytest.mark.parametrize("read", READS)
async def test_what_comes_before_a_read_does_not_add_to_its_steps(
    storage: SqliteStorage, read: Any
) -> None:
    """Of two limits of a column, SQLite seeks the first one and tests the other, row by row."""
    for start in range(1, COUNT + 1, 1000):
        keys = range(start, start + 1000)
        done = [
            finished(key, key, queue="q", labels={"all": "1", "pair": str(key // 2)})._replace(
                measures=Measures(reward=sortable(key))
            )
            for key in keys
        ]
        await put(storage, *done, groups={key: group(key, number=key) for key in keys})
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    async def steps_at(at: int) -> int:
        nonlocal steps
        steps = 0
        assert len(await read(storage, at)) in (2, 10)
        return steps

    storage._reader._here.set_progress_handler(count, 1)
    await storage._reader._scanner.set_progress_handler(count, 1)
    few = await steps_at(20)
    assert 10 < few < 5000
    assert await steps_at(COUNT - 20) < 2 * few


async def test_many_removed_rollouts_without_spans_are_passed_over_in_linear_time(
    storage: SqliteStorage,
) -> None:
    async def looked_up(count: int) -> int:
        await storage.commit(Changes(removed=list(range(1, count + 1)), counters=Counters()))
        return (await cost_of(storage.leftover_spans)).instructions

    few = await looked_up(1000)
    assert await storage.leftover_spans() == []
    assert await looked_up(8000) < 12 * few
