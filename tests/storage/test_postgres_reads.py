"""Reads of PostgreSQL: how many queries they take, and what is in memory meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.postgres import store
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing.records import (
    items,
    put,
    rollout,
    spans,
)

from tests.postgres import PostgresServer, namespace_of
from tests.storage.failing_connection import FailingDatabase, Fault

pytestmark = pytest.mark.asyncio


@pytest.fixture
def fault() -> Fault:
    """Counts statements; none of them fails."""
    return Fault()


@pytest_asyncio.fixture
async def storage(
    postgres: PostgresServer, tmp_path: Path, fault: Fault
) -> AsyncIterator[PostgresStorage]:
    """An open storage whose statements are counted."""
    database = FailingDatabase(postgres.url, fault, lease_seconds=60.0)
    made = PostgresStorage(database, namespace_of(tmp_path))
    await made.open()
    yield made
    await made.close()


async def test_loads_of_many_callers_share_queries(storage: PostgresStorage, fault: Fault) -> None:
    await put(storage, rollout(1), rollout(2))
    await storage.load(["r1"])
    before = fault.statements
    loads = [storage.load([f"new{n}"]) for n in range(100)]
    assert await asyncio.gather(*loads) == [[]] * 100
    assert fault.statements - before == 1
    loads = [storage.load([name]) for name in ("r1", "r2", "r3")]
    answers = await asyncio.gather(*loads)
    assert [[item.row.key for item in answer] for answer in answers] == [[1], [2], []]


async def test_load_that_is_cancelled_leaves_those_that_wait_with_it(
    storage: PostgresStorage,
) -> None:
    await put(storage, rollout(1))
    first, second = (asyncio.create_task(storage.load(["r1"])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert len(await second) == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_no_query_returns_more_bytes_than_the_limit(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "READ_BYTES", 25_000)
    monkeypatch.setattr(store, "SPAN_BYTES_A_READ", 25_000)
    storage._encoder = store.SpanEncoder(compress=False)
    largest = 0
    fetch = storage.database.scanners.fetch

    async def counted(*arguments: Any) -> list[Any]:
        nonlocal largest
        rows = await fetch(*arguments)
        values = [value for row in rows for value in row if isinstance(value, bytes)]
        largest = max(largest, sum(map(len, values)))
        return rows

    monkeypatch.setattr(storage.database.scanners, "fetch", counted)
    content = bytes(10_000)
    await put(
        storage,
        *(rollout(k) for k in range(1, 21)),
        *(spans(k, k, k, data=content) for k in range(1, 21)),
        inputs=[(k, content) for k in range(1, 21)],
    )
    assert len(await items(storage.scan_rollouts(RolloutQuery()))) == 20
    assert len(await items(storage.scan_spans(1, None, 1 << 60))) == 20
    assert 25_000 < largest < 36_000
