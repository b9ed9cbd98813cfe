"""The data file itself: whose it is, which schema it has, who may open it."""

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
from lightningstore.service.storage.sqlite import queries

logger = logging.getLogger(__name__)

MAGIC = b"SQLite format 3\x00"
#: "LSTR": marks a file as ours. Source: https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x4C535452
#: Measured: batches of spans are written 10 % faster than with 4 KiB, commits of single rows as fast.
PAGE_BYTES = 8192
SCHEMA_VERSION = max(version for version, _ in queries.migrations())
#: The schema from which on rollouts and attempts have the column `live`.
LIVE_VERSION = 2


class Lock:
    """Keeps a second server off the file and off its path, and anything that is not ours untouched.

    Two locks: one on the file, whatever its names are, and one on a small file beside it, for the path. A server
    whose file was moved away still has the path, and nobody else may begin a new file there.

    The file stays open for as long as the lock is held: SQLite's own locks would be lost with any other
    descriptor of the same file that is closed in this process, so this one is closed last.
    """

    def __init__(self, path: Path, *, replaced: bool = False) -> None:
        """Lock the file, made empty if it is not there. Raises StorageUnusable.

        `replaced`: another file will take its place, so whatever is in it is good.
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
            # Also where the disk does not answer: the lock would keep the file from who tries again.
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
        """Give the file up."""
        os.close(self.descriptor)
        _unlock_path(self._path, self._beside)


def _beside(path: Path) -> Path:
    place = path.resolve()
    return place.with_name(f".{place.name}.lock")


def _lock_path(path: Path) -> int:
    """Lock a path, whatever file is there; returns the descriptor. Raises StorageUnusable, OSError."""
    beside = _beside(path)
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except PermissionError:  # another user's, who was killed: reading is enough for a lock
            descriptor = os.open(beside, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if beside.exists() and os.path.samestat(held, beside.stat()):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise StorageUnusable(f"{path} is in use by another server") from None
        os.close(descriptor)  # its owner removed it just now


def _unlock_path(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        _beside(path).unlink(missing_ok=True)  # while it is locked: who waits for it looks again
    os.close(descriptor)


def create(path: Path) -> None:
    """Put a new store in the place of an empty file. Raises StorageUnusable.

    It appears whole or not at all: a file that a crash or a power cut left half made would have no name in its
    header, and be taken for somebody else's.
    """
    place = path.resolve()
    draft = place.with_name(f".{place.name}.new")
    forget(draft)  # what a crash left
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
    """Make an empty file for a store. Others may read and write it as `mode` lets them, its owner always.

    What is in a store is for nobody else's eyes, keys of language models among it. SQLite gives logs the mode
    of their file. Raises OSError.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    path.chmod(0o600 | mode & 0o066)


def forget(path: Path, *, log_alone: bool = False) -> None:
    """Remove a data file and its log, as far as they are there; or the log alone."""
    for ending in ("-wal", "-shm", "-journal") if log_alone else ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


def publish(draft: Path, target: Path) -> None:
    """Give a finished file its name, once it is on disk. What had the name goes, with its log."""
    _sync(draft)
    # The log belongs to the file that goes, or to nobody: it would be replayed into the new one. It goes only
    # now, for a sync that fails must leave the old file whole.
    forget(target, log_alone=True)
    draft.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rescue(descriptor: int, path: Path) -> None:
    """Copy a deleted file that is still open to a new one beside its path: it would end with the process."""
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
    """Refuse a file that is missing, none at all, foreign, cut short or too new. Raises StorageUnusable."""
    try:
        _check_kind(path)
        with path.open("rb") as file:
            _check_header(path, file.read(100), path.stat().st_size)
    except OSError as error:
        raise StorageUnusable(f"cannot open {path}: {error.strerror}") from None


def _check_kind(path: Path) -> None:
    """Refuse what cannot be a data file before it is opened: a FIFO would wait for a writer without end."""
    if path.exists() and not path.is_file():
        raise StorageUnusable(
            f"{path} is no regular file, as a data file must be; it is left as it is"
        )


def _check_header(path: Path, header: bytes, size: int) -> None:
    """Judge a file by its first bytes.

    Source: https://www.sqlite.org/fileformat.html, "The Database Header".
    """
    if header[:16] != MAGIC:
        raise StorageUnusable(f"{path} is not a SQLite database; it is left as it is")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StorageUnusable(f"{path} is not a lightningstore database; it is left as it is")
    page_bytes = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page_bytes == 1 else page_bytes)
    log = Path(f"{path}-wal")
    # What is not folded back from the log yet may be missing at the end.
    if size < expected and not (log.exists() and log.stat().st_size):
        raise StorageUnusable(
            f"{path} is cut short: {size} of {expected} bytes; it is left as it is"
        )
    _check_version(path, int.from_bytes(header[60:64], "big"))


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StorageUnusable(
            f"{path} has schema version {version}, this server knows {SCHEMA_VERSION}: "
            "it was written by a newer version; it is left as it is"
        )


def prepare(connection: sqlite3.Connection, synchronous: str) -> None:
    """Set the writer up, and create or migrate the schema. Raises StorageUnusable."""
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; others keep theirs
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -32768")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        # A crash may have left a newer version's migration in the log, which the header does not show.
        _check_version(Path(connection.execute("PRAGMA database_list").fetchone()[2]), version)
        if version < SCHEMA_VERSION:
            _migrate(connection, version)
        # The header of the file is what the next start looks at, before it touches anything.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # the latter where it quotes a damaged schema
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise StorageUnusable(f"{path} cannot be used: {error}; it is left as it is") from error


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


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the schema from a version to the present one, within a transaction."""
    for to, script in queries.migrations():
        if to > version:
            for statement in _statements(script):
                connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> list[str]:
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
