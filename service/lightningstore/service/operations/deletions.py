"""DeleteRollouts, and how finished rollouts are removed with their spans."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.live import ROW_BYTES
from lightningstore.service.engine.members import load_members
from lightningstore.service.engine.pace import Pace
from lightningstore.service.engine.state import Entry
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.errors import DataDamaged, RolloutNotFinished
from lightningstore.service.rules.ids import check_id
from lightningstore.v1.rollout_pb2 import (
    DeleteRolloutsRequest,
    DeleteRolloutsResponse,
    RolloutStatus,
)

logger = logging.getLogger(__name__)

#: Maximum number of rollouts, and bytes of their inputs, that one commit removes, so that other
#: calls are not delayed.
REMOVED_AT_ONCE = 100
REMOVED_BYTES = 8 << 20
#: Bytes that deleting a batch of spans adds to a commit.
SWEPT_BYTES = 64


class Deletions:
    """Removes finished rollouts, for DeleteRollouts and for retention.

    A commit removes the records of some rollouts; no query shows their spans any more. Later
    commits delete the spans, some with each commit.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        self._sweeping = asyncio.Lock()
        self._sweeps: set[asyncio.Task[None]] = set()

    async def delete_rollouts(self, request: DeleteRolloutsRequest) -> DeleteRolloutsResponse:
        """Delete finished rollouts, or none if one has not finished."""
        self._engine.committer.admit()
        self._engine.check_batch("rollout_ids", len(request.rollout_ids))
        ids, turn = list(dict.fromkeys(request.rollout_ids)), Turn()
        for i, rollout_id in enumerate(ids):
            check_id(f"rollout_ids[{i}]", rollout_id)
            if turn.over():
                await turn.next()
        self._check_finished(ids)
        reply = DeleteRolloutsResponse()
        pace, start = Pace(), 0
        while start < len(ids):
            part = ids[start : start + min(pace.count, REMOVED_AT_ONCE)]
            start += await self._delete(part, pace, reply)
            await asyncio.sleep(0)
        return reply

    def _check_finished(self, rollout_ids: Iterable[str]) -> None:
        """Raise RolloutNotFinished unless all rollouts that exist have finished, at one moment.

        Memory holds all rollouts that are unfinished or have a live attempt, so this reads nothing.
        """
        known = self._live.state.entries
        for rollout_id in rollout_ids:
            entry = known.get(rollout_id)
            if entry is not None and entry.is_live():
                attempts = (a.record for a in entry.attempts.values())
                live = (a.attempt_id for a in attempts if lifecycle.is_live(a))
                finished = lifecycle.is_finished(entry.rollout)
                raise RolloutNotFinished(
                    rollout_id,
                    RolloutStatus.Name(entry.rollout.status),
                    next(live, "") if finished else "",
                )

    async def _delete(self, ids: list[str], pace: Pace, reply: DeleteRolloutsResponse) -> int:
        """Delete the first ones of some rollouts with one commit; return their number."""
        failures = self._engine.committer.failures
        loaded = await load_members(self._engine, ids)
        # No other task runs from here to the seal.
        entries = {entry.rollout.rollout_id: entry for entry in loaded}
        sizes = [entries[i].input_bytes if i in entries else 0 for i in ids]
        pace.note(sizes)
        ids = ids[: prefix(sizes)]
        deleted = [i for i in ids if i in entries and not entries[i].is_live()]
        for rollout_id in deleted:
            self.remove(entries[rollout_id])
        self._engine.polls.serve()  # a consumer may have room now
        number = self._engine.seal_changes()
        await self._engine.durable_since(number, failures)
        reply.deleted_rollout_ids.extend(deleted)
        damaged = await self._damaged([i for i in ids if i not in entries])
        missing = [i for i in ids if i not in entries and i not in damaged]
        reply.missing_rollout_ids.extend(missing)
        settled = {*deleted, *missing}
        reply.kept_rollout_ids.extend(i for i in ids if i not in settled)
        if deleted:
            # It continues if the caller gives up: nothing else would delete the spans before the
            # next deletion.
            await asyncio.shield(self.sweep_soon())
        return len(ids)

    async def _damaged(self, rollout_ids: list[str]) -> set[str]:
        """Return those of some rollouts that are stored but damaged."""
        try:
            await self._engine.load_many(rollout_ids)
        except DataDamaged:
            if len(rollout_ids) == 1:
                return set(rollout_ids)
            return {i for rollout_id in rollout_ids for i in await self._damaged([rollout_id])}
        return set()

    def remove(self, entry: Entry) -> None:
        """Remove a finished rollout without a live attempt, with the next commit. Its group is in memory."""
        state, changes = self._live.state, self._engine.changes
        counters = state.counters
        shelved = self._live.shelf.remove(entry.key)
        if not self._engine.is_durable:
            spans, size = (shelved.count, shelved.bytes) if shelved is not None else (0, 0)
        else:
            spans = sum(attempt.record.span_count for attempt in entry.attempts.values())
            # The size of these spans is not known, because they may be compressed: use the average.
            size = counters.span_bytes * spans // max(1, counters.spans)
        counters.spans -= spans
        counters.span_bytes -= size
        # The finish is no longer reported to waiters.
        self._engine.waiters.reopen(entry.rollout.completion_number)
        if self._live.groups.is_used:
            self._live.groups.leave(entry)
        if self._live.consumers.exist:
            self._live.consumers.change(entry.rollout, None)
        state.count_rollout(entry.rollout.status, 0)
        for attempt in entry.attempts.values():
            state.count_attempt(attempt.record.status, 0)
        state.remove(entry, self._engine.committer.sealed + 1)
        changes.removed.append(entry.key)
        changes.size += ROW_BYTES

    def sweep_soon(self) -> asyncio.Task[None]:
        """Start to delete the spans of removed rollouts. Failures are logged, and end the task."""
        task = asyncio.create_task(self._sweep_logged(), name="sweep")
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)
        return task

    async def _sweep_logged(self) -> None:
        try:
            await self.sweep()
        except Exception:
            logger.exception("spans of removed rollouts remain; the next removal deletes them")

    async def sweep(self) -> None:
        """Delete the spans that removed rollouts left behind, some with each commit."""
        async with self._sweeping:
            while batches := await self._engine.storage.leftover_spans():
                if self._engine.committer.failure is not None:
                    raise self._engine.committer.failure
                self._engine.changes.swept += batches
                self._engine.changes.size += SWEPT_BYTES * len(batches)
                await self._engine.commit()
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Stop sweeping; the store sweeps the rest when it is opened again."""
        for task in list(self._sweeps):
            task.cancel()
        await asyncio.gather(*self._sweeps, return_exceptions=True)


def prefix(input_sizes: Sequence[int]) -> int:
    """Return how many rollouts, from the first on, one commit removes."""
    total = 0
    for i, size in enumerate(input_sizes):
        total += size
        if total > REMOVED_BYTES:
            return max(1, i)
    return len(input_sizes)
