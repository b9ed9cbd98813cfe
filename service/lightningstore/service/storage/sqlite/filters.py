"""Queries of rollouts as SQL: source, conditions, order and page, with parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from lightningstore.service.rules.filters import rewards_left
from lightningstore.service.rules.rows import GroupQuery, RolloutQuery

#: Orders that an index has, and number of rows in that order that are searched first for a page of matches.
INDEXED = frozenset({"rollout_id", "start_time", "reward"})
FIRST_ROWS = 10_000
_HAS_LABEL = "EXISTS (SELECT 1 FROM labels WHERE rollout_key = key AND name = ? AND value = ?)"

#: Whether the record of the latest attempt contains bytes. `key` is that of the rollout.
_CONTAINS = """instr(CAST(lower(CAST((
    SELECT record FROM (SELECT rollout_key, key AS number, record FROM attempts)
    WHERE rollout_key = key ORDER BY number DESC LIMIT 1
) AS TEXT)) AS BLOB), ?) > 0"""


class Selection(NamedTuple):
    """The rows of a query. The SQL consists only of constants and question marks."""

    #: The table, or the index that leads to its rows.
    source: str
    #: The key of a rollout.
    key: str
    #: The condition, and its parameters.
    where: str
    parameters: list[Any]


def selection(
    query: RolloutQuery, *, led: bool = True, leader: tuple[str, str] | None = None
) -> Selection:
    """Return source and filters of a query.

    `led`: whether an index may lead from a label to the rows. `leader`: that label, if there are several.
    """
    parts, parameters = _filters(query)
    labels = sorted(query.labels, key=lambda label: (label != leader, label))
    source, key, joint = "rollouts", "key", " OR " if query.any_of else " AND "
    if led and query.led_by_label:
        # SQLite takes the tables of a CROSS JOIN in their order, and so the rollouts in that of the index.
        source, key = "labels l CROSS JOIN rollouts ON key = l.rollout_key", "l.rollout_key"
        joint = " AND "
        parts.append("l.name = ? AND l.value = ?")
        parameters.extend(labels.pop(0))
    if labels:
        parts.append("(" + " AND ".join([_HAS_LABEL] * len(labels)) + ")")
        parameters.extend(chain.from_iterable(labels))
    where = f"({joint.join(parts)})" if parts else "TRUE"
    return Selection(source, key, where, parameters)


def _filters(query: RolloutQuery) -> tuple[list[str], list[Any]]:
    """Return conditions for all filters but labels, and their parameters."""
    parts: list[str] = []
    parameters: list[Any] = []
    # A plus keeps SQLite from the index on a column.
    own = ""
    if query.completed is not None:
        own = "+"
        # SQLite begins at the first of two limits. The last one lets it use the partial index.
        parts.append("completion_number > ? AND completion_number <= ? AND completion_number > 0")
        parameters.extend(query.completed)
    for column, values in (
        ("status", query.statuses),
        ("rollout_id", query.rollout_ids),
        ("mode", query.modes),
    ):
        if values:
            parts.append(f"{own}{column} IN ({marks(len(values))})")
            parameters.extend(values)
    for column, names in (("group_id", query.group_ids), ("queue", query.queues)):
        if names:
            # The first condition lets SQLite use the partial index on the column.
            proper = names - {""}
            clause = f"({own}{column} <> '' AND {own}{column} IN ({marks(len(proper))}))"
            parts.append(f"({clause} OR {own}{column} = '')" if "" in names else clause)
            parameters.extend(proper)
    if query.reward_range is not None:
        parts.append("reward BETWEEN ? AND ?")
        parameters.extend(rewards_left(query, *query.reward_range))
    for part, text in _searches(query):
        parts.append(part)
        parameters.append(text)
    return parts, parameters


def _searches(query: RolloutQuery) -> Iterator[tuple[str, str | bytes]]:
    """Yield the filters that search a text, each with its parameter."""
    if query.rollout_id_contains:
        yield "instr(rollout_id, ?) > 0", query.rollout_id_contains
    if query.failure_contains:
        yield _CONTAINS, query.attempt_bytes


def groups(query: GroupQuery) -> tuple[str, list[Any]]:
    """Return the filters of a query of groups as SQL (`AND …`), and its parameters."""
    text, parameters = "", list[Any]()
    # A plus keeps SQLite from the index on a column, which leads to more groups than ids do.
    status = "+status" if query.group_ids else "status"
    for column, values in (("group_id", query.group_ids), (status, query.statuses)):
        if values:
            text += f" AND {column} IN ({marks(len(values))})"
            parameters.extend(values)
    return text, parameters


def marks(count: int) -> str:
    """Return `count` question marks for an SQL list."""
    return ",".join("?" * count)


def first_rows(query: RolloutQuery) -> tuple[str, list[Any]] | None:
    """Return the first rows of the order of a query as SQL with parameters.

    A page of a filter that many rollouts match is among them, and need not be found by sorting all matches. None if the filter
    leads to few rollouts, or no index has the order.
    """
    is_led = query.rollout_ids or query.group_ids - {""} or query.completed is not None
    is_range = query.reward_range is not None
    # Keys are in the order of the other indexes, but not in that of the one on rewards.
    is_sorted = (
        is_range and not query.led_by_label
        if query.order_by == "key"
        else query.order_by in INDEXED
    )
    if is_led or not is_sorted or (is_range and query.order_by == "reward"):
        return None
    text, parameters = page(replace(query, limit=FIRST_ROWS, skip=0), "key")
    return f"SELECT * FROM rollouts WHERE TRUE{text}", parameters


def page(query: RolloutQuery, key: str) -> tuple[str, list[Any]]:
    """Return the position and order of a query as SQL (`AND … ORDER BY … LIMIT … OFFSET …`)."""
    sign, direction = ("<", "DESC") if query.descending else (">", "ASC")
    text, parameters = "", []
    column = query.order_by
    if column == "key":
        if query.after is not None:
            text, parameters = f" AND {key} {sign} ?", [query.after[1]]
        order = f" ORDER BY {key} {direction}"
    else:
        if query.after is not None:
            text, parameters = f" AND ({column}, {key}) {sign} (?, ?)", list(query.after)
        order = f" ORDER BY {column} {direction}, {key} {direction}"
    return f"{text}{order} LIMIT ? OFFSET ?", [*parameters, query.limit, query.skip]
