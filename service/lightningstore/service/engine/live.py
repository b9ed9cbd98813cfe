"""Applies transitions to live records, and records the changes.

An operation runs without an await from its first read to its last write, so it is atomic, and
operations are ordered by the event loop. Records on disk are loaded before. The operation records
its changes for the committer and answers when they are durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.committer import Committer
from lightningstore.service.engine.consumers import Consumers
from lightningstore.service.engine.deadlines import Deadlines
from lightningstore.service.engine.eviction import Shelf
from lightningstore.service.engine.groups import Groups
from lightningstore.service.engine.shares import Caches
from lightningstore.service.engine.state import AttemptState, Entry, State
from lightningstore.service.engine.versions import Versions
from lightningstore.service.engine.waiters import Waiters
from lightningstore.service.engine.workers import Workforce
from lightningstore.service.rules import lifecycle, rewards
from lightningstore.service.rules.errors import AttemptNotFound, RolloutNotFound
from lightningstore.service.rules.ids import LATEST, check_id
from lightningstore.service.rules.lifecycle import Queue, Transition
from lightningstore.service.rules.rows import Completion
from lightningstore.service.rules.statuses import LIVE_ATTEMPT
from lightningstore.service.rules.times import NANOS, stamp
from lightningstore.service.storage.base import Counters, Snapshot
from lightningstore.v1.attempt_pb2 import Attempt, SpanReward
from lightningstore.v1.rollout_pb2 import Rollout

T = TypeVar("T")

#: Approximate bytes that a record adds to a commit, without its input.
ROW_BYTES = 300
#: Approximate bytes that a label adds to it.
LABEL_BYTES = 100
#: Rollouts that are adopted before other tasks run.
ADOPTED_AT_ONCE = 1000


class Live:
    """Records in memory, and how transitions change them."""

    def __init__(
        self,
        clock: Clock,
        committer: Committer,
        waiters: Waiters,
        shelf: Shelf,
        caches: Caches,
    ) -> None:
        self._clock = clock
        self._caches = caches
        self._committer = committer
        self._waiters = waiters
        #: Spans in memory, if the storage keeps them there.
        self.shelf = shelf
        self.state = State(Counters(), caches)
        self.workforce = Workforce()
        self.deadlines = Deadlines(clock)
        self.groups = Groups(clock, committer, self.deadlines, self.state.counters)
        self.consumers = self._new_consumers()
        #: Rollouts that were claimed and have not finished.
        self.begun: dict[Entry, None] = {}
        # Each with the number of the commit after which it may be seen.
        self._completions: deque[tuple[int, Completion]] = deque()
        self._refreshed: deque[tuple[int, Completion]] = deque()
        self._publications: deque[tuple[int, int]] = deque()

    def _new_consumers(self) -> Consumers:
        return Consumers(self._clock, self._committer, self.deadlines, self.state, self.groups)

    async def adopt(self, snapshot: Snapshot) -> None:
        """Replace all state. The store is new or has failed, and no operation may run meanwhile.

        What has to be counted in the back end is missing: `settle` comes after that.
        """
        self.state.release()
        state = self.state = State(snapshot.counters, self._caches)
        self.deadlines.adopt(snapshot.counters)
        self.workforce = Workforce(snapshot.workers)
        self.groups = Groups(self._clock, self._committer, self.deadlines, state.counters)
        self.groups.adopt(snapshot.groups)
        self.consumers, self.begun = self._new_consumers(), {}
        self.consumers.adopt(snapshot.consumers, snapshot.deliveries)
        self._completions.clear()
        self._refreshed.clear()
        self._publications.clear()
        state.resources = Versions(snapshot.resources)
        entries: list[Entry] = []
        for i, loaded in enumerate(snapshot.live, 1):
            entries.append(state.install(loaded))
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        attempts = [a for e in entries for a in e.attempts.values() if lifecycle.is_live(a.record)]
        attempts.sort(key=lambda attempt: attempt.key)
        for i, attempt in enumerate(attempts, 1):
            self.deadlines.started_at(attempt)
            attempt.heard_at = self._clock.monotonic()  # a fresh interval after every restart
            self.deadlines.arm(attempt)
            self.workforce.resume(attempt)
            state.resources.hold(attempt.key, attempt.record)
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        for i, entry in enumerate(entries, 1):
            self._note_begun(entry, entry.rollout)
            if entry.position:
                self._queue(entry)
            if self.groups.loaded:
                self.groups.attach(entry)
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self.deadlines.earlier.set()

    def settle(self) -> None:
        """Complete what was lost, once the items of consumers are counted."""
        self.follow_groups()
        self.groups.settle()

    def follow_groups(self) -> None:
        """Have consumers follow groups, if there are any consumers."""
        self.groups.followers = self.consumers if self.consumers.exist else None

    @property
    def has_news(self) -> bool:
        """Whether something is to be reported to waiters, now or after a commit."""
        return bool(self._completions or self._refreshed or self._publications)

    def take_completions(self, through: int) -> list[Completion]:
        """Remove and return the finishes of commits up to the given one, in completion order."""
        return _take(self._completions, through)

    def take_refreshed(self, through: int) -> list[Completion]:
        """Remove and return the finished rollouts that commits up to the given one have changed since."""
        return _take(self._refreshed, through)

    def note_publication(self, publish_number: int) -> None:
        """Notify watchers of resources when the commit of this operation is durable."""
        self._publications.append((self._committer.sealed + 1, publish_number))

    def take_publications(self, through: int) -> list[int]:
        """Remove and return the publish numbers of commits up to the given one, in order."""
        return _take(self._publications, through)

    def drop_span_ids(self, completions: list[Completion], durable_through: int) -> None:
        """Drop the span ids of finished rollouts, which get few more spans."""
        for completion in completions:
            entry = self.state.entries.get(completion.rollout_id)
            if entry is not None and entry.changed <= durable_through:
                for attempt in entry.attempts.values():
                    self.state.drop_span_ids(attempt)

    def attempt_of(self, entry: Entry, attempt_id: str, field: str = "attempt_id") -> AttemptState:
        """Return an attempt by its id or "latest". Raises FieldInvalid, AttemptNotFound."""
        if not attempt_id:
            check_id(field, attempt_id)
        attempt = entry.latest if attempt_id == LATEST else entry.attempts.get(attempt_id)
        if attempt is None:
            raise AttemptNotFound(entry.rollout.rollout_id, attempt_id)
        return attempt

    def loaded_attempt(self, rollout_id: str, attempt_id: str, field: str = "") -> AttemptState:
        """Return an attempt of a rollout that was passed to `load_many`."""
        check_id(f"{field}rollout_id", rollout_id)
        entry = self.state.entries.get(rollout_id)
        if entry is None:
            raise RolloutNotFound(rollout_id)
        return self.attempt_of(entry, attempt_id, f"{field}attempt_id")

    def now(self) -> Timestamp:
        """Return the wall-clock time."""
        return stamp(self._clock.wall_ns())

    def apply(
        self,
        entry: Entry,
        attempt: AttemptState | None,
        transition: Transition,
        now: Timestamp,
        *,
        verdict: bool = False,
    ) -> None:
        """Apply a transition. `verdict`: it is an expiry set by the watchdog."""
        if transition.attempt is not None and attempt is not None:
            self.put_attempt(attempt, transition.attempt, now, verdict=verdict)
        if transition.rollout is not None:
            if transition.finished:
                # Before the row is made, which has the lag. The record is this operation's own copy.
                transition.rollout.end_publish_number = self.state.counters.resources_updates
            self.put_rollout(entry, transition.rollout, transition.queue, transition.delay)
            if transition.finished:
                self.finish(entry)
        self.state.touch(entry)

    def add_rollout(self, entry: Entry, *, queued: bool) -> None:
        """Add a new rollout to the store, and to the queue if `queued`."""
        counters, changes = self.state.counters, self._committer.changes
        counters.rollout_key += 1
        entry.key = counters.rollout_key
        self.state.entries[entry.rollout.rollout_id] = entry
        self.state.count_rollout(0, entry.rollout.status)
        changes.inputs.append((entry.key, entry.input_json))
        changes.size += entry.input_bytes + ROW_BYTES
        self.save_labels(entry)
        if self.groups.is_used:
            self.groups.join(entry)
        self.put_rollout(entry, entry.rollout, Queue.TAIL if queued else Queue.KEEP)

    def put_rollout(
        self, entry: Entry, record: Rollout, queue: Queue = Queue.KEEP, delay: float = 0.0
    ) -> None:
        """Replace the record of a rollout and its queue position."""
        self.state.count_rollout(entry.rollout.status, record.status)
        if entry.rollout.completion_number and not record.completion_number:
            self._waiters.reopen(entry.rollout.completion_number)
        if entry.rollout is not record:
            if self.groups.is_used:
                self.groups.follow(entry, record)
            if self.consumers.exist:
                self.consumers.change(entry.rollout, record)
        entry.rollout = record
        self._note_begun(entry, record)
        if self.groups.begun:
            self.regroup()
        self.shelf.move(entry.key, record)
        if queue is Queue.OUT:
            self.leave_queue(entry)
        elif queue is Queue.TAIL:
            self.leave_queue(entry)
            if delay > 0:
                self.deadlines.time.note(self.state.counters)
            self.state.counters.position += 1
            entry.position = self.state.counters.position
            entry.available_ns = 0
            if delay > 0:
                entry.available_ns = self._clock.wall_ns() + int(delay * NANOS)
            self._queue(entry)
            self.state.inputs.add(entry, self._committer.sealed + 1)
        self.save(entry)

    def _note_begun(self, entry: Entry, record: Rollout) -> None:
        if record.attempt_count and not lifecycle.is_finished(record):
            self.begun[entry] = None
        else:
            self.begun.pop(entry, None)

    def regroup(self) -> None:
        """Have the queue tell members of groups that have begun, or were created, from others."""
        groups, self.groups.begun = self.groups.begun, []
        if self.consumers.limits_claims:
            for group in groups:
                for entry in group.unfinished:
                    if entry.rollout.rollout_id in self.state.queue:
                        self.queue_due(entry)

    def put_input(self, entry: Entry, input_json: bytes) -> None:
        """Replace the input of a rollout, whose record is saved in the same operation."""
        entry.input_json, entry.input_bytes = input_json, len(input_json)
        if entry.position:
            self.state.inputs.discard(entry)
            self.state.inputs.add(entry, self._committer.sealed + 1)
        changes = self._committer.changes
        changes.inputs.append((entry.key, input_json))
        changes.size += len(input_json)

    def save(self, entry: Entry) -> None:
        """Include the rollout in the next commit."""
        changes = self._committer.changes
        changes.rollouts[entry.key] = entry.row()
        changes.size += ROW_BYTES
        self._note_change(entry)

    def save_labels(self, entry: Entry, *, clear: bool = False) -> None:
        """Include the labels of a rollout in the next commit, unless it has none; `clear`: also then.

        Its record contains them too, and is saved in the same operation.
        """
        labels = entry.rollout.labels
        if labels or clear:
            changes = self._committer.changes
            changes.labels[entry.key] = dict(labels)
            changes.size += LABEL_BYTES * (1 + len(labels))

    def _note_change(self, entry: Entry) -> None:
        entry.changed = self._committer.sealed + 1
        if entry.rollout.completion_number:
            self._refreshed.append((entry.changed, entry.completion()))

    def finish(self, entry: Entry) -> None:
        """Assign a completion number to a finished rollout, whose record is not visible yet."""
        counters = self.state.counters
        counters.completion_number += 1
        # The record is this operation's own copy, which is not visible yet.
        entry.rollout.completion_number = counters.completion_number
        if self.consumers.exist:
            self.consumers.finished(entry.rollout)
        self.note_finish(self._committer.sealed + 1, entry.completion())
        self.settle_finished(entry)

    def note_finish(self, number: int, completion: Completion) -> None:
        """Notify waiters of a finish when the commit of this number is durable."""
        self._completions.append((number, completion))

    def settle_finished(self, entry: Entry) -> None:
        """End the attempts that are still live under a finished rollout, or set their deadlines."""
        for attempt in entry.attempts.values():
            if not lifecycle.is_live(attempt.record):
                continue
            now, latest = self.now(), entry.latest or attempt
            transition = lifecycle.finish_superseded(
                entry.rollout, attempt.record, latest.record, now
            )
            if transition.attempt is not None:
                self.put_attempt(attempt, transition.attempt, now)
            else:
                self.deadlines.arm(attempt)

    def _queue(self, entry: Entry) -> None:
        self.state.count_queued(entry)
        delay = 0.0
        if entry.available_ns:
            delay = self.deadlines.time.until_position(entry.position, entry.available_ns)
        if delay > 0:
            self.deadlines.delay(entry, delay)
            return
        self.queue_due(entry)

    def leave_queue(self, entry: Entry) -> None:
        """Remove a rollout from the queue, if it is in it."""
        if entry.position:
            entry.position = entry.available_ns = 0
            self.state.count_queued(entry)
            self.state.inputs.discard(entry)
            self.deadlines.delays.discard(entry)
            self.state.queue.discard(entry.rollout.rollout_id)

    def leave_queue_all(self, entries: Sequence[Entry]) -> None:
        """Remove rollouts, which have positions, from the queue: `leave_queue` for many."""
        state, delays = self.state, self.deadlines.delays
        for entry in entries:
            entry.position = entry.available_ns = 0
            state.count_queued(entry)
            state.inputs.discard(entry)
            delays.discard(entry)
        state.queue.discard_all([entry.rollout.rollout_id for entry in entries])

    def queue_due(self, entry: Entry) -> None:
        """Make a rollout claimable when its back-off has ended."""
        rollout = entry.rollout
        limits = self.consumers.limits_of(rollout)
        self.state.queue.push(
            rollout.rollout_id,
            entry.position,
            rollout.priority,
            rollout.mode,
            rollout.queue,
            limits,
        )

    def requeue(self, entry: Entry) -> None:
        """Have the queue follow a changed priority, mode, task queue, group or label, at the same position."""
        if entry.position:
            self.state.count_queued(entry)
            if entry not in self.deadlines.delays:
                self.queue_due(entry)

    @property
    def paused(self) -> bool:
        """Whether claims are paused."""
        return bool(self.state.counters.pause)

    @property
    def running_attempt_count(self) -> int:
        """Attempts that are PREPARING or RUNNING."""
        return sum(self.state.counters.attempts.get(status, 0) for status in LIVE_ATTEMPT)

    @property
    def queue_depth(self) -> int:
        """Rollouts in the queue, including those that wait for their back-off."""
        return len(self.state.queue) + len(self.deadlines.delays)

    def put_attempt(
        self, attempt: AttemptState, record: Attempt, now: Timestamp, *, verdict: bool = False
    ) -> None:
        """Replace the record of an attempt, and update its worker and deadline."""
        old, attempt.record = attempt.record, record
        self.state.count_attempt(old.status, record.status)
        was_live, is_live = lifecycle.is_live(old), lifecycle.is_live(record)
        if was_live and (not is_live or old.worker_id != record.worker_id):
            self.workforce.release(attempt, old.worker_id, now, verdict=verdict)
        if is_live and (not was_live or old.worker_id != record.worker_id):
            self.workforce.assign(attempt, now)
        if is_live and not was_live:
            attempt.heard_at = self._clock.monotonic()
            self.deadlines.arm(attempt)
            self.state.resources.hold(attempt.key, record)
        elif was_live and not is_live:
            self.deadlines.attempts.discard(attempt)
            self.state.resources.release(attempt.key, record)
        self.save_attempt(attempt)
        entry = attempt.entry
        if attempt is entry.latest and rewards.differ(old, record):
            self.save(entry)  # lists and series look for them there

    def heard_from(
        self,
        attempt: AttemptState,
        now: Timestamp,
        *,
        by_span: bool,
        added: int = 0,
        reward: SpanReward | None = None,
    ) -> None:
        """Apply a span or heartbeat: set the time, count `added` spans and their reward, revive the attempt."""
        attempt.heard_at = self._clock.monotonic()
        entry = attempt.entry
        transition = lifecycle.heard_from(entry.rollout, attempt.record, now, by_span=by_span)
        if added and transition.attempt is not None:
            transition.attempt.span_count += added  # its own copy, not visible yet
            if reward is not None:
                rewards.add_from_span(transition.attempt, reward)
        self.apply(entry, attempt, transition, now)
        self.workforce.heard_from(attempt.record.worker_id, now)

    def save_attempt(self, attempt: AttemptState) -> None:
        """Include the attempt in the next commit."""
        changes = self._committer.changes
        changes.attempts[attempt.key] = attempt.row()
        changes.size += ROW_BYTES
        self._note_change(attempt.entry)

    def new_attempt(self, entry: Entry, record: Attempt, now: Timestamp) -> AttemptState:
        """Add the latest attempt of a rollout."""
        counters = self.state.counters
        self.deadlines.time.note(counters)
        counters.attempt_key += 1
        attempt = AttemptState(entry, counters.attempt_key, record)
        entry.attempts[record.attempt_id] = attempt
        before, entry.latest = entry.latest, attempt
        if before is not None and rewards.differ(before.record, record):
            self.save(entry)
        attempt.span_ids = set()
        self.state.count_attempt(0, record.status)
        self.workforce.assign(attempt, now)
        self.state.resources.hold(attempt.key, record)
        attempt.heard_at = attempt.started_at = self._clock.monotonic()
        self.deadlines.arm(attempt)
        self.save_attempt(attempt)
        return attempt


def _take(noted: deque[tuple[int, T]], through: int) -> list[T]:
    ready = []
    while noted and noted[0][0] <= through:
        ready.append(noted.popleft()[1])
    return ready
