"""Lets finished rollouts go that are older than wanted, or for which there is no room, oldest finish first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lightningstore.service.limits import Retention
from lightningstore.service.records import NANOS, nanoseconds
from lightningstore.service.state import Entry
from lightningstore.service.store.imports import ImportOperations

logger = logging.getLogger(__name__)

#: Rollouts that go with one commit: few enough that nobody waits for it.
GO_AT_ONCE = 100
#: Where there was no room, so much of the limit is free afterwards.
HEADROOM = 0.05
#: Seconds between two looks.
LOOK_SECONDS = 30.0


class RetentionOperations(ImportOperations):
    """Not a call: what the server does on its own."""

    async def retain(self, keep: Retention) -> int:
        """Remove what need not be kept; returns how many rollouts went.

        A rollout that is unfinished, or has a live attempt, never goes. Completion numbers stay what they are:
        who watches from before a rollout that is gone is told of those that are left.
        """
        gone = 0
        if keep.finished_seconds is not None:
            before_ns = self.clock.wall_ns() - int(keep.finished_seconds * NANOS)
            gone += await self._remove_while(lambda entry: _ended_ns(entry) <= before_ns, None)
        if keep.data_bytes is not None and await self.storage.used_bytes() > keep.data_bytes:
            goal = int(keep.data_bytes * (1 - HEADROOM))
            gone += await self._remove_while(lambda _: True, goal)
        if gone:
            logger.info("%d finished rollouts were removed to keep within the limits", gone)
        return gone

    async def _remove_while(self, is_due: Callable[[Entry], bool], goal: int | None) -> int:
        """Remove finished rollouts from the oldest on, as long as they are due and above the goal."""
        gone = after = 0
        while True:
            found = await self.storage.completions(after, GO_AT_ONCE)
            if not found or (goal is not None and await self.storage.used_bytes() <= goal):
                return gone
            after = found[-1].row.rollout.completion_number
            entries = await self.load_many(loaded.row.rollout.rollout_id for loaded in found)
            due = [entry for entry in entries if not entry.is_live() and is_due(entry)]
            for entry in due:
                self._remove(entry)
            if due:
                gone += len(due)
                await self.commit()
            elif goal is None:
                return gone
            await asyncio.sleep(0)

    def _remove(self, entry: Entry) -> None:
        state, changes = self.state, self.changes
        counters = state.counters
        shelved = self.shelf.remove(entry.key)
        if not self.storage.durable:
            spans, size = (shelved.count, shelved.bytes) if shelved is not None else (0, 0)
        else:
            spans = sum(attempt.record.span_count for attempt in entry.attempts.values())
            # Nothing tells the bytes of these spans, which may be compressed: the average does.
            size = counters.span_bytes * spans // max(1, counters.spans)
        counters.spans -= spans
        counters.span_bytes -= size
        self.waiters.reopen(entry.rollout.completion_number)  # nobody is told of it any more
        state.count_rollout(entry.rollout.status, 0)
        for attempt in entry.attempts.values():
            state.count_attempt(attempt.record.status, 0)
        state.remove(entry, self.committer.sealed + 1)
        changes.removed.append(entry.key)
        changes.size += 300


def _ended_ns(entry: Entry) -> int:
    return nanoseconds(entry.rollout.end_time)


async def keep_up(store: RetentionOperations, keep: Retention) -> None:
    """Remove what need not be kept, every half a minute, until cancelled."""
    while True:
        await store.clock.wait(asyncio.Event(), store.clock.monotonic() + LOOK_SECONDS)
        if store.committer.failure is None:
            try:
                await store.retain(keep)
            except Exception:
                logger.exception("finished rollouts could not be removed; trying again later")
