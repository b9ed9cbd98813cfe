"""Pages of lists of a data file."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.sqlite import filters
from lightningstore.service.storage.sqlite.reader import Reader


async def places(reader: Reader, query: RolloutQuery) -> list[tuple[Any, int]]:
    """Return the places of a page of rollouts: values of the column of the order, and keys."""
    first, selected = filters.first_rows(query), filters.selection(query, led=False)
    if first is not None and selected.parameters:
        text, place = first
        rows = await reader.scan(
            "matches_among",
            [*place, *selected.parameters, query.limit, query.skip],
            value=query.order_by,
            first=text,
            where=selected.where,
        )
        if len(rows) == query.limit or await _are_all(reader, query):
            return rows
    return await _scan(reader, query)


async def _are_all(reader: Reader, query: RolloutQuery) -> bool:
    """Return whether the first rows of the order of a query are all that there are."""
    beyond = RolloutQuery(
        order_by=query.order_by,
        after=query.after,
        descending=query.descending,
        skip=filters.FIRST_ROWS,
        limit=1,
    )
    return not await _scan(reader, beyond)


async def _scan(reader: Reader, query: RolloutQuery) -> list[tuple[Any, int]]:
    source, key, where, parameters = filters.selection(query)
    page, more = filters.page(query, key)
    columns = {"value": key if query.order_by == "key" else query.order_by, "key": key}
    return await reader.scan(
        "scan_rollouts", [*parameters, *more], **columns, source=source, where=where, page=page
    )
