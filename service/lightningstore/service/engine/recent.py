"""How many rollouts finished in the last minute."""

from __future__ import annotations

from collections import deque

SECONDS = 60


class Recent:
    """Counts what happened in the last minute, to the second. Nothing that it does depends on how much that was."""

    def __init__(self) -> None:
        #: Second of the monotonic clock, and how much happened in it: ascending, at most one entry a second.
        self._counts: deque[tuple[int, int]] = deque()
        self._total = 0

    def add(self, count: int, now: float) -> None:
        """Record that something happened `count` times; `now` is in monotonic seconds."""
        second = int(now)
        self._total += count
        if self._counts and self._counts[-1][0] == second:
            count += self._counts.pop()[1]
        self._counts.append((second, count))
        self._drop(second)

    def count(self, now: float) -> int:
        """Return how often something happened in the last minute before `now`, in monotonic seconds."""
        self._drop(int(now))
        return self._total

    def _drop(self, second: int) -> None:
        while self._counts and self._counts[0][0] <= second - SECONDS:
            self._total -= self._counts.popleft()[1]
