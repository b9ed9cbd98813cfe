"""Series of the memory back end."""

from __future__ import annotations

import asyncio
import bisect
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from operator import itemgetter

from lightningstore.service.rules import filters
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary, measured
from lightningstore.service.storage import packed
from lightningstore.service.storage.memory_groups import MemoryGroups
from lightningstore.service.storage.places import Place

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
        places = list(self._finished_places(axis))
        ends = [await self._first_current(axis, part) for part in (places, reversed(places))]
        return None if None in ends else (ends[0], ends[1])  # type: ignore[return-value]

    def _finished_places(self, axis: str) -> list[tuple[int, int]]:
        """Return the places by completion number or by end time; a rollout that was reopened may have former ones."""
        return self._completed if axis == "completion_number" else self._ended

    async def _first_current(self, axis: str, places: Iterable[Place]) -> int | None:
        """Return the first value that a finished rollout has."""
        value = filters.COLUMNS[axis]
        for i, (own, key) in enumerate(places, 1):
            row = self._rollouts.get(key)
            if row is not None and row.rollout.completion_number and value(row) == own:
                return int(own)
            if i % SCAN_AT_ONCE == 0:
                await asyncio.sleep(0)
        return None

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        """Return what is known of the values in each bucket that has any."""
        self._check_open()
        place, measure = filters.COLUMNS[query.axis], measured(query)
        buckets: dict[int, Bucket] = {}
        chosen = replace(query.rollouts, order_by="key", after=None, descending=False)
        is_ranged = query.axis != "publish_number" and self._chosen(chosen) is None
        rows = self._in_range(query, chosen) if is_ranged else self._matching(chosen)
        async for row in rows:
            if not row.rollout.completion_number or not query.first <= place(row) < query.end:
                continue
            value = measure(row)
            if value is not None:
                index = (place(row) - query.first) // query.width
                buckets.setdefault(index, Bucket()).add((value,))
        return await packed.summaries(buckets)

    async def _in_range(
        self, query: SeriesQuery, chosen: RolloutQuery
    ) -> AsyncIterator[RolloutRow]:
        """Yield matching rows whose place on the axis is in the range of a series, each once."""
        match, value = filters.matches(chosen), filters.COLUMNS[query.axis]
        places = self._finished_places(query.axis)
        start, end = (bisect.bisect_left(places, n, key=first) for n in (query.first, query.end))
        before: Place | None = None
        for i, place in enumerate(places[start:end], 1):
            row = self._rollouts.get(place[1])
            if row is not None and place != before and value(row) == place[0] and match(row):
                yield row
            before = place
            if i % SCAN_AT_ONCE == 0:
                await asyncio.sleep(0)
