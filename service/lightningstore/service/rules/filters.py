"""Filters and orders as predicates on records and sort keys. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.rows import (
    FAILURE_SEPARATOR,
    LoadedRollout,
    RolloutQuery,
    RolloutRow,
)
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.attempt_pb2 import Attempt

#: Columns for sorting and filtering rollouts, with the function that reads the value from a
#: row. Missing values are 0 or "", so that they sort first and can be compared.
COLUMNS: dict[str, Callable[[RolloutRow], Any]] = {
    "rollout_id": lambda r: r.rollout.rollout_id,
    "mode": lambda r: r.rollout.mode,
    "priority": lambda r: r.rollout.priority,
    "group_id": lambda r: r.rollout.group_id,
    "resources_id": lambda r: r.rollout.resources_id,
    "status": lambda r: r.rollout.status,
    "start_time": lambda r: nanoseconds(r.rollout.start_time),
    "end_time": lambda r: nanoseconds(r.rollout.end_time),
    "attempt_count": lambda r: r.rollout.attempt_count,
    "latest_attempt_id": lambda r: r.rollout.latest_attempt_id,
    "completion_number": lambda r: r.rollout.completion_number,
    "queue": lambda r: r.rollout.queue,
    "reward": lambda r: r.measures.reward,
    "publish_number": lambda r: r.measures.publish_number,
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
    return row.key if query.order_by == "key" else COLUMNS[query.order_by](row)


def rewards_left(query: RolloutQuery, lowest: str, highest: str) -> tuple[str, str]:
    """Return the part of a range of rewards that earlier pages have left.

    A database begins at one of two limits of a column and tests the other, row by row.
    """
    if query.order_by != "reward" or query.after is None:
        return lowest, highest
    reached = query.after[0]
    return (lowest, min(highest, reached)) if query.descending else (max(lowest, reached), highest)


def matches(
    query: RolloutQuery, latest: Callable[[int], Attempt | None] | None = None
) -> Callable[[RolloutRow], bool]:
    """Return a predicate for the filters of a query.

    Args:
        query: The query.
        latest: Returns the latest attempt of the rollout with a key. Needed for queries with `failure_contains`,
            which here match the `attempt_bytes` of the query.

    """
    tests = _tests(query)
    if query.failure_contains and latest is not None:
        text = query.attempt_bytes
        tests.append(lambda r: _contains(latest(r.key), text))
    if not tests:
        return lambda _: True
    if len(tests) == 1:
        return tests[0]
    any_of = query.any_of

    def match(row: RolloutRow) -> bool:
        # A loop, not any() or all(): a scan calls this for each of a million rows, and a generator takes twice the time.
        for test in tests:
            if test(row) == any_of:
                return any_of
        return not any_of

    return match


def matches_failure(query: RolloutQuery) -> Callable[[LoadedRollout], bool]:
    """Return a predicate for the rollouts that a back end returns for a query with `failure_contains`."""
    text = query.failure_contains.encode().lower()

    def fails(loaded: LoadedRollout) -> bool:
        attempt = loaded.attempts[-1].attempt if loaded.attempts else None
        if attempt is None or not attempt.HasField("failure"):
            return False
        parts = filter(None, (attempt.failure.type, attempt.failure.message))
        return text in FAILURE_SEPARATOR.join(parts).encode().lower()

    if not query.any_of:
        return fails
    others = _tests(query)
    return lambda loaded: fails(loaded) or any(test(loaded.measured()) for test in others)


def _contains(attempt: Attempt | None, text: bytes) -> bool:
    return attempt is not None and text in attempt.SerializeToString().lower()


def _tests(query: RolloutQuery) -> list[Callable[[RolloutRow], bool]]:
    """Return a predicate for each filter but `failure_contains`."""
    tests: list[Callable[[RolloutRow], bool]] = []
    if query.statuses:
        tests.append(lambda r: r.rollout.status in query.statuses)
    if query.rollout_ids:
        tests.append(lambda r: r.rollout.rollout_id in query.rollout_ids)
    if query.rollout_id_contains:
        tests.append(lambda r: query.rollout_id_contains in r.rollout.rollout_id)
    if query.modes:
        tests.append(lambda r: r.rollout.mode in query.modes)
    if query.group_ids:
        tests.append(lambda r: r.rollout.group_id in query.group_ids)
    if query.queues:
        tests.append(lambda r: r.rollout.queue in query.queues)
    if query.labels:
        tests.append(lambda r: all(r.rollout.labels.get(k) == v for k, v in query.labels))
    if query.reward_range is not None:
        lowest, highest = query.reward_range
        tests.append(lambda r: lowest <= r.measures.reward <= highest)
    if query.completed is not None:
        after, through = query.completed
        tests.append(lambda r: after < r.rollout.completion_number <= through)
    return tests
