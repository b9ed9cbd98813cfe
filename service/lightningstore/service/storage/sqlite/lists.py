"""Pages of lists of a data file."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.sqlite import filters
from lightningstore.service.storage.sqlite.reader import Reader

#: Rollouts with a label that are counted to tell rare labels from common ones. More are many.
COUNTED_ROLLOUTS = 200


async def places(reader: Reader, query: RolloutQuery) -> list[tuple[Any, int]]:
    """Return the places of a page of rollouts: values of the column of the order, and keys."""
    _, is_common = _leader(reader, query)
    first = filters.first_rows(query) if is_common else None
    selected = filters.selection(query, led=False)
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
    leader, _ = _leader(reader, query)
    return filters.selection(query, leader=leader)


def _leader(reader: Reader, query: RolloutQuery) -> tuple[tuple[str, str] | None, bool]:
    """Return the one of the labels of a query that the fewest rollouts have, and whether many have it.

    None if no label leads to the rollouts.
    """
    if not query.led_by_label:
        return None, True
    counts = []
    for name, value in sorted(query.labels):
        which = {"name": name, "value": value, "limit": COUNTED_ROLLOUTS}
        counts.append((int(reader.read("label_count", which)[0][0]), (name, value)))
    count, leader = min(counts)
    return leader, count == COUNTED_ROLLOUTS


async def _scan(reader: Reader, query: RolloutQuery) -> list[tuple[Any, int]]:
    source, key, where, parameters = selection(reader, query)
    page, more = filters.page(query, key)
    columns = {"value": key if query.order_by == "key" else query.order_by, "key": key}
    return await reader.scan(
        "scan_rollouts", [*parameters, *more], **columns, source=source, where=where, page=page
    )
