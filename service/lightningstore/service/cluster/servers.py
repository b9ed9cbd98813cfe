"""The servers of one database. Each namespace belongs to one of them at a time, and moves when servers come and go.

A loop looks at the database twice a second, opens the namespaces that this server should own and no server owns, and hands
over those that another server should own. Who may own a namespace is decided by leases and epochs in the database
(storage/postgres/lease.py): servers with different views of each other make calls take a detour, and never own a
namespace twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncpg
import grpc
import grpc.aio
from lightningstore.service.cluster.cluster import Member
from lightningstore.service.engine.clock import Clock
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.rpc.forwarding import Forwarding
from lightningstore.service.rules.errors import (
    FieldInvalid,
    NamespaceNotFound,
    StorageFailed,
    WentBack,
)
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.rules.placement import Placed, plan, server_for
from lightningstore.service.storage.catalog import Found
from lightningstore.service.storage.postgres.answered import Missing
from lightningstore.service.storage.postgres.catalog import PostgresCatalog
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import Row, View

logger = logging.getLogger(__name__)

#: Seconds between two looks at the database.
LOOK_SECONDS = 0.5
#: Default of `settle_seconds`: a server that restarts must not make namespaces move twice.
SETTLE_SECONDS = 5.0


class DatabaseCluster:
    """The servers of one database, as one of them sees them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        compress: bool = True,
        advertised: str = "",
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        """Take the database.

        Args:
            database: The database, not connected yet.
            clock: The clock of the server.
            compress: Whether spans are stored compressed.
            advertised: The address at which clients and other servers reach this one, as host:port; empty: the one
                that it listens on.
            credentials: Makes the credentials of channels to other servers; None: plain text.
            settle_seconds: Seconds for which the list of servers must be the same before namespaces move.
        """
        self._database = database
        self._clock = clock
        self._credentials = credentials
        self._settle_seconds = settle_seconds
        self.advertised = advertised
        self.listeners = ()
        self.catalog = PostgresCatalog(database, compress=compress, hidden="")
        self._view = View({}, (), [])
        #: The namespaces of the view by name.
        self._rows: dict[str, Row] = {}
        self._directory: Directory | None = None
        self._forwarding: Forwarding | None = None
        self._settled_at = self._seen_at = clock.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._is_draining = False

    @property
    def location(self) -> str:
        """The database, without its password."""
        return self._database.location

    @property
    def is_usable(self) -> bool:
        """Whether the database has answered within the time of a lease."""
        return self._clock.monotonic() - self._seen_at < self._database.membership.seconds

    def elsewhere(self, name: str) -> str:
        """Return the address of the server that calls of a namespace go to, "" for this one."""
        if self._directory is not None and self._directory.is_open(name):
            return ""
        membership = self._database.membership
        row = self._rows.get(name)
        if row is None:
            return ""  # unknown: this server looks for it
        address = row.address or ""
        # What this server owned a moment ago and has closed belongs to whichever server should have it.
        if address in ("", membership.address) and self._view.accepting:
            server = server_for(name, self._view.accepting, row.wanted)
            address = self._view.servers[server]
        return "" if address == membership.address else address

    def _may_answer(self, name: str, address: str) -> bool:
        """Return whether the server at an address may still answer a call of a namespace that was sent to it.

        A server with a lease ends the calls of a namespace itself when it gives the namespace up. Until then it answers
        them, also when no server owns the namespace: it may be deleting it.
        """
        row = self._rows.get(name)
        owner = (row.address if row is not None else "") or ""
        return address in self._view.servers.values() and owner in ("", address)

    async def members(self) -> list[Member]:
        """Return the servers with a lease. Raises StorageFailed."""
        await self.refresh()
        view = self._view
        return [
            Member(
                address,
                tuple(row.name for row in view.namespaces if row.owner == server),
                server not in view.accepting,
            )
            for server, address in view.servers.items()
        ]

    async def move(self, name: str, address: str) -> None:
        """Choose the server of a namespace; its owner hands it over at its next look.

        Raises NamespaceNotFound, FieldInvalid, StorageFailed.
        """
        await self.refresh()
        servers = [server for server, at in self._view.servers.items() if at == address]
        if address and not servers:
            known = ", ".join(sorted(self._view.servers.values()))
            raise FieldInvalid("address", f"must be the address of a live server: {known}")
        if not await self._database.membership.move(name, servers[0] if servers else ""):
            raise NamespaceNotFound(name)

    def connect(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a channel to another server."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials(), options=options)

    async def discover(self, _: str, /) -> None:
        """Look at the database. Raises StorageFailed."""
        await self.refresh()

    async def refresh(self) -> None:
        """Look at the database; callers at the same time share one look that begins after they came. Raises StorageFailed."""
        if self._looking is not None:
            await asyncio.wait([self._looking])  # how it ends matters to its own callers only
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def start(self, address: str, directory: Directory, forwarding: Forwarding, /) -> None:
        """Join the servers, create the default namespace if it is missing, and begin to look. Raises StorageUnusable."""
        self._directory, self._forwarding = directory, forwarding
        membership = self._database.membership
        membership.address, membership.serves = address, True
        await self._database.enter()
        await membership.create(DEFAULT_NAMESPACE)
        await self.refresh()
        self._loop = asyncio.create_task(self._look_forever(), name="cluster")

    async def drain(self) -> None:
        """Hand all namespaces over: the server is shutting down."""
        self._is_draining = True
        try:
            await self._database.membership.drain()
            await self.refresh()
        except (StorageFailed, asyncpg.PostgresError) as error:
            logger.warning("other servers do not learn of the shutdown: %s", error)
        if self._directory is not None and len(self._view.servers) > 1:
            names = [space.name for space in self._directory.spaces()]
            await asyncio.gather(*[self._directory.release(name) for name in names])

    async def stop(self) -> None:
        """Leave the servers, after all stores have been closed."""
        tasks = [task for task in (self._loop, self._looking, *self._moving.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._database.leave()

    # Looking

    async def _look_forever(self) -> None:
        """Look at the database and act on it, until cancelled."""
        with contextlib.suppress(StorageFailed):
            await self.catalog.survey()  # removes what is left of deleted namespaces
        while True:
            # By the machine's clock: leases do not follow the clock of the stores.
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.refresh()
            except StorageFailed as error:
                logger.debug("the database does not answer: %s", error)
            except Exception:
                logger.exception("the servers could not be looked at; the next look tries again")

    async def _look(self) -> None:
        """Take note of who owns what, and do what this server has to do about it. Raises StorageFailed."""
        try:
            view = await self._database.membership.look()
            missing = await self._database.missing()
        except asyncpg.PostgresError as error:
            raise StorageFailed(str(error)) from error
        self._seen_at = self._clock.monotonic()
        if view.accepting != self._view.accepting:
            self._settled_at = self._clock.monotonic() + self._settle_seconds
        self._view = view
        self._rows = {row.name: row for row in view.namespaces}
        if self._forwarding is not None:
            self._forwarding.end_misplaced(self._may_answer)
        if self._directory is not None:
            self._directory.synchronise(
                [Found(row.name, row.store_id, row.settings) for row in view.namespaces]
            )
        self._act()
        await self._notice_losses(missing)

    async def _notice_losses(self, missing: list[Missing]) -> None:
        """Have stores load again what the database has after it went back in time, under another id of the store.

        The server that answered what is gone may no longer own the namespace: then the owner learns it by the new id.
        """
        owned = {}
        for row in self._view.namespaces:
            space = self._directory.known(row.name) if self._directory is not None else None
            is_owned = row.owner == self._database.membership.server_id
            if space is not None and is_owned and space.open_store_id is not None:
                owned[row.name] = space, row.store_id
        for lost in missing:
            if lost.name in owned:
                owned.pop(lost.name)[0].reload(WentBack(lost.answered))
            else:
                with contextlib.suppress(StorageFailed, asyncpg.PostgresError):
                    await self._database.rename_store(lost)
        for space, store_id in owned.values():
            if space.open_store_id != store_id:
                space.reload(WentBack())

    def _act(self) -> None:
        """Open and hand over namespaces."""
        spaces = [
            Placed(row.name, row.owner or "", row.wanted, is_live=row.live)
            for row in self._view.namespaces
        ]
        me = self._database.membership.server_id
        is_settled = self._clock.monotonic() >= self._settled_at
        todo = plan(me, self._view.accepting, spaces, is_settled=is_settled)
        directory = self._directory
        if directory is None or self._is_draining:
            return
        for row in self._view.namespaces:
            if row.owner == me and directory.is_at_rest(row.name):
                # Closed, but still this server's in the database, where no other server can take it.
                self._move(row.name, partial(self._give_up, row.epoch))
        for name in todo.take:
            self._move(name, directory.open)
        for name in todo.hand_over:
            logger.info("namespace %s goes to another server", name)
            self._move(name, directory.release)

    async def _give_up(self, epoch: int, name: str) -> None:
        """Free a namespace in the database, unless it has been opened again meanwhile."""
        with contextlib.suppress(StorageFailed, asyncpg.PostgresError):  # the next look tries again
            await self._database.membership.free(name, epoch)

    def _move(self, name: str, change: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        """Open or hand over a namespace, unless that is under way."""
        if name not in self._moving:
            task = self._moving[name] = asyncio.create_task(change(name))
            task.add_done_callback(lambda _: self._moving.pop(name, None))
