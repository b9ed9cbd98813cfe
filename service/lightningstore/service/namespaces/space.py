"""One namespace of a server: its store while it is open, and the calls that use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from lightningstore.service.engine.clock import Clock
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import NamespaceNotFound, StorageFailed, StoreError
from lightningstore.service.rules.settings import Settings, shown
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT
from lightningstore.v1.namespace_pb2 import Namespace

#: Seconds after which a namespace that could not be opened is opened again, for the next call.
RETRY_SECONDS = 0.5


class Unavailable(StorageFailed):
    """A namespace cannot be opened."""

    def __init__(self, name: str, cause: str) -> None:
        StoreError.__init__(
            self, f"namespace {name!r} cannot be opened ({cause}); repeat the call", namespace=name
        )
        self.retry_delay = 1.0


class Space:
    """One namespace."""

    def __init__(self, name: str, clock: Clock) -> None:
        """Take the name, and the clock by which the namespace is idle."""
        self.name = name
        self._clock = clock
        #: The open store; None while it is closed.
        self.store: Store | None = None
        #: What a layer above has made of the open store. Cleared when the store is closed.
        self.bound: Any = None
        #: As they were when the store was last open.
        self.settings = Settings()
        self.store_id = ""
        #: Whether its storage answers, as far as is known.
        self.is_usable = True
        #: Why the store could not be opened, if it was tried and failed, and when to try again.
        self.failure: StoreError | None = None
        self.retry_at = 0.0
        #: The error of all calls while the namespace is being deleted, or closed for another server.
        self.gone: StoreError | None = None
        #: Monotonic seconds since which nothing has happened in the open store.
        self.quiet_since = 0.0
        #: Wall-clock time at which the closed store has rollouts to remove; 0: none.
        self.wake_ns = 0
        self.opening: asyncio.Task[None] | None = None
        self.closing: asyncio.Task[None] | None = None
        self._uses: set[Use] = set()
        self._unused = asyncio.Event()

    @property
    def namespace(self) -> Namespace:
        """The namespace as answers contain it."""
        return shown(self.settings, self.name, self.store_id)

    @property
    def is_deleted(self) -> bool:
        """Whether the namespace is being deleted."""
        return isinstance(self.gone, NamespaceNotFound)

    @property
    def in_use(self) -> bool:
        """Whether a call is in it, a caller waits in it or something of it is live."""
        return bool(self._uses) or (self.store is not None and is_busy(self.store))

    @property
    def open_store_id(self) -> str | None:
        """The id of the open store, None if it is closed or being recovered."""
        return self.store.engine.store_id if self.store is not None and self.is_usable else None

    def reload(self, cause: StorageFailed) -> None:
        """Have the open store load again what its storage has. Its waiting calls fail with the cause."""
        if self.store is not None:
            self.store.engine.committer.fail(cause)

    def learn(self, store: Store) -> None:
        """Remember what answers need while the store is closed."""
        self.settings, self.store_id = store.engine.settings, store.engine.store_id

    def fail(self, error: StoreError) -> None:
        """Record that the store could not be opened."""
        self.failure, self.is_usable = error, False
        self.retry_at = self._clock.monotonic() + RETRY_SECONDS

    def touch(self) -> None:
        """Record that something happens in the open store."""
        self.quiet_since = self._clock.monotonic()

    def enter(self, use: Use) -> None:
        """Count a use."""
        self._uses.add(use)

    def leave(self, use: Use) -> None:
        """Count the end of a use."""
        self._uses.discard(use)
        self.touch()
        if not self._uses:
            self._unused.set()

    async def unused(self, seconds: float) -> None:
        """Return when no call is in it, or after that number of seconds of real time."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds):
                while self._uses:
                    self._unused.clear()
                    await self._unused.wait()

    async def end_uses(self, error: StoreError) -> None:
        """End all calls with an error, and let no call begin. Returns when they have ended."""
        self.gone = error
        for use in tuple(self._uses):
            use.end()
        while self._uses:
            self._unused.clear()
            await self._unused.wait()


class Use:
    """A call in a namespace, as an asynchronous context manager: the store is open until the end of it.

    Raises what `open` raises, and the error of a namespace that is deleted or given to another server meanwhile.
    """

    __slots__ = ("_is_ended", "_open", "_space", "_task")

    def __init__(self, space: Space, open_: Callable[[Space], Awaitable[Store]]) -> None:
        self._space = space
        self._open = open_
        self._task: asyncio.Task[Any] | None = None
        self._is_ended = False

    async def __aenter__(self) -> Store:
        space = self._space
        store = space.store
        if store is None or space.gone is not None:
            store = await self._open(space)
        self._task = asyncio.current_task()
        space.enter(self)
        return store

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        space = self._space
        space.leave(self)
        if self._is_ended and isinstance(error, asyncio.CancelledError):
            assert self._task is not None  # noqa: S101  (set on entering)
            assert space.gone is not None  # noqa: S101  (set before the end)
            self._task.uncancel()
            raise space.gone from None

    def end(self) -> None:
        """Cancel the call; it ends with the error in `Space.gone`."""
        self._is_ended = True
        if self._task is not None:
            self._task.cancel()


def is_busy(store: Store) -> bool:
    """Return whether anything is live in an open store, or a caller waits in it, or it is being recovered."""
    engine = store.engine
    counters = engine.live.state.counters
    return bool(
        engine.waiters.count
        or len(engine.polls)
        or engine.committer.failure is not None
        or any(n for status, n in list(counters.rollouts.items()) if status not in FINISHED)
        or live_attempts(store)
        or len(engine.live.deadlines.groups)
    )


def live_attempts(store: Store) -> int:
    """Return the number of running attempts of an open store."""
    counts = store.engine.live.state.counters.attempts
    return sum(n for status, n in list(counts.items()) if status in LIVE_ATTEMPT)
