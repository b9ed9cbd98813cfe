"""When live attempts are overdue."""

from __future__ import annotations

import asyncio

from lightningstore.service import lifecycle
from lightningstore.service.clock import Clock
from lightningstore.service.records import nanoseconds, seconds
from lightningstore.service.state import AttemptState
from lightningstore.service.store_time import StoreTime
from lightningstore.service.timers import Timers, Worst

#: Silence after which a live attempt without a deadline ends, once its rollout has finished. Seconds.
ORPHAN_SILENCE = 600.0


class Deadlines:
    """The deadlines of live attempts, in monotonic time."""

    clock: Clock
    deadlines: Timers[AttemptState]
    #: Set when the watchdog should look at its timers again.
    earlier: asyncio.Event
    #: No silence counts from before this monotonic time: the server could not hear.
    deaf_until: float
    #: The wall clock without its jumps.
    time: StoreTime
    #: How much later than planned the watchdog woke, in seconds: what others held up.
    lag: Worst

    @property
    def watchdog_lag(self) -> float:
        """How late the watchdog woke, in seconds: the worst of the last one to two minutes."""
        return self.lag.value(self.clock.monotonic())

    def arm(self, attempt: AttemptState) -> None:
        """Have the watchdog look after a live attempt, if it has a deadline."""
        config = attempt.entry.rollout.config
        attempt.timeout_at = None
        if config.HasField("timeout"):
            attempt.timeout_at = self._started_at(attempt) + seconds(config.timeout)
        deadline = self.deadline(attempt)
        if deadline is not None and self.deadlines.push(deadline, attempt):
            self.earlier.set()

    def _started_at(self, attempt: AttemptState) -> float:
        """Return the monotonic time of an attempt's start: the wall clock may be set meanwhile."""
        if attempt.started_at is None:
            start_ns = nanoseconds(attempt.record.start_time)
            since = self.time.since_attempt(attempt.key, start_ns)
            attempt.started_at = self.clock.monotonic() - since
        return attempt.started_at

    def deadline(self, attempt: AttemptState) -> float | None:
        """Return the monotonic time at which a live attempt is overdue, None if never."""
        silent_at = self.silent_at(attempt)
        if attempt.timeout_at is None or silent_at is None:
            return silent_at if attempt.timeout_at is None else attempt.timeout_at
        return min(attempt.timeout_at, silent_at)

    def silent_at(self, attempt: AttemptState) -> float | None:
        """Return the monotonic time at which a live attempt has been silent for too long."""
        rollout = attempt.entry.rollout
        heard_at = max(attempt.heard_at, self.deaf_until)
        if rollout.config.HasField("unresponsive_timeout"):
            return heard_at + seconds(rollout.config.unresponsive_timeout)
        if lifecycle.is_finished(rollout) and attempt.timeout_at is None:
            return heard_at + ORPHAN_SILENCE
        return None
