"""Pages of lists of a data file."""

from __future__ import annotations

from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.sqlite import filters
from lightningstore.service.storage.sqlite.reader import Reader


async def keys(reader: Reader, query: RolloutQuery) -> list[int]:
    """Return the keys of a page of rollouts."""
    first, selected = filters.first_rows(query), filters.selection(query, led=False)
    if first is not None and selected.parameters:
        text, place = first
        rows = await reader.scan(
            "matches_among",
            [*place, *selected.parameters, query.limit, query.skip],
            first=text,
            where=selected.where,
        )
        if len(rows) == query.limit:
            return [key for (key,) in rows]
    source, key, where, parameters = filters.selection(query)
    page, more = filters.page(query, key)
    rows = await reader.scan(
        "scan_rollouts", [*parameters, *more], source=source, key=key, where=where, page=page
    )
    return [key for (key,) in rows]
