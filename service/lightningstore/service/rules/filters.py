"""Filters and orders as predicates on records and sort keys. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.rollout_pb2 import Rollout

#: Columns for sorting and filtering rollouts, with the function that reads the value from a
#: record. Missing values are 0 or "", so that they sort first and can be compared.
COLUMNS: dict[str, Callable[[Rollout], Any]] = {
    "rollout_id": lambda r: r.rollout_id,
    "mode": lambda r: r.mode,
    "priority": lambda r: r.priority,
    "group_id": lambda r: r.group_id,
    "resources_id": lambda r: r.resources_id,
    "status": lambda r: r.status,
    "start_time": lambda r: nanoseconds(r.start_time),
    "end_time": lambda r: nanoseconds(r.end_time),
    "attempt_count": lambda r: r.attempt_count,
    "latest_attempt_id": lambda r: r.latest_attempt_id,
    "completion_number": lambda r: r.completion_number,
    "queue": lambda r: r.queue,
}


def parse_order(order_by: str, fields: Iterable[str]) -> tuple[str, bool]:
    """Return the field of an `order_by` such as "start_time desc", and whether it is descending.

    The field is "" for no order.
    """
    words = order_by.split()
    if not words:
        return "", False
    allowed = tuple(fields)
    if words[0] not in allowed or len(words) > 2 or words[1:] not in ([], ["asc"], ["desc"]):
        raise FieldInvalid(
            "order_by",
            f"{order_by!r} must be a field and a direction; fields: {', '.join(allowed)}",
        )
    return words[0], words[1:] == ["desc"]


def sort_value(query: RolloutQuery, row: RolloutRow) -> Any:
    """Return the value that the query sorts the row by."""
    return row.key if query.order_by == "key" else COLUMNS[query.order_by](row.rollout)


def matches(query: RolloutQuery) -> Callable[[Rollout], bool]:
    """Return a predicate for the filters of a query."""
    tests: list[Callable[[Rollout], bool]] = []
    if query.statuses:
        tests.append(lambda r: r.status in query.statuses)
    if query.rollout_ids:
        tests.append(lambda r: r.rollout_id in query.rollout_ids)
    if query.rollout_id_contains:
        tests.append(lambda r: query.rollout_id_contains in r.rollout_id)
    if query.modes:
        tests.append(lambda r: r.mode in query.modes)
    if query.group_ids:
        tests.append(lambda r: r.group_id in query.group_ids)
    if query.queues:
        tests.append(lambda r: r.queue in query.queues)
    if query.labels:
        tests.append(lambda r: all(r.labels.get(k) == v for k, v in query.labels))
    if not tests:
        return lambda _: True
    combine = any if query.any_of else all
    return lambda r: combine(test(r) for test in tests)
