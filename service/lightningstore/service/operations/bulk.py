"""Changes to thousands of rollouts: prepared in slices, applied in one step.

As much as possible is prepared in advance, because the step that applies a batch holds the event
loop and must be short. Other operations change the store between the slices, so prepared records
are compared with the current ones.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.live import ROW_BYTES
from lightningstore.service.engine.state import Entry
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.rows import Completion, RolloutRow
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_CANCELLED, Rollout


class Cancelled(NamedTuple):
    """The prepared record of a cancelled rollout, valid unless the rollout has changed since."""

    entry: Entry
    #: The record from which it was prepared.
    before: Rollout
    #: The finish for waiters. Its record has no completion number yet.
    completion: Completion


class Bulk:
    """Applies many changes of one kind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        self._settling: set[asyncio.Task[None]] = set()

    def enqueue_all(self, entries: Sequence[Entry]) -> None:
        """Add new rollouts, all of them QUEUING, to the tail of the queue: `add_rollout` for many."""
        state, changes = self._live.state, self._engine.committer.changes
        counters, known, queue, inputs = state.counters, state.entries, state.queue, state.inputs
        number = self._engine.committer.sealed + 1
        key, position, size = counters.rollout_key, counters.position, 0
        consumers = self._live.consumers
        limits_of = consumers.limits_of if consumers.limits_claims else None
        with uncollected(len(entries)):
            for entry in entries:
                key += 1
                position += 1
                record, input_json = entry.rollout, entry.input_json
                rollout_id = record.rollout_id
                entry.key, entry.position, entry.changed = key, position, number
                known[rollout_id] = entry
                state.count_queued(entry)
                limits = limits_of(record) if limits_of is not None else ()
                queue.push(rollout_id, position, record.priority, record.mode, record.queue, limits)
                changes.inputs.append((key, input_json))
                changes.rollouts[key] = RolloutRow(key, record, position, 0)
                if record.labels:
                    self._live.save_labels(entry)
                size += len(input_json) + 2 * ROW_BYTES
                inputs.add(entry, number)
        if self._live.groups.is_used:
            for entry in entries:
                self._live.groups.join(entry)
        counters.rollout_key, counters.position = key, position
        changes.size += size
        for entry in entries[:1]:
            status = entry.rollout.status
            counters.rollouts[status] = counters.rollouts.get(status, 0) + len(entries)

    async def prepare_cancelled(self, entries: Sequence[Entry]) -> list[Cancelled]:
        """Prepare the records of rollouts to cancel, except those that have finished."""
        now, turn = self._live.now(), Turn()
        prepared: list[Cancelled] = []
        for entry in dict.fromkeys(entries):
            if not lifecycle.is_finished(entry.rollout):
                prepared.append(cancellation(entry, now))
            if turn.over():
                await turn.next()
        return prepared

    def cancel_all(self, prepared: Sequence[Cancelled], now: Timestamp) -> None:
        """Cancel rollouts, in order. Work that can be deferred is left to `settle_cancelled`."""
        state, changes = self._live.state, self._engine.committer.changes
        counters, number = state.counters, self._engine.committer.sealed + 1
        statuses: Counter[int] = Counter()
        groups = self._live.groups if self._live.groups.is_used else None
        consumers = self._live.consumers if self._live.consumers.exist else None
        with uncollected(len(prepared)):
            for entry, before, told in prepared:
                completion = told
                latest = entry.latest.record if entry.latest is not None else None
                if entry.rollout is not before or completion.shown.attempt is not latest:
                    if lifecycle.is_finished(entry.rollout):
                        continue
                    completion = cancellation(entry, now).completion
                statuses[entry.rollout.status] += 1
                earlier = entry.rollout
                record = entry.rollout = completion.shown.rollout
                self._live.begun.pop(entry, None)
                counters.completion_number += 1
                # The record is this operation's own copy, which is not visible yet.
                record.completion_number = completion.number = counters.completion_number
                record.end_publish_number = counters.resources_updates
                self._live.note_finish(number, completion)
                if groups is not None and record.group_id:
                    groups.finish(entry)
                if consumers is not None:
                    consumers.change(earlier, record)
                    consumers.finished(record)
                if entry.position:
                    self._live.leave_queue(entry)
                changes.rollouts[entry.key] = entry.row()
                entry.changed = number
        changes.size += ROW_BYTES * statuses.total()
        for status, count in statuses.items():
            counters.rollouts[status] -= count
        cancelled = counters.rollouts.get(ROLLOUT_STATUS_CANCELLED, 0) + statuses.total()
        counters.rollouts[ROLLOUT_STATUS_CANCELLED] = cancelled

    async def settle_cancelled(self, prepared: Sequence[Cancelled]) -> None:
        """Do the deferred work of a cancellation. It continues if the caller gives up."""
        task = asyncio.create_task(self._settle(prepared))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _settle(self, prepared: Sequence[Cancelled]) -> None:
        turn = Turn()
        for entry, *_ in prepared:
            if self._engine.committer.failure is not None:
                return  # what is read from disk anew is seen to by whoever reads it
            if self._live.state.holds(entry) and lifecycle.is_finished(entry.rollout):
                self._live.shelf.move(entry.key, entry.rollout)
                self._live.settle_finished(entry)
                self._live.state.touch(entry)
            if turn.over():
                self._engine.seal_changes()
                await turn.next()
        self._engine.seal_changes()


def uncollected(count: int) -> AbstractContextManager[None]:
    """Defer the garbage collector while `count` items are created: it would walk them again and again."""
    return _uncollected() if count > 1000 else nullcontext()


@contextmanager
def _uncollected() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:  # at once: a loop may end before it calls anything again
            gc.enable()


def cancellation(entry: Entry, now: Timestamp) -> Cancelled:
    """Prepare the record of a cancelled rollout."""
    transition = lifecycle.set_status(entry.rollout, ROLLOUT_STATUS_CANCELLED, now)
    record = transition.rollout or entry.rollout
    return Cancelled(entry, entry.rollout, Completion(entry.shown()._replace(rollout=record)))
