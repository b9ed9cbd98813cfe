"""Removes finished rollouts by age and by size of the file, in the order in which they finished."""

from __future__ import annotations

import asyncio
import logging

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.members import load_members
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.deletions import REMOVED_AT_ONCE, Deletions, prefix
from lightningstore.service.rules.limits import Retention
from lightningstore.service.rules.settings import retention_of
from lightningstore.service.rules.times import NANOS, nanoseconds

logger = logging.getLogger(__name__)

#: Fraction of the size limit that is free after a removal.
HEADROOM = 0.05
#: Rollouts that a pass looks at although they are kept, because a consumer has yet to acknowledge them.
KEPT_A_PASS = 5000
#: Seconds between two passes.
LOOK_SECONDS = 30.0


class Removal:
    """Removal of finished rollouts, which the server does without a call."""

    def __init__(self, engine: Engine, deletions: Deletions) -> None:
        self._engine = engine
        self._deletions = deletions
        #: Where the next pass goes on, by time or by number, if the last one saw many that are kept.
        self._places: dict[bool, tuple[int, int]] = {}

    async def run(self, keep: Retention) -> None:
        """Remove what exceeds the retention, every LOOK_SECONDS, until cancelled.

        `keep` is the retention of the server, parts of which the settings of the namespace replace.
        """
        clock = self._engine.clock
        while True:
            await clock.wait(asyncio.Event(), clock.monotonic() + LOOK_SECONDS)
            current = retention_of(self._engine.settings, keep)
            if self._engine.committer.failure is None and not current.keeps_everything:
                try:
                    await self.retain(current)
                except Exception:
                    logger.exception(
                        "finished rollouts could not be removed; the next pass tries again"
                    )

    async def retain(self, keep: Retention) -> int:
        """Remove what exceeds the retention; return the number of removed rollouts.

        A rollout that is unfinished, has a live attempt, is being changed, or is yet to be acknowledged by a consumer
        is never removed.
        Completion numbers do not change: a watch from before a removed rollout reports the
        remaining ones.
        """
        gone = 0
        await self._deletions.sweep()  # what a server that was killed had not swept yet
        if keep.finished_seconds is not None:
            before_ns = self._engine.clock.wall_ns() - int(keep.finished_seconds * NANOS)
            gone += await self._remove_while(before_ns, None)
        if (
            keep.data_bytes is not None
            and await self._engine.storage.used_bytes() > keep.data_bytes
        ):
            gone += await self._remove_while(None, int(keep.data_bytes * (1 - HEADROOM)))
        if gone:
            logger.info("%d finished rollouts were removed to keep within the limits", gone)
        return gone

    async def _remove_while(self, ended_by_ns: int | None, goal: int | None) -> int:
        """Remove finished rollouts, oldest first.

        These are all that ended by a time, or as many as the size goal requires.
        """
        gone, kept, by_time = 0, 0, ended_by_ns is not None
        place = self._places.pop(by_time, (0, 0))
        while True:
            if kept > KEPT_A_PASS:
                self._places[by_time] = place
                return gone
            rows = await self._engine.storage.finished(place, REMOVED_AT_ONCE, ended_by_ns)
            if not rows or (goal is not None and await self._engine.storage.used_bytes() <= goal):
                return gone
            rows = rows[: prefix([row.input_bytes for row in rows])]
            place = rows[-1].place
            places = {row.rollout_id: row.place for row in rows}
            due = [
                entry
                for entry in await load_members(self._engine, list(places))
                if self._may_go(entry, ended_by_ns, places[entry.rollout.rollout_id])
            ]
            kept += len(rows) - len(due)
            if self._engine.committer.failure is not None:
                raise self._engine.committer.failure
            for entry in due:
                self._deletions.remove(entry)
            if due:
                gone += len(due)
                await self._engine.commit()
                await self._deletions.sweep()
            await asyncio.sleep(0)

    def _may_go(self, entry: Entry, ended_by_ns: int | None, place: tuple[int, int]) -> bool:
        """Return whether a rollout that was listed at this place may be removed now.

        It may not if a consumer has yet to acknowledge it, or while its changes are being written; the next pass removes it. Nor may it if it
        has finished again since the list was read, and is no longer among the oldest.
        """
        if entry.is_live() or entry.changed > self._engine.committer.durable_through:
            return False
        if self._engine.live.consumers.wants(entry.rollout):
            return False
        if ended_by_ns is None:
            return place == (entry.rollout.completion_number, entry.key)
        return nanoseconds(entry.rollout.end_time) <= ended_by_ns
