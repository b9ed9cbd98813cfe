"""The namespaces of a server: which exist, which are open, and opening, creating, deleting and closing them.

A single server always has the store of the default namespace open. Others are opened by the first call in them, and
closed when nothing has happened in them for a while, so that an idle namespace costs no more than its name. Where several
servers share the namespaces, the default one is like any other, and a `Placement` tells which of them this server opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.shared import Shared
from lightningstore.service.namespaces.idle import IDLE_SECONDS, IdleSweep
from lightningstore.service.namespaces.placement import Placement
from lightningstore.service.namespaces.space import (
    Space,
    Unavailable,
    Use,
    live_attempts,
)
from lightningstore.service.operations.store import Store, open_store
from lightningstore.service.rules.errors import (
    CatalogFailed,
    NamespaceExists,
    NamespaceInUse,
    NamespaceNotFound,
    NotOwner,
    OwnedElsewhere,
    OwnershipLost,
    ShuttingDown,
    StorageUnusable,
    StoreError,
)
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.rules.settings import created, parse, retention_of
from lightningstore.service.rules.times import NANOS, stamp
from lightningstore.service.storage.catalog import Catalog, Found
from lightningstore.v1.namespace_pb2 import CreateNamespaceRequest, UpdateNamespaceRequest

logger = logging.getLogger(__name__)

#: Namespaces that are opened at the same time at start.
OPENED_AT_ONCE = 4
#: Seconds that calls have to end before a namespace goes to another server.
RELEASE_SECONDS = 0.3
#: A time after the start of every rollout, in nanoseconds.
_FOREVER_NS = 1 << 62

T = TypeVar("T")


class Common(NamedTuple):
    """What all stores of a server have in common."""

    clock: Clock
    #: The limits of the server, some of which the settings of a namespace replace.
    limits: Limits
    #: The limits that apply to all stores together.
    shared: Shared


class Directory:
    """The namespaces of a server."""

    def __init__(
        self,
        common: Common,
        catalog: Catalog,
        keep: Retention,
        *,
        default: Store | None = None,
        placement: Placement | None = None,
    ) -> None:
        """Take the catalog of the namespaces, and the server's retention.

        A single server also gives the open store of the default namespace, which stays open and is not in the catalog.
        One of several servers gives a `placement` instead.
        """
        self._catalog = catalog
        self._keep = keep
        self._common = common
        self._clock = common.clock
        common.shared.started(
            common.clock
        )  # with several servers, the first store may open much later
        self.default = default
        self.placement = placement
        #: Arguments of `Info.announce`.
        self._announced: dict[str, Any] = {}
        self._spaces: dict[str, Space] = {}
        #: Called with the name of a namespace that was created or deleted, or whose storage failed or recovered.
        self._watchers: list[Callable[[str], None]] = []
        #: Held while a namespace is created or deleted.
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Those of them that run until the server stops.
        self._timers: list[asyncio.Task[None]] = []
        self._is_closing = False
        self.idle = IdleSweep(self, common.clock, keep)
        if default is not None:
            self._adopt(self._add(DEFAULT_NAMESPACE), default)

    @property
    def limits(self) -> Limits:
        """The limits of the server."""
        return self._common.limits

    @property
    def shared(self) -> Shared:
        """The limits that apply to all stores together."""
        return self._common.shared

    @property
    def is_closing(self) -> bool:
        """Whether the server is shutting down."""
        return self._is_closing

    # Looking up

    def __len__(self) -> int:
        """Return the number of namespaces."""
        return len(self._spaces)

    def find(self, name: str) -> Space:
        """Return a namespace of this server, open or closed. Raises NamespaceNotFound, NotOwner."""
        space = self._spaces.get(name)
        if space is None:
            raise NamespaceNotFound(name)
        if space.gone is not None:
            raise space.gone
        return space

    def known(self, name: str) -> Space | None:
        """Return a namespace that is not being deleted or closed, None if this server knows of none."""
        space = self._spaces.get(name)
        return space if space is not None and space.gone is None else None

    def use(self, space: Space) -> Use:
        """Return a context in which the store of a namespace is open."""
        return Use(space, self.opened)

    def spaces(self) -> list[Space]:
        """Return all namespaces, ordered by name."""
        found = (self._spaces[name] for name in sorted(self._spaces))
        return [space for space in found if not space.is_deleted]

    def open_stores(self) -> list[Store]:
        """Return the open stores. May be called in any thread."""
        return [space.store for space in list(self._spaces.values()) if space.store is not None]

    def is_usable(self, name: str) -> bool | None:
        """Return whether the storage of a namespace answers, None if there is no such namespace."""
        space = self._spaces.get(name)
        return space.is_usable if space is not None and not space.is_deleted else None

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call `watcher` with the name of each namespace that `is_usable` may now answer differently for."""
        self._watchers.append(watcher)

    def announce(self, **announced: int | str) -> None:
        """Set `http_port`, `otlp_http_port` or `owner` for GetServerInfo, as `Info.announce` takes them."""
        self._announced.update(announced)
        for store in self.open_stores():
            self._announce_by(store)

    def _announce_by(self, store: Store) -> None:
        store.info.announce(**self._announced)

    # Opening and closing

    async def start(self) -> None:
        """Find the namespaces, open those with live records, and close idle ones from now on. Raises StorageUnusable.

        Returns before they are open: their deadlines that have passed fire as each one opens. Where several servers share
        the namespaces, `synchronise` finds them.
        """
        self._timers.append(self._spawn(self.idle.run()))
        if self.placement is None:
            try:
                survey = await self._catalog.survey()
            except CatalogFailed as error:
                raise StorageUnusable(error.description) from None
            self.open_soon([found.name for found in survey if self._know(found)])

    def synchronise(self, found: Sequence[Found]) -> None:
        """Take note of all namespaces that the servers share: other servers create, change and delete them, too."""
        names = {each.name for each in found}
        for each in found:
            space = self._spaces.get(each.name)
            if space is None:
                self._know(each)
                self._report(each.name)
            elif space.store is None and each.settings:
                with contextlib.suppress(StorageUnusable):  # reported by the server that opens it
                    space.settings, space.store_id = parse(each.settings), each.store_id
        for name in [name for name in self._spaces if name not in names]:
            space = self._spaces[name]
            if space.store is None and space.opening is None and not self._changing.locked():
                del self._spaces[name]
                self._report(name)

    def _know(self, found: Found) -> bool:
        """Add a namespace that the catalog has found; return whether it must be opened at once."""
        space = self._add(found.name)
        try:
            space.settings, space.store_id = parse(found.settings), found.store_id
            failure = found.failure
        except StorageUnusable as error:
            failure = str(error)
        if failure:
            self._fail(space, failure)
            return False
        kept = retention_of(space.settings, self._keep).finished_seconds
        if found.oldest_ns and kept is not None:
            space.wake_ns = found.oldest_ns + int(kept * NANOS)
        return found.live

    async def _open_all(self, names: list[str]) -> None:
        """Open namespaces, a few at a time, and close those in which nothing is live."""
        waiting = iter(names)

        async def open_some() -> None:
            for name in waiting:
                space = self._spaces.get(name)
                with contextlib.suppress(StoreError):  # logged
                    if space is not None:
                        await self.opened(space)
                        self.close_if_unused(space)

        await asyncio.gather(*[open_some() for _ in range(OPENED_AT_ONCE)])

    async def opened(self, space: Space) -> Store:
        """Return the store of a namespace, opened if necessary.

        Raises NamespaceNotFound, NotOwner, ShuttingDown, Unavailable.
        """
        while True:
            if space.gone is not None:
                raise space.gone
            if space.store is not None:
                return space.store
            if self._is_closing:
                raise ShuttingDown
            if space.opening is None:
                if not self.is_here(space.name):
                    # A server that has just given it up would otherwise take it again with the next call.
                    raise NotOwner(space.name, "")
                if space.failure is not None and self._clock.monotonic() < space.retry_at:
                    raise space.failure
                space.opening = self._spawn(self._open(space))
            await asyncio.shield(space.opening)
            if space.store is None and space.failure is not None:
                raise space.failure

    async def _open(self, space: Space) -> None:
        """Open the store of a namespace, or record why it cannot be opened."""
        try:
            if space.closing is not None:
                await space.closing
            store = await open_store(
                self._catalog.storage(space.name),
                self._clock,
                self.limits,
                self._keep,
                self._common.shared,
                space.name,
            )
        except OwnedElsewhere as error:
            space.fail(NotOwner(space.name, error.address))
            space.retry_at = 0.0  # the owner may give it up at any moment
        except (StorageUnusable, StoreError) as error:
            self._fail(space, str(error))
        except Exception as error:
            logger.exception("namespace %s cannot be opened", space.name)
            self._fail(space, f"{type(error).__name__}: {error}")
        else:
            self._announce_by(store)
            self._adopt(space, store)
        finally:
            space.opening = None

    def _adopt(self, space: Space, store: Store) -> None:
        """Serve a namespace from a store that was opened."""
        space.learn(store)
        space.touch()
        space.store, space.failure, space.wake_ns = store, None, 0

        def note(usable: bool) -> None:  # noqa: FBT001
            space.is_usable = usable
            self._report(space.name)
            if self.placement is not None and isinstance(
                store.engine.committer.failure, OwnershipLost
            ):
                self._spawn(self._release(space, store))

        store.engine.watch_usability(note)
        note(True)

    def _fail(self, space: Space, cause: str) -> None:
        error = Unavailable(space.name, cause)
        if space.failure is None or space.failure.message != error.message:
            logger.error("namespace %s is unavailable: %s", space.name, cause)
        space.fail(error)
        self._report(space.name)

    def close_if_unused(self, space: Space) -> None:
        """Close the store of a namespace in which nothing happens. What needs it again waits, and then opens it."""
        store = space.store
        if store is None or space.in_use or store is self.default:
            return
        if store.engine.is_durable:  # else closing it would lose its data
            space.store = space.bound = None
            space.closing = self._spawn(self._close(space, store))

    async def _close(self, space: Space, store: Store) -> None:
        """Close a store, and note when its retention needs it again."""
        try:
            kept = retention_of(space.settings, self._keep).finished_seconds
            if kept is not None:
                rows = await store.engine.storage.finished((0, 0), 1, _FOREVER_NS)
                soon_ns = self._clock.wall_ns() + int(IDLE_SECONDS * NANOS)
                space.wake_ns = max(rows[0].place[0] + int(kept * NANOS), soon_ns) if rows else 0
            await store.close()
        except Exception:
            logger.exception("namespace %s could not be closed properly", space.name)
        finally:
            space.closing = None

    def is_open(self, name: str) -> bool:
        """Return whether the store of a namespace is open in this process."""
        space = self._spaces.get(name)
        return space is not None and space.store is not None and space.gone is None

    def is_at_rest(self, name: str) -> bool:
        """Return whether the store of a namespace is closed, and is not being opened or closed."""
        space = self._spaces.get(name)
        return space is None or (
            space.store is None
            and space.opening is None
            and space.closing is None
            and space.gone is None
        )

    async def open(self, name: str) -> None:
        """Open a namespace that this server should own. Failures are logged; the next call or look tries again."""
        space = self._spaces.get(name)
        with contextlib.suppress(StoreError):
            if space is not None:
                await self.opened(space)

    def open_soon(self, names: Sequence[str]) -> None:
        """Open namespaces that have live records, whose deadlines may have passed."""
        self._timers.append(self._spawn(self._open_all(list(names))))

    async def release(self, name: str) -> None:
        """Close a namespace, whose calls end with NotOwner, so that another server can own it."""
        space = self._spaces.get(name)
        if space is not None and space.store is not None:
            await self._complete(self._release(space, space.store))

    async def _release(self, space: Space, store: Store) -> None:
        if space.store is not store or space.gone is not None:
            return
        error = NotOwner(space.name, "")
        store.engine.stop_waiting(error)
        await space.unused(RELEASE_SECONDS)
        await space.end_uses(error)
        space.store = space.bound = None
        await self._close(space, store)
        space.gone = None
        self._report(space.name)

    # Creating, changing and deleting

    async def create(self, request: CreateNamespaceRequest) -> Space:
        """Create a namespace. Raises FieldInvalid, NamespaceExists, StorageFailed."""
        settings = created(request, stamp(self._clock.wall_ns()))
        return await self._complete(self._create(request.namespace.name, settings))

    async def _create(self, name: str, settings: CreateNamespaceRequest) -> Space:
        async with self._changing:
            space = self._spaces.get(name)
            if space is not None:
                if not settings.request_id or space.settings.request_id != settings.request_id:
                    raise NamespaceExists(name)
                return space
            await self._catalog.create(name, settings.SerializeToString())
            space = self._add(name)
            space.settings = settings
            if self.is_here(name):
                with contextlib.suppress(StoreError):  # it exists, and the next call tries again
                    await self.opened(space)
            return space

    async def update(self, request: UpdateNamespaceRequest) -> Space:
        """Change the settings of a namespace. Raises NamespaceNotFound, FieldInvalid, Unavailable."""
        space = self.find(request.namespace.name)
        async with self.use(space) as store:
            await store.settings.update(request)
            space.learn(store)
        return space

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a namespace, whose calls end with NamespaceNotFound.

        Raises NamespaceNotFound, NamespaceInUse unless `force`, StorageFailed.
        """
        if name == DEFAULT_NAMESPACE:
            store = self._spaces[DEFAULT_NAMESPACE].store
            raise NamespaceInUse(name, "it always exists", live_attempts(store) if store else 0)
        await self._complete(self._delete(name, force=force))

    async def _delete(self, name: str, *, force: bool) -> None:
        async with self._changing:
            space = self.find(name)
            if not force and (count := live_attempts(await self.opened(space))):
                running = "1 attempt is" if count == 1 else f"{count} attempts are"
                cause = f"{running} running in it; use force to delete it nevertheless"
                raise NamespaceInUse(name, cause, count)
            await space.end_uses(NamespaceNotFound(name))
            self._report(name)
            if space.opening is not None:
                await asyncio.wait([space.opening])
            if space.store is not None:
                store, space.store, space.bound = space.store, None, None
                await self._close(space, store)
            elif space.closing is not None:
                await asyncio.wait([space.closing])
            try:
                await self._catalog.delete(name)
            except BaseException:
                space.gone = None  # it still exists
                self._report(name)
                raise
            del self._spaces[name]

    async def _complete(self, change: Coroutine[Any, Any, T]) -> T:
        """Carry out a change to the end, even if the caller is cancelled meanwhile."""
        return await asyncio.shield(self._spawn(change))

    # The end

    def stop_waiting(self) -> None:
        """Answer long polls, end waits and watches in all namespaces, and accept no new ones."""
        self._is_closing = True
        for store in self.open_stores():
            store.engine.stop_waiting()

    async def close(self) -> None:
        """Close all stores; their accepted writes are committed. May be called twice."""
        self.stop_waiting()
        for timer in self._timers:
            timer.cancel()
        async with self._changing:
            busy = [space.opening or space.closing for space in self._spaces.values()]
            await asyncio.gather(*self._timers, *filter(None, busy), return_exceptions=True)
            await asyncio.gather(*[store.close() for store in self.open_stores()])

    # Helpers

    def is_here(self, name: str) -> bool:
        """Return whether this server, rather than another one, may open a namespace."""
        return self.placement is None or not self.placement.elsewhere(name)

    def _add(self, name: str) -> Space:
        space = self._spaces[name] = Space(name, self._clock)
        return space

    def _report(self, name: str) -> None:
        for watcher in self._watchers:
            watcher(name)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: asyncio would log that nothing reads it
