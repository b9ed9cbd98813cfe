"""The connections of this process to one database, which all of its namespaces share.

Commits of a namespace go over one connection, in order; reads go over others, so that none waits for a commit, and the
short ones not for the long ones. Each connection is made when it is first used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import asyncpg
from lightningstore.service.rules.errors import StorageFailed, StorageUnusable
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.postgres.answered import Answered, Missing
from lightningstore.service.storage.postgres.lease import (
    CALL_TRY_SECONDS,
    LEASE_SECONDS,
    RENEWALS,
    Membership,
    new_store_id,
)
from lightningstore.service.storage.postgres.lease import SQL as LEASE_SQL
from lightningstore.service.storage.postgres.link import (
    CONNECT_SECONDS,
    LOST,
    Connection,
    Link,
    Links,
    boot_seconds,
    described,
)
from lightningstore.service.storage.postgres.schema import prepare, warn_of_settings

logger = logging.getLogger(__name__)

READS = sql_files.load(__package__, "reads.sql")
#: Connections for commits, for reads of a few records, and for scans.
WRITERS, POINTS, SCANNERS = 8, 2, 4
#: Statements that stay prepared on a connection.
STATEMENTS = 256
#: Seconds for which, and bytes of commits up to which, the known size of the tables is used.
SIZE_SECONDS, SIZE_BYTES = 10.0, 1 << 20
#: All queries look up by an index. Other plans come from statistics of tables that were small then: a commit that reads a
#: table from end to end takes milliseconds. Compiling takes longer than the queries do.
SETTINGS = {
    "application_name": "lightningstore",
    # A query whose connection was given up ends in the database too.
    "client_connection_check_interval": "2s",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_material": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


class Database:
    """A database, and this process as one of its servers."""

    def __init__(
        self,
        url: str,
        *,
        address: str = "",
        full_sync: bool = True,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Take the URL, which may have parameters as libpq's have.

        Args:
            url: "postgresql://user:password@host:port/database".
            address: Where clients reach this server, for other servers and for people.
            full_sync: Whether an answered write survives a crash of the database.
            lease_seconds: Seconds after which other servers take what a server that is gone owned.
        """
        self._url = url
        self.full_sync = full_sync
        writing = {} if full_sync else {"synchronous_commit": "off"}
        self._writers = Links(lambda: self._connect(writing), WRITERS)
        self.points = Links(lambda: self._connect({}), POINTS)
        # Their values decide which index is right.
        scanning = {"plan_cache_mode": "force_custom_plan"}
        self.scanners = Links(lambda: self._connect(scanning), SCANNERS)
        self._calls = Link(lambda: self._connect({}), CALL_TRY_SECONDS)
        self._renewals = Link(lambda: self._connect({}), lease_seconds / RENEWALS)
        self.membership = Membership(
            self._renewals, self._calls, address or _process_name(), lease_seconds
        )
        self._users = 0
        self._opening = asyncio.Lock()
        #: Namespaces that are open in this process.
        self.opened: set[str] = set()
        #: What the database must still have.
        self.answered = Answered()
        #: The connection after which it was compared with the database.
        self._compared = 0
        self._table_bytes, self._sized_at, self._written = 0, 0.0, 0

    @property
    def location(self) -> str:
        """The URL without user, password and parameters."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def enter(self) -> None:
        """Use the database until `leave`: the first user makes the tables and joins the servers.

        Raises StorageUnusable.
        """
        async with self._opening:
            if self._users == 0:
                try:
                    # Connected directly: a wrong password or address is reported at once.
                    connection = await self._connect({})
                    try:
                        await prepare(connection)
                        await warn_of_settings(connection, full_sync=self.full_sync)
                    finally:
                        with suppress(*LOST):
                            await connection.close(timeout=CONNECT_SECONDS)
                    await self.membership.join()
                except (StorageFailed, asyncpg.PostgresError, *LOST) as error:
                    raise StorageUnusable(
                        f"the database at {self.location} cannot be used: {described(error)}"
                    ) from error
            self._users += 1

    async def leave(self) -> None:
        """End the use: the last user frees all namespaces and disconnects."""
        async with self._opening:
            self._users -= 1
            if self._users == 0:
                await self.membership.leave()
                await asyncio.gather(
                    *(link.close() for link in (self._calls, self._renewals)),
                    *(links.close() for links in (self._writers, self.points, self.scanners)),
                )

    async def missing(self) -> list[Missing]:
        """Return the namespaces that lack commits that this server has answered. Looks after each new connection.

        Raises StorageFailed, asyncpg.PostgresError.
        """
        made = self._calls.made
        if made == self._compared:
            return []
        missing = await self.membership.call(lambda c, _: self.answered.missing(c))
        if not missing:
            self._compared = made
        return missing

    async def rename_store(self, missing: Missing) -> None:
        """Give the store of a namespace that lacks commits another id.

        Raises StorageFailed, asyncpg.PostgresError.
        """
        store_id = new_store_id()
        await self.membership.call(
            lambda c, _: c.execute(LEASE_SQL["rename_store"], missing.ns, store_id)
        )
        missing.report(store_id)
        self.answered.forget(missing.ns)

    def writer(self, ns: int) -> Link:
        """Return the connection for the commits of a namespace."""
        return self._writers.links[ns % WRITERS]

    async def connect(self) -> Connection:
        """Return a connection of the caller's own."""
        return await self._connect({})

    async def _connect(self, settings: dict[str, str]) -> Connection:
        return await asyncpg.connect(
            self._url,
            timeout=CONNECT_SECONDS,
            statement_cache_size=STATEMENTS,
            # Plans and types do not depend on time.
            max_cached_statement_lifetime=0,
            server_settings=SETTINGS | settings,
        )

    def count_written(self, size: int) -> None:
        """Count the bytes of a commit."""
        self._written += size

    async def table_bytes(self, until: float) -> int:
        """Return the size of all tables on disk, which may be some seconds old."""
        now = boot_seconds()
        if now > self._sized_at + SIZE_SECONDS or self._written > SIZE_BYTES:
            self._sized_at, self._written = now, 0
            rows = await self.scanners.fetch(READS["table_bytes"], (), lambda: until)
            self._table_bytes = rows[0][0]
        return self._table_bytes


def _process_name() -> str:
    """Return a name for a server without an address."""
    return f"{socket.gethostname()} (process {os.getpid()})"
