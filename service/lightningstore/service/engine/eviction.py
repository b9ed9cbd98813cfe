"""Chooses the rollouts whose spans are evicted when memory runs short. Pure data structure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from lightningstore.service.rules.lifecycle import is_finished
from lightningstore.v1.rollout_pb2 import Rollout

#: Maximum number of rollouts evicted at a time, because thousands would hold the event loop.
EVICTED_AT_ONCE = 256


@dataclass
class Shelved:
    """A rollout with spans."""

    key: int
    start_ns: int
    rollout: Rollout
    bytes: int = 0
    count: int = 0

    @property
    def finished(self) -> bool:
        """Whether the rollout has finished."""
        return is_finished(self.rollout)


class Pool:
    """The spans in memory of all stores, which share one limit."""

    def __init__(self, threshold: int, safe: int) -> None:
        """Set the sizes in bytes above which, and down to which, spans are evicted."""
        self.threshold = threshold
        self.safe = safe
        self.total = 0
        self.evicting = False
        self._stores: dict[Shelf, Callable[[bool], None]] = {}

    def join(self, shelf: Shelf, evict: Callable[[bool], None]) -> None:
        """Add a store. `evict` evicts what its shelf returns, and takes whether another store needs the space."""
        self._stores[shelf] = evict

    def leave(self, shelf: Shelf) -> None:
        """Remove a store that is closed, with its spans. May be called twice."""
        if self._stores.pop(shelf, None) is not None:
            self.total -= shelf.total

    def evict(self, added: Shelf) -> None:
        """Have the store with the most spans evict some if there is no space for those that were added."""
        if self.total > (self.safe if self.evicting else self.threshold):
            largest = max(self._stores, key=lambda shelf: shelf.total)
            self._stores[largest](largest is not added)
        else:
            self.evicting = False


class Shelf:
    """Rollouts with spans in memory, evicted in this order: finished before live, oldest first.

    Spans of finished rollouts that a consumer has yet to acknowledge are not evicted.
    """

    def __init__(self, pool: Pool) -> None:
        """Take the pool of all shelves, whose limits apply to their sum."""
        self.pool = pool
        self.total = 0
        self.evicted_count = 0
        self.evicted: set[int] = set()
        self._items: dict[int, Shelved] = {}
        self._heaps: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        #: Finished ones that were wanted when they were to be evicted.
        self._kept: list[tuple[int, int]] = []

    def add(self, key: int, start_ns: int, size: int, count: int, rollout: Rollout) -> None:
        """Record spans of a rollout."""
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = Shelved(key, start_ns, rollout)
            heapq.heappush(self._heaps[item.finished], (start_ns, key))
        item.bytes += size
        item.count += count
        self.total += size
        self.pool.total += size

    def remove(self, key: int) -> Shelved | None:
        """Remove a rollout with its spans; return its data."""
        self.evicted.discard(key)
        item = self._items.pop(key, None)
        if item is not None:
            self.total -= item.bytes
            self.pool.total -= item.bytes
        return item

    def move(self, key: int, rollout: Rollout) -> None:
        """Record that a rollout has another record, with which it may have finished or be reopened."""
        item = self._items.get(key)
        if item is not None:
            before, item.rollout = item.finished, rollout
            if item.finished != before:
                heapq.heappush(self._heaps[item.finished], (item.start_ns, key))

    def release(self) -> None:
        """Consider again those that were wanted: some may have been acknowledged."""
        if self._kept:
            self._heaps[True] += self._kept
            heapq.heapify(self._heaps[True])
            self._kept = []

    def evict(self, wanted: Callable[[Rollout], bool] = lambda _: False) -> list[Shelved]:
        """Return the rollouts to evict now, none that is finished and wanted; empty while there is space.

        These are enough to get below the threshold, and a few more; later calls continue to the
        safe threshold.
        """
        pool = self.pool
        if pool.total <= (pool.safe if pool.evicting else pool.threshold):
            pool.evicting = False
            return []
        pool.evicting = True
        gone: list[Shelved] = []
        for finished in (True, False):
            heap = self._heaps[finished]
            while heap and pool.total > pool.safe:
                if pool.total <= pool.threshold and len(gone) >= EVICTED_AT_ONCE:
                    return gone
                _, key = heapq.heappop(heap)
                item = self._items.get(key)
                if item is None or item.finished != finished:
                    continue  # gone already, or in the other heap by now
                if finished and wanted(item.rollout):
                    self._kept.append((item.start_ns, key))
                    continue
                del self._items[key]
                self.total -= item.bytes
                pool.total -= item.bytes
                self.evicted_count += item.count
                self.evicted.add(key)
                gone.append(item)
        pool.evicting = False
        return gone
