"""Group commit: all waiting operations share one transaction, written by a task that no caller can cancel."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from lightningstore.service.engine.clock import until_idle
from lightningstore.service.engine.shared import Pending
from lightningstore.service.rules.errors import Busy, StorageFailed, StoreError
from lightningstore.service.storage.base import COMMITTED, Changes, Storage
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

logger = logging.getLogger(__name__)

#: Reports are accepted while the pending bytes are below this multiple of the limit.
REPORT_SHARE = 2
#: How long a commit may wait for more operations on a busy loop. Measured with 64 callers: 4 operations a commit without a
#: wait, 25 with this, and two thirds of the CPU an operation.
GATHER_SECONDS = 0.01
#: Rows that a storage without durability, which holds the event loop meanwhile, takes at once: 5 ms.
ROWS_AT_ONCE = 1000


class Reserved:
    """A context in which bytes count as pending."""

    __slots__ = ("_committer", "_size")

    def __init__(self, committer: Committer, size: int) -> None:
        self._committer = committer
        self._size = size

    def __enter__(self) -> None:
        """Add them."""
        self._committer.reserve(self._size)

    def __exit__(self, *_: object) -> None:
        """Subtract them."""
        self._committer.reserve(-self._size)


class Committer:
    """Commits the changes of operations in order, and wakes the operations when they are durable.

    Operations write into `changes` and then call `seal`, which numbers them. `durable(n)` returns when
    number n is on disk; its effects must not be visible before. `publish` is called after each commit.
    With a storage without durability there is nothing to wait for: `seal` itself commits, unless that would hold the event
    loop because there are too many changes.
    """

    def __init__(
        self,
        storage: Storage,
        publish: Callable[[], None],
        recover: Callable[[], Awaitable[bool]],
        pending: Pending,
    ) -> None:
        """Take the storage, the functions to call after a commit and after a failure, and the shared limit.

        `recover` returns whether the storage can be used again; if not, every call fails from then on.
        """
        self._storage = storage
        self._waits = storage.durability != DURABILITY_NONE
        self._publish = publish
        self._recover = recover
        self._shared = pending
        self._max_pending = pending.limit
        #: This store's part of the shared total.
        self._counted = 0
        self.changes = Changes()
        self.sealed = 0
        self.durable_through = 0
        self.failure: StoreError | None = None
        #: Number of failures so far. Each may have lost what was sealed before it, even if `durable` returns.
        self.failures = 0
        #: Number of commits so far, and of bytes of changes in them.
        self.commits = self.committed_bytes = 0
        self._in_flight = self._held = self._reserved = 0
        #: Waiting operations with their numbers, ascending.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._lost: StoreError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that commits and recovers from failures."""
        self._task = asyncio.create_task(self._run(), name="committer")

    @property
    def pending_bytes(self) -> int:
        """Bytes of changes that are not durable yet, those of writes being prepared included."""
        return self.changes.size + self._in_flight + self._reserved

    def reserved(self, size: int) -> Reserved:
        """Count bytes of a write that is prepared in several turns, from its admission until it is in `changes`."""
        return Reserved(self, size)

    def reserve(self, size: int) -> None:
        """Add bytes to the pending ones; a negative size subtracts them."""
        self._reserved += size
        self._count()
        if size < 0:
            self._make_room()

    def _count(self) -> None:
        """Update this store's part of the shared total. A store that has failed accepts no writes, and has none."""
        size = self.pending_bytes if self.failure is None else 0
        if size != self._counted:
            self._shared.add(size - self._counted)
            self._counted = size

    def _exceeds(self, share: int) -> bool:
        """Return whether too many bytes are pending: of this store, or of all stores together."""
        shared, own = self._shared, self.pending_bytes
        return own > share * self._max_pending or (
            shared.total > share * shared.limit and own > share * shared.reserve
        )

    def _make_room(self) -> None:
        """Wake those that wait for room, if there is some."""
        if not self._room.is_set() and not self._exceeds(1):
            self._shared.forget(self._room)
            self._room.set()

    def admit(self, *, report: bool = False) -> None:
        """Admit a unary write, or raise: Busy if too many bytes are pending, StorageFailed after a failure.

        A `report`, such as an outcome or a heartbeat, is admitted up to twice the limit, so that new work and spans
        cannot block it.
        """
        if self.failure is not None:
            raise self.failure
        share = REPORT_SHARE if report else 1
        if self._exceeds(share):
            pending = max(self.pending_bytes, self._shared.total)
            raise Busy(
                f"{pending} bytes wait for the disk; the limit is {share * self._max_pending}"
            )

    async def admit_soon(self, size: int, seconds: float) -> None:
        """Admit a write of `size` bytes, waiting up to `seconds` for space, or raise as `admit` does.

        For callers that may not retry. The bytes held this way have the same limit as the pending ones.
        """
        full = self._exceeds(1) and self.failure is None
        if full and self._held + size <= self._max_pending:
            self._held += size
            try:
                async with asyncio.timeout(seconds):
                    await self.room()
            except TimeoutError:
                self.admit()
            finally:
                self._held -= size
        else:
            self.admit()

    async def room(self) -> None:
        """Wait until the pending bytes are below the limit. For streams, which can wait. Raises StorageFailed."""
        while self._exceeds(1) and self.failure is None:
            self._room.clear()
            self._shared.wake(self._room)
            await self._room.wait()
        if self.failure is not None:
            raise self.failure

    def seal(self) -> int:
        """Number the changes written since the last call; returns the number."""
        is_first, changes = self.durable_through == self.sealed, self.changes
        self.sealed += 1
        # Each row has more than a byte: those of few bytes are not counted.
        is_large = changes.size > ROWS_AT_ONCE and changes.row_count > ROWS_AT_ONCE
        if self._waits or not is_first or is_large:
            self._count()
            self._wake.set()
        else:
            self._commit_at_once()
        return self.sealed

    def _commit_at_once(self) -> None:
        """Commit sealed changes to a storage that completes commits at once. Raises StoreError."""
        try:
            done = self._storage.commit(self.changes)
        except StoreError as error:
            self.fail(error)
            raise
        if done is not COMMITTED:
            raise TypeError(f"{self._storage.name} has no durability: commit must return COMMITTED")
        self.commits += 1
        self.committed_bytes += self.changes.size
        self.changes.clear()
        self.durable_through = self.sealed
        self._publish()

    async def durable(self, number: int) -> None:
        """Return when everything up to `number` is durable. Raises StorageFailed if a commit fails."""
        if self.failure is not None:
            raise self.failure
        if self.durable_through < number:
            # Each caller has its own future: cancelling the caller does not cancel the commit.
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((number, waiter))
            await waiter

    def fail(self, error: StoreError) -> None:
        """Report that the storage is unusable although no commit failed: every call fails until it has recovered."""
        if self.failure is None:
            self.failure = self._lost = error
            self._wake.set()

    async def drain(self) -> None:
        """Commit what was sealed and end the task."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self.changes = Changes()  # what no operation has sealed
        self._count()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._lost is not None:
                logger.error("the storage cannot be used: %s", self._lost)
                await self._fail(self._lost)
            while self.durable_through < self.sealed and self.failure is None:
                await self._gather()
                if self.failure is None:
                    await self._commit()
            if self._closing:
                return

    async def _gather(self) -> None:
        """While the loop is busy, let more operations join the next commit: each commit costs as much as several of them.

        An operation that waits alone is committed at once, because nothing suggests that another follows soon.
        """
        several = self._waits and self.sealed - self.durable_through > 1
        if several and not self._closing and not self._exceeds(1):
            await until_idle(GATHER_SECONDS)

    async def _commit(self) -> None:
        changes, self.changes = self.changes, Changes()
        through = self.sealed
        self._in_flight = changes.size
        changes.freeze()
        try:
            if self._waits:
                await self._storage.commit(changes)
            else:
                for part in changes.parts(ROWS_AT_ONCE):
                    await self._storage.commit(part)
                    await asyncio.sleep(0)
        except Exception as error:
            logger.exception("a commit failed; recovering from what is on disk")
            await self._fail(error)
            return
        self._in_flight = 0
        self.commits += 1
        self.committed_bytes += changes.size
        self.durable_through = through
        self._count()
        self._make_room()
        self._publish()
        while self._waiters and self._waiters[0][0] <= through:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    async def _fail(self, error: Exception) -> None:
        """Fail all waiting operations and recover. Until that succeeds, every call fails."""
        if self._lost is not None:
            error, self._lost = self._lost, None
        self.failure = error if isinstance(error, StoreError) else StorageFailed(str(error))
        self.failures += 1
        self._count()
        while self._waiters:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_exception(self.failure)
        self._room.set()
        if not await self._recover():
            return
        # No operation has changed anything meanwhile: `admit` and `durable` raise while there is a failure.
        self._in_flight = 0
        self.changes = Changes()
        self.durable_through = self.sealed
        self.failure = None
        self._count()
