"""Reads of groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.rows import GroupQuery, GroupRow
from lightningstore.service.storage.postgres import filters
from lightningstore.service.storage.postgres import rows as records
from lightningstore.service.storage.postgres.database import READS
from lightningstore.service.storage.postgres.reads import NamespaceReads


class GroupReads(NamespaceReads):
    """The part of the back end that reads groups. Damaged ones are counted, and left out of lists."""

    async def load_groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        """Return the stored ones among these groups. Raises DataDamaged if one is damaged."""
        rows = await self._point(READS["load_groups"], [i.encode() for i in group_ids])
        found = self._damage.readable("group", records.group, rows)
        if len(found) < len(rows):
            raise DataDamaged("a group that was requested")
        return found

    async def list_groups(self, query: GroupQuery) -> list[GroupRow]:
        """Return matching groups by key."""
        text, (after, limit, *values) = filters.groups(query)
        return await self._sound_groups(text, after, limit, lambda row: row["key"], *values)

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        """Return complete groups by completion number."""
        return await self._sound_groups(
            READS["group_completions"], after, limit, lambda row: row["completion_number"]
        )

    async def _sound_groups(
        self, text: str, after: int, limit: int, place: Callable[[Any], int], *values: Any
    ) -> list[GroupRow]:
        """Return groups without the damaged ones; fewer than the limit only if no others are left."""
        found: list[GroupRow] = []
        while (left := limit - len(found)) > 0:
            rows = await self._scan(text, after, left, *values)
            found += self._damage.readable("group", records.group, rows)
            if len(rows) < left:
                break
            after = place(rows[-1])
        return found
