"""The time of a store: the wall clock without its jumps, across restarts.

Deadlines are stored as wall-clock times. So that setting the clock moves none of them, the store notes by how
much the wall clock differs from its own time, and since which attempt and which place in the queue.
"""

from __future__ import annotations

from typing import Any

from lightningstore.service.engine.clock import Clock
from lightningstore.service.rules.times import NANOS
from lightningstore.service.storage.base import Counters

#: A smaller difference is the clock being disciplined, no jump.
JUMP_NS = NANOS // 10
#: Jumps that are remembered. Of attempts from before the oldest one the deadlines may be off by it.
JUMPS = 100


class StoreTime:
    """Runs with the monotonic clock, and over restarts.

    Time in which no server ran is told by the machine's clock since boot, which nobody sets; where the machine
    was booted since, or is another one, by the wall clock, and never backwards.
    """

    def __init__(self, clock: Clock, counters: Counters) -> None:
        """Go on where the counters say that the store was at its last commit."""
        self._clock = clock
        self._boot_id, boot_ns = clock.boot()
        wall_ns = clock.wall_ns()
        #: Since which attempt, since which position, and how far the wall clock is ahead of this time.
        self._jumps: list[list[int]] = [[0, 0, 0]]
        now_ns = wall_ns
        if counters.clock:
            last_wall_ns, boot_id, last_boot_ns, last_ns, self._jumps = counters.clock
            passed = wall_ns - last_wall_ns
            if boot_id and boot_id == self._boot_id and boot_ns >= last_boot_ns:
                passed = boot_ns - last_boot_ns
            now_ns = last_ns + max(0, passed)
        self._base_ns = now_ns - int(clock.monotonic() * NANOS)

    def now_ns(self) -> int:
        """Return the time in nanoseconds."""
        return self._base_ns + int(self._clock.monotonic() * NANOS)

    def note(self, counters: Counters) -> None:
        """Note how far the wall clock is ahead: before an attempt or a delay is given its time."""
        ahead = self._clock.wall_ns() - self.now_ns()
        if abs(ahead - self._jumps[-1][2]) > JUMP_NS:
            since = [counters.attempt_key + 1, counters.position + 1, ahead]
            self._jumps = [*self._jumps[-JUMPS:], since]

    def save(self, counters: Counters) -> None:
        """Put into the counters what the next process needs."""
        boot_ns = self._clock.boot()[1]
        wall_ns = self._clock.wall_ns()
        counters.clock = [wall_ns, self._boot_id, boot_ns, self.now_ns(), self._jumps]

    def since_attempt(self, key: int, wall_ns: int) -> float:
        """Return the seconds since a wall-clock time at which an attempt of this key was live."""
        return (self.now_ns() - wall_ns + self._ahead(0, key)) / NANOS

    def until_position(self, position: int, wall_ns: int) -> float:
        """Return the seconds until a wall-clock time that belongs to a place in the queue."""
        return (wall_ns - self._ahead(1, position) - self.now_ns()) / NANOS

    def _ahead(self, column: int, key: int) -> int:
        """Return how far the wall clock was ahead when a key was given."""
        jump: Any
        for jump in reversed(self._jumps):
            if jump[column] <= key:
                return int(jump[2])
        return self._jumps[0][2]
