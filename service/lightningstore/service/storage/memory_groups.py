"""The groups of the memory back end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice

from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import GroupQuery, GroupRow
from lightningstore.service.storage.places import Place, Places
from lightningstore.v1.group_pb2 import GROUP_STATUS_OPEN

#: Groups or rollouts that a scan visits before other tasks run.
SCAN_AT_ONCE = 2000


class MemoryGroups:
    """The part of the back end that holds groups, while it is open."""

    _is_open = False

    def _clear_groups(self) -> None:
        self._groups: dict[int, GroupRow] = {}
        self._group_keys: dict[str, int] = {}
        #: Keys of all groups, and of those that are open.
        self._created: Places[int] = Places()
        self._open_groups: Places[int] = Places()
        self._completed_groups: Places[Place] = Places()  # completion number, key

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageFailed("the storage is closed")

    def _remove_groups(self, keys: Sequence[int]) -> None:
        for key in keys:
            row = self._groups.pop(key, None)
            if row is not None:
                del self._group_keys[row.record.group_id]
                self._created.remove(key)
                self._leave_place(row)

    def _put_group(self, row: GroupRow) -> None:
        number, old = row.record.completion_number, self._groups.get(row.key)
        if old is None:
            self._created.add(row.key)
            self._group_keys[row.record.group_id] = row.key
            self._take_place(row)
        elif old.record.completion_number != number:
            self._leave_place(old)
            self._take_place(row)
        self._groups[row.key] = row

    def _take_place(self, row: GroupRow) -> None:
        if number := row.record.completion_number:
            self._completed_groups.add((number, row.key))
        else:
            self._open_groups.add(row.key)

    def _leave_place(self, row: GroupRow) -> None:
        if number := row.record.completion_number:
            self._completed_groups.remove((number, row.key))
        else:
            self._open_groups.remove(row.key)

    async def load_groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        """Return the stored ones among these groups."""
        self._check_open()
        keys = [self._group_keys[i] for i in group_ids if i in self._group_keys]
        return [self._groups[key] for key in keys]

    async def list_groups(self, query: GroupQuery) -> list[GroupRow]:
        """Return matching groups by key."""
        self._check_open()
        found: list[GroupRow] = []
        for i, key in enumerate(self._group_candidates(query), 1):
            row = self._groups.get(key)
            if row and (not query.statuses or row.record.status in query.statuses):
                found.append(row)
            if len(found) == query.limit:
                break
            if i % SCAN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    def _group_candidates(self, query: GroupQuery) -> Iterable[int]:
        """Return keys, from the query's place on, that include all matches."""
        if query.group_ids:
            keys = sorted(self._group_keys[i] for i in query.group_ids if i in self._group_keys)
            return [key for key in keys if key > query.after]
        if query.statuses == {GROUP_STATUS_OPEN}:
            return self._open_groups.each(query.after)
        return self._created.each(query.after)

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        """Return complete groups by completion number."""
        self._check_open()
        places = self._completed_groups.each((after + 1, 0))
        return [self._groups[key] for _, key in islice(places, limit)]
