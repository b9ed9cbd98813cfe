"""Deadlines of live attempts, retries, groups and deliveries: the timers that hold them, and the time that they are measured in.

Deadlines are stored as wall-clock times. So that setting the clock moves none of them, the store keeps a time of
its own, and records how far the wall clock is ahead of it, since which attempt and which queue position.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.state import AttemptState, Entry, GroupState
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.times import NANOS, nanoseconds, seconds
from lightningstore.service.storage.base import Counters

if TYPE_CHECKING:
    from lightningstore.service.engine.subscription import Item

T = TypeVar("T", bound=Hashable)

#: Minimum seconds for which a `Worst` remembers its maximum.
WORST_SECONDS = 60.0
#: Smaller differences are normal clock discipline, not jumps.
JUMP_NS = NANOS // 10
#: Number of jumps that are remembered. Deadlines of attempts before the oldest one may be off by
#: it.
JUMPS = 100
#: Seconds after the last heartbeat or span at which a live attempt without a deadline ends, once
#: its rollout has finished.
ORPHAN_SILENCE = 600.0


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


class Deadlines:
    """Timers of one store, in monotonic time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Live attempts by their deadline.
        self.attempts: Timers[AttemptState] = Timers()
        #: Rollouts in their back-off, by the time at which it ends.
        self.delays: Timers[Entry] = Timers()
        #: Open groups by their deadline.
        self.groups: Timers[GroupState] = Timers()
        #: Deliveries of consumers by their deadline.
        self.deliveries: Timers[Item] = Timers()
        #: Set when the watchdog should check the timers again.
        self.earlier = asyncio.Event()
        #: Time before this monotonic time does not count towards unresponsive timeouts, because the
        #: server could not receive heartbeats.
        self.deaf_until = 0.0
        #: Delay of the watchdog's wake-ups in seconds, which shows how long other tasks held the
        #: loop.
        self.lag = Worst()
        #: The wall clock without its jumps.
        self.time = StoreTime(clock, Counters())

    def adopt(self, counters: Counters) -> None:
        """Start again without timers, at the time that was saved in the counters."""
        self.time = StoreTime(self._clock, counters)
        self.attempts, self.delays, self.groups = Timers(), Timers(), Timers()
        self.deliveries = Timers()

    @property
    def watchdog_lag(self) -> float:
        """Delay of the watchdog's wake-ups in seconds: the maximum of the last one to two minutes."""
        return self.lag.value(self._clock.monotonic())

    def next(self) -> float | None:
        """Return the monotonic time of the next timer, None if there is none."""
        timers = (self.attempts, self.delays, self.groups, self.deliveries)
        due = [each.next_deadline() for each in timers]
        return min((time for time in due if time is not None), default=None)

    def delay(self, entry: Entry, seconds_left: float) -> None:
        """Queue a rollout after a delay in seconds."""
        if self.delays.push(self._clock.monotonic() + seconds_left, entry):
            self.earlier.set()

    def arm_group(self, group: GroupState, seconds_left: float) -> None:
        """Set the timer of a group, in seconds."""
        if self.groups.push(self._clock.monotonic() + seconds_left, group):
            self.earlier.set()

    def arm_delivery(self, item: Item, seconds_left: float) -> None:
        """Set the timer of a delivery, in seconds."""
        if self.deliveries.push(self._clock.monotonic() + seconds_left, item):
            self.earlier.set()

    def arm(self, attempt: AttemptState) -> None:
        """Set the timer of a live attempt, if it has a deadline."""
        config = attempt.entry.rollout.config
        attempt.timeout_at = None
        if config.HasField("timeout"):
            attempt.timeout_at = self.started_at(attempt) + seconds(config.timeout)
        deadline = self.deadline(attempt)
        if deadline is not None and self.attempts.push(deadline, attempt):
            self.earlier.set()

    def started_at(self, attempt: AttemptState) -> float:
        """Return the monotonic time of an attempt's start, whatever the wall clock does."""
        if attempt.started_at is None:
            start_ns = nanoseconds(attempt.record.start_time)
            since = self.time.since_attempt(attempt.key, start_ns)
            attempt.started_at = self._clock.monotonic() - since
        return attempt.started_at

    def deadline(self, attempt: AttemptState) -> float | None:
        """Return the monotonic time of a live attempt's deadline, or None."""
        silent_at = self.silent_at(attempt)
        if attempt.timeout_at is None or silent_at is None:
            return silent_at if attempt.timeout_at is None else attempt.timeout_at
        return min(attempt.timeout_at, silent_at)

    def silent_at(self, attempt: AttemptState) -> float | None:
        """Return the monotonic time of a live attempt's unresponsive timeout, or None."""
        rollout = attempt.entry.rollout
        heard_at = max(attempt.heard_at, self.deaf_until)
        if rollout.config.HasField("unresponsive_timeout"):
            return heard_at + seconds(rollout.config.unresponsive_timeout)
        if lifecycle.is_finished(rollout) and attempt.timeout_at is None:
            return heard_at + ORPHAN_SILENCE
        return None
