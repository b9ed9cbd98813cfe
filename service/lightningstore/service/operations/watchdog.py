"""Expires overdue attempts and deliveries, ends back-offs of retries, and closes groups at their deadline."""

from __future__ import annotations

import asyncio
import logging
from operator import attrgetter

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.state import AttemptState, Entry, GroupState
from lightningstore.service.operations.bulk import Bulk, Cancelled
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_TIMEOUT, ATTEMPT_STATUS_UNRESPONSIVE
from lightningstore.v1.rollout_pb2 import GROUP_DEADLINE_ACTION_CANCEL_REST

logger = logging.getLogger(__name__)

#: Maximum seconds between two checks while an attempt has an unresponsive timeout.
TICK = 0.25
#: The same while none has, to measure how long the event loop is held.
IDLE_TICK = 1.0
#: A wake-up that is this many seconds late means that the server could not receive heartbeats.
STALL = 0.5
#: Maximum number of members that are cancelled with one commit; a single group may have more.
MEMBERS_AT_ONCE = 10_000


class Watchdog:
    """Expires overdue attempts, queues rollouts whose back-off has ended, and closes groups."""

    def __init__(self, engine: Engine, bulk: Bulk) -> None:
        self._engine = engine
        self._bulk = bulk
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
        """Expire overdue attempts, queue rollouts whose back-off has ended, and close groups.

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
            self._live.consumers.expire()
            self._serve_and_seal()
            await self._close_groups(list(self._live.deadlines.groups.pop_due(now)), failures)
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

    async def _close_groups(self, due: list[GroupState], failures: int) -> None:
        """Close groups at their deadlines, each with the cancellation of its members in one commit."""
        groups, done = self._live.groups, 0
        try:
            while done < len(due):
                end = done + _few(due[done:])
                part = due[done:end]
                members = [entry for group in part for entry in _cancelled(group)]
                prepared = await self._bulk.prepare_cancelled(members)
                self._engine.check_unbroken(failures)
                # No other task runs from here to the seal.
                done = end
                ready, now = {each.entry: each for each in prepared}, self._live.now()
                cancelled: list[Cancelled] = []
                for group in part:
                    if not groups.holds(group) or not group.deadline_ns:
                        continue  # it was removed or has completed meanwhile
                    rest = [
                        ready.get(entry) or self._bulk.cancellation(entry, now)
                        for entry in _cancelled(group)
                    ]
                    groups.pass_deadline(group)
                    self._bulk.cancel_all(rest, now)
                    cancelled += rest
                self._serve_and_seal()
                await self._bulk.settle_cancelled(cancelled)
                self._engine.check_unbroken(failures)
        finally:
            for group in due[done:]:
                groups.arm(group)

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


def _cancelled(group: GroupState) -> list[Entry]:
    """Return the members that the deadline of a group cancels, in the order in which they were enqueued."""
    if group.record.on_deadline != GROUP_DEADLINE_ACTION_CANCEL_REST:
        return []
    return sorted(group.unfinished, key=attrgetter("key"))


def _few(groups: list[GroupState]) -> int:
    """Return how many groups, from the first on, have few enough members to be closed with one commit."""
    total = 0
    for i, group in enumerate(groups):
        total += 1 + len(group.unfinished)
        if total > MEMBERS_AT_ONCE:
            return max(1, i)
    return len(groups)
