"""Store time: the wall clock without its jumps, across restarts.

Deadlines are stored as wall-clock times. So that setting the clock does not change them, the store
records the difference between the wall clock and its own time, with the attempt and the queue
position from which it applies.
"""

from __future__ import annotations

from typing import Any

from lightningstore.service.engine.clock import Clock
from lightningstore.service.rules.times import NANOS
from lightningstore.service.storage.base import Counters

#: Smaller differences are normal clock discipline, not jumps.
JUMP_NS = NANOS // 10
#: Number of jumps that are remembered. Deadlines of attempts before the oldest one may be off by
#: it.
JUMPS = 100


class StoreTime:
    """A clock that advances with the monotonic clock, and continues across restarts.

    The time for which no server ran is read from the machine's clock since boot, which cannot be
    set. After a boot, or on another machine, the wall clock is used, but never backwards.
    """

    def __init__(self, clock: Clock, counters: Counters) -> None:
        """Continue at the store time of the last commit, from the counters."""
        self._clock = clock
        self._boot_id, boot_ns = clock.boot()
        wall_ns = clock.wall_ns()
        #: First attempt, first position, and how far the wall clock is ahead of store time.
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
        """Record how far the wall clock is ahead, before an attempt or a delay gets its time."""
        ahead = self._clock.wall_ns() - self.now_ns()
        if abs(ahead - self._jumps[-1][2]) > JUMP_NS:
            since = [counters.attempt_key + 1, counters.position + 1, ahead]
            self._jumps = [*self._jumps[-JUMPS:], since]

    def save(self, counters: Counters) -> None:
        """Write into the counters what the next process needs."""
        boot_ns = self._clock.boot()[1]
        wall_ns = self._clock.wall_ns()
        counters.clock = [wall_ns, self._boot_id, boot_ns, self.now_ns(), self._jumps]

    def since_attempt(self, key: int, wall_ns: int) -> float:
        """Return the seconds since a wall-clock time at which an attempt of this key was live."""
        return (self.now_ns() - wall_ns + self._ahead(0, key)) / NANOS

    def until_position(self, position: int, wall_ns: int) -> float:
        """Return the seconds until a wall-clock time that belongs to a queue position."""
        return (wall_ns - self._ahead(1, position) - self.now_ns()) / NANOS

    def _ahead(self, column: int, key: int) -> int:
        """Return how far the wall clock was ahead when a key was assigned."""
        jump: Any
        for jump in reversed(self._jumps):
            if jump[column] <= key:
                return int(jump[2])
        return self._jumps[0][2]
