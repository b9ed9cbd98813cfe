"""The storage suite over PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing import FaultSuite, StorageSuite

from tests.postgres import PostgresServer, end_lease, namespace_of


class _Postgres:
    """Each storage is a server of its own."""

    url: str

    @pytest.fixture(autouse=True)
    def _server(self, postgres: PostgresServer) -> None:
        self.url = postgres.url

    async def new_storage(self, place: Path) -> PostgresStorage:
        return PostgresStorage(Database(self.url), namespace_of(place))

    async def damage(self, place: Path, kind: str, name: str) -> None:
        table = "ls_resources" if kind == "resources" else f"ls_{kind}s"
        column = "name" if kind == "consumer" else f"{kind}_id"
        connection = await asyncpg.connect(self.url)
        done = await connection.execute(
            f"UPDATE {table} SET record = '\\xff' WHERE {column} = $2 "
            "AND ns = (SELECT ns FROM ls_namespaces WHERE name = $1)",
            namespace_of(place),
            name.encode(),
        )
        await connection.close()
        assert done == "UPDATE 1"

    async def take_over(self, storage: PostgresStorage) -> None:
        await end_lease(self.url, storage)


class TestPostgres(_Postgres, StorageSuite):
    pass


class TestPostgresWithFaults(_Postgres, FaultSuite):
    """The storages of a test are namespaces of one server where that is possible: to start one takes ten times as long."""

    @pytest_asyncio.fixture(autouse=True)
    async def _database(self, postgres: PostgresServer) -> AsyncIterator[None]:
        self._shared: Database | None = Database(postgres.url)
        entered = self._shared
        await entered.enter()
        yield
        await entered.leave()

    async def new_storage(self, place: Path) -> PostgresStorage:
        name = namespace_of(place)
        if self._shared is None or name in self._shared.opened:
            return await super().new_storage(place)
        return PostgresStorage(self._shared, name)

    async def take_over(self, storage: PostgresStorage) -> None:
        if storage.database is self._shared:
            self._shared = None
        await super().take_over(storage)
