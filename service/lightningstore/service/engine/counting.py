"""Counts what waits for a consumer when it is created, and when a store is opened. Later it is counted as it happens.

Also restores damaged deliveries when a store is opened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.groups import sound_groups
from lightningstore.service.engine.live import Live
from lightningstore.service.engine.subscription import Subscription, Tally
from lightningstore.service.rules.consumers import delivery_ids
from lightningstore.service.rules.lifecycle import is_finished
from lightningstore.service.rules.rows import DeliveryRow, GroupRow, RolloutQuery
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.base import Snapshot, Storage
from lightningstore.v1.consumer_pb2 import CONSUMER_UNIT_GROUP, Delivery

#: Completion numbers that one query counts.
NUMBERS_AT_ONCE = 50_000
#: Groups that are read at a time, and their members; a single group may have more.
GROUPS_AT_ONCE, MEMBERS_AT_ONCE = 100, 10_000
#: Above the number of members that any groups have.
ALL = 1 << 40


async def nothing() -> None:
    """Return: nothing is being written while a store is opened."""


async def restored(storage: Storage, snapshot: Snapshot) -> list[DeliveryRow]:
    """Return the deliveries of a store that is opened, with new records where these cannot be read.

    The item of such a row is delivered again after the row's deadline: its cursor has passed it, so that a row left out
    would lose it. An item that was reopened or removed, or cannot be read either, is left out.
    """
    units = {row.key: row.record.unit for row in snapshot.consumers}
    rows, ids = list[DeliveryRow](), delivery_ids()
    for row in snapshot.deliveries:
        if row.record.delivery_id:
            rows.append(row)
        elif row.consumer_key in units:
            by_group = units[row.consumer_key] == CONSUMER_UNIT_GROUP
            found = await _finished_item(storage, row.number, by_group=by_group)
            if found is not None:
                item_id, end_ns = found
                record = Delivery(
                    delivery_id=next(ids),
                    completion_number=row.number,
                    item_id=item_id,
                    delivery_count=1,  # or more
                )
                rows.append(row._replace(end_ns=end_ns, record=record))
    return rows


async def _finished_item(
    storage: Storage, number: int, *, by_group: bool
) -> tuple[str, int] | None:
    """Return the id of what has this completion number, and when it finished in wall-clock nanoseconds; None if nothing has."""
    if by_group:
        for group in await storage.group_completions(number - 1, 1):
            if group.record.completion_number == number:
                return group.record.group_id, nanoseconds(group.record.end_time)
        return None
    for loaded in await storage.completions(number - 1, 1):
        rollout = loaded.row.rollout
        if rollout.completion_number == number:
            return rollout.rollout_id, nanoseconds(rollout.end_time)
    return None


class Counting:
    """Counts the items of consumers, in the back end. What changes during a read is counted once more."""

    def __init__(
        self, storage: Storage, live: Live, barrier: Callable[[], Awaitable[None]] = nothing
    ) -> None:
        """Take the store. `barrier` returns when the back end has everything that memory has."""
        self._storage = storage
        self._live = live
        self._barrier = barrier

    async def count(self, sub: Subscription) -> None:
        """Count the items of a consumer that follows what happens already."""
        if sub.by_group:
            await self._count_groups(sub)
        else:
            await self._count_rollouts(sub)

    async def _count_rollouts(self, sub: Subscription) -> None:
        done, last = sub.cursor, self._live.state.counters.completion_number
        sub.counted = done, last
        while done < last:
            through = min(done + NUMBERS_AT_ONCE, last)
            sub.touched.clear()
            await self._barrier()
            counts = await self._storage.count_rollouts(_query(sub, (done, through)))
            if any(type(n) is int and done < n <= through for n in sub.touched):
                continue
            sub.backlog += sum(counts.values())
            done = through
            sub.counted = done, last
        sub.end_count()
        sub.claimed = sum(sub.allows_claimed(entry.rollout) for entry in self._live.begun)

    async def _count_groups(self, sub: Subscription) -> None:
        last = self._live.state.counters.group_completion_number
        sub.counted = sub.cursor, last
        sub.touched.clear()
        await self._barrier()
        loaded = self._live.groups.loaded
        pending = dict.fromkeys(i for i, group in loaded.items() if not group.is_complete)
        pending.update(dict.fromkeys(item.record.item_id for item in sub.items.values()))
        after = sub.cursor
        while rows := await self._storage.group_completions(after, GROUPS_AT_ONCE):
            pending.update(dict.fromkeys(row.record.group_id for row in rows))
            after = rows[-1].record.completion_number
            if after >= last:
                break
        while pending:
            part = [i for i in list(pending)[:GROUPS_AT_ONCE] if i not in sub.tallies]
            for group_id in list(pending)[:GROUPS_AT_ONCE]:
                del pending[group_id]
            pending.update(_changed(sub))
            await self._count_some(sub, part)
            pending.update(_changed(sub))
        sub.end_count()
        sub.claim_members([entry.rollout for entry in self._live.begun])

    async def _count_some(self, sub: Subscription, group_ids: Sequence[str]) -> None:
        """Count the groups that have not changed meanwhile."""
        await self._barrier()
        found, _ = await sound_groups(self._storage, group_ids)
        for rows in _few(found):
            finished = await self._finished(sub, rows)
            for row in rows:
                group_id, number = row.record.group_id, row.record.completion_number
                if group_id in sub.touched or group_id in sub.tallies:
                    continue
                if not number or number > sub.cursor or number in sub.items:
                    sub.add_group(group_id, Tally(finished[group_id], number))

    async def _finished(self, sub: Subscription, rows: Sequence[GroupRow]) -> dict[str, int]:
        """Return the number of members that have finished and match, by group."""
        if sub.filter.is_all:
            return {row.record.group_id: row.record.finished_count for row in rows}
        found = {row.record.group_id: 0 for row in rows}
        query = RolloutQuery(group_ids=frozenset(found), limit=ALL, inputs=False)
        turn = Turn()
        async for loaded in self._storage.scan_rollouts(query):
            record = loaded.row.rollout
            found[record.group_id] += is_finished(record) and sub.filter.matches(record)
            if turn.over():
                await turn.next()
        return found


def _changed(sub: Subscription) -> dict[str, None]:
    """Return, and forget, the groups that have changed and are not counted."""
    changed = dict.fromkeys(i for i in sub.touched if isinstance(i, str) and i not in sub.tallies)
    sub.touched.clear()
    return changed


def _query(sub: Subscription, completed: tuple[int, int]) -> RolloutQuery:
    return RolloutQuery(
        statuses=sub.filter.statuses,
        modes=sub.filter.modes,
        queues=sub.filter.queues,
        labels=frozenset(sub.filter.labels),
        completed=completed,
    )


def _few(rows: Sequence[GroupRow]) -> Iterator[list[GroupRow]]:
    """Yield groups, few enough at a time for reading their members."""
    part: list[GroupRow] = []
    total = 0
    for row in rows:
        if part and total + row.record.member_count > MEMBERS_AT_ONCE:
            yield part
            part, total = [], 0
        part.append(row)
        total += row.record.member_count
    if part:
        yield part
