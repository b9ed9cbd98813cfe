"""Which server owns what: one lease for each server, and an owner with an epoch for each namespace.

A server's row in `ls_servers` is its lease. It ends by the database's clock alone. A server that wants the namespaces of
another first deletes that server's row, which succeeds only after its lease has ended; a renewal that finds no row fails
for good. So a server that has renewed its lease still owns what it owned before, and it counts the lease from before the
renewal was sent, on a clock that does not stop while its machine sleeps.

Writes do not depend on any clock: each commit names the epoch, which rises with each owner.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import asyncpg
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.postgres.link import (
    Connection,
    Link,
    T,
    Work,
    boot_seconds,
    in_seconds,
)

logger = logging.getLogger(__name__)

SQL = sql_files.load(__package__, "lease.sql")
LEASE_SECONDS = 5.0
#: Renewals of a lease within its time.
RENEWALS = 3
#: Seconds in which joining and taking, and leaving and giving up, succeed or fail.
CALL_SECONDS, LEAVE_SECONDS = 5.0, 2.0
#: Seconds after which one of their queries is sent again on another connection.
CALL_TRY_SECONDS = 2.0
#: Tries to take a namespace whose owner changes meanwhile.
TAKE_TRIES = 5


@dataclass
class Lease:
    """A server's lease, for as long as the server renews it."""

    server_id: str
    #: Time until which no other server can own what it owns, in seconds of CLOCK_BOOTTIME.
    owned_until: float
    #: Set once it has ended for good.
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """End it for good."""
        self.owned_until = 0.0
        self.lost.set()


class Row(NamedTuple):
    """A namespace as all servers see it."""

    name: str
    store_id: str
    settings: bytes
    #: Id of the server that an operator has chosen; empty if none has.
    wanted: str
    epoch: int
    #: Id and address of the owner; None if it has none with a lease.
    owner: str | None
    address: str | None
    #: Whether the namespace has an owner, or anything is live in it.
    live: bool


class View(NamedTuple):
    """What all servers see of each other and of the namespaces."""

    #: Address of each live server, by its id.
    servers: dict[str, str]
    #: Ids of those that take namespaces.
    accepting: tuple[str, ...]
    namespaces: list[Row]


class Owned(Exception):
    """Another server owns the namespace."""

    def __init__(self, namespace: str, address: str, remaining: float) -> None:
        super().__init__(
            f"namespace {namespace!r} is owned by the server at {address}, whose lease ends in {remaining:.1f} s "
            "unless it is renewed; stop that server, or connect to it"
        )
        self.address = address


class NoNamespace(Exception):
    """There is no such namespace."""


@dataclass
class Ownership:
    """A namespace that this server has taken."""

    namespace: str
    ns: int
    epoch: int
    store_id: str
    lease: Lease
    #: Set when another owner was met, or it was given up.
    ended: bool = False

    @property
    def named(self) -> tuple[int, int, str]:
        """What identifies it in the database: namespace, epoch and owner."""
        return self.ns, self.epoch, self.lease.server_id

    @property
    def owned_until(self) -> float:
        """Time until which no other server can own it, in seconds of CLOCK_BOOTTIME."""
        return 0.0 if self.ended else self.lease.owned_until


class Membership:
    """This server among the servers of a database.

    Renewals have a connection of their own: taking a namespace may wait for a commit of its former owner.
    """

    def __init__(
        self, renewals: Link, calls: Link, address: str, seconds: float = LEASE_SECONDS
    ) -> None:
        """Take the connections, the address that other servers and people see, and the length of the lease."""
        self._renewals = renewals
        self._calls = calls
        self.address = address
        #: Whether clients and other servers can call this process. Others leave no namespace to it if they cannot.
        self.serves = False
        self.seconds = seconds
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None
        self._joining = asyncio.Lock()

    async def join(self) -> Lease:
        """Return this server's lease, a new one if it has none or has lost it. Raises StorageFailed."""
        async with self._joining:
            if self._lease is not None and not self._lease.lost.is_set():
                return self._lease
            self._lease = await self.call(self._insert)
            if self._task is not None:
                self._task.cancel()
            self._task = asyncio.create_task(self._keep(self._lease), name="lease")
            return self._lease

    async def _insert(self, connection: Connection, _: int) -> Lease:
        """Return a new lease. Each try has its own id: when an earlier one was written is unknown."""
        await connection.execute(SQL["bury_old"])
        lease = Lease(uuid.uuid4().hex, boot_seconds() + self.seconds)
        row = (lease.server_id, self.address, self.seconds, not self.serves)
        await connection.execute(SQL["join"], *row)
        return lease

    async def _keep(self, lease: Lease) -> None:
        """Renew the lease until it is lost."""

        async def renew(connection: Connection, _: int) -> float | None:
            begun = boot_seconds()
            found = await connection.fetchval(SQL["renew"], lease.server_id, self.seconds)
            return begun if found else None

        while not lease.lost.is_set():
            await asyncio.sleep(self.seconds / RENEWALS)
            try:
                begun = await self._renewals.run(renew, in_seconds(self.seconds))
            except (StorageFailed, asyncpg.PostgresError) as error:
                logger.warning("the lease of this server could not be renewed: %s", error)
                continue
            if begun is None:
                logger.error("the lease of this server has ended: another server took its place")
                lease.end()
            else:
                lease.owned_until = begun + self.seconds

    async def leave(self) -> None:
        """Free everything that this server owns and end its lease. May be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        lease, self._lease = self._lease, None
        if lease is not None and not lease.lost.is_set():
            lease.end()
            # Otherwise the lease ends by itself.
            with suppress(StorageFailed, asyncpg.PostgresError):
                await self.call(
                    lambda c, _: c.execute(SQL["leave"], lease.server_id), LEAVE_SECONDS
                )

    @property
    def server_id(self) -> str:
        """The id of this server, "" before it has joined. Another one after it has lost its lease."""
        return self._lease.server_id if self._lease is not None else ""

    async def look(self) -> View:
        """Return the servers and the namespaces. Raises StorageFailed."""
        await self.join()

        async def read(connection: Connection, _: int) -> View:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                servers = await connection.fetch(SQL["accepting"])
                placed = await connection.fetch(SQL["placed"])
            return View(
                {row["id"]: row["address"] for row in servers},
                tuple(row["id"] for row in servers if not row["draining"]),
                [Row(*row) for row in placed],
            )

        return await self.call(read)

    async def free(self, namespace: str, epoch: int) -> None:
        """Free a namespace that this server owns under an epoch; no-op under another one. Raises StorageFailed."""
        values = (namespace, epoch, self.server_id)
        await self.call(lambda c, _: c.execute(SQL["free"], *values))

    async def drain(self) -> None:
        """Have the other servers take what this one gives up. Raises StorageFailed."""
        if self._lease is not None:
            server_id = self._lease.server_id
            await self.call(lambda c, _: c.execute(SQL["drain"], server_id), LEAVE_SECONDS)

    async def move(self, namespace: str, server_id: str) -> bool:
        """Choose a server for a namespace, "" for none; returns False if there is none of that name."""
        moved = await self.call(lambda c, _: c.fetchval(SQL["move"], namespace, server_id))
        return moved is not None

    async def create(self, namespace: str, settings: bytes = b"") -> bool:
        """Create a namespace; returns False if there is one. Raises StorageFailed."""
        values = (namespace, new_store_id(), settings)
        made = await self.call(lambda c, _: c.fetchval(SQL["put_namespace"], *values))
        return made is not None

    async def take(self, namespace: str) -> Ownership:
        """Own a namespace that is free, or that this server owns already: then with another epoch.

        Raises:
            Owned: Another server owns it.
            NoNamespace: There is no such namespace.
            StorageFailed: The database does not answer.
        """
        lease = await self.join()
        for _ in range(TAKE_TRIES):
            taken = await self.call(partial(_take, namespace, lease))
            if taken is not None:
                return taken
            lease = await self.join()
        raise StorageFailed(f"the owner of namespace {namespace!r} keeps changing")

    async def give_up(self, ownership: Ownership) -> None:
        """Free a namespace. Does nothing if another server owns it."""
        if not ownership.ended:
            ownership.ended = True
            with suppress(StorageFailed, asyncpg.PostgresError):
                await self.call(
                    lambda c, _: c.execute(SQL["give_up"], *ownership.named),
                    LEAVE_SECONDS,
                )

    async def call(self, work: Work[T], seconds: float = CALL_SECONDS) -> T:
        """Run short queries about namespaces. Raises StorageFailed if the database does not answer for so long."""
        return await self._calls.run(work, in_seconds(seconds))


async def _take(namespace: str, lease: Lease, connection: Connection, _: int) -> Ownership | None:
    """Take a namespace; None if its owner changed meanwhile, or the lease has ended."""
    found = await connection.fetchrow(SQL["find_namespace"], namespace)
    if found is None:
        raise NoNamespace(f"there is no namespace {namespace!r}")
    if found["owner"] != lease.server_id and found["address"] is not None:
        if found["remaining"] > 0:
            raise Owned(namespace, found["address"], found["remaining"])
        if await connection.fetchval(SQL["bury"], found["owner"]) is None:
            return None
    # Named as it was found: an owner that came after this look must not be replaced.
    epoch = await connection.fetchval(
        SQL["take"], found["ns"], lease.server_id, found["owner"], found["epoch"]
    )
    if epoch is None:
        if not await connection.fetchval(SQL["is_member"], lease.server_id):
            lease.end()
        return None
    return Ownership(namespace, found["ns"], epoch, found["store_id"], lease)


def new_store_id() -> str:
    """Return an id for a store."""
    return f"store-{uuid.uuid4()}"
