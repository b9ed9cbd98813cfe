"""Expires overdue attempts and makes retries claimable when their back-off ends."""

from __future__ import annotations

import asyncio
import logging

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.state import AttemptState
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_TIMEOUT, ATTEMPT_STATUS_UNRESPONSIVE

logger = logging.getLogger(__name__)

#: Maximum seconds between two checks while an attempt has an unresponsive timeout.
TICK = 0.25
#: The same while none has, to measure how long the event loop is held.
IDLE_TICK = 1.0
#: A wake-up that is this many seconds late means that the server could not receive heartbeats.
STALL = 0.5


class Watchdog:
    """Expires overdue attempts, and queues rollouts whose back-off has ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def run(self) -> None:
        """Expire what is due, until cancelled.

        The cost depends on what is due, plus one check per second.
        """
        deadlines = self._live.deadlines
        while True:
            deadlines.earlier.clear()
            now = self._engine.clock.monotonic()
            due = deadlines.next()
            # The tick detects stalls, which matter most to attempts with an unresponsive timeout.
            wake = now + IDLE_TICK if due is None else min(due, now + TICK)
            await self._engine.clock.wait(deadlines.earlier, wake)
            late = self._engine.clock.monotonic() - max(wake, now)
            deadlines.lag.note(late, self._engine.clock.monotonic())
            if late > STALL and due is not None:
                logger.warning(
                    "the server was stalled for %.1f s; unresponsive timeouts start again", late
                )
                deadlines.deaf_until = self._engine.clock.monotonic()
            if self._engine.committer.failure is not None:
                await self._engine.clock.wait(
                    asyncio.Event(), self._engine.clock.monotonic() + TICK
                )
                continue
            try:
                await self.expire()
            except StorageFailed:
                continue  # what was read from disk anew has its deadlines again
            except Exception:
                logger.exception("the watchdog failed and continues")

    async def expire(self) -> None:
        """Expire overdue attempts, and queue rollouts whose back-off has ended.

        If much is due at once, other tasks run in between.
        """
        now, turn = self._engine.clock.monotonic(), Turn()
        failures = self._engine.committer.failures
        # The timers of the current engine state; a recovery creates new ones.
        timers = self._live.deadlines.attempts
        due = self._overdue(now)
        due.reverse()
        try:
            while due:
                *_, attempt = due.pop()
                deadline = self._live.deadlines.deadline(attempt)
                if lifecycle.is_live(attempt.record) and deadline is not None and deadline <= now:
                    self._expire(attempt, now)
                await self._next_turn(turn, failures)
            for entry in self._live.deadlines.delays.pop_due(now):
                self._live.queue_due(entry)
                await self._next_turn(turn, failures)
            self._serve_and_seal()
        finally:
            for planned, _, attempt in due:
                timers.push(planned, attempt)

    def _overdue(self, now: float) -> list[tuple[float, int, AttemptState]]:
        """Pop the overdue attempts, in the order of their deadlines.

        After a stall there are many, and the order determines the results.
        """
        due: list[tuple[float, int, AttemptState]] = []
        for attempt in self._live.deadlines.attempts.pop_due(now):
            deadline = self._live.deadlines.deadline(attempt)
            if deadline is None or not lifecycle.is_live(attempt.record):
                continue
            if deadline > now:
                self._live.deadlines.attempts.push(deadline, attempt)
            else:
                due.append((deadline, attempt.key, attempt))
        return sorted(due)

    async def _next_turn(self, turn: Turn, failures: int) -> None:
        """Let other tasks run if it is time. Raises StorageFailed if memory was loaded again."""
        if turn.over():
            self._serve_and_seal()
            await turn.next()
            self._engine.check_unbroken(failures)

    def _serve_and_seal(self) -> None:
        self._engine.polls.serve()
        self._engine.seal_changes()

    def _expire(self, attempt: AttemptState, now: float) -> None:
        timed_out = attempt.timeout_at is not None and attempt.timeout_at <= now
        if lifecycle.is_finished(attempt.entry.rollout):
            timed_out = False  # under a finished rollout an attempt ends as UNRESPONSIVE
        status = ATTEMPT_STATUS_TIMEOUT if timed_out else ATTEMPT_STATUS_UNRESPONSIVE
        wall = self._live.now()
        transition = lifecycle.expire(
            attempt.entry.rollout, attempt.record, status, wall, self._engine.dice()
        )
        self._live.apply(attempt.entry, attempt, transition, wall, verdict=True)
