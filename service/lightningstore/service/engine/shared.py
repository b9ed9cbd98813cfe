"""Memory limits that the open stores of a process share, so that many namespaces need no more memory than one."""

from __future__ import annotations

import asyncio
import sys

from lightningstore.service.engine.budget import Budget
from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.eviction import Pool
from lightningstore.service.engine.shares import Caches
from lightningstore.service.rules.limits import Limits

#: Bytes of finished rollouts that are kept because they were used lately.
CACHED_BYTES = 32 << 20
#: Span ids of attempts that are kept to find duplicates.
CACHED_SPAN_IDS = 4_000_000
#: Bytes of finishes that are kept for watches that are a little behind.
RECENT_BYTES = 32 << 20
#: Share of the limit of pending bytes that every store may use, so that a store whose disk does not answer cannot keep
#: the others from writing.
RESERVED_SHARE = 64


class Pending:
    """Bytes that wait for the disk, of all stores."""

    def __init__(self, limit: int) -> None:
        """Set the limit in bytes."""
        self.limit = limit
        #: Bytes that every store may have pending even if the total exceeds the limit.
        self.reserve = limit // RESERVED_SHARE
        self.total = 0
        #: Set when the total has fallen, for stores that wait for that.
        self._waiting: set[asyncio.Event] = set()

    def add(self, size: int) -> None:
        """Add bytes; a negative size subtracts them."""
        self.total += size
        if size < 0 and self._waiting and self.total <= self.limit:
            for event in self._waiting:
                event.set()
            self._waiting.clear()

    def wake(self, event: asyncio.Event) -> None:
        """Set an event when the total is below the limit again."""
        self._waiting.add(event)

    def forget(self, event: asyncio.Event) -> None:
        """Do not set an event any more."""
        self._waiting.discard(event)


class Shared:
    """What the open stores of a process share: limits, and the time at which it started."""

    def __init__(self, limits: Limits) -> None:
        self._started: tuple[int, float] | None = None
        self.pending = Pending(limits.pending_bytes)
        #: Bytes of large messages of spans that have arrived and are not stored yet.
        self.intake = Budget(limits.pending_bytes, "spans")
        #: Bytes of large HTTP bodies after decompression.
        self.bodies = Budget(limits.pending_bytes, "request bodies")
        #: Bytes of answers of spans that are being sent.
        self.unread = Budget(limits.unread_bytes, "answers being read")
        self.caches = Caches(
            inputs=limits.kept_inputs_bytes,
            rollouts=CACHED_BYTES,
            span_ids=CACHED_SPAN_IDS,
            completions=RECENT_BYTES,
        )
        #: Spans in memory, where the storage keeps them there.
        self.spans = Pool(limits.eviction_bytes or sys.maxsize, limits.safe_bytes or sys.maxsize)

    def started(self, clock: Clock) -> tuple[int, float]:
        """Return the wall-clock nanoseconds and the monotonic seconds of the first call."""
        if self._started is None:
            self._started = clock.wall_ns(), clock.monotonic()
        return self._started
