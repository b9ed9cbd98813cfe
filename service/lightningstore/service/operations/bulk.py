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
    #: Its stored form, with the same record.
    row: RolloutRow


class Bulk:
    """Applies many changes of one kind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        self._settling: set[asyncio.Task[None]] = set()

    def enqueue_all(self, entries: Sequence[Entry]) -> None:
        """Add new rollouts, all of them QUEUING, to the tail of the queue: `add_rollout` for many, without their groups."""
        state, changes = self._live.state, self._engine.committer.changes
        counters, known, inputs = state.counters, state.entries, state.inputs
        number = self._engine.committer.sealed + 1
        key, position, size = counters.rollout_key, counters.position, 0
        push, put_input, rows = state.queue.push, changes.inputs.append, changes.rollouts
        consumers = self._live.consumers
        limits_of = consumers.limits_of if consumers.limits_claims else None
        with uncollected(len(entries)):
            for entry in entries:
                key += 1
                position += 1
                record, input_json = entry.rollout, entry.input_json
                rollout_id, queue = record.rollout_id, record.queue
                entry.key, entry.position, entry.changed = key, position, number
                known[rollout_id] = entry
                depth = state.depth_of(queue)
                depth.count += 1
                entry.queued_in = depth
                limits = limits_of(record) if limits_of is not None else ()
                push(rollout_id, position, record.priority, record.mode, queue, limits)
                put_input((key, input_json))
                rows[key] = RolloutRow(key, record, position, 0)
                size += len(input_json) + 2 * ROW_BYTES
                if record.labels:
                    self._live.save_labels(entry)
                inputs.add(entry, number)
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
                prepared.append(self.cancellation(entry, now))
            if turn.over():
                await turn.next()
        return prepared

    def cancellation(self, entry: Entry, now: Timestamp) -> Cancelled:
        """Prepare the record of an unfinished rollout to cancel."""
        transition = lifecycle.set_status(entry.rollout, ROLLOUT_STATUS_CANCELLED, now)
        record = transition.rollout or entry.rollout
        record.end_publish_number = self._live.state.counters.resources_updates
        completion = Completion(entry.shown()._replace(rollout=record))
        row = RolloutRow(entry.key, record, 0, 0, entry.measured(record))
        return Cancelled(entry, entry.rollout, completion, row)

    def cancel_all(self, prepared: Sequence[Cancelled], now: Timestamp) -> None:
        """Cancel rollouts, in order. Work that can be deferred is left to `settle_cancelled`."""
        changes, counters = self._engine.committer.changes, self._live.state.counters
        number, publish_number = self._engine.committer.sealed + 1, counters.resources_updates
        rows, begun, note_finish = changes.rollouts, self._live.begun, self._live.note_finish
        before: list[Rollout] = []
        done: list[Entry] = []
        with uncollected(len(prepared)):
            for cancelled in prepared:
                entry, earlier, completion, row = cancelled
                record = row.rollout
                latest = entry.latest.record if entry.latest is not None else None
                if (
                    entry.rollout is not earlier
                    or completion.shown.attempt is not latest
                    or record.end_publish_number != publish_number
                ):
                    if lifecycle.is_finished(entry.rollout):
                        continue
                    _, earlier, completion, row = self.cancellation(entry, now)
                    record = row.rollout
                counters.completion_number += 1
                # The record is this operation's own copy, which is not visible yet.
                record.completion_number = completion.number = counters.completion_number
                begun.pop(entry, None)
                note_finish(number, completion)
                rows[entry.key] = row
                entry.rollout, entry.changed = record, number
                before.append(earlier)
                done.append(entry)
            self._follow_cancelled(before, done)
        changes.size += ROW_BYTES * len(done)

    def _follow_cancelled(self, before: Sequence[Rollout], done: Sequence[Entry]) -> None:
        """Have counters, groups, consumers and the queue follow cancelled rollouts, which had the records `before`."""
        counts = self._live.state.counters.rollouts
        for status, count in Counter(record.status for record in before).items():
            counts[status] -= count
        if done:
            counts[ROLLOUT_STATUS_CANCELLED] = counts.get(ROLLOUT_STATUS_CANCELLED, 0) + len(done)
        if self._live.groups.is_used:
            members: dict[str, list[Entry]] = {}
            for entry in done:
                if group_id := entry.rollout.group_id:
                    # A group completes with its last member: to the end.
                    own = members[group_id] = members.pop(group_id, [])
                    own.append(entry)
            for group_id, own in members.items():
                self._live.groups.finish_all(group_id, own)
        if self._live.consumers.exist:
            for earlier, entry in zip(before, done, strict=True):
                self._live.consumers.change(earlier, entry.rollout)
                self._live.consumers.finished(entry.rollout)
        self._live.leave_queue_all([entry for entry in done if entry.position])

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
