"""Back ends by URL."""

from __future__ import annotations

import re
from pathlib import Path

from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Catalog, MemoryCatalog
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog
from lightningstore.service.storage.sqlite.store import SqliteStorage

_FILE = "sqlite:///"
_SCHEME = re.compile(r"(sqlite|memory):|\w+://")


def storage_at(url: str, *, full_sync: bool = True, compress: bool = False) -> Storage:
    """Return the storage that a URL names, not open yet.

    Args:
        url: "memory:"; "sqlite:///relative/path" or "sqlite:////absolute/path"; or the path of a data file.
        full_sync: Whether an answered write survives a power cut, and not only a crash of the process.
        compress: Whether spans are stored compressed. A back end without files ignores both.

    Raises:
        ValueError: The URL has another scheme, or no path.
    """
    path = _path(url)
    if path is None:
        return MemoryStorage()
    return SqliteStorage(path, full_sync=full_sync, compress=compress)


def catalog_at(url: str, *, full_sync: bool = True, compress: bool = False) -> Catalog:
    """Return the namespaces beside the store that a URL names; arguments and errors as of `storage_at`."""
    path = _path(url)
    if path is None:
        return MemoryCatalog()
    return SqliteCatalog(path, full_sync=full_sync, compress=compress)


def _path(url: str) -> Path | None:
    """Return the data file of a URL, None for the memory back end. Raises ValueError."""
    if url in ("memory:", "memory://"):
        return None
    path = url.removeprefix(_FILE)
    if not path or (path == url and _SCHEME.match(url)):
        raise ValueError(f"{url!r} names no storage: use memory:, sqlite:///path, or a path")
    return Path(path)
