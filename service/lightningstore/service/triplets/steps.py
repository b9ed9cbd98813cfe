"""Long work in short steps."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

#: Work that yields now and then, and returns a T.
Steps = Generator[None, None, T]

#: Items between two yields: about a millisecond of work.
SLICE = 256
#: Items that are sorted by one call of the interpreter, which no other thread can interrupt: about 10 ms.
_SORTED_AT_ONCE = 8192


def run(steps: Steps[T]) -> T:
    """Do the work in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def sort(items: Iterable[T], key: Callable[[T], Any]) -> list[T]:
    """Return the items in the order of their keys; equal ones stay in their order.

    Like `sorted`, except that other threads can run before a large number of items is sorted.
    """
    left = iter(items)
    runs = []
    while run := sorted(islice(left, _SORTED_AT_ONCE), key=key):
        runs.append(run)
    if len(runs) > 1:
        return list(heapq.merge(*runs, key=key))
    return runs[0] if runs else []
