"""The namespaces of a database."""

from __future__ import annotations

from typing import Any

import asyncpg
from lightningstore.service.rules.errors import NamespaceExists, StorageFailed
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Found
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import CALL_SECONDS, NoNamespace, Owned
from lightningstore.service.storage.postgres.link import described, in_seconds
from lightningstore.service.storage.postgres.store import PostgresStorage

SQL = sql_files.load(__package__, "catalog.sql")
#: Tables with rows of namespaces.
TABLES = (
    *("ls_spans", "ls_inputs", "ls_attempts", "ls_rollouts", "ls_requests", "ls_resources"),
    "ls_groups",
    "ls_consumers",
    "ls_deliveries",
    *("ls_labels", "ls_workers", "ls_leftovers", "ls_probes", "ls_settings", "ls_commits"),
)
#: Rows that one statement deletes.
DELETED_AT_ONCE = 5000


class PostgresCatalog:
    """The namespaces of a database."""

    def __init__(
        self, database: Database, *, compress: bool = True, hidden: str = DEFAULT_NAMESPACE
    ) -> None:
        """Take the database. `compress` is that of PostgresStorage, `hidden` a namespace that is left out."""
        self._database = database
        self._hidden = hidden
        self._compress = compress

    async def survey(self) -> list[Found]:
        """Return the namespaces, and delete what is left of those that were deleted."""
        for (ns,) in await self._fetch(SQL["deleted"]):
            await self._delete_rows(ns)
        return [Found(*row) for row in await self._fetch(SQL["survey"], self._hidden)]

    async def _fetch(self, text: str, *values: Any) -> list[Any]:
        return await self._database.scanners.fetch(text, values, in_seconds(CALL_SECONDS))

    def storage(self, name: str) -> Storage:
        """Return the storage of an existing namespace."""
        return PostgresStorage(self._database, name, compress=self._compress, existing=True)

    async def create(self, name: str, settings: bytes) -> None:
        """Create a namespace. Raises NamespaceExists."""
        try:
            created = await self._database.membership.create(name, settings)
        except asyncpg.PostgresError as error:
            raise StorageFailed(described(error)) from error
        if not created:
            raise NamespaceExists(name)

    async def delete(self, name: str) -> None:
        """Delete a namespace, whose storage is closed, and then its rows. Raises StorageFailed."""
        membership = self._database.membership
        try:
            owned = await membership.take(name)
            deleted = await membership.call(
                lambda c, _: c.fetchval(SQL["delete_namespace"], *owned.named)
            )
            if deleted is not None:
                await self._delete_rows(owned.ns)
        except NoNamespace:
            return
        except (Owned, asyncpg.PostgresError) as error:
            raise StorageFailed(described(error)) from error

    async def _delete_rows(self, ns: int) -> None:
        """Delete the rows of a namespace that was deleted, in statements that take milliseconds."""
        for table in TABLES:
            text = SQL["delete_rows"].format(table=table, limit=DELETED_AT_ONCE)
            while len(await self._fetch(text, ns)) == DELETED_AT_ONCE:
                pass
        await self._fetch(SQL["forget_deleted"], ns)
