"""Namespaces as files: the default one's is PATH, the others are PATH.d/NAME.db."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from lightningstore.service.rules.errors import NamespaceExists, StorageFailed, StorageUnusable
from lightningstore.service.rules.namespaces import is_namespace
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Found
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite.commits import SQL
from lightningstore.service.storage.sqlite.store import SqliteStorage

logger = logging.getLogger(__name__)

ENDING = ".db"
#: Files that become namespaces, and files that were some. No name of a namespace's file ends like these.
DRAFT, GONE = ".new", ".gone"


def folder_of(path: Path) -> Path:
    """Return the folder of the other namespaces, for the data file of the default one."""
    return path.with_name(f"{path.name}.d")


class SqliteCatalog:
    """The folder of namespaces beside a data file."""

    def __init__(self, path: Path, *, full_sync: bool = True, compress: bool = False) -> None:
        """Take the path of the default namespace's file. The other arguments are those of SqliteStorage."""
        self._path = path
        self._folder = folder_of(path)
        self._full_sync, self._compress = full_sync, compress

    async def survey(self) -> list[Found]:
        """Read each file that has no log, and remove what a crash left of files that were created or deleted."""
        return await asyncio.to_thread(self._survey)

    def storage(self, name: str) -> Storage:
        """Return the storage of an existing file."""
        return SqliteStorage(
            self._file(name),
            full_sync=self._full_sync,
            compress=self._compress,
            existing=True,
        )

    async def create(self, name: str, settings: bytes) -> None:
        """Create the file under another name, then rename it. Raises NamespaceExists."""
        try:
            await asyncio.to_thread(self._create, name, settings)
        except (OSError, sqlite3.Error, StorageUnusable) as error:
            raise StorageFailed(f"cannot create {self._file(name)}: {error}") from error

    async def delete(self, name: str) -> None:
        """Rename the file, then remove it."""
        try:
            await asyncio.to_thread(self._delete, name)
        except (OSError, StorageUnusable) as error:
            raise StorageFailed(f"cannot delete {self._file(name)}: {error}") from error

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}{ENDING}"

    def _survey(self) -> list[Found]:
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageFailed(f"cannot read {self._folder}: {error}") from error
        found = []
        for path in paths:
            name = path.name.removesuffix(path.suffix)
            if not is_namespace(name):
                continue
            if path.suffix == DRAFT:
                datafile.forget(path)
            elif path.suffix == GONE:
                self._forget(name)
            elif path.suffix == ENDING:
                found.append(_inspect(name, path))
        return found

    def _create(self, name: str, settings: bytes) -> None:
        self._make_folder()
        target, draft = self._file(name), self._folder / f"{name}{DRAFT}"
        if target.exists():
            raise NamespaceExists(name)
        self._forget(name)
        datafile.forget(draft)
        try:
            datafile.make(draft, self._path.stat().st_mode)
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                datafile.prepare(connection, "FULL")
                connection.execute(SQL["put_meta"], {"name": "settings", "value": settings})
            datafile.publish(draft, target)
        finally:
            datafile.forget(draft)

    def _make_folder(self) -> None:
        """Create the folder, for those who may read the default namespace's file."""
        if not self._folder.is_dir():
            readers = self._path.stat().st_mode & 0o044
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700 | readers | readers >> 2)
            datafile.sync(self._folder.parent)

    def _delete(self, name: str) -> None:
        target = self._file(name)
        if target.exists():
            lock = datafile.Lock(target, replaced=True)  # another process may have it open
            try:
                target.replace(self._folder / f"{name}{GONE}")
                datafile.sync(self._folder)
            finally:
                lock.release()
        self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove a file that was deleted as a namespace, and its log, which has the old name."""
        gone = self._folder / f"{name}{GONE}"
        if gone.exists():
            datafile.forget(self._file(name), log_alone=True)
            gone.unlink()


def _inspect(name: str, path: Path) -> Found:
    """Read a few facts without opening the store, if that is safe and possible."""
    if Path(f"{path}-wal").exists():
        return Found(name)  # open elsewhere, or left by a crash
    try:
        datafile.inspect(path)
        # Without a log no process writes, and nothing has to be locked or created to read.
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != datafile.SCHEMA_VERSION:
                return Found(name)
            facts = dict(connection.execute(SQL["facts"]).fetchall())
            ((live, oldest_ns),) = connection.execute(SQL["liveness"]).fetchall()
            return Found(name, facts["store_id"], facts.get("settings", b""), bool(live), oldest_ns)
    except (StorageUnusable, sqlite3.Error, OSError, LookupError) as error:
        return Found(name, failure=str(error))
