"""The groups of the memory back end."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence

from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import GroupQuery, GroupRow
from lightningstore.v1.group_pb2 import GROUP_STATUS_OPEN

#: Groups that a scan visits before other tasks run.
SCAN_AT_ONCE = 2000


class MemoryGroups:
    """The part of the back end that holds groups, while it is open."""

    _is_open = False

    def _clear_groups(self) -> None:
        self._groups: dict[int, GroupRow] = {}  # by key, and so in the order of creation
        self._group_keys: dict[str, int] = {}
        self._open_groups: dict[int, None] = {}
        self._completed_groups: list[tuple[int, int]] = []  # completion number, key: ascending

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageFailed("the storage is closed")

    def _remove_groups(self, keys: Sequence[int]) -> None:
        for key in keys:
            row = self._groups.pop(key, None)
            if row is not None:
                del self._group_keys[row.record.group_id]
                self._open_groups.pop(key, None)
        gone, places = 0, self._completed_groups
        while gone < len(places) and places[gone][1] not in self._groups:
            gone += 1
        del places[:gone]

    def _put_group(self, row: GroupRow) -> None:
        number, old = row.record.completion_number, self._groups.get(row.key)
        if number and (old is None or old.record.completion_number != number):
            bisect.insort(self._completed_groups, (number, row.key))
        if number:
            self._open_groups.pop(row.key, None)
        else:
            self._open_groups[row.key] = None
        self._group_keys[row.record.group_id] = row.key
        self._groups[row.key] = row

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

    def _group_candidates(self, query: GroupQuery) -> Sequence[int]:
        """Return keys, from the query's place on, that include all matches."""
        last = next(reversed(self._groups), 0)
        if query.group_ids:
            keys = sorted(self._group_keys[i] for i in query.group_ids if i in self._group_keys)
        elif query.statuses == {GROUP_STATUS_OPEN}:
            keys = sorted(self._open_groups)
        elif last == len(self._groups):  # keys count up from 1: without gaps none was removed
            return range(query.after + 1, last + 1)
        else:
            keys = list(self._groups)
        return keys[bisect.bisect_right(keys, query.after) :]

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        """Return complete groups by completion number."""
        self._check_open()
        found: list[GroupRow] = []
        places = self._completed_groups
        start = bisect.bisect_right(places, after, key=lambda place: place[0])
        for i in range(start, len(places)):
            number, key = places[i]
            row = self._groups.get(key)
            # It may have been removed or reopened.
            if row and row.record.completion_number == number:
                found.append(row)
            if len(found) == limit:
                break
        return found
