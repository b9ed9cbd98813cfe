"""A data file as one side of a copy: all of its rows are read, or all rows of a new file are written."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.storage.base import Counters
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.catalog import (
    DRAFT,
    ENDING,
    SqliteCatalog,
    file_of,
    folder_of,
)
from lightningstore.service.storage.sqlite.commits import COLUMNS, SQL

#: Names of the tables with rows, each with the columns that order it.
TABLES = {
    "inputs": ("rollout_key",),
    "rollouts": ("key",),
    "labels": ("rollout_key", "name"),
    "attempts": ("key",),
    "spans": ("key",),
    "resources": ("updated",),
    "groups": ("key",),
    "consumers": ("name",),
    "deliveries": ("consumer", "number"),
    "workers": ("worker_id",),
    "requests": ("method", "request_id"),
}
#: Columns of type TEXT.
TEXTS = frozenset(
    (
        *("rollout_id", "group_id", "resources_id", "latest_attempt_id"),
        *("worker_id", "method", "request_id", "queue", "reward", "scores", "name", "value"),
    )
)
#: Maximum number of rows, and of bytes, that are copied at a time; a single row may be larger.
ROWS_AT_ONCE, BYTES_AT_ONCE = 2000, 4 << 20
#: Defects of a damaged file that an error names.
NAMED = 3
_LEAVING = "SELECT e.value FROM meta m, json_each(m.value) e WHERE m.name = 'leaving'"
_OTHER_ROWS = "SELECT EXISTS (SELECT 1 FROM workers) OR EXISTS (SELECT 1 FROM requests)"


class Place(NamedTuple):
    """Where the data file of a namespace is."""

    path: Path
    #: Where it is written first. A server that starts removes what a crash left there.
    draft: Path
    #: The folder of the namespace's file, None for the file of the default one.
    catalog: SqliteCatalog | None = None
    #: File whose readers may read it; None: only its owner may.
    like: Path | None = None


def place_of(path: Path, namespace: str, *, folder: bool) -> Place:
    """Return where a namespace is, beside the data file of the default one, or in a `folder` of all of them."""
    if folder:
        return Place(
            path / f"{namespace}{ENDING}", path / f"{namespace}{DRAFT}", SqliteCatalog(path)
        )
    if namespace == DEFAULT_NAMESPACE:
        place = path.resolve()
        return Place(path, place.with_name(f".{place.name}{DRAFT}"))
    catalog = SqliteCatalog(folder_of(path), like=path if path.exists() else None)
    draft = folder_of(path) / f"{namespace}{DRAFT}"
    return Place(file_of(path, namespace), draft, catalog, path if path.exists() else None)


@dataclass
class FileSource:
    """A data file whose rows are read. No server can open it meanwhile."""

    connection: sqlite3.Connection
    store_id: str
    counters: bytes
    settings: bytes

    def rows(self, table: str) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows of a table, some at a time, texts as bytes, without the spans of removed rollouts."""
        columns = ", ".join(
            f"CAST({name} AS BLOB)" if name in TEXTS else name for name in COLUMNS[f"put_{table}"]
        )
        where = f"WHERE rollout_key NOT IN ({_LEAVING})" if table == "spans" else ""
        order = ", ".join(TABLES[table])
        rows: list[tuple[Any, ...]] = []
        size = 0
        for row in self.connection.execute(
            f"SELECT {columns} FROM {table} {where} ORDER BY {order}"
        ):
            rows.append(row)
            size += bytes_of(row)
            if size >= BYTES_AT_ONCE or len(rows) >= ROWS_AT_ONCE:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows


def bytes_of(row: Sequence[Any]) -> int:
    """Return the bytes of a row's texts and records."""
    return sum(len(value) for value in row if type(value) is bytes)


@contextmanager
def source(path: Path) -> Iterator[FileSource]:
    """Lock a data file, check it and read it as it is now. Nothing in it changes.

    Raises StorageUnusable for a file that is missing, damaged, or open in a server.
    """
    datafile.inspect(path)  # the lock would create a store
    lock = datafile.Lock(path)
    try:
        if found := tools.check(path):
            more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
            raise StorageUnusable(
                f"{path} is damaged: {'; '.join(found[:NAMED])}{more}; "
                "`lightningstore check --repair` removes what cannot be read"
            )
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            # Rolled back in the end: the file of an earlier version is migrated for this reader alone.
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < datafile.SCHEMA_VERSION:
                datafile.migrate(connection, version)
            meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
            settings = bytes(meta.get("settings", b""))
            yield FileSource(connection, meta["store_id"], meta["counters"].encode(), settings)
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise StorageUnusable(f"{path} cannot be read: {error}") from error
    finally:
        lock.release()


class FileTarget:
    """A data file that is written. It gets its name when it is complete."""

    def __init__(self, place: Place) -> None:
        """Begin to write the file. Raises StorageUnusable if there is one that a server has used."""
        self._place = place
        if place.path.exists():
            with _unused(place.path):
                pass
        try:
            if place.catalog is not None:
                place.catalog.make_folder()
            like = place.path if place.path.exists() else place.like
            datafile.forget(place.draft)  # left by a crash
            datafile.make(place.draft, like.stat().st_mode if like is not None else 0)
        except OSError as error:
            raise StorageUnusable(f"cannot create {place.path}: {error.strerror}") from error
        with self._errors():
            # After a DROP TABLE and a RENAME, this connection could not switch to a log and back: SQLite would hold the
            # table as locked.
            with closing(sqlite3.connect(place.draft, isolation_level=None)) as connection:
                datafile.prepare(connection, "OFF")
            self._connection = sqlite3.connect(
                place.draft, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.execute("PRAGMA cache_size = -32768")
            # What a crash leaves is removed, so nothing has to be restored or written twice.
            self._connection.execute("PRAGMA journal_mode = OFF").fetchall()
            self._connection.execute("BEGIN")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageUnusable(f"cannot write {self._place.path}: {error}") from error

    def put(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows, texts as str. Raises StorageUnusable."""
        columns = COLUMNS[f"put_{table}"]
        marks = ", ".join("?" * len(columns))
        with self._errors():
            self._connection.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows
            )

    def finish(self, store_id: str, counters: bytes, settings: bytes) -> None:
        """Write what the store is, and sync the file. Raises StorageUnusable."""
        meta = {"store_id": store_id, "counters": counters.decode(), "settings": settings}
        with self._errors():
            for name, value in meta.items():
                self._connection.execute(SQL["put_meta"], {"name": name, "value": value})
            self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.close()
            datafile.sync(self._place.draft)

    def publish(self) -> None:
        """Give the file its name, unless there is another one by now. Raises StorageUnusable."""
        path = self._place.path
        with _unused(path), self._errors():
            datafile.publish(self._place.draft, path)

    def close(self) -> None:
        """Remove what has not been published."""
        self._connection.close()
        datafile.forget(self._place.draft)


@contextmanager
def _unused(path: Path) -> Iterator[None]:
    """Keep servers from a path at which no server has stored anything. Raises StorageUnusable."""
    existed = path.exists()
    lock = datafile.Lock(path, replaced=True)
    try:
        if os.fstat(lock.descriptor).st_size and not _is_unused(path):
            raise StorageUnusable(f"{path} exists and is not empty: name another file or namespace")
        yield
    finally:
        # The lock creates a file where there is none. A server would take an empty one of a namespace for damage.
        with suppress(OSError):
            if not existed and not path.stat().st_size:
                path.unlink()
        lock.release()


def _is_unused(path: Path) -> bool:
    """Return whether a store is as it was created."""
    datafile.inspect(path)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            (counters,) = connection.execute(SQL["get_meta"], {"name": "counters"}).fetchone()
            (others,) = connection.execute(_OTHER_ROWS).fetchone()
            return msgspec.json.decode(counters, type=Counters).is_initial and not others
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise StorageUnusable(f"{path} cannot be read: {error}") from error
