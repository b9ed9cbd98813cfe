"""The storage suite over this project's back ends."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing import FaultSuite, StorageSuite


class TestMemory(StorageSuite):
    async def new_storage(self, place: Path) -> MemoryStorage:
        return MemoryStorage()


class _Sqlite(StorageSuite):
    async def damage(self, place: Path, kind: str, name: str) -> None:
        table = {
            "worker": "workers",
            "rollout": "rollouts",
            "group": "groups",
            "consumer": "consumers",
        }.get(kind, kind)
        with closing(sqlite3.connect(place / "s.db", isolation_level=None)) as connection:
            column = "name" if kind == "consumer" else f"{kind}_id"
            text = f"UPDATE {table} SET record = x'ff' WHERE {column} = ?"
            assert connection.execute(text, [name]).rowcount == 1


class TestSqlite(_Sqlite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db")


class TestCompressedSqlite(_Sqlite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db", compress=True)


class TestMemoryWithFaults(FaultSuite):
    new_storage = TestMemory.new_storage


class TestSqliteWithFaults(FaultSuite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db", full_sync=False)
