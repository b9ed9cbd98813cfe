"""The memory back end: dictionaries. Nothing survives."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from lightningstore.service import filters
from lightningstore.service.records import new_id
from lightningstore.service.storage.base import (
    AttemptRow,
    Changes,
    Counters,
    LoadedRollout,
    ResourcesQuery,
    RolloutQuery,
    RolloutRow,
    Snapshot,
    SpanRow,
)
from lightningstore.v1.resources_pb2 import Resources


class MemoryStorage:
    """Keeps rows as they come: records are never changed, only replaced."""

    durable = False

    def __init__(self) -> None:
        """Start empty."""
        self._rollouts: dict[int, RolloutRow] = {}  # by key, and so in enqueue order
        self._keys: dict[str, int] = {}
        self._inputs: dict[int, bytes] = {}
        self._attempts: dict[int, dict[int, AttemptRow]] = {}
        self._by_status: dict[int, dict[int, None]] = {}
        self._by_group: dict[str, dict[int, None]] = {}
        self._completed: list[tuple[int, int]] = []  # completion number, key: ascending
        self._spans: dict[int, list[tuple[int, int, SpanRow]]] = {}  # first id, key, row: ascending
        self._resources: dict[str, tuple[int, Resources]] = {}
        self._order: list[str] = []

    async def open(self) -> Snapshot:
        """Return nothing: there never is anything."""
        return Snapshot(f"memory-{new_id('', 16)}", Counters(), [], [], [], [])

    async def commit(self, changes: Changes) -> None:
        """Take the changes."""
        self.commit_now(changes)

    def commit_now(self, changes: Changes) -> None:
        """Take the changes."""
        if changes.removed:
            self._remove(changes.removed)
        for key, data in changes.inputs:
            self._inputs[key] = data
        for row in changes.rollouts.values():
            self._put_rollout(row)
        for attempt in changes.attempts.values():
            self._attempts.setdefault(attempt.rollout_key, {})[attempt.key] = attempt
        for span in changes.spans:
            place = (span.first_sequence_id, span.key, span)
            batches = self._spans.setdefault(span.rollout_key, [])
            if batches and batches[-1] > place:
                bisect.insort(batches, place)
            else:
                batches.append(place)
        for resources_id, (_, record) in changes.resources.items():
            if resources_id not in self._resources:
                self._order.append(resources_id)
            self._resources[resources_id] = (len(self._order), record)
        for key in changes.evicted:
            self._spans.pop(key, None)

    def _remove(self, keys: Sequence[int]) -> None:
        for key in keys:
            rollout = self._rollouts.pop(key).rollout
            del self._keys[rollout.rollout_id], self._inputs[key]
            del self._by_status[rollout.status][key]
            if rollout.group_id:
                del self._by_group[rollout.group_id][key]
            self._attempts.pop(key, None)
            self._spans.pop(key, None)
        gone = 0
        while gone < len(self._completed) and self._completed[gone][1] not in self._rollouts:
            gone += 1
        del self._completed[:gone]

    def _put_rollout(self, row: RolloutRow) -> None:
        new, old = row.rollout, self._rollouts.get(row.key)
        if old is None:
            self._keys[new.rollout_id] = row.key
        if old is None or old.rollout.status != new.status:
            if old is not None:
                del self._by_status[old.rollout.status][row.key]
            self._by_status.setdefault(new.status, {})[row.key] = None
        if old is None or old.rollout.group_id != new.group_id:
            if old is not None and old.rollout.group_id:
                del self._by_group[old.rollout.group_id][row.key]
            if new.group_id:
                self._by_group.setdefault(new.group_id, {})[row.key] = None
        if new.completion_number and (
            old is None or old.rollout.completion_number != new.completion_number
        ):
            self._completed.append((new.completion_number, row.key))
        self._rollouts[row.key] = row

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return what there is of these rollouts."""
        keys = [self._keys[i] for i in rollout_ids if i in self._keys]
        return [
            LoadedRollout(
                self._rollouts[key], self._inputs[key], list(self._attempts.get(key, {}).values())
            )
            for key in keys
        ]

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts."""
        rows: Iterable[RolloutRow] = self._matching(query)
        if query.order_by != "key":
            rows = self._sorted(rows, query)
        skip = query.skip
        left = query.limit
        for row in rows:
            if skip:
                skip -= 1
                continue
            if not left:
                return
            left -= 1
            yield self._shown(row)

    async def count_rollouts(self, query: RolloutQuery) -> int:
        """Return how many match."""
        match = filters.matches(query)
        return sum(match(row.rollout) for row in self._rollouts.values())

    def _matching(self, query: RolloutQuery) -> Iterator[RolloutRow]:
        """Yield matching rows by key, from the query's place on if that is a key."""
        match = filters.matches(query)
        after = query.after[1] if query.after is not None and query.order_by == "key" else None
        for key in self._candidates(query, after):
            row = self._rollouts[key]
            if match(row.rollout):
                yield row

    def _candidates(self, query: RolloutQuery, after: int | None) -> Iterable[int]:
        """Return keys among which all matches are, in the direction of the query."""
        chosen: Iterable[int] | None = None
        if not query.any_of:
            if query.rollout_ids:
                chosen = [self._keys[i] for i in query.rollout_ids if i in self._keys]
            elif query.group_ids and "" not in query.group_ids:
                chosen = [k for g in query.group_ids for k in self._by_group.get(g, ())]
            elif query.statuses:
                chosen = [k for s in query.statuses for k in self._by_status.get(s, ())]
        if chosen is None:
            last = next(reversed(self._rollouts), 0)
            if last != len(self._rollouts):  # some were removed
                keys = list(self._rollouts)
                if query.descending:
                    keys.reverse()
                return keys if after is None else _beyond(keys, after, query)
            # Keys count up from 1 without gaps.
            if query.descending and query.order_by == "key":
                return range((after or last + 1) - 1, 0, -1)
            return range((after or 0) + 1, last + 1)
        keys = sorted(chosen, reverse=query.descending)
        return keys if after is None else _beyond(keys, after, query)

    def _sorted(self, rows: Iterable[RolloutRow], query: RolloutQuery) -> list[RolloutRow]:
        places = [(filters.sort_value(query, row), row.key) for row in rows]
        if query.after is not None:
            after = query.after
            places = [p for p in places if (p < after if query.descending else p > after)]
        wanted = query.skip + query.limit
        pick = heapq.nlargest if query.descending else heapq.nsmallest
        return [self._rollouts[key] for _, key in pick(wanted, places)]

    def _shown(self, row: RolloutRow) -> LoadedRollout:
        """Return a rollout with its latest attempt alone."""
        attempts = self._attempts.get(row.key)
        latest = [attempts[max(attempts)]] if attempts else []
        return LoadedRollout(row, self._inputs[row.key], latest)

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""
        return [
            self._rollouts[k].rollout.rollout_id for k in sorted(self._by_group.get(group_id, ()))
        ]

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number."""
        found: list[LoadedRollout] = []
        start = bisect.bisect_right(self._completed, after, key=lambda place: place[0])
        for i in range(start, len(self._completed)):
            number, key = self._completed[i]
            row = self._rollouts.get(key)
            if (
                row and row.rollout.completion_number == number
            ):  # neither removed nor reopened since
                found.append(self._shown(row))
            if len(found) == limit:
                break
        return found

    async def span_ids(self, attempt_key: int, rollout_key: int) -> list[bytes]:
        """Return the packed span ids of an attempt, batch by batch."""
        batches = self._spans.get(rollout_key, ())
        return [row.span_ids for _, _, row in batches if row.attempt_key == attempt_key]

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int, only: int | None = None
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout or an attempt, by first sequence id."""
        for _, _, row in list(self._spans.get(rollout_key, ())):
            if attempt_key is not None and row.attempt_key != attempt_key:
                continue
            if row.key <= max_key and (only is None or row.key == only):
                yield row

    async def resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources."""
        found: list[tuple[int, Resources]] = []
        for place in range(query.after, len(self._order)):
            resources_id = self._order[place]
            if query.id_contains in resources_id:
                found.append((place + 1, self._resources[resources_id][1]))
            if len(found) == query.limit:
                break
        return found

    async def get_resources(self, resources_id: str) -> Resources | None:
        """Return one record."""
        found = self._resources.get(resources_id)
        return found[1] if found is not None else None

    async def file_bytes(self) -> int:
        """Return 0: there is no file."""
        return 0

    async def used_bytes(self) -> int:
        """Return 0: there is no file."""
        return 0

    async def close(self) -> None:
        """Do nothing."""


def _beyond(keys: list[int], after: int, query: RolloutQuery) -> list[int]:
    return [k for k in keys if (k < after if query.descending else k > after)]
