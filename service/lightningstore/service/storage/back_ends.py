"""Back ends by URL."""

from __future__ import annotations

import re
from pathlib import Path

from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.memory import MemoryStorage
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
    if url in ("memory:", "memory://"):
        return MemoryStorage()
    path = url.removeprefix(_FILE)
    if not path or (path == url and _SCHEME.match(url)):
        raise ValueError(f"{url!r} names no storage: use memory:, sqlite:///path, or a path")
    return SqliteStorage(Path(path), full_sync=full_sync, compress=compress)
