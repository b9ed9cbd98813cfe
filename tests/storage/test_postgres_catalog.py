"""The namespaces of a PostgreSQL database."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import NamespaceExists, StorageFailed, StorageUnusable
from lightningstore.service.storage.back_ends import catalog_at
from lightningstore.service.storage.catalog import Found
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.postgres.catalog import TABLES, PostgresCatalog
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing.records import (
    attempt,
    finished,
    found,
    put,
    resources,
    rollout,
    spans,
    update,
)
from lightningstore.v1.worker_pb2 import Worker

from tests.postgres import PostgresServer, make_schema

pytestmark = pytest.mark.asyncio


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """A database without tables."""
    return f"{postgres.url}?search_path=s{uuid.uuid4().hex[:16]}"


@pytest_asyncio.fixture
async def default(url: str) -> AsyncIterator[PostgresStorage]:
    """The open storage of the default namespace."""
    await make_schema(url)
    storage = PostgresStorage(Database(url), "default")
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
def catalog(url: str, default: PostgresStorage) -> PostgresCatalog:
    made = catalog_at(url, default)
    assert isinstance(made, PostgresCatalog)
    return made


@pytest_asyncio.fixture
async def admin(url: str, default: PostgresStorage) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test itself."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def rows(admin: asyncpg.Connection) -> dict[str, int]:
    """Return how many rows each table of namespaces has."""
    return {name: await admin.fetchval(f"SELECT count(*) FROM {name}") for name in TABLES}


async def test_namespace_is_created_opened_and_deleted(
    default: PostgresStorage, catalog: PostgresCatalog
) -> None:
    assert await catalog.survey() == []
    await catalog.create("run-1", b"settings")
    with pytest.raises(NamespaceExists):
        await catalog.create("run-1", b"")
    storage = catalog.storage("run-1")
    snapshot = await storage.open()
    assert snapshot.settings == b"settings"
    await put(storage, rollout(1))
    assert await found(default) == []
    await storage.close()
    assert await catalog.survey() == [
        Found("run-1", snapshot.store_id, b"settings", live=True, oldest_ns=1_000_000_000)
    ]
    await catalog.delete("run-1")
    await catalog.delete("run-1")
    assert await catalog.survey() == []
    with pytest.raises(StorageUnusable, match="no namespace 'run-1'"):
        await catalog.storage("run-1").open()
    await catalog.create("run-1", b"")
    storage = catalog.storage("run-1")
    again = await storage.open()
    assert again.live == []
    assert again.store_id != snapshot.store_id
    await storage.close()


async def test_survey_tells_what_is_live_and_how_old_the_oldest_is(
    catalog: PostgresCatalog,
) -> None:
    for name in ("attempt", "empty", "finished"):
        await catalog.create(name, b"")
    storage = catalog.storage("finished")
    await storage.open()
    await put(storage, finished(7, 1), finished(5, 2))
    await storage.close()
    storage = catalog.storage("attempt")
    await storage.open()
    await put(storage, finished(1, 1), attempt(1, 1))
    await storage.close()
    facts = [(item.name, item.live, item.oldest_ns) for item in await catalog.survey()]
    assert facts == [
        ("attempt", True, 10**9),
        ("empty", False, 0),
        ("finished", False, 5 * 10**9),
    ]


async def _fill(storage: PostgresStorage) -> None:
    """Leave rows in every table."""
    await storage.open()
    await put(
        storage,
        *(finished(k, k) for k in range(1, 30)),
        *(attempt(k, k) for k in range(1, 30)),
        *(spans(k, k, k, rollout_key=k) for k in range(1, 30)),
        workers={"w": Worker(worker_id="w")},
        resources=resources(1, 1, "rs"),
        requests=[],
    )
    await update(storage, removed=[1])
    await storage.close()


async def test_deleted_namespace_leaves_no_row_in_any_table(
    catalog: PostgresCatalog, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = await admin.fetch(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = current_schema() AND column_name = 'ns'"
    )
    assert {row[0] for row in tables} - {"ls_namespaces", "ls_deleted"} == set(TABLES)
    monkeypatch.setattr("lightningstore.service.storage.postgres.catalog.DELETED_AT_ONCE", 7)
    before = await rows(admin)
    await catalog.create("run-1", b"settings")
    await _fill(catalog.storage("run-1"))
    assert (await rows(admin))["ls_spans"] == 29
    await catalog.delete("run-1")
    assert await rows(admin) == before
    assert await admin.fetchval("SELECT count(*) FROM ls_deleted") == 0


async def test_rest_of_a_namespace_whose_deletion_was_interrupted_is_deleted_later(
    catalog: PostgresCatalog, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await rows(admin)
    await catalog.create("run-1", b"settings")
    await _fill(catalog.storage("run-1"))

    async def crash(self: PostgresCatalog, ns: int) -> None:
        raise StorageFailed("the server has crashed")

    with monkeypatch.context() as patch:
        patch.setattr(PostgresCatalog, "_delete_rows", crash)
        with pytest.raises(StorageFailed):
            await catalog.delete("run-1")
    await catalog.create("run-1", b"")  # the name is free
    assert (await rows(admin))["ls_spans"] == 29
    assert [item.name for item in await catalog.survey()] == ["run-1"]
    await catalog.delete("run-1")
    assert await rows(admin) == before


async def test_namespace_that_another_server_owns_is_not_deleted(
    url: str, catalog: PostgresCatalog
) -> None:
    await catalog.create("run-1", b"")
    other = PostgresStorage(Database(url), "run-1")
    await other.open()
    with pytest.raises(StorageFailed, match="is owned by the server at"):
        await catalog.delete("run-1")
    await put(other, rollout(1))
    await other.close()
    await catalog.delete("run-1")


async def test_catalog_needs_the_storage_of_its_database(url: str) -> None:
    with pytest.raises(TypeError, match="not the storage of a PostgreSQL database"):
        catalog_at(url, MemoryStorage())
