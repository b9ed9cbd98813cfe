"""Sorting, paging and checking of queries, as in agentlightning's own stores."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from agentlightning.types import Attempt, PaginatedResult, ResourcesUpdate, Rollout, Span, Worker
from lightningstore.client import Page

T = TypeVar("T")

#: The fields that hold numbers or texts.
SORTABLE: dict[type, tuple[str, ...]] = {
    Rollout: ("rollout_id", "start_time", "end_time", "mode", "resources_id", "status"),
    Attempt: (
        *("rollout_id", "attempt_id", "sequence_id", "start_time", "end_time", "status"),
        *("worker_id", "last_heartbeat_time"),
    ),
    ResourcesUpdate: ("resources_id", "create_time", "update_time", "version"),
    Span: (
        *("rollout_id", "attempt_id", "sequence_id", "trace_id", "span_id", "parent_id", "name"),
        *("start_time", "end_time"),
    ),
    Worker: (
        *("worker_id", "status", "last_heartbeat_time", "last_dequeue_time", "last_busy_time"),
        *("last_idle_time", "current_rollout_id", "current_attempt_id"),
    ),
}


def check(
    model: type,
    *,
    sort_by: str | None,
    sort_order: str,
    limit: int,
    offset: int,
    filter_logic: str = "and",
) -> None:
    """Raise ValueError for invalid arguments of a query."""
    if sort_by is not None and sort_by not in SORTABLE[model]:
        words = ", ".join(SORTABLE[model])
        raise ValueError(f"sort_by: {sort_by!r} is no field to sort by; these are: {words}")
    if sort_order not in ("asc", "desc"):
        raise ValueError(f"sort_order: asc or desc is wanted, not {sort_order!r}")
    if filter_logic not in ("and", "or"):
        raise ValueError(f"filter_logic: and or or is wanted, not {filter_logic!r}")
    if limit < -1:
        raise ValueError(f"limit: a number from 0 is wanted, or -1 for all, not {limit}")
    if offset < 0:
        raise ValueError(f"offset: a number from 0 is wanted, not {offset}")


def sort(
    items: Iterable[T],
    sort_by: str | None,
    sort_order: str,
    value_of: Callable[[T, str], Any] = getattr,
) -> list[T]:
    """Return the items in order: a missing time comes last, a missing text first."""
    if sort_by is None:
        return list(items)
    missing = math.inf if sort_by.endswith("_time") else ""

    def key(item: T) -> Any:
        value = value_of(item, sort_by)
        return missing if value is None else value

    return sorted(items, key=key, reverse=sort_order == "desc")


def cut(items: Sequence[T], limit: int, offset: int) -> Sequence[T]:
    """Return the items of a page."""
    return items[offset:] if limit == -1 else items[offset : offset + limit]


def page(items: Sequence[T], limit: int, offset: int) -> PaginatedResult[T]:
    """Return a page of all matching items."""
    return PaginatedResult(
        items=cut(items, limit, offset), limit=limit, offset=offset, total=len(items)
    )


async def every(fetch: Callable[[str], Awaitable[Page[T]]]) -> list[T]:
    """Return the items of all pages; `fetch` returns the page of a token, that of "" first."""
    found: list[T] = []
    token = ""
    while True:
        part = await fetch(token)
        found.extend(part)
        token = part.next_page_token
        if not token:
            return found
