"""A heap of deadlines with lazy removal. Pure data structure: times are arguments."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

#: Minimum seconds for which a `Worst` remembers its maximum.
WORST_SECONDS = 60.0


class Worst:
    """The maximum of the values of the last one to two minutes."""

    def __init__(self) -> None:
        self._period = 0
        self._now = self._before = 0.0

    def note(self, value: float, now: float) -> None:
        """Record a value at a monotonic time in seconds."""
        self._now = max(self._roll(now), value)

    def value(self, now: float) -> float:
        """Return the maximum, 0 without values."""
        return max(self._roll(now), self._before)

    def _roll(self, now: float) -> float:
        """Start a new period if it is time; return the maximum of the current one."""
        period = int(now / WORST_SECONDS)
        if period != self._period:
            self._before = self._now if period == self._period + 1 else 0.0
            self._period, self._now = period, 0.0
        return self._now


class Timers(Generic[T]):
    """Items by deadline, each at most once.

    Moving a deadline later does not touch the heap: an item that is popped too early is pushed
    again with its current deadline. The cost therefore depends on what is due, not on the number of
    heartbeats. Discarded items stay in the heap as dead entries, never more than the live ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._armed: dict[T, float] = {}
        self._ties = count()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._armed)

    def __contains__(self, item: T) -> bool:
        """Return whether an item is present."""
        return item in self._armed

    def push(self, deadline: float, item: T) -> bool:
        """Add an item, or move it earlier. Return whether it is now the earliest."""
        armed = self._armed.get(item)
        if armed is not None and armed <= deadline:
            return False
        self._armed[item] = deadline
        heapq.heappush(self._heap, (deadline, next(self._ties), item))
        return self._heap[0][2] is item

    def discard(self, item: T) -> None:
        """Remove an item, if it is present."""
        if self._armed.pop(item, None) is None:
            return
        if len(self._heap) > 64 + 2 * len(self._armed):
            self._heap = [e for e in self._heap if self._armed.get(e[2]) == e[0]]
            heapq.heapify(self._heap)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, or None."""
        while self._heap and self._armed.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Iterator[T]:
        """Remove and yield the items that are due, one by one."""
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                return
            item = heapq.heappop(self._heap)[2]
            del self._armed[item]
            yield item
