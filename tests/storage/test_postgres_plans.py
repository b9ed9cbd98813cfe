"""Plans of PostgreSQL: whatever the statistics say, no statement of a running store reads its namespace.

PostgreSQL counts the pages that each statement touches. The statements are those that the storage sends, prepared and in
their plan modes, so that nothing here depends on what EXPLAIN would show for other values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.service.rules.rows import (
    ConsumerRow,
    DeliveryRow,
    GroupQuery,
    RequestRow,
    ResourcesQuery,
    RolloutQuery,
)
from lightningstore.service.rules.series import SeriesQuery
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.postgres import database as database_module
from lightningstore.service.storage.postgres import schema
from lightningstore.service.storage.postgres.catalog import PostgresCatalog
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing.records import (
    attempt,
    batches,
    finished,
    found,
    group,
    items,
    put,
    resources,
    rollout,
    spans,
    update,
)
from lightningstore.v1.consumer_pb2 import Consumer, Delivery
from lightningstore.v1.group_pb2 import GROUP_STATUS_COMPLETE, GROUP_STATUS_OPEN
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_MODE_TRAIN,
    ROLLOUT_STATUS_FAILED,
    ROLLOUT_STATUS_QUEUING,
    ROLLOUT_STATUS_SUCCEEDED,
)
from lightningstore.v1.worker_pb2 import Worker

from tests.postgres import PostgresServer, make_schema, namespace_of
from tests.storage.failing_connection import STATEMENTS

pytestmark = pytest.mark.asyncio

ROLLOUTS = 6000
#: Pages that a statement may touch: some rows, each with a few levels of an index. A namespace has thousands.
MOST_PAGES = 160
#: How often each call is made. From the sixth time on, PostgreSQL may use a generic plan.
TIMES = 8
PAGES = (
    "SELECT coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::bigint FROM pg_class "
    r"WHERE relname LIKE 'ls\_%' AND relnamespace = current_schema()::regnamespace"
)
#: Rows of three rollouts in each of many namespaces.
SMALL = """
INSERT INTO ls_rollouts SELECT ns, k, ('r' || k)::bytea, FALSE, 4, 1, 0, 'g', '', k, k, 1, '', k, 0, 0, 'record'
    FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_inputs SELECT ns, k, '1' FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_attempts SELECT ns, k, k, FALSE, 4, 0, 'record'
    FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_spans SELECT ns, k, k, k, 1, 1, 1, TRUE, 0, 'ids', 'spans'
    FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_requests SELECT ns, 'm', k::text::bytea, 1, k, 'answer'
    FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_resources SELECT ns, k, ('r' || k)::bytea, 1, k, 'record'
    FROM generate_series(1000, 2000) ns, generate_series(1, 3) k;
INSERT INTO ls_leftovers SELECT ns, 9 FROM generate_series(1000, 2000) ns;
"""


class Measured:
    """A connection that records the pages which each statement touches."""

    def __init__(self, inner: asyncpg.Connection, pages: dict[str, int]) -> None:
        self._inner, self._pages = inner, pages

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return self._measured(attribute) if name in STATEMENTS else attribute

    def _measured(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def run(text: str, *values: Any) -> Any:
            if text.startswith("DELETE FROM ls_servers"):
                return await method(text, *values)
            async with self._inner.transaction():
                before = await self._inner.fetchval(PAGES)
                result = await method(text, *values)
                touched = await self._inner.fetchval(PAGES) - before
            self._pages[text] = max(self._pages[text], touched)
            return result

        return run


class MeasuredDatabase(Database):
    """A database that knows the most pages that each statement touched."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.pages: dict[str, int] = defaultdict(int)

    async def _connect(self, settings: dict[str, str]) -> Any:
        return Measured(await super()._connect(settings), self.pages)


@pytest.fixture(params=["auto", "force_generic_plan"])
def plan_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which plans connections use that do not choose themselves."""
    settings = database_module.SETTINGS | {"plan_cache_mode": request.param}
    monkeypatch.setattr(database_module, "SETTINGS", settings)
    return str(request.param)


@pytest_asyncio.fixture(params=["small", "large", "empty", "missing"])
async def storage(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path, plan_mode: str
) -> AsyncIterator[PostgresStorage]:
    """A namespace with many rollouts, and statistics that say something else.

    small: of many small namespaces, before this one grew. large: of this one beside them. empty: of empty tables.
    missing: none.
    """
    url = f"{postgres.url}?search_path=plans_{request.param}_{plan_mode}"
    await make_schema(url)
    database = MeasuredDatabase(url, lease_seconds=60.0)
    made = PostgresStorage(database, namespace_of(tmp_path))
    await made.open()
    admin = await asyncpg.connect(url)
    try:
        if request.param in ("small", "large"):
            await admin.execute(SMALL)
        if request.param != "missing":
            await admin.execute("VACUUM")
            await admin.execute("ANALYZE")
        await use(made, 0)  # plans from that time
        await fill(made)
        if request.param == "large":
            await admin.execute("ANALYZE")
        database.pages.clear()
        yield made
    finally:
        await admin.close()
        await made.close()


def _tags(key: int) -> dict[str, Any]:
    number = key % 1000
    queue = f"q{number}" if number < 100 else "cpu"
    return {"queue": queue, "labels": {"run": str(number), "type": "1"}}


async def fill(storage: PostgresStorage) -> None:
    """Finish many rollouts, a few of which are in a group, and leave a few queued."""
    keys = range(101, 101 + ROLLOUTS)
    for start in range(0, ROLLOUTS, 2000):
        part = keys[start : start + 2000]
        await put(
            storage,
            *(finished(k, k, group_id=f"g{k % 1000}", **_tags(k)) for k in part),
            *(attempt(k, k, status=3) for k in part),
            *(spans(k, k, k, rollout_key=k, attempt_key=k, data=b"x") for k in part),
            requests=[RequestRow("m", f"request {k}", 1, b"answer", k) for k in part],
            resources={k: v for key in part for k, v in resources(key, key).items()},
            groups={k: group(k, number=k) for k in part},
            deliveries={
                (1, k): DeliveryRow(1, k, 1, False, 1, Delivery(delivery_id=f"d{k}")) for k in part
            },
        )
    queued = range(20_001, 20_011)
    await put(
        storage,
        *(rollout(k, group_id="queued") for k in queued),
        groups={k: group(k) for k in queued},
    )


async def use(storage: PostgresStorage, base: int) -> None:
    """Read and write as the engine does, some times, with keys from `base` on."""
    for n in range(TIMES):
        key = base + n + 1
        await storage.load([f"r{key}", f"r{key + 1}", "none"])
        await read_pages(storage, n)
        await storage.group_members(f"g{n}")
        await storage.completions(3000, 10)
        await storage.finished((3000, 0), 10)
        await storage.finished((0, 0), 10, ended_by_ns=1000 * 10**9)
        await storage.span_ids(key, key)
        await batches(storage, key)
        await storage.get_spans(key, key)
        await storage.list_resources(ResourcesQuery(after=3000, limit=10))
        await storage.get_resources(key)
        await read_groups(storage, n)
        await read_series(storage)
        await write(storage, 30_000 + base + n, 103 + n)


async def read_groups(storage: PostgresStorage, n: int) -> None:
    """Read groups by id, pages of lists, and completions."""
    names = [f"g{101 + n}", "g3000", "none"]
    await storage.load_groups(names)
    await storage.group_completions(3000, 10)
    some = frozenset(names)
    for status in (GROUP_STATUS_OPEN, GROUP_STATUS_COMPLETE):
        statuses = frozenset([status])
        await storage.list_groups(GroupQuery(statuses=statuses, limit=10))
        await storage.list_groups(GroupQuery(statuses=statuses, after=3000, limit=10))
        await storage.list_groups(GroupQuery(some, statuses, limit=10))
    await storage.list_groups(GroupQuery(some, limit=10))
    await storage.list_groups(GroupQuery(after=3000, limit=10))
    query = RolloutQuery(group_ids=frozenset([f"g{n}", "none"]), limit=1 << 40, inputs=False)
    await items(storage.scan_rollouts(query))


async def read_series(storage: PostgresStorage) -> None:
    """Read the range of a series, and the few finishes in a part of it."""
    for axis, unit in (("completion_number", 1), ("end_time", 10**9)):
        await storage.series_range(axis)
        await storage.series(
            SeriesQuery(axis, "attempt_count", 3000 * unit, 5 * unit, 2, 3010 * unit)
        )
    counted = RolloutQuery(completed=(3000, 3010), labels=frozenset({("type", "1")}))
    await storage.count_rollouts(counted)
    await found(storage, completed=(3000, 3010))


async def read_pages(storage: PostgresStorage, n: int) -> None:
    """Read pages of lists, from the first on and from the middle."""
    second = 10**9
    middle = {
        "key": (3000, 3000),
        "rollout_id": ("r3000", 3000),
        "start_time": (3000 * second, 3000),
        "status": (ROLLOUT_STATUS_SUCCEEDED, 3000),
    }
    for order, after in middle.items():
        for more in (
            {},
            {"after": after},
            {"descending": True},
            {"after": after, "descending": True},
        ):
            await found(storage, order_by=order, limit=10, **more)
    ids = frozenset({f"r{101 + n}", "r3000", "none"})
    groups = frozenset({f"g{n}", "none"})
    statuses = frozenset({ROLLOUT_STATUS_QUEUING, ROLLOUT_STATUS_FAILED})
    finishing = frozenset({ROLLOUT_STATUS_SUCCEEDED, ROLLOUT_STATUS_FAILED})
    train = frozenset({ROLLOUT_MODE_TRAIN})
    for order in ("key", "start_time", "priority"):
        await found(storage, order_by=order, rollout_ids=ids, limit=10)
        await found(storage, order_by=order, group_ids=groups, modes=train, limit=10)
        await found(storage, order_by=order, statuses=frozenset({ROLLOUT_STATUS_QUEUING}), limit=10)
    await found(storage, statuses=finishing, after=(3000, 3000), limit=10)
    await found(storage, statuses=finishing, order_by="status", limit=10)
    await found(storage, statuses=statuses, group_ids=groups, rollout_id_contains="r", limit=10)
    queues, labels = frozenset({f"q{n}", "none"}), frozenset({("run", str(n)), ("type", "1")})
    many = frozenset({("type", "1")})
    for order in ("key", "start_time", "priority"):
        await found(storage, order_by=order, queues=queues, limit=10)
        await found(storage, order_by=order, labels=labels, statuses=finishing, limit=10)
    for more in ({}, {"after": (3000, 3000)}, {"after": (3000, 3000), "descending": True}):
        await found(storage, labels=many, limit=10, **more)
    for order in ("start_time", "reward", "status", "rollout_id"):
        for descending in (False, True):
            for more in ({"labels": many}, {"queues": frozenset({"cpu"})}, {"statuses": finishing}):
                await found(storage, order_by=order, descending=descending, limit=10, **more)
    await found(storage, labels=labels, rollout_ids=ids, limit=10)
    await found(storage, failure_contains="x", statuses=statuses, limit=10)
    await found(storage, failure_contains="x", labels=labels, limit=10)
    query = RolloutQuery(statuses=statuses, rollout_ids=ids, group_ids=groups, any_of=True)
    await items(storage.scan_rollouts(replace(query, limit=5)))
    for counted in (
        query,
        RolloutQuery(rollout_ids=ids),
        RolloutQuery(group_ids=groups, statuses=finishing),
        RolloutQuery(statuses=frozenset({ROLLOUT_STATUS_QUEUING})),
        RolloutQuery(labels=labels),
        RolloutQuery(queues=queues),
    ):
        await storage.count_rollouts(counted)


async def write(storage: PostgresStorage, new: int, old: int) -> None:
    """Write one of everything, remove it, sweep its spans, and forget answers from before a time."""
    await put(
        storage,
        rollout(new, rollout_id=f"new {new}", labels={"a": "1"}),
        attempt(new, new),
        spans(new, 1, 1, rollout_key=new, attempt_key=new),
        requests=[RequestRow("m", f"new {new}", 1, b"answer", new)],
        resources=resources(new, new),
        workers={"w": Worker(worker_id="w")},
        groups={new: group(new)},
        consumers={"c": ConsumerRow(1, 1, Consumer(name="c"))},
        deliveries={(1, new): DeliveryRow(1, new, 1, False, 1, Delivery(delivery_id="d"))},
    )
    await put(storage, removed_deliveries=[(1, new)])
    await update(storage, rollout(new, rollout_id=f"new {new}"), attempt(new, new, status=3))
    await storage.commit(Changes(forget_requests_before_ns=old, counters=Counters()))
    removed = [new, 10**6]
    await storage.commit(Changes(removed=removed, removed_groups=removed, counters=Counters()))
    await put(storage, resources=resources(new, new + 10**6, version=2), outdated=[new, 10**7])
    while swept := await storage.leftover_spans():
        await storage.commit(Changes(swept=[*swept, 10**6], counters=Counters()))


async def test_only_primary_keys_begin_with_the_namespace_itself(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another index would be a way to read a whole namespace. A database of the first schema gets the indexes too."""
    url = f"{postgres.url}?search_path=plans_indexes"
    await make_schema(url)
    connection = await asyncpg.connect(url)
    for count in (1, len(schema.MIGRATIONS)):
        monkeypatch.setattr(schema, "SCHEMA_VERSION", count)
        with monkeypatch.context() as patch:
            patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:count])
            await schema.prepare(connection)
    text = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'plans_indexes'"
    indexes = {
        name: definition.partition(" USING btree ")[2]
        for name, definition in await connection.fetch(text)
    }
    await connection.close()
    others = {name: columns for name, columns in indexes.items() if not name.endswith("_pkey")}
    others.pop("ls_namespaces_name_key")
    assert len(others) > 10
    for name, columns in others.items():
        assert columns.startswith("(((ns)::bigint), "), name


async def test_no_statement_touches_more_pages_than_it_needs(storage: PostgresStorage) -> None:
    assert isinstance(storage.database, MeasuredDatabase)
    await use(storage, 3000)
    await PostgresCatalog(storage.database).survey()
    await storage.database.membership.look()
    pages = storage.database.pages
    assert len(pages) > 40
    slow = {text: count for text, count in pages.items() if count > MOST_PAGES}
    assert slow == {}
