"""Reads of resources."""

from __future__ import annotations

from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.rows import ResourcesQuery
from lightningstore.service.storage.sqlite import records
from lightningstore.service.storage.sqlite.reader import FileReads
from lightningstore.v1.resources_pb2 import Resources


class ResourceReads(FileReads):
    """The part of the back end that reads resources. Damaged versions are counted, and left out of lists."""

    async def list_resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources."""
        after, found = query.after, list[tuple[int, Resources]]()
        while (left := query.limit - len(found)) > 0:
            which = {"after": after, "id_contains": query.id_contains, "limit": left}
            rows = await self._reader.scan("scan_resources", which)
            found += records.readable("resources", records.resources, rows, self._damage.note)
            if len(rows) < left:
                break
            after = rows[-1][0]  # fewer than the limit would end the list
        return found

    async def get_resources(self, publish_number: int) -> Resources | None:
        """Return one version."""
        rows = self._reader.read("get_resources", {"publish_number": publish_number})
        try:
            return records.resources(rows[0])[1] if rows else None
        except records.UNREADABLE as error:
            self._damage.note(f"resources {rows[0][1]!r}", error)
            raise DataDamaged(f"resources {rows[0][1]!r}: {error}") from error
