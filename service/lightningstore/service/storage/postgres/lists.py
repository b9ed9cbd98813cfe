"""Pages of lists of a namespace."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.postgres import filters
from lightningstore.service.storage.postgres.database import READS
from lightningstore.service.storage.postgres.reads import NamespaceReads

#: Rollouts that are counted to tell rare values from common ones. More are many.
COUNTED_ROLLOUTS = 200


class ListReads(NamespaceReads):
    """The part of a namespace's storage that finds rollouts by filters."""

    async def count_rollouts(self, query: RolloutQuery) -> dict[int, int]:
        """Return how many match, by status."""
        leader, _ = await self._leader(query)
        source, parameters = filters.matching(query, leader)
        text = READS["count_rollouts"].format(source=source)
        return dict(map(tuple, await self._scan(text, *parameters)))

    async def _places(self, query: RolloutQuery) -> list[tuple[Any, int]]:
        """Return the places of a page of rollouts: values of the column of the order, and keys."""
        leader, is_common = await self._leader(query)
        rows = []
        if is_common and await self._sorts_many(query):
            rows = await self._page(query, *filters.among_first(query))
        if len(rows) < query.limit:
            rows = await self._page(query, *filters.page(query, leader))
        if query.order_by in filters.TEXTS:
            return [(value.decode(), key) for value, key in rows]
        return [(value, key) for value, key in rows]

    async def _page(
        self, query: RolloutQuery, source: str, order: str, parameters: list[Any]
    ) -> list[Any]:
        parts = {"value": query.order_by, "source": source, "order": order}
        return await self._scan(READS["scan_rollouts"].format(**parts), *parameters)

    async def _sorts_many(self, query: RolloutQuery) -> bool:
        """Return whether many rollouts are read by each filter of a query and would be sorted for its page."""
        counts = filters.counts(query, COUNTED_ROLLOUTS)
        if counts is None:
            return False
        for text, parameters in counts:
            ((count,),) = await self._scan(text, *parameters)
            if count < COUNTED_ROLLOUTS:
                return False
        return True

    async def _leader(self, query: RolloutQuery) -> tuple[filters.Label | None, bool]:
        """Return the one of the labels of a query that the fewest rollouts have, and whether many have it.

        None if no label leads to the rollouts.
        """
        if not query.led_by_label:
            return None, True
        labels = sorted(query.labels)
        names, values = ([text.encode() for text in texts] for texts in zip(*labels, strict=True))
        rows = await self._scan(READS["label_counts"], names, values, COUNTED_ROLLOUTS)
        count, leader = min(zip((count for (count,) in rows), labels, strict=True))
        return leader, count == COUNTED_ROLLOUTS
