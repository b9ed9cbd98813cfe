"""The tables of a database: made and migrated by the first server that needs them."""

from __future__ import annotations

import logging

import asyncpg
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.postgres.link import Connection

logger = logging.getLogger(__name__)

MIGRATIONS = sql_files.migrations(__package__)
SCHEMA_VERSION = max(version for version, _ in MIGRATIONS)
#: Key of the advisory lock under which the schema changes. Any number that nothing else uses.
LOCK = 0x4C53_7365_7276_6572
OLDEST_SERVER = 13


async def prepare(connection: Connection) -> None:
    """Create the tables or migrate them. Raises StorageUnusable."""
    major = connection.get_server_version().major
    if major < OLDEST_SERVER:
        raise StorageUnusable(f"PostgreSQL {major} is too old: use {OLDEST_SERVER} or newer")
    if await version_of(connection) == SCHEMA_VERSION:
        return
    async with connection.transaction():
        # Servers that start together wait here, and the others find the work done.
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        version = await version_of(connection)
        if version > SCHEMA_VERSION:
            raise StorageUnusable(
                f"the database has schema {version}, made by a newer version of LightningStore; "
                f"this one knows schemas up to {SCHEMA_VERSION}"
            )
        for to, script in MIGRATIONS:
            if to > version:
                await connection.execute(script)
                await connection.execute("UPDATE ls_schema SET version = $1", to)
                logger.info("the database has been migrated to schema %d", to)


async def version_of(connection: Connection) -> int:
    """Return the version of the schema, 0 if there is none yet."""
    # A query of the catalogue: to_regclass may remember that there was no table before the lock was held.
    known = "SELECT 1 FROM pg_class WHERE relname = 'ls_schema' AND relnamespace = current_schema()::regnamespace"
    if await connection.fetchval(known) is None:
        return 0
    version: int = await connection.fetchval("SELECT version FROM ls_schema")
    return version


async def warn_of_settings(connection: Connection, *, full_sync: bool) -> None:
    """Log settings of the server with which it may lose answered writes."""
    risky = ("fsync", "full_page_writes", *(["synchronous_commit"] if full_sync else []))
    for name in risky:
        try:
            value = await connection.fetchval("SELECT current_setting($1)", name)
        except asyncpg.UndefinedObjectError:
            continue
        if value == "off":
            logger.warning(
                "the database has %s = off: a crash of it may lose answered writes", name
            )
