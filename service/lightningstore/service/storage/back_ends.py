"""Back ends by URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Catalog, MemoryCatalog
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog, folder_of
from lightningstore.service.storage.sqlite.store import SqliteStorage

if TYPE_CHECKING:
    from lightningstore.service.storage.postgres.database import Database

_FILE = "sqlite:///"
_SCHEME = re.compile(r"(sqlite|memory):|\w+://")
_POSTGRES = ("postgresql://", "postgres://")


def storage_at(
    url: str,
    *,
    full_sync: bool = True,
    compress: bool | None = None,
    namespace: str = DEFAULT_NAMESPACE,
) -> Storage:
    """Return the storage that a URL names, not open yet.

    Args:
        url: "memory:"; "sqlite:///relative/path" or "sqlite:////absolute/path"; the path of a data file; or
            "postgresql://user:password@host:port/database", with parameters as libpq's.
        full_sync: Whether an answered write survives a power cut, and not only a crash of the process.
        compress: Whether spans are stored compressed; None: those of a database are. Memory ignores both.
        namespace: The namespace of a database. The others have one for each storage.

    Raises:
        ValueError: The URL has another scheme, or no path.
        StorageUnusable: The URL is one of PostgreSQL, and lightningstore[postgres] is not installed.
    """
    if is_database(url):
        return _postgres(url, namespace, full_sync=full_sync, compress=compress is not False)
    path = path_at(url)
    if path is None:
        return MemoryStorage()
    return SqliteStorage(path, full_sync=full_sync, compress=bool(compress))


def catalog_at(
    url: str, storage: Storage | None, *, full_sync: bool = True, compress: bool | None = None
) -> Catalog:
    """Return the namespaces beside the store that a URL names.

    `storage` is that of the store, which a database needs: its namespaces share the connections. The other arguments, and the
    errors, are those of `storage_at`.
    """
    if is_database(url):
        return _postgres_catalog(storage, compress=compress is not False)
    path = path_at(url)
    if path is None:
        return MemoryCatalog()
    return SqliteCatalog(folder_of(path), like=path, full_sync=full_sync, compress=bool(compress))


def is_database(url: str) -> bool:
    """Return whether a URL names a PostgreSQL database."""
    return url.startswith(_POSTGRES)


def path_at(url: str) -> Path | None:
    """Return the data file of a URL, None for the memory back end. Raises ValueError."""
    if url in ("memory:", "memory://"):
        return None
    path = url.removeprefix(_FILE)
    if not path or (path == url and _SCHEME.match(url)):
        raise ValueError(
            f"{url!r} names no storage: use memory:, sqlite:///path, postgresql://host/database, or a path"
        )
    return Path(path)


def database_at(url: str, *, full_sync: bool = True) -> Database:
    """Return the database that a URL names, not connected yet. Raises StorageUnusable if the driver is missing."""
    try:
        from lightningstore.service.storage.postgres.database import Database  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise StorageUnusable(
            f"PostgreSQL needs the package {error.name}: pip install 'lightningstore[postgres]'"
        ) from error
    return Database(url, full_sync=full_sync)


def _postgres(url: str, namespace: str, *, full_sync: bool, compress: bool) -> Storage:
    """Return the storage of a namespace. Imported here, because the driver is an extra."""
    database = database_at(url, full_sync=full_sync)
    from lightningstore.service.storage.postgres.store import PostgresStorage  # noqa: PLC0415

    return PostgresStorage(database, namespace, compress=compress)


def _postgres_catalog(storage: Storage | None, *, compress: bool) -> Catalog:
    from lightningstore.service.storage.postgres.catalog import PostgresCatalog  # noqa: PLC0415
    from lightningstore.service.storage.postgres.store import PostgresStorage  # noqa: PLC0415

    if not isinstance(storage, PostgresStorage):
        raise TypeError(f"not the storage of a PostgreSQL database: {storage!r}")
    return PostgresCatalog(storage.database, compress=compress)
