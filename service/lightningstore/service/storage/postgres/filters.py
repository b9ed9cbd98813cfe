"""Queries of rollouts as SQL: conditions, order and page, with parameters. `$1` is the namespace."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import RolloutQuery

#: Columns that hold texts of callers, as bytes.
TEXTS = frozenset({"rollout_id", "group_id", "resources_id", "latest_attempt_id"})


def where(query: RolloutQuery) -> tuple[str, list[Any]]:
    """Return the filters of a query as an SQL condition, and its parameters from `$2` on.

    The SQL consists only of constants and numbers of parameters.
    """
    parts: list[str] = []
    parameters: list[Any] = []

    def mark(value: Any) -> str:
        parameters.append(value)
        return f"${len(parameters) + 1}"

    if query.statuses:
        parts.append(f"status = ANY ({mark(list(query.statuses))}::smallint[])")
    if query.rollout_ids:
        parts.append(f"rollout_id = ANY ({mark(_encoded(query.rollout_ids))}::bytea[])")
    if query.modes:
        parts.append(f"mode = ANY ({mark(list(query.modes))}::smallint[])")
    if query.group_ids:
        # The first condition lets PostgreSQL use the partial index on group_id.
        proper = mark(_encoded(query.group_ids - {""}))
        clause = f"(group_id <> '' AND group_id = ANY ({proper}::bytea[]))"
        parts.append(f"({clause} OR group_id = '')" if "" in query.group_ids else clause)
    if query.rollout_id_contains:
        parts.append(
            f"position({mark(query.rollout_id_contains.encode())}::bytea IN rollout_id) > 0"
        )
    if not parts:
        return "TRUE", parameters
    return "(" + (" OR " if query.any_of else " AND ").join(parts) + ")", parameters


def page(query: RolloutQuery, number: int) -> tuple[str, list[Any]]:
    """Return the position and order of a query as SQL (`AND … ORDER BY … LIMIT … OFFSET …`).

    `number` is that of its first parameter.
    """
    sign, direction = ("<", "DESC") if query.descending else (">", "ASC")
    text, parameters, column = "", [], query.order_by
    if column == "key":
        order = f" ORDER BY key {direction}"
    else:
        order = f" ORDER BY {column} {direction}, key {direction}"
    if query.after is not None:
        value, key = query.after
        if column == "key":
            text, parameters = f" AND key {sign} ${number}", [key]
        else:
            text = f" AND ({column}, key) {sign} (${number}, ${number + 1})"
            parameters = [value.encode() if column in TEXTS else value, key]
    last = number + len(parameters)
    return f"{text}{order} LIMIT ${last} OFFSET ${last + 1}", [*parameters, query.limit, query.skip]


def _encoded(texts: frozenset[str]) -> list[bytes]:
    return [text.encode() for text in texts]
