"""A heap of deadlines that re-arms lazily. Pure data structure: times come in as arguments."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

#: How long the worst value of a `Worst` is remembered at least. Seconds.
WORST_SECONDS = 60.0


class Worst:
    """The largest of the values noted in the last one to two minutes."""

    def __init__(self) -> None:
        self._period = 0
        self._now = self._before = 0.0

    def note(self, value: float, now: float) -> None:
        """Note a value at a monotonic time in seconds."""
        self._now = max(self._roll(now), value)

    def value(self, now: float) -> float:
        """Return the largest value, 0 without any."""
        return max(self._roll(now), self._before)

    def _roll(self, now: float) -> float:
        """Begin a new period where its time has come; returns the largest value of this one."""
        period = int(now / WORST_SECONDS)
        if period != self._period:
            self._before = self._now if period == self._period + 1 else 0.0
            self._period, self._now = period, 0.0
        return self._now


class Timers(Generic[T]):
    """Items by deadline, each at most once.

    Moving an item's deadline later does not touch the heap: whoever pops the item looks at its real
    deadline, and pushes it again if its time has not come. So the cost follows what comes due, not what
    beats. Items that are discarded stay in the heap as dead entries, never more than the living ones.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._armed: dict[T, float] = {}
        self._ties = count()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._armed)

    def __contains__(self, item: T) -> bool:
        """Tell whether an item is in."""
        return item in self._armed

    def push(self, deadline: float, item: T) -> bool:
        """Add an item, or move it earlier. Returns whether it is now the earliest."""
        armed = self._armed.get(item)
        if armed is not None and armed <= deadline:
            return False
        self._armed[item] = deadline
        heapq.heappush(self._heap, (deadline, next(self._ties), item))
        return self._heap[0][2] is item

    def discard(self, item: T) -> None:
        """Take an item out, if it is in."""
        if self._armed.pop(item, None) is None:
            return
        if len(self._heap) > 64 + 2 * len(self._armed):
            self._heap = [e for e in self._heap if self._armed.get(e[2]) == e[0]]
            heapq.heapify(self._heap)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, None if there is none."""
        while self._heap and self._armed.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Iterator[T]:
        """Take out and yield the items whose deadline has come, one by one."""
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                return
            item = heapq.heappop(self._heap)[2]
            del self._armed[item]
            yield item
