"""Lists of rollouts of the memory back end."""

from __future__ import annotations

import asyncio
import bisect
import heapq
import operator
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, takewhile
from typing import Any

from lightningstore.service.rules import filters
from lightningstore.service.rules.rows import AttemptRow, LoadedRollout, RolloutQuery, RolloutRow
from lightningstore.service.storage import pages
from lightningstore.service.storage.memory_groups import SCAN_AT_ONCE, MemoryGroups
from lightningstore.service.storage.places import Place, Places
from lightningstore.v1.attempt_pb2 import Attempt

#: Maximum number of candidates that a scan takes from an index: sorting more would hold the event loop.
SORTED_AT_ONCE = 20_000
#: Maximum number of candidates that are sorted for a page of a list whose order is kept.
SORTED_FOR_A_PAGE = 2000
#: Attempts whose records are searched before other tasks run: a record may have 64 KiB of failure.
SEARCHED_AT_ONCE = 50

#: Columns in whose order pages are found without sorting all matches.
_KEPT = ("start_time", "reward", "status", "completion_number", "end_time")

#: Keys of rollouts that have a value.
Index = dict[int, None]


class MemoryLists(MemoryGroups):
    """The part of the memory back end that lists rollouts."""

    _rollouts: dict[int, RolloutRow]
    #: Keys of the rollouts.
    _enqueued: Places[int]
    _keys: dict[str, int]
    _inputs: dict[int, bytes]
    _attempts: dict[int, dict[int, AttemptRow]]
    _by_status: dict[int, Index]
    _by_group: dict[str, Index]
    #: Without the default queue.
    _by_queue: dict[str, Index]
    _by_label: dict[tuple[str, str], Index]
    #: By column: a page in its order costs the same however many rollouts there are.
    _orders: dict[str, Places[Place]]
    #: Completion number and key, and end time and key.
    _completed: Places[Place]
    _ended: Places[Place]

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts."""
        self._check_open()
        if query.order_by == "key":
            parts = self._matching(query)
        elif query.order_by in _KEPT and self._selects_many(query):
            parts = self._among(self._ordered(query), query)
        else:
            load = partial(self._present, inputs=query.inputs)
            async for loaded in pages.filled(query, self._sorted, load):
                yield loaded
            return
        skip, left = query.skip, query.limit
        yielded: set[int] = set()  # Meanwhile the value of a rollout in the order may change.
        async for part in parts:
            for row in part:
                if not left:
                    return
                if row.key in yielded:
                    continue
                yielded.add(row.key)
                if skip:
                    skip -= 1
                    continue
                left -= 1
                yield self._shown(row, inputs=query.inputs)

    async def _present(self, keys: list[int], *, inputs: bool) -> AsyncIterator[LoadedRollout]:
        """Yield rollouts by key, without those that were removed meanwhile."""
        for key in keys:
            row = self._rollouts.get(key)
            if row is not None:
                yield self._shown(row, inputs=inputs)

    async def count_rollouts(self, query: RolloutQuery) -> dict[int, int]:
        """Return how many match, by status."""
        self._check_open()
        filters_only = replace(query, order_by="key", after=None)
        counts: Counter[int] = Counter()
        async for part in self._matching(filters_only):
            counts.update(row.rollout.status for row in part)
        return dict(counts)

    def _matching(self, query: RolloutQuery) -> AsyncIterator[Iterator[RolloutRow]]:
        """Yield matching rows by key as `_among` does, starting after the query's place if that is a key."""
        after = query.after[1] if query.after is not None and query.order_by == "key" else None
        return self._among(self._candidates(query, after), query)

    async def _among(
        self, parts: Iterable[Sequence[int]], query: RolloutQuery
    ) -> AsyncIterator[Iterator[RolloutRow]]:
        """Yield the matching rows with these keys, in parts whose rows are looked up one by one.

        Between two parts other tasks run, and may remove rollouts.
        """
        match, index = filters.matches(query, self._latest), self._index_of_all(query)
        is_first = True
        for part in parts:
            keys = part if index is None else [key for key in part if key in index]
            at_once = SEARCHED_AT_ONCE if query.failure_contains else len(keys)
            for start in range(0, len(keys), at_once or 1):
                if not is_first:
                    await asyncio.sleep(0)
                is_first = False
                few = keys[start : start + at_once]
                yield filter(match, filter(None, map(self._rollouts.get, few)))

    def _candidates(self, query: RolloutQuery, after: int | None) -> Iterator[Sequence[int]]:
        """Yield keys that include all matches, in the direction of the query, in parts."""
        if query.completed is not None:
            after, last = query.completed
            places = self._completed.each((after + 1, 0))
            keys = [key for _, key in takewhile(lambda place: place[0] <= last, places)]
        elif (chosen := self._chosen(query)) is None:
            is_backward = query.descending and query.order_by == "key"
            yield from self._enqueued.beyond(after, descending=is_backward)
            return
        else:
            keys = sorted(chosen)
            if query.descending:
                del keys[bisect.bisect_left(keys, after) if after is not None else len(keys) :]
                keys.reverse()
            elif after is not None:
                del keys[: bisect.bisect_right(keys, after)]
        for start in range(0, len(keys), SCAN_AT_ONCE):
            yield keys[start : start + SCAN_AT_ONCE]

    def _selects_many(self, query: RolloutQuery) -> bool:
        """Return whether a page of matches is found sooner in the order of a query than by sorting them."""
        chosen = self._chosen(query)
        return chosen is None or len(chosen) > SORTED_FOR_A_PAGE

    def _chosen(self, query: RolloutQuery) -> list[int] | None:
        """Return the keys that an index selects for the query, None if they are many."""
        if query.rollout_ids and not query.any_of:
            return [self._keys[i] for i in query.rollout_ids if i in self._keys]
        indexes = self._indexes(query)
        if indexes is None or sum(map(len, indexes)) > SORTED_AT_ONCE:
            return None
        return [key for index in indexes for key in index]

    def _indexes(self, query: RolloutQuery) -> list[Index] | None:
        """Return indexes that together have all matches of the query, None if there are none for its filters."""
        if query.any_of and not query.led_by_label:
            return None
        if query.group_ids and "" not in query.group_ids:
            return [self._by_group[g] for g in query.group_ids if g in self._by_group]
        if query.labels:
            return [min((self._by_label.get(label, {}) for label in query.labels), key=len)]
        if query.queues and "" not in query.queues:
            return [self._by_queue[q] for q in query.queues if q in self._by_queue]
        if query.statuses:
            return [self._by_status[s] for s in query.statuses if s in self._by_status]
        return None

    def _index_of_all(self, query: RolloutQuery) -> Index | None:
        """Return the index that has all matches of the query, if it is one.

        To pass over keys that are not in it takes a tenth of the time that reading their rows does.
        """
        indexes = self._indexes(query)
        return indexes[0] if indexes is not None and len(indexes) == 1 else None

    def _ordered(self, query: RolloutQuery) -> Iterable[list[int]]:
        """Return the keys beyond the place of a query in the order of a column whose order is kept, in parts."""
        if query.order_by == "status":
            return self._keys_by_status(query)
        if query.order_by == "completion_number":
            return self._keys_by_finish(self._completed, query)
        if query.order_by == "end_time":
            return self._keys_by_finish(self._ended, query)
        places = self._orders[query.order_by].beyond(query.after, descending=query.descending)
        return ([key for _, key in part] for part in places)

    def _keys_by_finish(self, places: Places[Place], query: RolloutQuery) -> Iterable[list[int]]:
        """Return the same for a value that finished rollouts have; that of the others is 0."""
        rollouts, descending = self._rollouts, query.descending
        value, after = query.after if query.after is not None else (None, None)
        done = places.beyond(query.after if value else None, descending=descending)
        others = self._enqueued.beyond(None if value else after, descending=descending)
        finished = ([key for _, key in part] for part in done)
        unfinished = (
            [key for key in part if not rollouts[key].rollout.completion_number] for part in others
        )
        if descending:
            return unfinished if value == 0 else chain(finished, unfinished)
        return finished if value else chain(unfinished, finished)

    def _keys_by_status(self, query: RolloutQuery) -> Iterator[list[int]]:
        """Yield the keys beyond the place of a query by status and then by key, in parts."""
        descending = query.descending
        reached, after = query.after if query.after is not None else (None, None)
        for status in sorted(self._by_status, reverse=descending):
            if reached is not None and (status > reached if descending else status < reached):
                continue
            if query.statuses and status not in query.statuses and not query.any_of:
                continue
            index = self._by_status.get(status, {})
            beyond = after if status == reached else None
            if len(index) > SORTED_AT_ONCE:
                for part in self._enqueued.beyond(beyond, descending=descending):
                    yield [key for key in part if key in index]
                continue
            keys = sorted(index, reverse=descending)
            if beyond is not None:
                keys = [key for key in keys if (key < beyond if descending else key > beyond)]
            yield keys

    async def _sorted(self, query: RolloutQuery) -> list[tuple[Any, int]]:
        """Return the places of the query's page in the order of a column.

        Runs are sorted and then merged lazily: sorting all rows at once would hold the event loop.
        """
        wanted, value = query.skip + query.limit, filters.COLUMNS[query.order_by]
        follows = operator.lt if query.descending else operator.gt
        runs: list[list[Place]] = []
        run: list[Place] = []
        #: A place that as many others precede as are wanted.
        bound: Place | None = None
        async for part in self._matching(query):
            places = [(value(row), row.key) for row in part]
            if query.after is not None:
                places = [place for place in places if follows(place, query.after)]
            if bound is not None:
                places = [place for place in places if follows(bound, place)]
            run += places
            if len(run) >= SCAN_AT_ONCE:
                run.sort(reverse=query.descending)
                if len(run) >= wanted:
                    bound = run[wanted - 1]
                runs.append(run[:wanted])
                run = []
        runs.append(sorted(run, reverse=query.descending)[:wanted])
        page: list[tuple[Any, int]] = []
        for i, place in enumerate(heapq.merge(*runs, reverse=query.descending), 1):
            if i > query.skip:
                page.append(place)
            if i == wanted:
                break
            if i % SCAN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return page

    def _shown(self, row: RolloutRow, *, inputs: bool) -> LoadedRollout:
        """Return a rollout with its latest attempt only."""
        attempts = self._attempts.get(row.key)
        latest = [attempts[max(attempts)]] if attempts else []
        return LoadedRollout(row, self._inputs[row.key] if inputs else b"", latest)

    def _latest(self, key: int) -> Attempt | None:
        attempts = self._attempts.get(key)
        return attempts[max(attempts)].attempt if attempts else None
