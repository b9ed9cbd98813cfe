"""The data file: ownership, schema version, permissions."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage import sql_files

logger = logging.getLogger(__name__)

MAGIC = b"SQLite format 3\x00"
#: "LSTR": marks a file as a store. Source: https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x4C535452
#: Measured: writes batches of spans 10 % faster than 4 KiB, and single rows as fast.
PAGE_BYTES = 8192
SCHEMA_VERSION = max(version for version, _ in sql_files.migrations(__package__))
#: First schema in which rollouts and attempts have the column `live`.
LIVE_VERSION = 2
#: First schema in which rollouts have the column `queue`, and labels.
LABELS_VERSION = 3
#: First schema with groups.
GROUPS_VERSION = 3
#: First schema with consumers.
CONSUMERS_VERSION = 3


class Lock:
    """Keeps other servers from the file and from its path, and leaves files of other programs untouched.

    There are two locks: one on the file, whatever its names are, and one on a small file next to it, for the path. A
    server whose file was moved away keeps the path, so that no other server creates a new file there.

    The file stays open while the lock is held. Closing any descriptor of a file releases the locks that SQLite holds on
    it in the same process, so this descriptor is closed last.
    """

    def __init__(self, path: Path, *, replaced: bool = False) -> None:
        """Lock the file; create it if there is none. Raises StorageUnusable.

        `replaced`: the file will be replaced, so its content is not checked.
        """
        try:
            existed = path.exists()
            _check_kind(path)
            self._beside = _lock_path(path)
        except OSError as error:
            raise StorageUnusable(f"cannot open {path}: {error.strerror}") from None
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _unlock_path(path, self._beside)
            raise StorageUnusable(f"cannot open {path}: {error.strerror}") from None
        self._path = path
        try:
            self._flock(path)
            if not replaced:
                self._take(path)
        except BaseException as error:
            if not existed:
                path.unlink(missing_ok=True)
            # On a disk error too: a lock that is kept would prevent the next try.
            self.release()
            if isinstance(error, OSError):
                raise StorageUnusable(f"cannot open {path}: {error.strerror}") from error
            raise

    def _take(self, path: Path) -> None:
        size = os.fstat(self.descriptor).st_size
        if size:
            _check_header(path, os.pread(self.descriptor, 100, 0), size)
            return
        create(path)
        made = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        os.close(self.descriptor)
        self.descriptor = made
        self._flock(path)

    def _flock(self, path: Path) -> None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageUnusable(f"{path} is in use by another server") from None

    def release(self) -> None:
        """Release the file and its path."""
        os.close(self.descriptor)
        _unlock_path(self._path, self._beside)


def _beside(path: Path) -> Path:
    place = path.resolve()
    return place.with_name(f".{place.name}.lock")


def _lock_path(path: Path) -> int:
    """Lock a path, whichever file is there; returns the descriptor. Raises StorageUnusable, OSError."""
    beside = _beside(path)
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (
            PermissionError
        ):  # left by a killed server of another user; a lock needs no write access
            descriptor = os.open(beside, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if beside.exists() and os.path.samestat(held, beside.stat()):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise StorageUnusable(f"{path} is in use by another server") from None
        os.close(descriptor)  # its owner has just removed it


def _unlock_path(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        _beside(path).unlink(missing_ok=True)  # before the lock is released: see the loop above
    os.close(descriptor)


def create(path: Path) -> None:
    """Replace an empty file by a new store, atomically. Raises StorageUnusable.

    A half-written file, left by a crash or a power cut, would have no application id in its header, and the next start
    would reject it as another program's.
    """
    place = path.resolve()
    draft = place.with_name(f".{place.name}.new")
    forget(draft)  # left by a crash
    try:
        make(draft, place.stat().st_mode)
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            prepare(connection, "FULL")
        publish(draft, place)
    except (sqlite3.Error, OSError) as error:
        raise StorageUnusable(f"cannot create {path}: {error}") from error
    except StorageUnusable as error:
        raise StorageUnusable(f"cannot create {path}: {error.__cause__}") from error
    finally:
        forget(draft)


def make(path: Path, mode: int) -> None:
    """Create an empty file for a store. The owner may read and write it, others what `mode` allows. Raises OSError.

    Others are excluded by default because a store contains secrets, such as API keys of language models. SQLite gives a
    log the mode of its file.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600 | mode & 0o066)


def forget(path: Path, *, log_alone: bool = False) -> None:
    """Remove a data file and its log, or only the log. Files that do not exist are skipped."""
    for ending in ("-wal", "-shm", "-journal") if log_alone else ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


def publish(draft: Path, target: Path) -> None:
    """Sync a finished file, then give it its name. Replaces a file of that name, with its log."""
    sync(draft)
    # The log belongs to the replaced file, or to none: SQLite would replay it into the new one. It is removed after the
    # sync, because a failing sync must leave the old file complete.
    forget(target, log_alone=True)
    draft.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Write a file or a folder to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rescue(descriptor: int, path: Path) -> None:
    """Copy a deleted file, whose data ends with this process, to a new file next to its path."""
    target = path.with_name(f"{path.name}.rescued-{os.getpid()}")
    try:
        with target.open("xb") as file:
            target.chmod(0o600)
            offset = 0
            while part := os.pread(descriptor, 1 << 20, offset):
                file.write(part)
                offset += len(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logger.error("the deleted data file could not be copied to %s: %s", target, error)
    else:
        logger.error("the deleted data file was copied to %s", target)


def inspect(path: Path) -> None:
    """Reject a path without a usable store: missing, not a file, foreign, truncated, too new. Raises StorageUnusable."""
    try:
        _check_kind(path)
        with path.open("rb") as file:
            _check_header(path, file.read(100), path.stat().st_size)
    except OSError as error:
        raise StorageUnusable(f"cannot open {path}: {error.strerror}") from None


def _check_kind(path: Path) -> None:
    """Reject what cannot be a data file without opening it: opening a FIFO would block until somebody writes."""
    if path.exists() and not path.is_file():
        raise StorageUnusable(
            f"{path} is not a regular file, as a data file must be; it was not changed"
        )


def _check_header(path: Path, header: bytes, size: int) -> None:
    """Check a file by its first 100 bytes.

    Source: https://www.sqlite.org/fileformat.html, "The Database Header".
    """
    if header[:16] != MAGIC:
        raise StorageUnusable(f"{path} is not a SQLite database; it was not changed")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StorageUnusable(f"{path} is not a lightningstore database; it was not changed")
    page_bytes = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page_bytes == 1 else page_bytes)
    log = Path(f"{path}-wal")
    # The end of the file may still be in the log.
    if size < expected and not (log.exists() and log.stat().st_size):
        raise StorageUnusable(
            f"{path} is cut short: {size} of {expected} bytes; it was not changed"
        )
    _check_version(path, int.from_bytes(header[60:64], "big"))


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StorageUnusable(
            f"{path} has schema version {version}, this server knows {SCHEMA_VERSION}: "
            "it was written by a newer version; it was not changed"
        )


def prepare(connection: sqlite3.Connection, synchronous: str) -> None:
    """Configure the writing connection, and create or migrate the schema. Raises StorageUnusable."""
    try:
        connection.execute(
            f"PRAGMA page_size = {PAGE_BYTES}"
        )  # existing files keep their page size
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -32768")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        # After a crash, the migration of a newer version may be in the log, and not in the header of the file.
        _check_version(Path(connection.execute("PRAGMA database_list").fetchone()[2]), version)
        if version < SCHEMA_VERSION:
            _migrate(connection, version)
        # The next start checks the header of the file before anything else.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # the latter where it quotes a damaged schema
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise StorageUnusable(f"{path} cannot be used: {error}; it was not changed") from error


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrate(connection, version)
        if version == 0:
            put = "INSERT INTO meta (name, value) VALUES (:name, :value)"
            connection.execute(put, {"name": "store_id", "value": f"store-{uuid.uuid4()}"})
            connection.execute(put, {"name": "counters", "value": "{}"})
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def disk_bytes(descriptor: int) -> tuple[int, int]:
    """Return the free bytes and the size of the file system of an open file; zeros if it does not tell."""
    try:
        found = os.fstatvfs(descriptor)
    except OSError:
        return 0, 0
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Migrate the schema from a version to the current one, within the transaction of the caller."""
    for to, script in sql_files.migrations(__package__):
        if to > version:
            for statement in _statements(script):
                connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> list[str]:
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
