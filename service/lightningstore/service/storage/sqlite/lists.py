"""Pages of lists of a data file."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.sqlite import filters
from lightningstore.service.storage.sqlite.reader import Reader

#: Rollouts with a label that are counted to find the rarest of several labels. All others are as common.
COUNTED_ROLLOUTS = 200


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


def selection(reader: Reader, query: RolloutQuery) -> filters.Selection:
    """Return source and filters of a query, led by the one of its labels that the fewest rollouts have."""
    if len(query.labels) < 2 or not query.led_by_label:
        return filters.selection(query)

    def count(label: tuple[str, str]) -> int:
        which = {"name": label[0], "value": label[1], "limit": COUNTED_ROLLOUTS}
        return int(reader.read("label_count", which)[0][0])

    return filters.selection(query, leader=min(sorted(query.labels), key=count))


async def _scan(reader: Reader, query: RolloutQuery) -> list[tuple[Any, int]]:
    source, key, where, parameters = selection(reader, query)
    page, more = filters.page(query, key)
    columns = {"value": key if query.order_by == "key" else query.order_by, "key": key}
    return await reader.scan(
        "scan_rollouts", [*parameters, *more], **columns, source=source, where=where, page=page
    )
