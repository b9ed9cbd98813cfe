"""Who waits for what: long polls, WaitForRollouts and WatchRollouts. Woken by events, never polling.

Everything here happens on the event loop. `publish` is called after a commit, by nobody else, so nobody
is told what a crash can undo.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice

from lightningstore.service.clock import Clock
from lightningstore.service.completion import Completion
from lightningstore.service.errors import StoreError

RECENT_COMPLETIONS = 4096
RECENT_BYTES = 32 << 20


class Waiter:
    """One stream that waits. `ready` is set when there is something to look at."""

    __slots__ = ("error", "finished", "ready")

    def __init__(self) -> None:
        """Start with nothing."""
        self.ready = asyncio.Event()
        self.finished: list[Completion] = []
        self.error: StoreError | None = None

    async def wait(self, clock: Clock, until: float | None) -> None:
        """Return when something came or the clock has reached `until`. Raises what ended the wait."""
        await clock.wait(self.ready, until)
        self.ready.clear()
        if self.error is not None:
            raise self.error


class Waiters:
    """The registry of those who wait for rollouts to finish."""

    def __init__(self) -> None:
        """Start with nobody."""
        self._by_rollout: dict[str, dict[Waiter, None]] = {}
        self._watchers: dict[Waiter, None] = {}
        self._recent: deque[Completion] = deque()
        self._recent_bytes = 0
        self._reopened: set[int] = set()
        self.count = 0
        #: Number of the last finish that everybody was told of: it, and all before it, are durable.
        self.published = 0
        self._closed: StoreError | None = None

    def register(self, waiter: Waiter, rollout_ids: Iterable[str]) -> None:
        """Tell the waiter of each of these rollouts when it finishes."""
        if self._closed is not None:
            raise self._closed
        self.count += 1
        for rollout_id in rollout_ids:
            self._by_rollout.setdefault(rollout_id, {})[waiter] = None

    def unregister(self, waiter: Waiter, rollout_ids: Iterable[str]) -> None:
        """Forget a waiter."""
        self.count -= 1
        for rollout_id in rollout_ids:
            self.forget(waiter, rollout_id)

    def forget(self, waiter: Waiter, rollout_id: str) -> None:
        """Stop telling the waiter of one rollout."""
        waiting = self._by_rollout.get(rollout_id)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                del self._by_rollout[rollout_id]

    def watch(self, waiter: Waiter) -> None:
        """Wake the waiter at every completion."""
        if self._closed is not None:
            raise self._closed
        self.count += 1
        self._watchers[waiter] = None

    def unwatch(self, waiter: Waiter) -> None:
        """Forget a watcher."""
        self.count -= 1
        self._watchers.pop(waiter, None)

    def publish(self, completions: list[Completion]) -> None:
        """Tell everybody of rollouts that finished, in completion order."""
        for completion in completions:
            self._recent.append(completion)
            self._recent_bytes += completion.size
            for waiter in self._by_rollout.get(completion.rollout_id, ()):
                waiter.finished.append(completion)
                waiter.ready.set()
        self.published = completions[-1].number
        while len(self._recent) > RECENT_COMPLETIONS or self._recent_bytes > RECENT_BYTES:
            oldest = self._recent.popleft()
            self._recent_bytes -= oldest.size
            self._reopened.discard(oldest.number)
        for watcher in self._watchers:
            watcher.ready.set()

    def recent(self, after: int, limit: int) -> list[Completion] | None:
        """Return completions above `after` if they are all at hand, None if the back end has to be asked.

        Numbers have no gaps, so the place of one follows from its number.
        """
        if not self._recent or after + 1 < self._recent[0].number:
            return None
        start = after + 1 - self._recent[0].number
        later = islice(self._recent, start, None)
        return list(islice((c for c in later if c.number not in self._reopened), limit))

    def reopen(self, number: int) -> None:
        """Leave a finish out of what is recent: it is no longer true."""
        if self._recent and number >= self._recent[0].number:
            self._reopened.add(number)

    def fail(self, error: StoreError) -> None:
        """End everybody's wait with an error, and forget what was recent."""
        for waiter in {w for waiting in self._by_rollout.values() for w in waiting} | set(
            self._watchers
        ):
            waiter.error = error
            waiter.ready.set()
        self._recent.clear()
        self._reopened.clear()
        self._recent_bytes = 0

    def close(self, error: StoreError) -> None:
        """End everybody's wait with an error and take no new one."""
        self._closed = error
        self.fail(error)
