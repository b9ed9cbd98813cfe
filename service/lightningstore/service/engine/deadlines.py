"""Deadlines of live attempts, and ends of back-offs."""

from __future__ import annotations

import asyncio

from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.state import AttemptState, Entry
from lightningstore.service.engine.store_time import StoreTime
from lightningstore.service.engine.timers import Timers, Worst
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.times import nanoseconds, seconds
from lightningstore.service.storage.base import Counters

#: Seconds after the last heartbeat or span at which a live attempt without a deadline ends, once
#: its rollout has finished.
ORPHAN_SILENCE = 600.0


class Deadlines:
    """Timers of one store, in monotonic time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Live attempts by their deadline.
        self.attempts: Timers[AttemptState] = Timers()
        #: Rollouts in their back-off, by the time at which it ends.
        self.delays: Timers[Entry] = Timers()
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
        self.attempts, self.delays = Timers(), Timers()

    @property
    def watchdog_lag(self) -> float:
        """Delay of the watchdog's wake-ups in seconds: the maximum of the last one to two minutes."""
        return self.lag.value(self._clock.monotonic())

    def next(self) -> float | None:
        """Return the monotonic time of the next timer, None if there is none."""
        due = (self.attempts.next_deadline(), self.delays.next_deadline())
        return min((time for time in due if time is not None), default=None)

    def delay(self, entry: Entry, seconds_left: float) -> None:
        """Queue a rollout after a delay in seconds."""
        if self.delays.push(self._clock.monotonic() + seconds_left, entry):
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
