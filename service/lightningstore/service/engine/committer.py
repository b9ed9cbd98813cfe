"""Group commit: everybody who waits shares one transaction, written by a task that nobody can cancel."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from lightningstore.service.rules.errors import Busy, StorageFailed, StoreError
from lightningstore.service.storage.base import COMMITTED, Changes, Storage
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

logger = logging.getLogger(__name__)

#: Reports are accepted while the bytes that wait for the disk are below this multiple of the limit.
REPORT_SHARE = 2


class Reserved:
    """A context in which bytes count as waiting for the disk."""

    __slots__ = ("_committer", "_size")

    def __init__(self, committer: Committer, size: int) -> None:
        self._committer = committer
        self._size = size

    def __enter__(self) -> None:
        """Count them."""
        self._committer.reserve(self._size)

    def __exit__(self, *_: object) -> None:
        """Count them no longer."""
        self._committer.reserve(-self._size)


class Committer:
    """Takes the changes of operations, in their order, and tells when they are durable.

    Operations write into `changes` and then call `seal`, which numbers them. `durable(n)` returns when
    number n is on disk; only then may its effect be seen. After a commit `publish` is called, in order.
    On a storage without durability there is nothing to wait for: `seal` itself commits.
    """

    def __init__(
        self,
        storage: Storage,
        publish: Callable[[], None],
        recover: Callable[[], Awaitable[bool]],
        max_pending_bytes: int,
    ) -> None:
        """Take the storage, and what to call after a commit and after a failed one.

        `recover` returns whether the storage can be used again; the committer gives up if not.
        """
        self._storage = storage
        self._waits = storage.durability != DURABILITY_NONE
        self._publish = publish
        self._recover = recover
        self._max_pending = max_pending_bytes
        self.changes = Changes()
        self.sealed = 0
        self.durable_through = 0
        self.failure: StoreError | None = None
        #: Failed commits so far. Each may have lost what was sealed before it, even if `durable` returns.
        self.failures = 0
        #: Commits so far, and bytes of changes in them.
        self.commits = self.committed_bytes = 0
        self._in_flight = self._held = self._reserved = 0
        #: Who waits for which number; the numbers never fall.
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._lost: StoreError | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that commits, and recovers from failures."""
        self._task = asyncio.create_task(self._run(), name="committer")

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for the disk, or soon will."""
        return self.changes.size + self._in_flight + self._reserved

    def reserved(self, size: int) -> Reserved:
        """Count bytes of a write that is prepared in several turns: it was admitted before it is among the changes."""
        return Reserved(self, size)

    def reserve(self, size: int) -> None:
        """Count bytes, or with a negative size no longer."""
        self._reserved += size
        if size < 0 and not self._room.is_set() and self.pending_bytes <= self._max_pending:
            self._room.set()

    def admit(self, *, report: bool = False) -> None:
        """Refuse a unary write: Busy while too much waits for the disk, StorageFailed without one.

        A `report` of what is under way is taken up to twice the limit: new work and spans, which fill
        it, must not keep an outcome or a sign of life out.
        """
        if self.failure is not None:
            raise self.failure
        most = self._max_pending * (REPORT_SHARE if report else 1)
        if self.pending_bytes > most:
            raise Busy(f"{self.pending_bytes} bytes wait for the disk, at most {most} may")

    async def admit_soon(self, size: int, seconds: float) -> None:
        """Admit a write of `size` bytes, after up to `seconds` of waiting for room: else raise as `admit`.

        For callers that may not come again. What is held so has the limit of what waits for the disk.
        """
        full = self.pending_bytes > self._max_pending and self.failure is None
        if full and self._held + size <= self._max_pending:
            self._held += size
            try:
                await asyncio.wait_for(self.room(), seconds)
            except TimeoutError:
                self.admit()
            finally:
                self._held -= size
        else:
            self.admit()

    async def room(self) -> None:
        """Wait until less than the limit waits for the disk. For streams, which need not be refused."""
        while self.pending_bytes > self._max_pending and self.failure is None:
            self._room.clear()
            await self._room.wait()
        if self.failure is not None:
            raise self.failure

    def seal(self) -> int:
        """Number what was written into `changes` since the last call; returns the number."""
        self.sealed += 1
        if self._waits:
            self._wake.set()
        else:
            self._commit_at_once()
        return self.sealed

    def _commit_at_once(self) -> None:
        """Commit what was sealed, on a storage that completes commits at once. Raises StoreError."""
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
        """Return when everything up to `number` is on disk. Raises StorageFailed if it cannot be."""
        if self.failure is not None:
            raise self.failure
        if self.durable_through < number:
            # A future of one's own: cancelling the caller cancels this, and never the commit.
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((number, waiter))
            await waiter

    def fail(self, error: StoreError) -> None:
        """Refuse everything from now on, and recover: the storage is unusable, though the task's commit did not fail."""
        if self.failure is None:
            self.failure = self._lost = error
            self._wake.set()

    async def drain(self) -> None:
        """Commit what is there and end the task."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._lost is not None:
                logger.error("the storage cannot be used: %s", self._lost)
                await self._fail(self._lost)
            while self.durable_through < self.sealed and self.failure is None:
                await self._commit()
            if self._closing:
                return

    async def _commit(self) -> None:
        changes, self.changes = self.changes, Changes()
        through = self.sealed
        self._in_flight = changes.size
        changes.freeze()
        try:
            await self._storage.commit(changes)
        except Exception as error:
            logger.exception("a commit failed; recovering from what is on disk")
            await self._fail(error)
            return
        self._in_flight = 0
        self.commits += 1
        self.committed_bytes += changes.size
        self.durable_through = through
        if not self._room.is_set() and self.pending_bytes <= self._max_pending:
            self._room.set()
        self._publish()
        while self._waiters and self._waiters[0][0] <= through:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    async def _fail(self, error: Exception) -> None:
        """Fail all who wait, drop what is in memory and load it again; until then refuse everything."""
        if self._lost is not None:
            error, self._lost = self._lost, None
        self.failure = error if isinstance(error, StoreError) else StorageFailed(str(error))
        self.failures += 1
        while self._waiters:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_exception(self.failure)
        self._room.set()
        if not await self._recover():
            return
        # Nothing was decided meanwhile: `admit` and `durable` refuse while there is a failure.
        self._in_flight = 0
        self.changes = Changes()
        self.durable_through = self.sealed
        self.failure = None
