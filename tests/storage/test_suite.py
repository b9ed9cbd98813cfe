"""The storage suite over this project's back ends."""

from __future__ import annotations

from pathlib import Path

from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing import FaultSuite, StorageSuite


class TestMemory(StorageSuite):
    async def new_storage(self, place: Path) -> MemoryStorage:
        return MemoryStorage()


class TestSqlite(StorageSuite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db")


class TestCompressedSqlite(StorageSuite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db", compress=True)


class TestMemoryWithFaults(FaultSuite):
    new_storage = TestMemory.new_storage


class TestSqliteWithFaults(FaultSuite):
    async def new_storage(self, place: Path) -> SqliteStorage:
        return SqliteStorage(place / "s.db", full_sync=False)
