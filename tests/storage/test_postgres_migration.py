"""Tables of earlier schemas are migrated with what is in them."""

from __future__ import annotations

import uuid

import asyncpg
import pytest
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.rules.rows import ResourcesQuery, ResourcesVersion
from lightningstore.service.storage.base import Counters
from lightningstore.service.storage.postgres import schema
from lightningstore.service.storage.postgres.commits import encoded_counters
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing.records import put, resources
from lightningstore.v1.resources_pb2 import Resources

from tests.postgres import PostgresServer, make_schema

pytestmark = pytest.mark.asyncio


async def test_resources_of_the_first_schema_become_versions(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{postgres.url}?search_path=s{uuid.uuid4().hex[:16]}"
    await make_schema(url)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        patch.setattr(schema, "SCHEMA_VERSION", 1)
        storage = PostgresStorage(Database(url), "default")
        # It makes the tables and the namespace, and cannot read what the first schema does not have.
        with pytest.raises(StorageUnusable, match="ls_groups"):
            await storage.open()
        connection = await asyncpg.connect(url)
        await _fill(connection)
        await connection.close()
    storage = PostgresStorage(Database(url), "default")
    snapshot = await storage.open()
    versions = sorted(snapshot.resources, key=lambda version: version.publish_number)
    assert versions == [ResourcesVersion("b", 2, 1, 2), ResourcesVersion("a", 1, 3, 4)]
    assert snapshot.counters.resources_updates == 4
    current = Resources(resources_id="a", version=3, publish_number=4)
    assert await storage.get_resources(4) == current
    other = Resources(resources_id="b", version=1, publish_number=2)
    assert await storage.list_resources(ResourcesQuery()) == [(1, current), (2, other)]
    newer = resources(1, 5, "a", version=4)
    await put(storage, resources=newer)
    assert await storage.get_resources(4) == current
    assert await storage.list_resources(ResourcesQuery(limit=1)) == [(1, newer[5].record)]
    await put(storage, outdated=[4])
    assert await storage.get_resources(4) is None
    await storage.close()


async def _fill(connection: asyncpg.Connection) -> None:
    """Write what four updates of two ids leave in the first schema."""
    for key, name, version, updated in ((1, "a", 3, 4), (2, "b", 1, 2)):
        record = Resources(resources_id=name, version=version).SerializeToString()
        await connection.execute(
            "INSERT INTO ls_resources (ns, key, resources_id, version, updated, record)"
            " SELECT ns, $1, $2, $3, $4, $5 FROM ls_namespaces",
            *(key, name.encode(), version, updated, record),
        )
    counters = encoded_counters(Counters(resources_updates=4))
    await connection.execute("UPDATE ls_commits SET counters = $1", counters)
