"""How many rollouts finished in the last minute."""

from __future__ import annotations

from collections import deque

SECONDS = 60


class Recent:
    """Counts what happened in the last minute, to the second. Nothing that it does depends on how much that was."""

    def __init__(self) -> None:
        #: Second of the monotonic clock, and how much happened in it: ascending, at most one entry a second.
        self._counts: deque[list[int]] = deque()

    def add(self, count: int, now: float) -> None:
        """Record that something happened `count` times; `now` is in monotonic seconds."""
        second, counts = int(now), self._counts
        if counts and counts[-1][0] == second:
            counts[-1][1] += count
            return
        self._drop(second)
        counts.append([second, count])

    def count(self, now: float) -> int:
        """Return how often something happened in the last minute before `now`, in monotonic seconds."""
        self._drop(int(now))
        return sum(count for _, count in self._counts)

    def _drop(self, second: int) -> None:
        while self._counts and self._counts[0][0] <= second - SECONDS:
            self._counts.popleft()
