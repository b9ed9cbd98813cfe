"""The engine of one open store: loading records, commit, barrier, and recovery from failures.

An operation runs without an await from its first read to its last write, so it is atomic, and the order of
operations is the order of the event loop. It loads the records it needs before that, and answers when its
changes are durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from google.protobuf.message import Message
from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.committer import Committer
from lightningstore.service.engine.counting import Counting, restored
from lightningstore.service.engine.eviction import Shelf
from lightningstore.service.engine.live import ROW_BYTES, Live
from lightningstore.service.engine.pace import LOAD_AT_ONCE
from lightningstore.service.engine.polls import Polls
from lightningstore.service.engine.recent import Recent
from lightningstore.service.engine.requests import Requests
from lightningstore.service.engine.shared import Shared
from lightningstore.service.engine.state import Entry
from lightningstore.service.engine.waiters import Waiters
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    DataDamaged,
    DataFileLost,
    OwnershipLost,
    RolloutNotFound,
    ShuttingDown,
    StorageFailed,
    StoreError,
)
from lightningstore.service.rules.ids import DICE, check_id
from lightningstore.service.rules.limits import Limits
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.rules.rows import LoadedRollout, Shown
from lightningstore.service.rules.settings import Settings, limits_of, parse
from lightningstore.service.rules.times import NANOS
from lightningstore.service.storage.base import UNLIMITED, Changes, Snapshot, Storage
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

logger = logging.getLogger(__name__)

RECOVERY_PAUSE = 0.5
#: A storage that stays unusable is logged at the 1st, 2nd, 4th, 8th … try, and every LOGGED_TRIES tries, a minute.
LOGGED_TRIES = 120
#: The storage is usable again when it accepts as many bytes as are pending, up to this maximum.
PROBE_BYTES = 1 << 20
#: Seconds between two checks of whether the data is still there, and this server's.
CHECK_SECONDS = 0.4


class Engine:
    """Live state, group commit and waits of one open store.

    Operations load what they need, change `live`, and commit.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        limits: Limits,
        shared: Shared | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        """Take the parts; `open` brings them to life.

        `limits` are those of the server, some of which the settings of the namespace replace. `shared` are those that
        apply to all stores of the process together; None: this is its only one.
        """
        self.storage = storage
        self.namespace = namespace
        self.shared = shared or Shared(limits)
        #: The settings of the namespace, which are replaced and never changed.
        self.settings = Settings()
        self.server_limits = limits
        #: Whether records outlive the process.
        self.is_durable = storage.durability != DURABILITY_NONE
        self.clock = clock
        self.limits = limits
        self.waiters = Waiters(self.shared.caches.completions)
        self.committer = Committer(storage, self._publish, self._recover, self.shared.pending)
        shelf = Shelf(self.shared.spans)
        self.live = Live(clock, self.committer, self.waiters, shelf, self.shared.caches)
        self.polls = Polls(self.live, self._serve_rest)
        self.requests = Requests()
        #: Finishes of rollouts, as callers learned of them.
        self.finishes = Recent()
        self.store_id = ""
        #: When the first store of the process was opened: wall-clock nanoseconds, and monotonic seconds.
        self.started_ns, self.started_at = self.shared.started(clock)
        self._closing = False
        self._usability_watchers: list[Callable[[bool], None]] = []

    def watch_usability(self, watcher: Callable[[bool], None]) -> None:
        """Call `watcher` with False when the storage fails, and with True when it is usable again."""
        self._usability_watchers.append(watcher)

    def _report_usability(self, *, usable: bool) -> None:
        for watcher in self._usability_watchers:
            watcher(usable)

    def _serve_rest(self) -> None:
        """Continue after `polls.serve` let other tasks run."""
        if self.committer.failure is None:
            self.polls.serve()
            self.seal_changes()

    async def open(self) -> None:
        """Load what is live. Raises StorageUnusable."""
        await self._adopt(await self.storage.open())
        self.committer.start()

    async def _adopt(self, snapshot: Snapshot) -> None:
        self.store_id = snapshot.store_id
        self.apply_settings(parse(snapshot.settings))
        self.requests = Requests(snapshot.requests, self.clock.monotonic())
        self.waiters.published = snapshot.counters.completion_number
        self.waiters.published_resources = snapshot.counters.resources_updates
        self.waiters.published_groups = snapshot.counters.group_completion_number
        snapshot.deliveries = await restored(self.storage, snapshot)
        await self.live.adopt(snapshot)
        counting = Counting(self.storage, self.live)
        for sub in self.live.consumers:
            await counting.count(sub)
        self.live.settle()

    def apply_settings(self, settings: Settings) -> None:
        """Replace the settings, and the limits that they set."""
        self.settings = settings
        self.limits = limits_of(settings, self.server_limits)

    async def _recover(self) -> bool:
        """Drop live state and load it again, until that succeeds; False if service ends instead."""
        error = self.committer.failure or StorageFailed("unknown")
        self._report_usability(usable=False)
        self.waiters.fail(error)
        self.polls.end(error)
        tries = 0
        while not self._closing:
            if isinstance(self.committer.failure, OwnershipLost):
                await self._give_up(self.committer.failure)
                return False
            try:
                await self._adopt(await self.storage.open())
                await self.storage.probe(min(self.committer.pending_bytes, PROBE_BYTES))
            except OwnershipLost as lost:
                self.committer.failure = lost
                self._report_usability(
                    usable=False
                )  # now for good: the namespace can be opened again
            except Exception as failure:
                tries += 1
                _log_try(tries, failure)
                await self.clock.wait(asyncio.Event(), self.clock.monotonic() + RECOVERY_PAUSE)
            else:
                logger.info("the storage is usable again, after %d failed tries", tries)
                self._report_usability(usable=True)
                return True
        return False

    async def _give_up(self, lost: OwnershipLost) -> None:
        """End service for good, because another process owns the data."""
        logger.error("the store stops serving: %s", lost)
        try:
            await self.storage.close()
        except Exception:
            logger.exception("the storage could not be closed")

    async def watch_storage(self) -> None:
        """Fail every call once the data is gone or no longer owned, until cancelled.

        Sleeps by the machine's clock, because no rule of the store depends on it.
        """
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self.committer.failure is None:
                try:
                    self.storage.check()
                    self.check_owned()
                except StoreError as error:
                    self.committer.fail(error)

    def check_owned(self) -> None:
        """Stop serving if another process may own the data. Raises OwnershipLost."""
        until = self.storage.owned_until
        if until < UNLIMITED and self.clock.boot()[1] >= until * NANOS:
            lost = OwnershipLost("its lease is over")
            self.committer.fail(lost)
            raise lost

    async def close(self) -> None:
        """End all waits, commit accepted changes, close the storage. May be called twice."""
        self.stop_waiting()
        await self.committer.drain()
        self.live.state.release()
        await self.storage.close()

    def stop_waiting(self, error: StoreError | None = None) -> None:
        """Answer long polls, end waits and watches with an error (ShuttingDown), and accept no new ones."""
        self._closing = True
        self.waiters.close(error or ShuttingDown())
        self.polls.end(None)

    @property
    def closing(self) -> bool:
        """Whether the store is being closed."""
        return self._closing

    @property
    def changes(self) -> Changes:
        """Where operations write."""
        return self.committer.changes

    async def commit(self) -> None:
        """Number the operation's changes and return when they are durable."""
        if not self.committer.changes.size and not self.live.workforce.touched:
            await self.barrier()  # the operation changed nothing
            return
        number = self.seal()
        if number > self.committer.durable_through:
            await self.committer.durable(number)

    def seal(self) -> int:
        """Number the operation's changes; returns the number, for callers that wait later."""
        changes = self.committer.changes
        changes.counters = self.live.state.counters
        if self.is_durable:
            self.live.deadlines.time.save(self.live.state.counters)
        touched = self.live.workforce.touched
        if touched:
            changes.workers.update(touched)
            changes.size += ROW_BYTES * len(touched)
            touched.clear()
        if self.live.groups.touched:
            self.live.groups.save(changes)
        number = self.committer.seal()
        if self.is_durable:  # else `_publish` has done it
            self.live.state.trim(self.committer.durable_through)
        return number

    def seal_changes(self) -> int:
        """Number the operation's changes, if it has any, for `durable_since`."""
        changed = self.committer.changes.size or self.live.workforce.touched
        return self.seal() if changed else self.committer.sealed

    async def durable_since(self, number: int, failures: int) -> None:
        """Return when `number` is durable, sealed when `committer.failures` was `failures`. Raises StorageFailed."""
        if self.committer.failure is not None or number > self.committer.durable_through:
            await self.committer.durable(number)
        self.check_unbroken(failures)

    def check_unbroken(self, failures: int) -> None:
        """Raise StorageFailed if live state was reloaded since `committer.failures` was `failures`."""
        if self.committer.failure is not None:
            raise self.committer.failure
        if self.committer.failures != failures:
            raise StorageFailed("a commit failed meanwhile")

    async def barrier(self) -> None:
        """Return when everything that a read can have seen is durable. Raises OwnershipLost after the lease.

        Call it after reading memory and before answering: the read was then true at some moment of the call.
        """
        committer = self.committer
        if committer.failure is not None or committer.sealed > committer.durable_through:
            await committer.durable(committer.sealed)
        if self.storage.owned_until < UNLIMITED:
            self.check_owned()

    async def barrier_since(self, failures: int) -> None:
        """Return when everything written since `committer.failures` was `failures` is durable. Raises StorageFailed.

        For operations that write and wait in turns: after a recovery, `barrier` alone does not show what was lost.
        """
        await self.barrier()
        self.check_unbroken(failures)

    def _publish(self) -> None:
        self.live.state.trim(self.committer.durable_through)
        if self.live.groups.is_used:
            self._publish_groups()
        if not self.live.has_news:
            return
        ready = self.live.take_completions(self.committer.durable_through)
        if ready:
            self.waiters.publish(ready)
            self.finishes.add(len(ready), self.clock.monotonic())
            self.live.consumers.wake_all()
            self.live.drop_span_ids(ready, self.committer.durable_through)
        for completion in self.live.take_refreshed(self.committer.durable_through):
            self.waiters.refresh(completion)
        if numbers := self.live.take_publications(self.committer.durable_through):
            self.waiters.publish_resources(numbers[-1])

    def _publish_groups(self) -> None:
        groups, through = self.live.groups, self.committer.durable_through
        if not self.live.state.held.count:
            groups.trim(through)
        if number := groups.take_completed(through):
            self.waiters.publish_groups(number)
            self.live.consumers.wake_all()

    # Finding

    async def load(
        self, rollout_id: str, field: str = "rollout_id", *, inputs: bool = False
    ) -> Entry:
        """Return a rollout, loaded from the storage if necessary; with its input if `inputs` is true.

        It stays in memory, and current, until the caller's next await. Raises FieldInvalid, RolloutNotFound.
        """
        if not rollout_id:
            check_id(field, rollout_id)
        entry = self.live.state.entries.get(rollout_id)
        if entry is None or (inputs and entry.lacks_input):
            found = await self.load_many([rollout_id], inputs=inputs)
            if not found:
                await self.barrier()  # it may have been removed a moment ago
                raise RolloutNotFound(rollout_id)
            entry = found[0]
        else:
            self.live.state.touch(entry)
        if self.committer.failure is not None:
            raise self.committer.failure
        return entry

    async def load_many(self, rollout_ids: Iterable[str], *, inputs: bool = False) -> list[Entry]:
        """Return those of the rollouts that exist, all in memory at once, in the order given.

        With `inputs` those are in memory, too; else they may be missing of rollouts that are or were queued. What follows without an await finds them current. Raises StorageFailed while memory is loaded anew.
        """
        ids = list(dict.fromkeys(rollout_ids))
        absent: set[str] = set()

        def is_missing(rollout_id: str) -> bool:
            entry = self.live.state.entries.get(rollout_id)
            missing = entry is None or (inputs and entry.lacks_input)
            return missing and rollout_id not in absent

        self.live.state.trim(self.committer.durable_through)
        with ExitStack() as stack:
            while missing := [i for i in ids if is_missing(i)]:
                for start in range(0, len(missing), LOAD_AT_ONCE):
                    if start:
                        await asyncio.sleep(0)  # let others have the loop
                    absent.update(await self._load_part(missing[start : start + LOAD_AT_ONCE]))
                # More than are kept in memory would push one another out, pass after pass.
                stack.enter_context(self.live.state.held)
        if self.committer.failure is not None:
            raise self.committer.failure
        found = [self.live.state.entries[i] for i in ids if i in self.live.state.entries]
        for entry in found:
            self.live.state.touch(entry)
        return found

    async def load_taken(self, rollout_ids: list[str]) -> None:
        """Bring into memory those of some generated ids that exist, which is next to impossible. Raises StorageFailed."""
        if len(rollout_ids) > 1 or await self.storage.load(rollout_ids):
            await self.load_many(rollout_ids)

    async def _load_part(self, rollout_ids: list[str]) -> list[str]:
        """Bring a few rollouts into memory; returns those that do not exist, or are about to go.

        The back end may take its time: what it returns is outdated where a rollout came into memory, changed
        and left it again meanwhile, or was removed. Such a rollout is loaded again.
        """
        missing = dict.fromkeys(rollout_ids)
        absent: list[str] = []
        while missing:
            state = self.live.state
            with state.loading(tuple(missing)) as outdated:
                loaded = await self.storage.load(list(missing))
            self.check_owned()  # the next owner may have changed them, which does not fit to what is in memory
            if state is not self.live.state:
                continue  # memory was loaded anew
            if not loaded:
                absent += [i for i in missing if i not in outdated]
                missing = dict.fromkeys(i for i in missing if i in outdated)
            for item in loaded:
                rollout_id = item.row.rollout.rollout_id
                if rollout_id in outdated:
                    continue
                del missing[rollout_id]
                if rollout_id in state.going:
                    absent.append(rollout_id)
                else:
                    state.touch(state.install(item))
            if missing:
                await asyncio.sleep(0)
        return absent

    async def with_inputs(self, rollouts: Sequence[Shown]) -> list[Shown]:
        """Return rollouts with the inputs that they lack, where those are still stored and not damaged."""
        lacking = [shown.rollout.rollout_id for shown in rollouts if shown.lacks_input]
        if not lacking:
            return list(rollouts)
        with self.live.state.held:
            loaded = {
                entry.key: entry.input_json for entry in await self.load_sound(lacking, inputs=True)
            }
        return [
            shown._replace(input_json=loaded.get(shown.key, b"")) if shown.lacks_input else shown
            for shown in rollouts
        ]

    async def load_sound(self, rollout_ids: list[str], *, inputs: bool = False) -> list[Entry]:
        """Return what `load_many` does, without those that are damaged."""
        try:
            return await self.load_many(rollout_ids, inputs=inputs)
        except DataDamaged:
            if len(rollout_ids) == 1:
                return []
        sound = [i for i in rollout_ids if await self.load_sound([i], inputs=inputs)]
        return await self.load_many(sound, inputs=inputs)

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

    def check_batch(self, field: str, count: int) -> None:
        """Refuse a batch with more items than the limit."""
        if count > self.limits.batch_items:
            raise BatchTooLarge(field, count, self.limits.batch_items)

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


def _log_try(tries: int, failure: Exception) -> None:
    """Log a failed try to recover: the first with its traceback, the others seldom."""
    if tries == 1:
        logger.error(
            "the storage is still unusable; trying again every %s s",
            RECOVERY_PAUSE,
            exc_info=None if isinstance(failure, DataFileLost) else failure,  # that was logged
        )
    elif tries & (tries - 1) == 0 or tries % LOGGED_TRIES == 0:
        logger.error("the storage is still unusable after %d tries: %s", tries, failure)
