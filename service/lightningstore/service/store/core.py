"""What all operations share: finding records, applying transitions, commit and barrier.

An operation runs without an await from its first read to its last write, so it is atomic and the order of
operations is the order of the event loop. What it needs from disk is loaded before. It writes its changes
for the committer; its answer goes out when they are durable.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service import lifecycle
from lightningstore.service.clock import Clock
from lightningstore.service.committer import Committer
from lightningstore.service.completion import Completion
from lightningstore.service.errors import (
    AttemptNotFound,
    BatchTooLarge,
    RolloutNotFound,
    ShuttingDown,
    StorageFailed,
)
from lightningstore.service.eviction import Shelf
from lightningstore.service.lifecycle import Queue, Transition
from lightningstore.service.limits import Limits
from lightningstore.service.records import (
    DICE,
    LATEST,
    NANOS,
    check_id,
    stamp,
)
from lightningstore.service.state import AttemptState, Entry, State
from lightningstore.service.storage.base import Changes, Counters, LoadedRollout, Storage
from lightningstore.service.store.deadlines import Deadlines
from lightningstore.service.store.pace import LOAD_AT_ONCE
from lightningstore.service.store.requests import Requests
from lightningstore.service.store_time import StoreTime
from lightningstore.service.timers import Timers, Worst
from lightningstore.service.waiters import Waiters
from lightningstore.service.workforce import Workforce
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout

ROW_BYTES = 300


class Core(Deadlines):
    """Memory, committer and waiters of one open store."""

    def __init__(self, storage: Storage, clock: Clock, limits: Limits) -> None:
        """Take the parts; `open` brings them to life."""
        self.storage = storage
        self.clock = clock
        self.limits = limits
        self.state = State(Counters())
        self.waiters = Waiters()
        self.workforce = Workforce()
        self.requests = Requests()
        self.committer = Committer(storage, self._publish, self._recover, limits.pending_bytes)
        self.deadlines: Timers[AttemptState] = Timers()
        self.delays: Timers[Entry] = Timers()
        self.earlier = asyncio.Event()
        self.deaf_until = 0.0
        self.lag = Worst()
        #: Told whenever the storage stops or begins to be usable.
        self.on_usable: Callable[[bool], None] = lambda _usable: None
        self.store_id = ""
        self.opened_ns = clock.wall_ns()
        self.opened_at = clock.monotonic()
        self.time = StoreTime(clock, Counters())
        self._completions: deque[tuple[int, Completion]] = deque()
        #: Of the attempts whose span ids somebody reads: set when they are there.
        self.reading: dict[AttemptState, asyncio.Event] = {}
        self._closing = False
        #: Spans in memory, where the storage keeps them there.
        self.shelf = Shelf(limits.eviction_bytes or sys.maxsize, limits.safe_bytes or sys.maxsize)

    # Recovering, closing

    async def _recover(self) -> bool:
        """Drop what is in memory and load it again; False if the store closes. `recovery` knows how."""
        raise NotImplementedError

    def end_polls(self, error: Exception | None) -> None:
        """End all long polls: with an error, or empty-handed. The claims module knows how."""
        raise NotImplementedError

    async def close(self) -> None:
        """End all waits, commit what was accepted, close the storage. May be called twice."""
        self.stop_waiting()
        await self.committer.drain()
        await self.storage.close()

    def stop_waiting(self) -> None:
        """Answer long polls, end waits and watches, take no new ones."""
        self._closing = True
        self.waiters.close(ShuttingDown())
        self.end_polls(None)

    @property
    def closing(self) -> bool:
        """Whether the store is being closed."""
        return self._closing

    # Commit and barrier

    @property
    def changes(self) -> Changes:
        """Where operations write."""
        return self.committer.changes

    async def commit(self) -> None:
        """Number the operation's changes and return when they are durable."""
        if not self.committer.changes.size and not self.workforce.touched:
            await self.barrier()  # it changed nothing
            return
        number = self.seal()
        if number > self.committer.durable_through:
            await self.committer.durable(number)

    def seal(self) -> int:
        """Number the operation's changes, for those who wait for them later."""
        changes = self.committer.changes
        changes.counters = self.state.counters
        if self.storage.durable:
            self.time.save(self.state.counters)
        touched = self.workforce.touched
        if touched:
            changes.workers.update(touched)
            changes.size += ROW_BYTES * len(touched)
            touched.clear()
        number = self.committer.seal()
        self.state.trim(self.committer.durable_through)
        return number

    def seal_changes(self) -> int:
        """Number the operation's changes, if it has any, for `durable_since`."""
        changed = self.committer.changes.size or self.workforce.touched
        return self.seal() if changed else self.committer.sealed

    async def durable_since(self, number: int, failures: int) -> None:
        """Return when a number is durable that was sealed when there were so many failed commits.

        Raises StorageFailed.
        """
        if self.committer.failure is not None or number > self.committer.durable_through:
            await self.committer.durable(number)
        self.check_unbroken(failures)

    def check_unbroken(self, failures: int) -> None:
        """Refuse to go on where memory was loaded anew since there were so many failed commits."""
        if self.committer.failure is not None:
            raise self.committer.failure
        if self.committer.failures != failures:
            raise StorageFailed("a commit failed meanwhile")

    async def barrier(self) -> None:
        """Return when everything that a read can have seen is durable."""
        committer = self.committer
        if committer.failure is not None or committer.sealed > committer.durable_through:
            await committer.durable(committer.sealed)

    async def barrier_since(self, failures: int) -> None:
        """Return when all is durable that was written since `committer.failures` was as given.

        For those who write and wait by turns: after a recovery a barrier alone does not tell what was lost.
        Raises StorageFailed.
        """
        await self.barrier()
        self.check_unbroken(failures)

    def _publish(self) -> None:
        ready = []
        while self._completions and self._completions[0][0] <= self.committer.durable_through:
            ready.append(self._completions.popleft()[1])
        if ready:
            self.waiters.publish(ready)
            for completion in ready:  # few spans come for it now
                entry = self.state.entries.get(completion.rollout_id)
                if entry is not None and entry.changed <= self.committer.durable_through:
                    for attempt in entry.attempts.values():
                        self.state.drop_span_ids(attempt)

    # Finding

    async def load(self, rollout_id: str, field: str = "rollout_id") -> Entry:
        """Return a rollout, from disk if need be. Raises FieldInvalid, RolloutNotFound.

        What follows without an await finds it in memory, and current.
        """
        if not rollout_id:
            check_id(field, rollout_id)
        entry = self.state.entries.get(rollout_id)
        if entry is None:
            found = await self.load_many([rollout_id])
            if not found:
                raise RolloutNotFound(rollout_id)
            entry = found[0]
        else:
            self.state.touch(entry)
        if self.committer.failure is not None:
            raise self.committer.failure
        return entry

    async def load_many(self, rollout_ids: Iterable[str]) -> list[Entry]:
        """Return those of the rollouts that exist, all in memory at once, in the order given."""
        ids = list(dict.fromkeys(rollout_ids))
        absent: set[str] = set()
        self.state.trim(self.committer.durable_through)
        with ExitStack() as stack:
            while missing := [i for i in ids if i not in self.state.entries and i not in absent]:
                for start in range(0, len(missing), LOAD_AT_ONCE):
                    if start:
                        await asyncio.sleep(0)  # let others have the loop
                    absent.update(await self._load_part(missing[start : start + LOAD_AT_ONCE]))
                # More than are kept in memory would push one another out, pass after pass.
                stack.enter_context(self.state.held)
        found = [self.state.entries[i] for i in ids if i in self.state.entries]
        for entry in found:
            self.state.touch(entry)
        return found

    async def _load_part(self, rollout_ids: list[str]) -> list[str]:
        """Bring a few rollouts into memory; returns those that do not exist, or are about to go."""
        missing = dict.fromkeys(rollout_ids)
        going: list[str] = []
        while missing and (loaded := await self.storage.load(list(missing))):
            for item in loaded:
                rollout_id = item.row.rollout.rollout_id
                del missing[rollout_id]
                if rollout_id in self.state.going:
                    going.append(rollout_id)
                else:
                    self.state.touch(self.state.install(item))
            if missing:
                await asyncio.sleep(0)
        return [*missing, *going]

    async def stored(self, rollout_ids: list[str]) -> list[LoadedRollout]:
        """Return what the back end holds of a few rollouts, as it is or was during the call."""
        missing, found = dict.fromkeys(rollout_ids), []
        while missing and (loaded := await self.storage.load(list(missing))):
            found += loaded
            for item in loaded:
                del missing[item.row.rollout.rollout_id]
            if missing:
                await asyncio.sleep(0)
        return found

    def attempt_of(self, entry: Entry, attempt_id: str, field: str = "attempt_id") -> AttemptState:
        """Return an attempt by its id or "latest". Raises FieldInvalid, AttemptNotFound."""
        if not attempt_id:
            check_id(field, attempt_id)
        attempt = entry.latest if attempt_id == LATEST else entry.attempts.get(attempt_id)
        if attempt is None:
            raise AttemptNotFound(entry.rollout.rollout_id, attempt_id)
        return attempt

    def loaded_attempt(self, rollout_id: str, attempt_id: str, field: str = "") -> AttemptState:
        """Return an attempt of a rollout that `load_many` was asked for."""
        check_id(f"{field}rollout_id", rollout_id)
        entry = self.state.entries.get(rollout_id)
        if entry is None:
            raise RolloutNotFound(rollout_id)
        return self.attempt_of(entry, attempt_id, f"{field}attempt_id")

    def check_batch(self, field: str, count: int) -> None:
        """Refuse a batch with more items than the limit."""
        if count > self.limits.batch_items:
            raise BatchTooLarge(field, count, self.limits.batch_items)

    # Applying

    def now(self) -> Timestamp:
        """Return the wall-clock time."""
        return stamp(self.clock.wall_ns())

    def apply(
        self,
        entry: Entry,
        attempt: AttemptState | None,
        transition: Transition,
        now: Timestamp,
        *,
        verdict: bool = False,
    ) -> None:
        """Make a transition true. `verdict` says that the watchdog gave it."""
        if transition.attempt is not None and attempt is not None:
            self.put_attempt(attempt, transition.attempt, now, verdict=verdict)
        if transition.rollout is not None:
            self.put_rollout(entry, transition.rollout, transition.queue, transition.delay)
            if transition.finished:
                self.finish(entry)
        self.state.touch(entry)

    def put_rollout(
        self, entry: Entry, record: Rollout, queue: Queue = Queue.KEEP, delay: float = 0.0
    ) -> None:
        """Replace the record of a rollout and its place in the queue."""
        self.state.count_rollout(entry.rollout.status, record.status)
        if entry.rollout.completion_number and not record.completion_number:
            self.waiters.reopen(entry.rollout.completion_number)
        entry.rollout = record
        self.shelf.move(entry.key, finished=lifecycle.is_finished(record))
        if queue is Queue.OUT:
            self.leave_queue(entry)
        elif queue is Queue.TAIL:
            self.leave_queue(entry)
            if delay > 0:
                self.time.note(self.state.counters)
            self.state.counters.position += 1
            entry.position = self.state.counters.position
            entry.available_ns = 0
            if delay > 0:
                entry.available_ns = self.clock.wall_ns() + int(delay * NANOS)
            self._queue(entry)
        self.save(entry)

    def save(self, entry: Entry) -> None:
        """Have the rollout written with the next commit."""
        changes = self.committer.changes
        changes.rollouts[entry.key] = entry.row()
        changes.size += ROW_BYTES
        entry.changed = self.committer.sealed + 1

    def finish(self, entry: Entry) -> None:
        """Give a finished rollout, whose record nobody has seen yet, its completion number."""
        counters = self.state.counters
        counters.completion_number += 1
        # The record is this operation's own copy, nobody has seen it yet.
        entry.rollout.completion_number = counters.completion_number
        self.note_finish(self.committer.sealed + 1, entry.completion())
        self.settle_finished(entry)

    def note_finish(self, number: int, completion: Completion) -> None:
        """Have waiters told of a finish once the commit of this number is durable."""
        self._completions.append((number, completion))

    def settle_finished(self, entry: Entry) -> None:
        """End or watch the attempts that are left live under a finished rollout."""
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
                self.arm(attempt)

    def _queue(self, entry: Entry) -> None:
        delay = 0.0
        if entry.available_ns:
            delay = self.time.until_position(entry.position, entry.available_ns)
        if delay > 0:
            if self.delays.push(self.clock.monotonic() + delay, entry):
                self.earlier.set()
            return
        rollout = entry.rollout
        self.state.queue.push(rollout.rollout_id, entry.position, rollout.priority, rollout.mode)

    def leave_queue(self, entry: Entry) -> None:
        """Take a rollout out of the queue, if it is in."""
        if entry.position:
            entry.position = entry.available_ns = 0
            self.delays.discard(entry)
            self.state.queue.discard(entry.rollout.rollout_id)

    def queue_due(self, entry: Entry) -> None:
        """Let a rollout be claimed whose back-off is over."""
        rollout = entry.rollout
        self.state.queue.push(rollout.rollout_id, entry.position, rollout.priority, rollout.mode)

    @property
    def queue_depth(self) -> int:
        """Rollouts in the queue, those that wait for their back-off included."""
        return len(self.state.queue) + len(self.delays)

    def put_attempt(
        self, attempt: AttemptState, record: Attempt, now: Timestamp, *, verdict: bool = False
    ) -> None:
        """Replace the record of an attempt; its worker and its deadline follow."""
        old, attempt.record = attempt.record, record
        self.state.count_attempt(old.status, record.status)
        was_live, is_live = lifecycle.is_live(old), lifecycle.is_live(record)
        if was_live and (not is_live or old.worker_id != record.worker_id):
            self.workforce.release(attempt, old.worker_id, now, verdict=verdict)
        if is_live and (not was_live or old.worker_id != record.worker_id):
            self.workforce.assign(attempt, now)
        if is_live and not was_live:
            attempt.heard_at = self.clock.monotonic()
            self.arm(attempt)
        elif was_live and not is_live:
            self.deadlines.discard(attempt)
        self.save_attempt(attempt)

    def heard_from(
        self, attempt: AttemptState, now: Timestamp, *, by_span: bool, added: int = 0
    ) -> None:
        """A sign of life: stamp the attempt, count `added` spans, revive what it revives."""
        attempt.heard_at = self.clock.monotonic()
        entry = attempt.entry
        transition = lifecycle.heard_from(entry.rollout, attempt.record, now, by_span=by_span)
        if added and transition.attempt is not None:
            transition.attempt.span_count += added  # its own copy, nobody has seen it yet
        self.apply(entry, attempt, transition, now)
        self.workforce.heard_from(attempt.record.worker_id, now)

    def save_attempt(self, attempt: AttemptState) -> None:
        """Have the attempt written with the next commit."""
        changes = self.committer.changes
        changes.attempts[attempt.key] = attempt.row()
        changes.size += ROW_BYTES
        attempt.entry.changed = self.committer.sealed + 1

    def new_attempt(self, entry: Entry, record: Attempt, now: Timestamp) -> AttemptState:
        """Add an attempt to a rollout, its latest one."""
        counters = self.state.counters
        self.time.note(counters)
        counters.attempt_key += 1
        attempt = AttemptState(entry, counters.attempt_key, record)
        entry.attempts[record.attempt_id] = attempt
        entry.latest = attempt
        attempt.span_ids = set()
        self.state.count_attempt(0, record.status)
        self.workforce.assign(attempt, now)
        attempt.heard_at = attempt.started_at = self.clock.monotonic()
        self.arm(attempt)
        self.save_attempt(attempt)
        return attempt

    # Request ids

    def remember(
        self, method: str, request: Message, answer: Message, known: int | None = None
    ) -> None:
        """Keep what a request id was answered, if it has one; `known` is the request's digest."""
        request_id: str = request.request_id  # type: ignore[attr-defined]
        if request_id:
            now = self.clock.monotonic()
            row = self.requests.add(method, request, answer, now, known)
            changes = self.committer.changes
            changes.requests.append(row)
            changes.size += ROW_BYTES + len(row.answer)
            if before_ns := self.requests.forget(now):
                changes.forget_requests_before_ns = before_ns

    @staticmethod
    def dice() -> float:
        """Return a random number from 0 to 1, for jitter."""
        return DICE.random()
