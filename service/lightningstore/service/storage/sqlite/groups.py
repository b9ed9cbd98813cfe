"""Reads of groups, and checks of a data file's groups."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.rows import GroupQuery, GroupRow
from lightningstore.service.rules.statuses import FINISHED
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import filters, records
from lightningstore.service.storage.sqlite.reader import FileReads
from lightningstore.service.storage.sqlite.records import UNREADABLE
from lightningstore.v1.group_pb2 import Group

#: Maximum number of groups that one read on the event loop returns.
INLINE_ROWS = 128


class GroupReads(FileReads):
    """The part of the back end that reads groups. Damaged ones are counted, and left out of lists."""

    async def load_groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        """Return the stored ones among these groups. Raises DataDamaged if one is damaged."""
        marks = filters.marks(len(group_ids))
        if len(group_ids) <= INLINE_ROWS:
            rows = self._reader.read("load_groups", group_ids, marks=marks)
        else:
            rows = await self._reader.scan("load_groups", group_ids, marks=marks)
        found = records.readable("group", records.group, rows, self._damage.note)
        if len(found) < len(rows):
            raise DataDamaged("a group that was requested")
        return found

    async def list_groups(self, query: GroupQuery) -> list[GroupRow]:
        """Return matching groups by key."""
        where, values = filters.groups(query)

        async def read(after: int, limit: int) -> list[Sequence[Any]]:
            return await self._reader.scan("list_groups", [after, *values, limit], where=where)

        return await self._sound_groups(read, query.after, query.limit, lambda row: row[0])

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        """Return complete groups by completion number."""

        async def read(after: int, limit: int) -> list[Sequence[Any]]:
            which = {"after": after, "limit": limit}
            return await self._reader.scan("group_completions", which)

        return await self._sound_groups(read, after, limit, lambda row: row[4])

    async def _sound_groups(
        self,
        read: Callable[[int, int], Awaitable[list[Sequence[Any]]]],
        after: int,
        limit: int,
        place: Callable[[Sequence[Any]], int],
    ) -> list[GroupRow]:
        """Return groups without the damaged ones; fewer than the limit only if no others are left."""
        found: list[GroupRow] = []
        while (left := limit - len(found)) > 0:
            rows = await read(after, left)
            groups = [row[:4] for row in rows]
            found += records.readable("group", records.group, groups, self._damage.note)
            if len(rows) < left:
                break
            after = place(rows[-1])
        return found


#: Columns of groups, the numbers of their members, of those that have finished, and the record.
GROUPS = (
    "SELECT g.group_id, g.status, g.completion_number, count(r.key),"
    f" coalesce(sum(r.status IN ({', '.join(map(str, FINISHED))})), 0), g.record"
    " FROM groups g LEFT JOIN rollouts r ON r.group_id = g.group_id AND r.group_id <> ''"
    " GROUP BY g.key"
)


def check_groups(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield how groups disagree with their columns, their members and the counters."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < datafile.GROUPS_VERSION:
        return
    wrong = 0
    for *columns, record in connection.execute(GROUPS):
        try:
            wrong += group_columns(Group.FromString(record)) != tuple(columns)
        except UNREADABLE:
            wrong += 1
    if wrong:
        yield f"groups: the record disagrees with its columns or members in {wrong} rows"
    (text,) = connection.execute("SELECT value FROM meta WHERE name = 'counters'").fetchone()
    with suppress(ValueError, TypeError, AttributeError):
        counters = json.loads(text)
        for name, column in (
            ("group_key", "key"),
            ("group_completion_number", "completion_number"),
        ):
            (there,) = connection.execute(f"SELECT max({column}) FROM groups").fetchone()
            if (there or 0) > int(counters.get(name, 0)):
                yield f"{name}: {there} in rows, {counters.get(name, 0)} in counters"


def group_columns(record: Group) -> tuple[Any, ...]:
    """Return what GROUPS yields of a correct group before its record."""
    return (
        *(record.group_id, record.status, record.completion_number),
        *(record.member_count, record.finished_count),
    )
