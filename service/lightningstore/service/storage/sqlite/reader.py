"""Reads of an open data file: short ones on the event loop, long ones on a thread.

Reading a few rows takes 10 us, switching threads 120 us. Every read is a single short statement, because an open cursor would
prevent checkpoints.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aiosqlite
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.storage.sqlite.commits import SQL
from lightningstore.service.storage.sqlite.damage import Damage, is_damage

Parameters = Sequence[Any] | Mapping[str, Any]


class FileReads:
    """What the parts of the back end that read share: the connections, while the file is open, and the damage found."""

    def __init__(self) -> None:
        self._reads: Reader | None = None
        self._damage = Damage()

    @property
    def _reader(self) -> Reader:
        if self._reads is None:
            raise StorageFailed("the data file is closed")
        return self._reads


class Reader:
    """Two read-only connections: one for the event loop, one with a thread of its own."""

    def __init__(
        self,
        here: sqlite3.Connection,
        scanner: aiosqlite.Connection,
        descriptor: int,
        damage: Damage,
    ) -> None:
        """Take the connections, and a descriptor of the file; `open_reader` makes them."""
        self._here = here
        self._scanner = scanner
        self._descriptor = descriptor
        self._damage = damage
        self._closed = False

    async def close(self) -> None:
        """Close both connections. May be called twice."""
        if not self._closed:
            self._closed = True
            await self._scanner.close()
            self._here.close()

    def read(self, name: str, parameters: Parameters = (), **parts: str) -> list[Any]:
        """Run a short query on the event loop. Raises StorageFailed, DataDamaged."""
        text = self._text(name, parts)
        try:
            return self._here.execute(text, parameters).fetchall()
        except sqlite3.Error as first:
            if not is_damage(first):
                raise self._damage.failed_read(name, first) from first
        try:  # a transient disk error looks like damage
            return self._here.execute(text, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._damage.failed_read(name, error, self._disk_error()) from error

    async def scan(self, name: str, parameters: Parameters = (), **parts: str) -> list[Any]:
        """Run a query that may take long on the thread. Raises StorageFailed, DataDamaged."""
        text = self._text(name, parts)
        try:
            return list(await self._scanner.execute_fetchall(text, parameters))
        except sqlite3.Error as first:
            if not is_damage(first):
                raise self._damage.failed_read(name, first) from first
        self._text(name, parts)  # it may have been closed meanwhile
        try:
            return list(await self._scanner.execute_fetchall(text, parameters))
        except sqlite3.Error as error:
            raise self._damage.failed_read(name, error, self._disk_error()) from error

    @contextmanager
    def one_view(self) -> Iterator[None]:
        """Make several short queries see the same commit."""
        self._here.execute("BEGIN")
        try:
            yield
        finally:
            if self._here.in_transaction:  # an error may have ended it
                self._here.execute("ROLLBACK")

    def _text(self, name: str, parts: Mapping[str, str]) -> str:
        if self._closed:
            raise StorageFailed("the data file is closed")
        return SQL[name].format(**parts) if parts else SQL[name]

    def _disk_error(self) -> OSError | None:
        """Return the error with which the disk fails, None if it can be read."""
        try:
            os.pread(self._descriptor, 1, 0)
        except OSError as error:
            return error
        return None


async def open_reader(uri: str, descriptor: int, damage: Damage) -> Reader:
    """Open a data file for reading, by a URI of SQLite; `descriptor` is one of the same file."""
    here = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        scanner = await aiosqlite.connect(uri, uri=True, isolation_level=None)
    except BaseException:
        here.close()
        raise
    return Reader(here, scanner, descriptor, damage)
