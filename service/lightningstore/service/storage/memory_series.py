"""Series of the memory back end."""

from __future__ import annotations

import asyncio
import bisect
from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace
from operator import itemgetter

from lightningstore.service.rules import filters
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary, measured
from lightningstore.service.storage import packed
from lightningstore.service.storage.memory_groups import MemoryGroups

#: Rollouts that a scan visits before other tasks run.
SCAN_AT_ONCE = 2000

first = itemgetter(0)


class MemorySeries(MemoryGroups):
    """The part of the memory back end that reads series."""

    _rollouts: dict[int, RolloutRow]
    #: Completion number and key, and end time and key: ascending.
    _completed: list[tuple[int, int]]
    _ended: list[tuple[int, int]]

    @abstractmethod
    def _chosen(self, query: RolloutQuery) -> list[int] | None:
        """Return the keys that an index selects for the query, None if they are many."""

    @abstractmethod
    def _matching(self, query: RolloutQuery) -> AsyncIterator[RolloutRow]:
        """Yield matching rows by key."""

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        """Return the lowest and the highest value of a column among finished rollouts."""
        self._check_open()
        lowest = await self._end_of(axis, descending=False)
        highest = await self._end_of(axis, descending=True)
        return None if lowest is None or highest is None else (lowest, highest)

    def _finished_places(self, axis: str) -> list[tuple[int, int]]:
        """Return the places by completion number or by end time; a rollout that was reopened may have former ones."""
        return self._completed if axis == "completion_number" else self._ended

    async def _end_of(self, axis: str, *, descending: bool) -> int | None:
        """Return the lowest or the highest value that a finished rollout has."""
        value, places = filters.COLUMNS[axis], self._finished_places(axis)
        for at in range(0, len(places), SCAN_AT_ONCE):
            # Places are nearly always added at the end, and a copy of them all would hold the event loop.
            part = places[at : at + SCAN_AT_ONCE]
            if descending:
                part = places[max(0, len(places) - at - SCAN_AT_ONCE) : len(places) - at][::-1]
            for own, key in part:
                row = self._rollouts.get(key)
                if row is not None and row.rollout.completion_number and value(row) == own:
                    return int(own)
            await asyncio.sleep(0)
        return None

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        """Return what is known of the values in each bucket that has any."""
        self._check_open()
        measure = measured(query)
        buckets: dict[int, Bucket] = {}
        chosen = replace(query.rollouts, order_by="key", after=None, descending=False)
        is_ranged = query.axis != "publish_number" and self._chosen(chosen) is None
        parts = self._in_range(query, chosen) if is_ranged else self._visited(query, chosen)
        async for part in parts:
            values: dict[int, list[float]] = {}
            for place, row in part:
                if (value := measure(row)) is not None:
                    values.setdefault((place - query.first) // query.width, []).append(value)
            for index, found in values.items():
                buckets.setdefault(index, Bucket()).add(found)
        return await packed.summaries(buckets)

    async def _in_range(
        self, query: SeriesQuery, chosen: RolloutQuery
    ) -> AsyncIterator[list[tuple[int, RolloutRow]]]:
        """Yield matching rows with their place on the axis, in the range of a series, each once, some at a time."""
        match, value = filters.matches(chosen), filters.COLUMNS[query.axis]
        rollouts, places = self._rollouts, self._finished_places(query.axis)
        at = bisect.bisect_left(places, query.first, key=first)
        while part := places[at : at + SCAN_AT_ONCE]:  # a copy of all would hold the event loop
            # Equal places are those of a rollout that was reopened and finished again in the same moment.
            yield [
                (place, row)
                for place, key in dict.fromkeys(part)
                if place < query.end
                and (row := rollouts.get(key)) is not None
                and value(row) == place
                and match(row)
            ]
            if part[-1][0] >= query.end:
                return
            await asyncio.sleep(0)
            at = bisect.bisect_right(places, part[-1])  # others may have been added meanwhile

    async def _visited(
        self, query: SeriesQuery, chosen: RolloutQuery
    ) -> AsyncIterator[list[tuple[int, RolloutRow]]]:
        """Yield the same from the rollouts that an index selects, or from all of them."""
        value = filters.COLUMNS[query.axis]
        part: list[tuple[int, RolloutRow]] = []
        async for row in self._matching(chosen):
            if row.rollout.completion_number and query.first <= (place := value(row)) < query.end:
                part.append((place, row))
            if len(part) == SCAN_AT_ONCE:
                yield part
                part = []
        yield part
