"""Namespaces as files. Beside a data file PATH, which is the default one's, the others are PATH.d/NAME.db."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lightningstore.service.rules.errors import CatalogFailed, NamespaceExists, StorageUnusable
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE, is_namespace
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.catalog import Found
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite.commits import SQL
from lightningstore.service.storage.sqlite.store import SqliteStorage

logger = logging.getLogger(__name__)

ENDING = ".db"
FOLDER_ENDING = ".d"
#: Files that become namespaces, and files that were some. No name of a namespace's file ends like these.
DRAFT, GONE = ".new", ".gone"


def folder_of(path: Path) -> Path:
    """Return the folder of the other namespaces, for the data file of the default one."""
    return path.with_name(f"{path.name}{FOLDER_ENDING}")


def file_of(path: Path, name: str) -> Path:
    """Return the data file of another namespace than the default one, whose file is `path`."""
    return folder_of(path) / f"{name}{ENDING}"


class SqliteCatalog:
    """A folder with a data file for each namespace."""

    def __init__(
        self,
        folder: Path,
        *,
        like: Path | None = None,
        is_ours: Callable[[str], bool] = lambda _: True,
        full_sync: bool = True,
        compress: bool = False,
    ) -> None:
        """Take the folder. The other arguments are those of SqliteStorage.

        `like` is the file of the default namespace if that is not in the folder: who may read it may read the others.
        `is_ours` tells which names this process creates, opens and deletes; files of other names are only read.
        """
        self._is_ours = is_ours
        self._folder = folder
        self._like = like
        self._full_sync, self._compress = full_sync, compress

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder

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
            raise CatalogFailed(f"cannot create {self._file(name)}: {error}") from error

    async def delete(self, name: str) -> None:
        """Rename the file, then remove it."""
        try:
            await asyncio.to_thread(self._delete, name)
        except (OSError, StorageUnusable) as error:
            raise CatalogFailed(f"cannot delete {self._file(name)}: {error}") from error

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}{ENDING}"

    def _survey(self) -> list[Found]:
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CatalogFailed(f"cannot read {self._folder}: {error}") from error
        found = []
        for path in paths:
            name = path.name.removesuffix(path.suffix)
            if not is_namespace(name):
                continue
            if name == DEFAULT_NAMESPACE and self._like is not None:
                if path.suffix == ENDING:
                    logger.warning("%s is not used: %s is the file of %s", path, self._like, name)
                continue
            is_ours = self._is_ours(name)
            if path.suffix == ENDING:
                found.append(_inspect(name, path, is_ours=is_ours))
            elif path.suffix == DRAFT and is_ours:
                datafile.forget(path)
            elif path.suffix == GONE and is_ours:
                self._forget(name)
        return found

    def _create(self, name: str, settings: bytes) -> None:
        self.make_folder()
        target, draft = self._file(name), self._folder / f"{name}{DRAFT}"
        if target.exists():
            # The server looks at the folder when it starts.
            raise NamespaceExists(
                name,
                f"its file {target} was added while the server was running: restart the server to use it",
            )
        self._forget(name)
        datafile.forget(draft)
        try:
            datafile.make(draft, self._mode())
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                datafile.prepare(connection, "FULL")
                connection.execute(SQL["put_meta"], {"name": "settings", "value": settings})
            datafile.publish(draft, target)
        finally:
            datafile.forget(draft)

    def _mode(self) -> int:
        return self._like.stat().st_mode if self._like is not None else 0

    def make_folder(self) -> None:
        """Create the folder, for those who may read the default namespace's file."""
        if not self._folder.is_dir():
            readers = self._mode() & 0o044
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


def _inspect(name: str, path: Path, *, is_ours: bool) -> Found:
    """Read a few facts without opening the store, if that is safe and possible."""
    has_log = Path(f"{path}-wal").exists()
    if has_log and is_ours:
        return Found(name)  # open elsewhere, or left by a crash
    try:
        if not has_log:
            datafile.inspect(path)
        # Without a log no process writes, and nothing has to be locked or created to read. With one, the process that
        # the file belongs to has it open, and a reader does not disturb it.
        uri = f"{path.absolute().as_uri()}?mode=ro{'' if has_log else '&immutable=1'}"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != datafile.SCHEMA_VERSION:
                return Found(name)
            facts = dict(connection.execute(SQL["facts"]).fetchall())
            ((live, oldest_ns),) = connection.execute(SQL["liveness"]).fetchall()
            return Found(name, facts["store_id"], facts.get("settings", b""), bool(live), oldest_ns)
    except (StorageUnusable, sqlite3.Error, OSError, LookupError) as error:
        return Found(name, failure=str(error) if is_ours else "")
