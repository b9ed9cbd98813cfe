"""The SQLite back end: one file, one connection that writes and checkpoints, others read only.

The writer has a thread of its own and gets a commit as a few large statements: each statement gives up the
interpreter lock and has to queue for it again beside a busy event loop, so a row a statement would be slow.
Reads of a few rows are done where they are asked for: they take 10 us, a thread hop 120. Everything
longer goes through aiosqlite. Every read is one short statement, so no reader holds the log back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import aiosqlite
import msgspec
from google.protobuf.message import DecodeError
from lightningstore.service import filters
from lightningstore.service.errors import StorageFailed, StorageUnusable
from lightningstore.service.records import nanoseconds
from lightningstore.service.storage import datafile, queries
from lightningstore.service.storage.base import (
    AttemptRow,
    Changes,
    Counters,
    LoadedRollout,
    RequestRow,
    ResourcesQuery,
    RolloutQuery,
    RolloutRow,
    Snapshot,
    SpanRow,
)
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.worker_pb2 import Worker

logger = logging.getLogger(__name__)

SQL = queries.load("sqlite.sql")
#: Reads of up to this many rollouts are done on the event loop.
INLINE_ROWS = 128
SPAN_ROWS_A_READ = 16
#: Commits of up to this many bytes are prepared on the event loop, and only made durable in the thread.
INLINE_BYTES = 64 << 10
#: The log is folded back into the file after this many bytes of changes.
CHECKPOINT_BYTES = 32 << 20
PLAIN, ZLIB = 0, 1


class SqliteStorage:
    """A store in one file. `compress` stores spans with zlib: a third of the size, half the speed."""

    durable = True

    def __init__(self, path: Path, *, full_sync: bool = True, compress: bool = False) -> None:
        """Take the file; `full_sync` makes answered writes survive a power cut."""
        self.path = path
        self._synchronous = "FULL" if full_sync else "NORMAL"
        self._compress = compress
        self._lock: datafile.Lock | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._scanner: aiosqlite.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._unfolded = 0

    # Opening and closing

    async def open(self) -> Snapshot:
        """Open or create the file and load what is live. Raises StorageUnusable."""
        try:
            if self._lock is None:
                self._lock = datafile.Lock(self.path)
            self._thread = ThreadPoolExecutor(1, "sqlite-writer")
            loop = asyncio.get_running_loop()
            self._writer = await loop.run_in_executor(self._thread, self._open_writer)
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            self._reader = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._scanner = await aiosqlite.connect(uri, uri=True, isolation_level=None)
            return self._snapshot()
        except (StorageFailed, DecodeError, ValueError, TypeError, LookupError) as error:
            await self.close()
            raise StorageUnusable(
                f"{self.path} is damaged: {error}; `lightningstore check` may say more"
            ) from error
        except BaseException:
            await self.close()
            raise

    def _open_writer(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, cached_statements=256, check_same_thread=False
        )
        try:
            datafile.prepare(connection, self._synchronous)
        except BaseException:
            connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Close all connections and give up the file."""
        if self._scanner is not None:
            await self._scanner.close()
            self._scanner = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._thread is not None:
            writer, self._writer = self._writer, None
            if writer is not None:
                await asyncio.get_running_loop().run_in_executor(self._thread, writer.close)
            self._thread.shutdown()
            self._thread = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _snapshot(self) -> Snapshot:
        keys = [key for (key,) in self._read("live_keys")]
        live: list[LoadedRollout] = []
        for start in range(0, len(keys), 1000):
            part = keys[start : start + 1000]
            live += self._loaded("rollouts_by_key", part, "attempts_by_rollout")
        counters = Counters()
        for name, value in json.loads(self._read("get_meta", ["counters"])[0][0]).items():
            if isinstance(value, dict):
                value = {int(status): count for status, count in value.items()}  # noqa: PLW2901
            setattr(counters, name, value)
        return Snapshot(
            store_id=self._read("get_meta", ["store_id"])[0][0],
            counters=counters,
            live=live,
            workers=[Worker.FromString(record) for (record,) in self._read("all_workers")],
            resources=list(self._read("all_resources")),
            requests=[RequestRow(*row) for row in self._read("recent_requests")],
        )

    # Writing

    def commit_now(self, changes: Changes) -> None:
        """Never called: this back end is durable."""
        raise NotImplementedError

    async def commit(self, changes: Changes) -> None:
        """Write all changes in one transaction."""
        writer, thread = self._writer, self._thread
        if writer is None or thread is None:
            raise StorageFailed("the data file is closed")
        statements = list(self._statements(changes))
        self._unfolded += changes.size
        fold = self._unfolded > CHECKPOINT_BYTES
        if fold:
            self._unfolded = 0
        loop = asyncio.get_running_loop()
        if changes.size <= INLINE_BYTES:
            _write(writer, statements)
            await loop.run_in_executor(thread, _commit, writer)
        else:
            await loop.run_in_executor(thread, _write_and_commit, writer, statements)
        if fold:
            await loop.run_in_executor(thread, _fold, writer)

    def _statements(self, changes: Changes) -> Iterable[tuple[str, list[Any]]]:
        """Yield the statements of a commit with their parameters."""
        if changes.removed:
            marks = filters.marks(len(changes.removed))
            for name in ("remove_spans", "remove_attempts", "remove_inputs", "remove_rollouts"):
                yield SQL[name].format(marks=marks), changes.removed
        yield from _rows("put_inputs", changes.inputs)
        yield from _rows("put_rollouts", map(_rollout_values, changes.rollouts.values()))
        yield from _rows("put_attempts", map(_attempt_values, changes.attempts.values()))
        yield from _rows("put_spans", map(self._span_values, changes.spans))
        yield from _rows(
            "put_resources",
            (
                (None, i, record.version, updated, record.SerializeToString())
                for i, (updated, record) in changes.resources.items()
            ),
        )
        yield from _rows(
            "put_workers", ((i, w.SerializeToString()) for i, w in changes.workers.items())
        )
        yield from _rows(
            "put_requests",
            ((r.method, r.request_id, r.digest, r.time_ns, r.answer) for r in changes.requests),
        )
        if changes.forget_requests_before_ns:
            yield SQL["forget_requests"], [changes.forget_requests_before_ns]
        if changes.counters is not None:
            counters = msgspec.json.encode(changes.counters).decode()
            yield from _rows("put_meta", [("counters", counters)])

    def _span_values(self, row: SpanRow) -> tuple[Any, ...]:
        data, encoding = row.data, PLAIN
        if self._compress:
            data, encoding = zlib.compress(row.data, 1), ZLIB
        return (
            row.key,
            row.rollout_key,
            row.attempt_key,
            row.first_sequence_id,
            row.last_sequence_id,
            row.span_count,
            row.contiguous,
            encoding,
            row.span_ids,
            data,
        )

    # Reading

    def _read(self, name: str, parameters: Sequence[Any] = (), **parts: str) -> list[Any]:
        """Run a short query here and now."""
        if self._reader is None:
            raise StorageFailed("the data file is closed")
        text = SQL[name].format(**parts) if parts else SQL[name]
        try:
            return self._reader.execute(text, parameters).fetchall()
        except sqlite3.Error as error:
            raise StorageFailed(str(error)) from error

    async def _scan(self, name: str, parameters: Sequence[Any] = (), **parts: str) -> list[Any]:
        """Run a query that may take a while on the reading thread."""
        if self._scanner is None:
            raise StorageFailed("the data file is closed")
        text = SQL[name].format(**parts) if parts else SQL[name]
        try:
            return list(await self._scanner.execute_fetchall(text, parameters))
        except sqlite3.Error as error:
            raise StorageFailed(str(error)) from error

    def _loaded(self, by: str, wanted: Sequence[Any], attempts_of: str) -> list[LoadedRollout]:
        """Return rollouts by key or id, in the order of `wanted` for keys, with attempts."""
        rows = self._read(by, wanted, marks=filters.marks(len(wanted)))
        if not rows:
            return []  # the usual case where a new id is looked for
        keys = [row[0] for row in rows]
        attempts: dict[int, list[AttemptRow]] = {key: [] for key in keys}
        found = self._read(attempts_of, keys, marks=filters.marks(len(keys)))
        for rollout_key, key, last_sequence_id, record in found:
            attempt = Attempt.FromString(record)
            attempts[rollout_key].append(AttemptRow(key, rollout_key, attempt, last_sequence_id))
        return [
            LoadedRollout(
                RolloutRow(key, Rollout.FromString(record), position, available_ns),
                input_json,
                attempts[key],
            )
            for key, position, available_ns, record, input_json in rows
        ]

    def _latest(self, keys: Sequence[int]) -> list[LoadedRollout]:
        """Return rollouts with their latest attempts, in the order of the keys."""
        found = {r.row.key: r for r in self._loaded("rollouts_by_key", keys, "latest_attempts")}
        return [found[key] for key in keys]

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return what is stored of these rollouts."""
        return self._loaded("rollouts_by_id", rollout_ids, "attempts_by_rollout")

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts."""
        where, parameters = filters.where(query)
        page, more = filters.page(query)
        rows = await self._scan("scan_rollouts", [*parameters, *more], where=where, page=page)
        keys = [key for (key,) in rows]
        for start in range(0, len(keys), INLINE_ROWS):
            for loaded in self._latest(keys[start : start + INLINE_ROWS]):
                yield loaded
            await asyncio.sleep(0)

    async def count_rollouts(self, query: RolloutQuery) -> int:
        """Return how many match."""
        where, parameters = filters.where(query)
        return int((await self._scan("count_rollouts", parameters, where=where))[0][0])

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""
        return [i for (i,) in await self._scan("group_members", [group_id])]

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number."""
        keys = [key for (key,) in self._read("completions", [after, limit])]
        return self._latest(keys)

    async def span_ids(self, attempt_key: int, rollout_key: int) -> list[bytes]:
        """Return the packed span ids of an attempt, batch by batch."""
        return [ids for (ids,) in await self._scan("span_ids", [rollout_key, attempt_key])]

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int, only: int | None = None
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout or an attempt, by first sequence id."""
        place, most = (-1, 0), 2
        while True:
            if only is not None:
                rows = await self._scan("one_batch", [only])
            else:
                parameters = [rollout_key, *place, max_key, attempt_key, most]
                rows = await self._scan("scan_spans", parameters)
            for key, owner, first, last, count, contiguous, encoding, data in rows:
                plain = zlib.decompress(data) if encoding == ZLIB else data
                yield SpanRow(
                    key, rollout_key, owner, first, last, count, b"", plain, bool(contiguous)
                )
                place = (first, key)
            if only is not None or len(rows) < most:
                return
            most = min(2 * most, SPAN_ROWS_A_READ)  # few at first: the reader may want no more

    async def resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources."""
        parameters = [query.after, query.id_contains, query.limit]
        rows = await self._scan("scan_resources", parameters)
        return [(key, Resources.FromString(record)) for key, record in rows]

    async def get_resources(self, resources_id: str) -> Resources | None:
        """Return one record."""
        rows = self._read("get_resources", [resources_id])
        return Resources.FromString(rows[0][0]) if rows else None

    async def used_bytes(self) -> int:
        """Return the bytes of the file's pages that are in use."""
        ((bytes_,),) = self._read("used_bytes")
        return int(bytes_)

    async def file_bytes(self) -> int:
        """Return the size of the file and its log."""
        parts = (self.path, Path(f"{self.path}-wal"))
        return sum(path.stat().st_size for path in parts if path.exists())


def _write(connection: sqlite3.Connection, statements: list[tuple[str, list[Any]]]) -> None:
    """Run a transaction's statements: they change pages in memory, and wait for no disk."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        for text, parameters in statements:
            connection.execute(text, parameters)
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def _commit(connection: sqlite3.Connection) -> None:
    """End a transaction: its pages go to disk. On the writer's thread."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageFailed(str(error)) from error


def _write_and_commit(
    connection: sqlite3.Connection, statements: list[tuple[str, list[Any]]]
) -> None:
    """Do both. On the writer's thread."""
    _write(connection, statements)
    _commit(connection)


def _fold(connection: sqlite3.Connection) -> None:
    """Fold the log back into the file. On the writer's thread."""
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error:
        logger.exception("the log could not be folded back into the file; trying again later")


def _rows(name: str, rows: Iterable[Sequence[Any]]) -> Iterable[tuple[str, list[Any]]]:
    """Yield a statement for many rows, in few shapes so that each stays prepared."""
    left = list(rows)
    start = 0
    while start < len(left):
        count = min(64, 1 << (len(left) - start).bit_length() - 1)
        part = left[start : start + count]
        start += count
        yield _text(name, count, len(part[0])), list(chain.from_iterable(part))


@lru_cache(maxsize=256)
def _text(name: str, count: int, width: int) -> str:
    """Return the statement for so many rows of so many values."""
    return SQL[name].format(rows=",".join([f"({filters.marks(width)})"] * count))


def _rollout_values(row: RolloutRow) -> tuple[Any, ...]:
    record = row.rollout
    return (
        row.key,
        record.rollout_id,
        record.status,
        record.mode,
        record.priority,
        record.group_id,
        record.resources_id,
        nanoseconds(record.start_time),
        nanoseconds(record.end_time),
        record.attempt_count,
        record.latest_attempt_id,
        record.completion_number,
        row.position,
        row.available_ns,
        record.SerializeToString(),
    )


def _attempt_values(row: AttemptRow) -> tuple[Any, ...]:
    record = row.attempt
    return (
        row.key,
        row.rollout_key,
        record.status,
        row.last_sequence_id,
        record.SerializeToString(),
    )
