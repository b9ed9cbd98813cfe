"""Pages of lists that pass over rows that cannot be shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from lightningstore.service.rules.rows import LoadedRollout, RolloutQuery


async def filled(
    query: RolloutQuery,
    find: Callable[[RolloutQuery], Awaitable[Sequence[tuple[Any, int]]]],
    load: Callable[[list[int]], AsyncIterator[LoadedRollout]],
) -> AsyncIterator[LoadedRollout]:
    """Yield the rollouts of a page; fewer than its limit only if no others match.

    Others take the place of those that are damaged, or were removed since they were found: whoever gets a page that is
    not full takes it for the last one.

    Args:
        query: The page.
        find: Returns the places of a page: values of the column of the order, and keys.
        load: Yields the rollouts with these keys, in this order, without those that cannot be shown.

    """
    while True:
        places = await find(query)
        left = query.limit
        async for loaded in load([key for _, key in places]):
            left -= 1
            yield loaded
        if not left or len(places) < query.limit:
            return
        query = replace(query, after=places[-1], skip=0, limit=left)
