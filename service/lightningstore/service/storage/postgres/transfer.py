"""Copies a namespace between a data file and a database, in either direction, with all keys and numbers.

Into a database everything is one transaction, and into a file everything is in a draft. So whatever ends a copy, nothing of it
is left that a server would serve.
"""

from __future__ import annotations

import asyncio
import os
import socket
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import zstandard
from lightningstore.service.rules.errors import StorageFailed, StorageUnusable
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.base import Counters
from lightningstore.service.storage.postgres.commits import (
    COLUMNS,
    PLAIN,
    SpanEncoder,
    decoded_counters,
    decoded_spans,
)
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import NoNamespace, Owned, Ownership
from lightningstore.service.storage.postgres.link import (
    CONNECT_SECONDS,
    LOST,
    Connection,
    T,
    described,
)
from lightningstore.service.storage.postgres.schema import prepare, version_of
from lightningstore.service.storage.sqlite.commits import ZLIB
from lightningstore.service.storage.sqlite.transfer import (
    BYTES_AT_ONCE,
    ROWS_AT_ONCE,
    TABLES,
    TEXTS,
    FileSource,
    FileTarget,
    Place,
    bytes_of,
    source,
)

SQL = sql_files.load(__package__, "transfer.sql")
#: Smaller than any value of a column that orders a table.
_FIRST = {"bigint": -1, "bytea": b""}


@dataclass
class Copied:
    """What has been copied so far."""

    rollouts: int = 0
    attempts: int = 0
    spans: int = 0
    #: Bytes of ids, records, inputs and spans, as they were stored.
    size: int = 0
    #: Rollouts, attempts and spans that there are.
    total: int = 0

    @property
    def done(self) -> int:
        """Rollouts, attempts and spans, to be compared with the total."""
        return self.rollouts + self.attempts + self.spans

    @classmethod
    def of(cls, counters: Counters) -> Copied:
        """Return that nothing of these has been copied."""
        live = sum(counters.rollouts.values()) + sum(counters.attempts.values())
        return cls(total=live + counters.spans)

    def count(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Count rows."""
        self.size += sum(map(bytes_of, rows))
        if table == "spans":
            self.spans += sum(row[_SPAN_COUNT] for row in rows)
        elif table in ("rollouts", "attempts"):
            setattr(self, table, getattr(self, table) + len(rows))


_SPAN_COUNT = list(COLUMNS["put_spans"]).index("span_count")
Show = Callable[[Copied], object]


@contextmanager
def _one_line(database: Database) -> Iterator[None]:
    """Turn what goes wrong with a database into one line."""
    try:
        yield
    except (asyncpg.PostgresError, StorageFailed, *LOST) as error:
        raise StorageUnusable(
            f"the database at {database.location} cannot be used: {described(error)}"
        ) from error
    except (ValueError, TypeError, zlib.error, zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise StorageUnusable(f"the data cannot be copied: {error}") from error


@asynccontextmanager
async def _connected(database: Database) -> AsyncIterator[Connection]:
    try:
        connection = await database.connect()
    except ValueError as error:
        raise StorageUnusable(f"the URL of the database cannot be used: {error}") from error
    try:
        yield connection
    finally:
        with suppress(*LOST):
            await connection.close(timeout=CONNECT_SECONDS)


async def to_database(path: Path, database: Database, namespace: str, show: Show) -> Copied:
    """Copy a data file to a namespace that does not exist, or is as it was created.

    Raises:
        StorageUnusable: The file is in use or damaged, there is something in the namespace, or the database fails.
    """
    with source(path) as file, _one_line(database):
        async with _connected(database) as connection:
            await prepare(connection)
            replaced = await _find_unused(connection, database, namespace)
            ns: int = await connection.fetchval(SQL["next_ns"])
            try:
                async with connection.transaction():
                    copied, size = await _copy_rows(file, connection, ns, show)
                    await _put_namespace(connection, file, namespace, ns, size, replaced)
            except LOST:
                if not await _is_copied(database, ns):
                    raise
        return copied


async def _find_unused(
    connection: Connection, database: Database, namespace: str
) -> tuple[int, int] | None:
    """Return number and epoch of an existing namespace without content, None if there is no namespace of that name.

    Raises StorageUnusable.
    """
    found = await connection.fetchrow(SQL["find_target"], namespace)
    if found is None:
        return None
    if found["address"] is not None:
        raise StorageUnusable(
            f"namespace {namespace!r} is owned by the server at {found['address']}: stop that server, or name another "
            "namespace"
        )
    if found["others"] or not decoded_counters(found["counters"]).is_initial:
        raise StorageUnusable(
            f"namespace {namespace!r} exists in the database at {database.location} and is not empty: name another "
            "namespace"
        )
    return found["ns"], found["epoch"]


async def _copy_rows(
    file: FileSource, connection: Connection, ns: int, show: Show
) -> tuple[Copied, int]:
    """Copy all rows; return what was copied, and the bytes of inputs and spans that are stored."""
    copied, stored = Copied.of(decoded_counters(file.counters)), 0
    encoder = SpanEncoder(compress=True)
    for table in TABLES:
        columns = COLUMNS[f"put_{table}"]
        booleans = [i for i, kind in enumerate(columns.values()) if kind == "boolean"]
        for rows in file.rows(table):
            copied.count(table, rows)
            records = [_with_booleans(row, booleans) for row in rows]
            if table == "spans":
                records = [_for_database(row, encoder) for row in records]
            if table in ("spans", "inputs"):
                stored += sum(map(bytes_of, records))
            await connection.copy_records_to_table(
                f"ls_{table}", records=[(ns, *row) for row in records], columns=["ns", *columns]
            )
            show(copied)
    return copied, stored


def _with_booleans(row: tuple[Any, ...], places: Sequence[int]) -> tuple[Any, ...]:
    values = list(row)
    for place in places:
        values[place] = bool(values[place])
    return tuple(values)


def _for_database(row: tuple[Any, ...], encoder: SpanEncoder) -> tuple[Any, ...]:
    *rest, encoding, span_ids, data = row
    plain = zlib.decompress(data) if encoding == ZLIB else data
    return (*rest, *encoder.encoded(span_ids, plain))


async def _put_namespace(
    connection: Connection,
    file: FileSource,
    namespace: str,
    ns: int,
    size: int,
    replaced: tuple[int, int] | None,
) -> None:
    """Make the namespace of the rows. Raises StorageUnusable if another one has come in the meantime."""
    is_free = replaced is None or await connection.fetchval(SQL["replace_namespace"], *replaced)
    values = (ns, namespace, file.store_id, file.settings, file.counters, size)
    if not is_free or await connection.fetchval(SQL["put_copy"], *values) is None:
        raise StorageUnusable(
            f"namespace {namespace!r} was created or opened by a server meanwhile; nothing was copied"
        )


async def _is_copied(database: Database, ns: int) -> bool:
    """Return whether a transaction was committed whose answer was lost."""
    async with _connected(database) as connection:
        found: bool = await connection.fetchval(SQL["is_copied"], ns)
        return found


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run work that blocks. If this is cancelled, it ends when the work has ended, which uses the file until then."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


async def to_file(database: Database, namespace: str, place: Place, show: Show) -> Copied:
    """Copy a namespace, which no server owns, to a data file that does not exist, or is as it was created.

    Raises:
        StorageUnusable: A server owns the namespace, there is something in the file, or one of both fails.
    """
    with _one_line(database):
        async with _connected(database) as connection:
            if not await version_of(connection):
                raise StorageUnusable(f"the database at {database.location} has no namespaces")
            target = await _in_thread(FileTarget, place)
            try:
                async with _owned(database, namespace) as owned:
                    copied = await _copy_to_file(connection, owned, target, show)
                    await _in_thread(target.publish)
            finally:
                target.close()
        return copied


@asynccontextmanager
async def _owned(database: Database, namespace: str) -> AsyncIterator[Ownership]:
    """Own a namespace, as a process that no client can call. Raises StorageUnusable."""
    membership = database.membership
    membership.address = f"{socket.gethostname()} (migrate, process {os.getpid()})"
    await database.enter()
    try:
        owned = await membership.take(namespace)
        try:
            yield owned
        finally:
            await membership.give_up(owned)
    except (Owned, NoNamespace) as error:
        raise StorageUnusable(str(error)) from error
    finally:
        await database.leave()


async def _copy_to_file(
    connection: Connection, owned: Ownership, target: FileTarget, show: Show
) -> Copied:
    """Copy all rows, as they are at one moment, if the namespace is owned from before that until the end."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        commit = await connection.fetchrow(SQL["copied_commit"], owned.ns)
        if commit is None:
            raise StorageUnusable(f"namespace {owned.namespace!r} is damaged: it has no commits")
        copied = Copied.of(decoded_counters(commit["counters"]))
        for table in TABLES:
            async for rows in _rows(connection, owned.ns, table):
                copied.count(table, rows)
                for records in _few(_for_file(table, row) for row in rows):
                    await _in_thread(target.put, table, records)
                show(copied)
        settings = await connection.fetchval(SQL["copied_settings"], owned.ns) or b""
    await _in_thread(target.finish, owned.store_id, commit["counters"], settings)
    last = await connection.fetchrow(SQL["copied_commit"], owned.ns)
    if last is None or last["epoch"] != owned.epoch:
        raise StorageUnusable(
            f"a server has taken namespace {owned.namespace!r} meanwhile; nothing was copied"
        )
    return copied


async def _rows(
    connection: Connection, ns: int, table: str
) -> AsyncIterator[list[tuple[Any, ...]]]:
    """Yield the rows of a table, some at a time."""
    columns = COLUMNS[f"put_{table}"]
    order = TABLES[table]
    text = SQL["read_rows"].format(
        columns=", ".join(columns),
        size=" + ".join(f"octet_length({n})" for n, kind in columns.items() if kind == "bytea"),
        order=", ".join(order),
        table=f"ls_{table}",
        # The index on the key is not the primary key there.
        ns="ns::bigint" if table == "resources" else "ns",
        place=", ".join(f"${2 + i}::{columns[name]}" for i, name in enumerate(order)),
        where=SQL["is_kept"] if table == "spans" else "",
        limit=ROWS_AT_ONCE,
        most=BYTES_AT_ONCE,
    )
    place = [_FIRST[columns[name]] for name in order]
    while rows := await connection.fetch(text, ns, *place):
        yield [tuple(row) for row in rows]
        place = [rows[-1][name] for name in order]


def _few(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield some rows at a time: those of a few compressed bytes may have many when they are plain."""
    few: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        few.append(row)
        size += bytes_of(row)
        if size >= BYTES_AT_ONCE:
            yield few
            few, size = [], 0
    if few:
        yield few


def _for_file(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the columns of a row as a data file has them. Raises UnicodeDecodeError, zstandard.ZstdError."""
    if table == "spans":
        *rest, encoding, span_ids, data = row
        return (*rest, PLAIN, span_ids, decoded_spans(encoding, data))
    names = COLUMNS[f"put_{table}"]
    return tuple(
        value.decode() if name in TEXTS else value for name, value in zip(names, row, strict=True)
    )
