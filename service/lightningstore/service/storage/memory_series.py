"""Series of the memory back end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from lightningstore.service.rules import filters
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary, measured
from lightningstore.service.storage import packed
from lightningstore.service.storage.memory_lists import MemoryLists
from lightningstore.service.storage.places import Place, Places


class MemorySeries(MemoryLists):
    """The part of the memory back end that reads series."""

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        """Return the lowest and the highest value of a column among finished rollouts."""
        self._check_open()
        places = self._finished_places(axis)
        for lowest, _ in places.each():
            highest = next(places.each(descending=True))[0]
            return lowest, highest
        return None

    def _finished_places(self, axis: str) -> Places[Place]:
        """Return the places by completion number or by end time."""
        return self._completed if axis == "completion_number" else self._ended

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
        match, rollouts = filters.matches(chosen), self._rollouts
        places = self._finished_places(query.axis)
        for part in places.beyond((query.first, 0), descending=False):
            yield [
                (place, rollouts[key])
                for place, key in part
                if place < query.end and match(rollouts[key])
            ]
            if part[-1][0] >= query.end:
                return
            await asyncio.sleep(0)

    async def _visited(
        self, query: SeriesQuery, chosen: RolloutQuery
    ) -> AsyncIterator[list[tuple[int, RolloutRow]]]:
        """Yield the same from the rollouts that an index selects, or from all of them."""
        value = filters.COLUMNS[query.axis]
        async for part in self._matching(chosen):
            yield [
                (place, row)
                for row in part
                if row.rollout.completion_number
                and query.first <= (place := value(row)) < query.end
            ]
