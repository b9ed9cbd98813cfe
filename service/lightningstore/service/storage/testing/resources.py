"""Cases: resources."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import ResourcesQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases
from lightningstore.service.storage.testing.records import put, resources


class ResourcesCases(Cases):
    """Lists of resources, and single records."""

    async def test_latest_version_of_a_record_is_returned(self, storage: Storage) -> None:
        await put(storage, resources=resources(1, 1))
        newer = resources(1, 2, version=2)
        await put(storage, resources=newer)
        assert await storage.get_resources("rs1") == newer["rs1"].record
        assert await storage.list_resources(ResourcesQuery()) == [(1, newer["rs1"].record)]
        assert await storage.get_resources("rs2") is None

    async def test_resources_go_by_key(self, storage: Storage) -> None:
        """A later version keeps the key, and so the position, of the first one."""
        for key, updated, name in (
            (1, 1, "b"),
            (2, 2, "a"),
            (3, 3, "c"),
            (1, 4, "b"),
            (9, 5, "ab"),
        ):
            await put(storage, resources=resources(key, updated, name, updated))
        listed = await storage.list_resources(ResourcesQuery())
        assert [(key, r.resources_id, r.version) for key, r in listed] == [
            *((1, "b", 4), (2, "a", 2), (3, "c", 3), (9, "ab", 5))
        ]
        assert await storage.list_resources(ResourcesQuery(limit=2)) == listed[:2]
        assert await storage.list_resources(ResourcesQuery(after=2, limit=9)) == listed[2:]
        assert await storage.list_resources(ResourcesQuery(after=5)) == listed[3:]
        assert await storage.list_resources(ResourcesQuery(after=9)) == []

    async def test_resources_are_found_by_a_part_of_their_id(self, storage: Storage) -> None:
        for key, name in enumerate(["b", "a%", "ab", "B"], 1):
            await put(storage, resources=resources(key, key, name))

        async def ids(**query: Any) -> list[str]:
            return [
                r.resources_id for _, r in await storage.list_resources(ResourcesQuery(**query))
            ]

        assert await ids(id_contains="b") == ["b", "ab"]
        assert await ids(id_contains="%") == ["a%"]
        assert await ids(id_contains="b", limit=1) == ["b"]
        assert await ids(id_contains="b", after=1) == ["ab"]
        assert await ids(id_contains="none") == []

    async def test_several_resources_of_one_commit_keep_their_order(self, storage: Storage) -> None:
        await put(
            storage, resources=resources(1, 1, "c") | resources(2, 2, "a") | resources(3, 3, "b")
        )
        listed = await storage.list_resources(ResourcesQuery())
        assert [record.resources_id for _, record in listed] == ["c", "a", "b"]
