"""Who waits for what: long polls, WaitForRollouts and WatchRollouts. Woken by events, never polling.

Everything here happens on the event loop. `publish` is called after a commit, by nobody else, so nobody
is told what a crash can undo.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice

from lightningstore.service.engine.clock import Clock, Turn
from lightningstore.service.rules.completion import Completion
from lightningstore.service.rules.errors import StoreError

RECENT_COMPLETIONS = 4096
RECENT_BYTES = 32 << 20
#: Who waited for more rollouts is forgotten by a task of its own, which lets others have the loop.
FORGOTTEN_AT_ONCE = 1000


class Waiter:
    """One stream that waits. `ready` is set when there is something to look at."""

    __slots__ = ("error", "finished", "ready")

    def __init__(self) -> None:
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
        self._by_rollout: dict[str, dict[Waiter, None]] = {}
        self._entered: dict[Waiter, None] = {}
        self._watchers: dict[Waiter, None] = {}
        self._recent: deque[Completion] = deque()
        self._recent_bytes = 0
        self._reopened: set[int] = set()
        self._forgetting: set[asyncio.Task[None]] = set()
        self.count = 0
        #: Number of the last finish that everybody was told of: it, and all before it, are durable.
        self.published = 0
        self._closed: StoreError | None = None

    def enter(self, waiter: Waiter) -> None:
        """Count a waiter, which `unregister` forgets. Raises what ended the store's waits."""
        if self._closed is not None:
            raise self._closed
        self.count += 1
        self._entered[waiter] = None

    async def register(self, waiter: Waiter, rollout_ids: Iterable[str]) -> None:
        """Tell the waiter of each of these rollouts when it finishes, from when this returns."""
        turn = Turn()
        for rollout_id in rollout_ids:
            self._by_rollout.setdefault(rollout_id, {})[waiter] = None
            if turn.over():
                await turn.next()
                if waiter.error is not None:
                    raise waiter.error

    def unregister(self, waiter: Waiter, rollout_ids: Collection[str]) -> None:
        """Forget a waiter: at once, or where it waited for many rollouts, soon."""
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
        for waiter in (*self._entered, *self._watchers):
            waiter.error = error
            waiter.ready.set()
        self._recent.clear()
        self._reopened.clear()
        self._recent_bytes = 0

    def close(self, error: StoreError) -> None:
        """End everybody's wait with an error and take no new one."""
        self._closed = error
        self.fail(error)
