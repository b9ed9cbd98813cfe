"""Registry of waits, watches and long polls. They are woken by events, without polling.

Everything here runs on the event loop. Only the committer publishes, after
a commit, so no waiter sees a finish or a version of resources that a crash can undo.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice

from lightningstore.service.engine.clock import Clock, Turn
from lightningstore.service.engine.shares import Part, Share
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.rules.rows import Completion

#: Seconds without another message after which a stream sends a keep-alive.
ALIVE_SECONDS = 15.0
RECENT_COMPLETIONS = 4096
#: A waiter for more rollouts than this is removed by a separate task, which lets other tasks run.
FORGOTTEN_AT_ONCE = 1000


class Waiter:
    """One stream that waits. `ready` is set when there is something to read."""

    __slots__ = ("error", "finished", "ready")

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.finished: list[Completion] = []
        self.error: StoreError | None = None

    async def wait(self, clock: Clock, until: float | None) -> None:
        """Return on an event or when the clock reaches `until`. Raises what ended the wait."""
        await clock.wait(self.ready, until)
        self.ready.clear()
        if self.error is not None:
            raise self.error


class Waiters:
    """Registry of the streams that wait for rollouts to finish."""

    def __init__(self, share: Share) -> None:
        """Take the bytes of recent finishes that are kept in all stores."""
        self._by_rollout: dict[str, dict[Waiter, None]] = {}
        self._entered: dict[Waiter, None] = {}
        self._watchers: dict[Waiter, None] = {}
        self._resource_watchers: dict[Waiter, None] = {}
        self._group_watchers: dict[Waiter, None] = {}
        self._recent: deque[Completion] = deque()
        self._recent_bytes = Part(share)
        self._reopened: set[int] = set()
        self._forgetting: set[asyncio.Task[None]] = set()
        self.count = 0
        #: Number of the last published finish. All finishes up to it are durable.
        self.published = 0
        #: Publish number of the last published resources. All publications up to it are durable.
        self.published_resources = 0
        #: Number of the last published completion of a group.
        self.published_groups = 0
        self._closed: StoreError | None = None

    def enter(self, waiter: Waiter) -> None:
        """Count a waiter, until `unregister`. Raises the error that ended the store's waits."""
        if self._closed is not None:
            raise self._closed
        self.count += 1
        self._entered[waiter] = None

    async def register(self, waiter: Waiter, rollout_ids: Iterable[str]) -> None:
        """Notify the waiter when each of these rollouts finishes, from when this returns."""
        turn = Turn()
        for rollout_id in rollout_ids:
            self._by_rollout.setdefault(rollout_id, {})[waiter] = None
            if turn.over():
                await turn.next()
                if waiter.error is not None:
                    raise waiter.error

    def unregister(self, waiter: Waiter, rollout_ids: Collection[str]) -> None:
        """Remove a waiter: at once, or soon if it waits for many rollouts."""
        self.count -= 1
        self._entered.pop(waiter, None)
        if len(rollout_ids) > FORGOTTEN_AT_ONCE:
            forgetting = self._forget_all(waiter, rollout_ids)
            task = asyncio.get_running_loop().create_task(forgetting)
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)
            return
        for rollout_id in rollout_ids:
            self.forget(waiter, rollout_id)

    async def _forget_all(self, waiter: Waiter, rollout_ids: Collection[str]) -> None:
        turn = Turn()
        for rollout_id in rollout_ids:
            self.forget(waiter, rollout_id)
            if turn.over():
                await turn.next()

    def forget(self, waiter: Waiter, rollout_id: str) -> None:
        """Stop notifying the waiter about one rollout."""
        waiting = self._by_rollout.get(rollout_id)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                del self._by_rollout[rollout_id]

    def watching(self) -> AbstractContextManager[Waiter]:
        """Return a context with a waiter that wakes at every finish. It raises the error that ended the store's waits."""
        return self._watching(self._watchers)

    def watching_resources(self) -> AbstractContextManager[Waiter]:
        """Return the same for every publication of resources."""
        return self._watching(self._resource_watchers)

    def watching_groups(self) -> AbstractContextManager[Waiter]:
        """Return the same for every completion of a group."""
        return self._watching(self._group_watchers)

    @contextmanager
    def _watching(self, watchers: dict[Waiter, None]) -> Iterator[Waiter]:
        if self._closed is not None:
            raise self._closed
        waiter = Waiter()
        self.count += 1
        watchers[waiter] = None
        try:
            yield waiter
        finally:
            self.count -= 1
            watchers.pop(waiter, None)

    def publish_resources(self, number: int) -> None:
        """Notify watchers that all publications up to this number are durable."""
        self.published_resources = number
        for watcher in self._resource_watchers:
            watcher.ready.set()

    def publish_groups(self, number: int) -> None:
        """Notify the watchers that groups up to this completion number are complete."""
        self.published_groups = number
        for watcher in self._group_watchers:
            watcher.ready.set()

    def publish(self, completions: list[Completion]) -> None:
        """Notify all waiters of finished rollouts, in completion order."""
        for completion in completions:
            self._recent.append(completion)
            self._recent_bytes.add(completion.size)
            for waiter in self._by_rollout.get(completion.rollout_id, ()):
                waiter.finished.append(completion)
                waiter.ready.set()
        self.published = completions[-1].number
        while self._recent and (
            len(self._recent) > RECENT_COMPLETIONS or self._recent_bytes.exceeds
        ):
            oldest = self._recent.popleft()
            self._recent_bytes.add(-oldest.size)
            self._reopened.discard(oldest.number)
        for watcher in self._watchers:
            watcher.ready.set()

    def recent(self, after: int, limit: int) -> list[Completion] | None:
        """Return the finishes above `after`, or None if not all of them are in memory.

        Numbers have no gaps, so the position of a finish follows from its number.
        """
        if not self._recent or after + 1 < self._recent[0].number:
            return None
        start = after + 1 - self._recent[0].number
        # Nearly always some of the last ones, to which a slice from the first on would count.
        later = (self._recent[i] for i in range(start, len(self._recent)))
        return list(islice((c for c in later if c.number not in self._reopened), limit))

    def refresh(self, completion: Completion) -> None:
        """Replace a recent finish whose rollout has changed since, so that watches show what is stored."""
        at = completion.number - self._recent[0].number if self._recent else -1
        if 0 <= at < len(self._recent):
            self._recent_bytes.add(completion.size - self._recent[at].size)
            self._recent[at] = completion

    def reopen(self, number: int) -> None:
        """Remove a finish, published or not, from the recent ones, because it no longer holds."""
        first = self._recent[0].number if self._recent else self.published + 1
        if number >= first:
            self._reopened.add(number)

    def fail(self, error: StoreError) -> None:
        """End all waits with an error, and drop the recent finishes."""
        watchers = (self._watchers, self._resource_watchers, self._group_watchers)
        for waiter in (*self._entered, *chain(*watchers)):
            waiter.error = error
            waiter.ready.set()
        self._recent.clear()
        self._reopened.clear()
        self._recent_bytes.release()

    def close(self, error: StoreError) -> None:
        """End all waits with an error and accept no new ones."""
        self._closed = error
        self.fail(error)
