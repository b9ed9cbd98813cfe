"""Queries of rollouts as SQL: conditions, order and page, with parameters."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery


def where(query: RolloutQuery) -> tuple[str, list[Any]]:
    """Return the filters of a query as an SQL condition, and its parameters.

    The SQL consists only of constants and question marks.
    """
    parts: list[str] = []
    parameters: list[Any] = []
    for column, values in (
        ("status", query.statuses),
        ("rollout_id", query.rollout_ids),
        ("mode", query.modes),
    ):
        if values:
            parts.append(f"{column} IN ({marks(len(values))})")
            parameters.extend(values)
    if query.group_ids:
        # The first condition lets SQLite use the partial index on group_id.
        proper = query.group_ids - {""}
        clause = f"(group_id <> '' AND group_id IN ({marks(len(proper))}))"
        parts.append(f"({clause} OR group_id = '')" if "" in query.group_ids else clause)
        parameters.extend(proper)
    if query.rollout_id_contains:
        parts.append("instr(rollout_id, ?) > 0")
        parameters.append(query.rollout_id_contains)
    if not parts:
        return "TRUE", parameters
    return "(" + (" OR " if query.any_of else " AND ").join(parts) + ")", parameters


def marks(count: int) -> str:
    """Return `count` question marks for an SQL list."""
    return ",".join("?" * count)


def page(query: RolloutQuery) -> tuple[str, list[Any]]:
    """Return the position and order of a query as SQL (`AND … ORDER BY … LIMIT … OFFSET …`)."""
    sign, direction = ("<", "DESC") if query.descending else (">", "ASC")
    text, parameters = "", []
    column = query.order_by
    if column == "key":
        if query.after is not None:
            text, parameters = f" AND key {sign} ?", [query.after[1]]
        order = f" ORDER BY key {direction}"
    else:
        if query.after is not None:
            text, parameters = f" AND ({column}, key) {sign} (?, ?)", list(query.after)
        order = f" ORDER BY {column} {direction}, key {direction}"
    return f"{text}{order} LIMIT ? OFFSET ?", [*parameters, query.limit, query.skip]
