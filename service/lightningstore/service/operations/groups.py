"""GetGroup, ListGroups and WatchGroups."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.groups import sound_groups
from lightningstore.service.operations import watching
from lightningstore.service.rules import wire
from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.errors import (
    CompletionNumberBeyondEnd,
    DataDamaged,
    FieldInvalid,
    GroupNotFound,
)
from lightningstore.service.rules.groups import Tally
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.rows import GroupQuery, GroupRow, RolloutQuery
from lightningstore.v1.group_pb2 import (
    GetGroupRequest,
    GetGroupResponse,
    Group,
    GroupStatus,
    ListGroupsRequest,
    ListGroupsResponse,
    WatchGroupsRequest,
    WatchGroupsResponse,
)

#: Groups of which a watch reads the members at a time.
WATCHED_AT_ONCE = 100
#: Maximum number of members that are read at a time; a single group may have more.
MEMBERS_AT_ONCE = 10_000
#: Reads of a group whose members change meanwhile.
TRIES = 3
#: Above the number of members that any groups have.
ALL = 1 << 40
_WATCHED = WatchGroupsResponse.GROUPS_FIELD_NUMBER


class RolloutGroups:
    """The calls of group.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def get_group(self, request: GetGroupRequest) -> GetGroupResponse:
        """Return one group."""
        if not request.group_id:
            raise FieldInvalid("group_id", "required")
        await self._engine.barrier()
        rows, damaged = await sound_groups(self._engine.storage, [request.group_id])
        if damaged:
            raise DataDamaged("its row cannot be read", group_id=request.group_id)
        groups = await self._filled(rows)
        if not groups:
            raise GroupNotFound(request.group_id, created=True)
        return GetGroupResponse(group=groups[0])

    async def list_groups(self, request: ListGroupsRequest) -> ListGroupsResponse:
        """Return one page of the matching groups."""
        for i, status in enumerate(request.statuses):
            check_enum(f"statuses[{i}]", GroupStatus, status)
        self._engine.check_batch("group_ids", len(request.group_ids))
        digest = query_digest(request, "page_size", "page_token")
        size = self._engine.limits.page_length(request.page_size)
        after = 0
        if request.page_token:
            (after,) = parse_page_token(request.page_token, digest, (int,))
        query = GroupQuery(
            frozenset(request.group_ids), frozenset(request.statuses), after, size + 1
        )
        await self._engine.barrier()
        rows = await self._engine.storage.list_groups(query)
        shown = rows[: _prefix(rows[:size])]
        keys = {row.record.group_id: row.key for row in shown}
        reply = ListGroupsResponse()
        room, last = self._engine.limits.answer_bytes, shown[-1].key if shown else 0
        for group in await self._filled(shown, request.statuses):
            room -= group.ByteSize()
            if reply.groups and room < 0:
                last = keys[reply.groups[-1].group_id]
                break
            reply.groups.append(group)
        if rows and last != rows[-1].key:
            reply.next_page_token = page_token(digest, [last])
        return reply

    async def watch_groups(self, request: WatchGroupsRequest) -> AsyncIterator[bytes | None]:
        """Yield None once the watch is registered, then serialised WatchGroupsResponses."""
        await watching.prepared(self._engine, request.store_id)
        given, waiters = request.HasField("after_completion_number"), self._engine.waiters
        through = watching.first_number(
            request.after_completion_number if given else None,
            waiters.published_groups,
            "after_completion_number",
            CompletionNumberBeyondEnd,
        )

        async def after(number: int) -> AsyncGenerator[watching.Part, None]:
            groups, last = await self._completed(number)
            for part, reached in _chunks(groups):
                yield part + self._progress(reached), reached
            yield None, last

        registered = waiters.watching_groups()
        stream = watching.messages(self._engine, registered, through, self._progress, after)
        async with aclosing(stream) as messages:
            async for message in messages:
                yield message

    def _progress(self, through: int) -> bytes:
        return WatchGroupsResponse(
            through_completion_number=through, store_id=self._engine.store_id
        ).SerializeToString()

    async def _completed(self, after: int) -> tuple[list[Group], int]:
        """Return the next complete groups, and the number up to which these are all."""
        published = self._engine.waiters.published_groups
        if after >= published:
            return [], after
        rows = await self._engine.storage.group_completions(after, WATCHED_AT_ONCE)
        rows = [row for row in rows if row.record.completion_number <= published]
        if not rows:
            return [], published  # the groups with these numbers were reopened or removed
        rows = rows[: _prefix(rows)]
        numbers = {row.record.completion_number for row in rows}
        found = [each for each in await self._filled(rows) if each.completion_number in numbers]
        return found, rows[-1].record.completion_number

    async def _filled(self, rows: Sequence[GroupRow], statuses: Sequence[int] = ()) -> list[Group]:
        """Return groups with what they show of their members, in the order of the rows.

        Members are read after the groups. A group whose members changed meanwhile is reloaded; it is left out if
        it was removed, or has none of the statuses any more.
        """
        found: dict[str, Group] = {}
        left = {row.record.group_id: row.record for row in rows}
        for _ in range(TRIES):
            tallies = await self._tallies(left)
            changed = []
            for group_id, record in left.items():
                found[group_id] = group = tallies[group_id].filled(record)
                shown = (group.member_count, group.finished_count)
                if shown != (record.member_count, record.finished_count):
                    changed.append(group_id)
            if not changed:
                break
            await self._engine.barrier()
            again, _ = await sound_groups(self._engine.storage, changed)
            left = {row.record.group_id: row.record for row in again}
            for group_id in changed:
                if group_id not in left:
                    del found[group_id]
        order = (row.record.group_id for row in rows)
        groups = [found[group_id] for group_id in order if group_id in found]
        return [group for group in groups if not statuses or group.status in statuses]

    async def _tallies(self, group_ids: Iterable[str]) -> dict[str, Tally]:
        """Return what the members of some groups are."""
        tallies = {group_id: Tally() for group_id in group_ids}
        if tallies:
            query = RolloutQuery(group_ids=frozenset(tallies), limit=ALL, inputs=False)
            async for loaded in self._engine.storage.scan_rollouts(query):
                shown = loaded.shown()
                tallies[shown.rollout.group_id].add(shown.rollout, shown.attempt)
        return tallies


def _chunks(groups: Iterable[Group]) -> Iterator[tuple[bytes, int]]:
    """Return groups as parts of messages of about 1 MiB, each with the completion number of its last group."""
    chunk, number = b"", 0
    for group in groups:
        chunk += wire.field(_WATCHED, group.SerializeToString())
        number = group.completion_number
        if len(chunk) > CHUNK_BYTES:
            yield chunk, number
            chunk = b""
    if chunk:
        yield chunk, number


def _prefix(rows: Sequence[GroupRow]) -> int:
    """Return how many groups, from the first on, have few enough members to be read at a time."""
    total = 0
    for i, row in enumerate(rows):
        total += row.record.member_count
        if total > MEMBERS_AT_ONCE:
            return max(1, i)
    return len(rows)
