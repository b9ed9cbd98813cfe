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
        assert await storage.list_resources(ResourcesQuery()) == [(1, newer[2].record)]

    async def test_every_version_is_found_by_its_number(self, storage: Storage) -> None:
        versions = resources(1, 1) | resources(2, 2) | resources(1, 3, version=2)
        await put(storage, resources=versions)
        for number, row in versions.items():
            assert await storage.get_resources(number) == row.record
        assert await storage.get_resources(4) is None

    async def test_outdated_versions_are_removed(self, storage: Storage) -> None:
        await put(storage, resources=resources(1, 1) | resources(2, 2))
        await put(storage, resources=resources(1, 3, version=2))
        kept = resources(1, 4, version=3)
        await put(storage, resources=kept, outdated=[1])
        assert await storage.get_resources(1) is None
        assert await storage.get_resources(3) == resources(1, 3, version=2)[3].record
        assert await storage.get_resources(4) == kept[4].record
        await put(storage, outdated=[3])
        assert await storage.get_resources(3) is None
        listed = await storage.list_resources(ResourcesQuery())
        assert [(r.resources_id, r.version) for _, r in listed] == [("rs1", 3), ("rs2", 1)]
        storage, snapshot = await self.reopen(storage)
        assert sorted(v.publish_number for v in snapshot.resources) == [2, 4]

    async def test_resources_go_by_key(self, storage: Storage) -> None:
        """A later version keeps the key, and so the position, of the first one."""
        for key, number, name in (
            (1, 1, "b"),
            (2, 2, "a"),
            (3, 3, "c"),
            (1, 4, "b"),
            (9, 5, "ab"),
        ):
            await put(storage, resources=resources(key, number, name, number))
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
