"""The SQLite back end: one file, one connection that writes and checkpoints, two that only read.

The writer has its own thread and gets a commit as a few multi-row statements. Every statement releases the interpreter lock
and has to reacquire it from a busy event loop, so one statement per row would be slow.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightningstore.service.rules.errors import (
    DataDamaged,
    DataFileLost,
    StorageFailed,
    StorageUnusable,
    StoreError,
)
from lightningstore.service.rules.rows import (
    LoadedRollout,
    RolloutQuery,
    SpanRow,
)
from lightningstore.service.storage import pages
from lightningstore.service.storage.base import (
    READ_BYTES,
    SWEPT_AT_ONCE,
    SWEPT_BYTES,
    UNLIMITED,
    Changes,
    Counters,
    FinishedRow,
    Snapshot,
)
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import filters, lists, records
from lightningstore.service.storage.sqlite.commits import (
    SQL,
    commit,
    fold_log,
    probe,
    statements,
    write,
    write_and_commit,
)
from lightningstore.service.storage.sqlite.consumers import ConsumerReads
from lightningstore.service.storage.sqlite.groups import GroupReads
from lightningstore.service.storage.sqlite.location import FileLocation, refuse_single_mount
from lightningstore.service.storage.sqlite.reader import open_reader
from lightningstore.service.storage.sqlite.resources import ResourceReads
from lightningstore.service.storage.sqlite.series import SeriesReads
from lightningstore.v1.statistics_pb2 import DURABILITY_FULL, DURABILITY_RELAXED

logger = logging.getLogger(__name__)

#: Maximum number of rollouts that one read on the event loop returns.
INLINE_ROWS = 128
#: Statements of up to 64 rows that are encoded before other tasks run.
STATEMENTS_AT_ONCE = 16
#: Maximum number of batches of spans that one read returns; it ends with the batch that exceeds the bytes.
SPAN_ROWS_A_READ = 16
SPAN_BYTES_A_READ = 1 << 20
#: Commits of up to this many bytes are written on the event loop, and only made durable on the thread.
INLINE_BYTES = 64 << 10
#: Bytes of changes after which the log is copied into the file.
CHECKPOINT_BYTES = 32 << 20


class SqliteStorage(ConsumerReads, GroupReads, ResourceReads, SeriesReads):
    """A store in one file. `compress` stores spans with zlib: a third of the size, half the speed."""

    name = "sqlite"
    #: A lock on the file keeps other processes out until it is closed.
    owned_until = UNLIMITED

    def __init__(
        self, path: Path, *, full_sync: bool = True, compress: bool = False, existing: bool = False
    ) -> None:
        """Take the path. With `full_sync`, answered writes survive a power cut, without, a crash of the process.

        With `existing`, a file that is missing or empty is rejected rather than created.
        """
        super().__init__()
        self.path = path
        self._existing = existing
        self._synchronous = "FULL" if full_sync else "NORMAL"
        self.durability = DURABILITY_FULL if full_sync else DURABILITY_RELAXED
        self._compress = compress
        self._lock: datafile.Lock | None = None
        self._location: FileLocation | None = None
        self._writer: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._unfolded = 0
        #: Keys of removed rollouts whose batches of spans may not all be deleted, oldest first.
        self._leaving: list[int] = []

    @property
    def location(self) -> str:
        """The data file."""
        return str(self.path)

    @property
    def damaged_records(self) -> int:
        """Number of damaged records found so far."""
        return self._damage.count

    # Opening and closing

    async def open(self) -> Snapshot:
        """Open or create the file and load what is live. Raises StorageUnusable, DataFileLost."""
        if self._location is not None:
            await self._leave(self._location)
        await self.close()
        try:
            refuse_single_mount(self.path)
            if self._existing:
                datafile.inspect(self.path)
            self._lock = datafile.Lock(self.path)
            self._thread = ThreadPoolExecutor(1, "sqlite-writer")
            loop = asyncio.get_running_loop()
            self._writer = await loop.run_in_executor(self._thread, self._open_writer)
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            self._reads = await open_reader(uri, self._lock.descriptor, self._damage)
            snapshot = await self._snapshot()
            self._location = FileLocation(self.path, self._lock.descriptor)
            return snapshot
        except (StoreError, ValueError, TypeError, LookupError) as error:
            await self.close()
            raise StorageUnusable(
                f"{self.path} is damaged: {error}; `lightningstore check` may say more"
            ) from error
        except BaseException:
            await self.close()
            raise

    async def _leave(self, location: FileLocation) -> None:
        """Prepare to close a file that has failed. Raises DataFileLost while it is not at its path.

        The data of a deleted file would be lost by closing it.
        """
        try:
            location.check()
        except DataFileLost:
            # Collect all data in the file, wherever it is now.
            if self._writer is not None and self._thread is not None and not location.is_cut_short:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, fold_log, self._writer)
            location.check(log=False)

    def _open_writer(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, cached_statements=256, check_same_thread=False
        )
        try:
            datafile.prepare(connection, self._synchronous)
            connection.execute(SQL["remove_probe"])
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self) -> None:
        """Raise DataFileLost if the file or its log was moved, deleted or truncated."""
        if self._location is not None:
            self._location.check()

    async def close(self) -> None:
        """Close all connections and release the file. A deleted file is copied first."""
        location, self._location = self._location, None
        lock, self._lock = self._lock, None
        try:
            if location is not None and location.is_cut_short:
                # A connection that can write would copy the log into the truncated file when it closes last.
                await self._close_writer()
            reads, self._reads = self._reads, None
            if reads is not None:
                await reads.close()
            await self._close_writer()
        finally:
            if lock is not None:
                if location is not None and location.is_deleted:
                    await asyncio.to_thread(datafile.rescue, lock.descriptor, self.path)
                lock.release()

    async def _close_writer(self) -> None:
        if self._thread is not None:
            writer, self._writer = self._writer, None
            if writer is not None:
                await asyncio.get_running_loop().run_in_executor(self._thread, writer.close)
            self._thread.shutdown()
            self._thread = None

    async def _snapshot(self) -> Snapshot:
        """Read what the engine loads, in parts between which other tasks run."""
        reader = self._reader
        keys = [key for (key,) in await reader.scan("live_keys")]
        live: list[LoadedRollout] = []
        while keys:
            part = keys[: self._readable(keys, "record_sizes")]
            live += self._sound("rollouts_without_inputs", part, "attempts_by_rollout")
            del keys[: len(part)]
            await asyncio.sleep(0)
        counters = Counters()
        for name, value in json.loads(self._meta("counters")).items():
            if isinstance(value, dict):
                value = {int(status): count for status, count in value.items()}  # noqa: PLW2901
            setattr(counters, name, value)
        self._leaving = [int(key) for key in json.loads(self._meta("leaving", "[]"))]
        requests = await reader.scan("recent_requests")
        workers = await reader.scan("all_workers")
        versions = await reader.scan("all_resources")
        readable, note = records.readable, self._damage.note
        return Snapshot(
            store_id=self._meta("store_id"),
            counters=counters,
            live=live,
            workers=readable("worker", records.worker, workers, note),
            resources=readable("resources", records.resources_version, versions, note),
            requests=readable("the answer to a request id", records.request, requests, note),
            settings=self._settings(),
            groups=readable("group", records.group, await reader.scan("open_groups"), note),
            consumers=await self._consumers(),
            deliveries=await self._deliveries(),
        )

    def _meta(self, name: str, default: str | None = None) -> str:
        """Return a fact about the store. Raises LookupError if it is missing and there is no default."""
        rows = self._reader.read("get_meta", {"name": name})
        if not rows and default is not None:
            return default
        value: str = rows[0][0]
        return value

    def _settings(self) -> bytes:
        """Return the settings of the store. A file of an earlier version has none."""
        rows = self._reader.read("get_meta", {"name": "settings"})
        return bytes(rows[0][0]) if rows else b""

    # Writing

    async def commit(self, changes: Changes) -> None:
        """Write all changes in one transaction."""
        writer, thread = self._open_parts()
        # A small commit may delete many rows, which would hold the event loop.
        removes = changes.removed or changes.removed_groups or changes.removed_consumers
        deletes = removes or changes.swept or changes.forget_requests_before_ns
        leaving = self._leaving
        if removes:
            changes.exclude_removed()
        if changes.removed:
            leaving = [*leaving, *changes.removed]
        written = []
        for statement in statements(changes, leaving, compress=self._compress):
            written.append(statement)
            if len(written) % STATEMENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._unfolded += changes.size
        if fold := self._unfolded > CHECKPOINT_BYTES:
            self._unfolded = 0
        loop = asyncio.get_running_loop()
        if changes.size <= INLINE_BYTES and not deletes:
            write(writer, written)
            await loop.run_in_executor(thread, commit, writer)
        else:
            await loop.run_in_executor(thread, write_and_commit, writer, written)
        if changes.removed:
            self._leaving = leaving
        if fold:
            self.check()  # a checkpoint would hide that the file was truncated
            await loop.run_in_executor(thread, fold_log, writer)

    async def probe(self, size: int) -> None:
        """Write bytes to the file and remove them."""
        writer, thread = self._open_parts()
        await asyncio.get_running_loop().run_in_executor(thread, probe, writer, size)

    def _open_parts(self) -> tuple[sqlite3.Connection, ThreadPoolExecutor]:
        if self._writer is None or self._thread is None:
            raise StorageFailed("the data file is closed")
        return self._writer, self._thread

    # Reading

    def _loaded(
        self, by: str, wanted: Sequence[Any], attempts_of: str, *, skip: bool = False
    ) -> list[LoadedRollout]:
        """Return rollouts by key or id with attempts, in any order.

        Raises DataDamaged for a damaged one; with `skip`, leaves it out.
        """
        with self._reader.one_view():
            rows = self._reader.read(by, wanted, marks=filters.marks(len(wanted)))
            attempts: dict[int, list[Sequence[Any]]] = {row[0]: [] for row in rows}
            keys = list(attempts)
            for attempt in self._reader.read(attempts_of, keys, marks=filters.marks(len(keys))):
                attempts[attempt[0]].append(attempt[1:])
        loaded = []
        for row in rows:
            try:
                loaded.append(records.rollout(row, attempts[row[0]]))
            except records.UNREADABLE as error:
                self._damage.note(f"rollout {row[1]!r} (key {row[0]})", error)
                if not skip:
                    raise DataDamaged(error, str(row[1])) from error
        return loaded

    def _sound(self, by: str, keys: Sequence[int], attempts_of: str) -> list[LoadedRollout]:
        """Return rollouts in the order of the keys, without damaged ones and those that were removed meanwhile."""
        try:
            loaded = self._loaded(by, keys, attempts_of, skip=True)
        except DataDamaged as error:
            if len(keys) == 1:
                self._damage.note(f"rollout with key {keys[0]}", error.cause)
                return []
            return [loaded for key in keys for loaded in self._sound(by, [key], attempts_of)]
        found = {rollout.row.key: rollout for rollout in loaded}
        return [found[key] for key in keys if key in found]

    def _latest(self, keys: Sequence[int], *, inputs: bool = True) -> list[LoadedRollout]:
        """Return rollouts with their latest attempts, as `_sound` does."""
        by = "rollouts_by_key" if inputs else "rollouts_without_inputs"
        return self._sound(by, keys, "latest_attempts")

    def _readable(self, keys: Sequence[int], sizes_of: str = "sizes_by_key") -> int:
        """Return how many rollouts, from the first on, one read on the event loop may return."""
        part = keys[:INLINE_ROWS]
        try:
            sizes = dict(self._reader.read(sizes_of, part, marks=filters.marks(len(part))))
        except DataDamaged:
            return 1
        total = 0
        for i, key in enumerate(part):
            total += sizes.get(key, 0)
            if total > READ_BYTES:
                return max(1, i)
        return len(part)

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return what is stored of some of these rollouts."""
        if len(rollout_ids) == 1:
            if not self._reader.read("has_rollout", rollout_ids):
                return []  # the usual case: the id is new
            return self._loaded("rollouts_by_id", rollout_ids, "attempts_by_rollout")
        marks = filters.marks(len(rollout_ids))
        keys = [key for key, _ in self._reader.read("sizes_by_id", rollout_ids, marks=marks)]
        while keys:
            part = keys[: self._readable(keys)]
            if loaded := self._loaded("rollouts_by_key", part, "attempts_by_rollout"):
                return loaded
            del keys[: len(part)]  # removed meanwhile
        return []

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts."""
        sizes_of = "sizes_by_key" if query.inputs else "record_sizes"

        async def find(page: RolloutQuery) -> list[tuple[Any, int]]:
            return await lists.places(self._reader, page)

        async def load(keys: list[int]) -> AsyncIterator[LoadedRollout]:
            while keys:
                part = keys[: self._readable(keys, sizes_of)]
                for loaded in self._latest(part, inputs=query.inputs):
                    yield loaded
                del keys[: len(part)]
                await asyncio.sleep(0)

        async for loaded in pages.filled(query, find, load):
            yield loaded

    async def count_rollouts(self, query: RolloutQuery) -> dict[int, int]:
        """Return how many match, by status."""
        source, _, where, values = lists.selection(self._reader, query)
        return dict(await self._reader.scan("count_rollouts", values, source=source, where=where))

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""
        return [i for (i,) in await self._reader.scan("group_members", {"group_id": group_id})]

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number."""
        while rows := self._reader.read("completions", {"after": after, "limit": limit}):
            keys = [key for key, _ in rows]
            count = self._readable(keys)
            if loaded := self._latest(keys[:count]):
                return loaded
            after = rows[count - 1][1]  # all of these are damaged, or were removed meanwhile
        return []

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        """Return finished rollouts by completion number, or those that had ended by a time."""
        if ended_by_ns is None:
            rows = await self._reader.scan("finished", {"after": after[0], "limit": limit})
        else:
            place = {"after_ns": after[0], "after_key": after[1], "limit": limit}
            rows = await self._reader.scan("finished_by", {"ended_by_ns": ended_by_ns, **place})
        return [
            FinishedRow((value, key), rollout_id, size) for value, key, rollout_id, size in rows
        ]

    async def leftover_spans(self) -> list[int]:
        """Return keys of batches that a commit has yet to delete."""
        while self._leaving:
            part = self._leaving[:INLINE_ROWS]
            marks = filters.marks(len(part))
            rows = await self._reader.scan("leftover", part, marks=marks, limit=str(SWEPT_AT_ONCE))
            total = 0
            for i, (_, size) in enumerate(rows):
                total += size
                if total > SWEPT_BYTES:
                    del rows[max(1, i) :]
                    break
            if rows:
                return [key for key, _ in rows]
            if self._leaving[: len(part)] == part:  # else the file was opened again
                self._leaving = self._leaving[len(part) :]
        return []

    async def span_ids(self, rollout_key: int, attempt_key: int) -> list[tuple[int, bytes]]:
        """Return key and packed span ids of the batches of an attempt, by key."""
        which = {"rollout_key": rollout_key, "attempt_key": attempt_key}
        rows = await self._reader.scan("span_ids", which)
        for key, packed in rows:
            if type(packed) is not bytes:
                raise self._damaged_spans(key, "its span ids are not a blob")
        return rows

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout or an attempt, by first sequence id."""
        which = {"rollout_key": rollout_key, "attempt_key": attempt_key, "max_key": max_key}
        after, most = {"after_id": -1, "after_key": 0}, 2
        while True:
            sizes = [
                size
                for (size,) in self._reader.read("span_sizes", {**which, **after, "limit": most})
            ]
            if not sizes:
                return
            few = sum(before < SPAN_BYTES_A_READ for before in accumulate(sizes[:-1], initial=0))
            for columns in await self._reader.scan("scan_spans", {**which, **after, "limit": few}):
                row = self._parsed_spans(rollout_key, columns)
                yield row
                after = {"after_id": row.first_sequence_id, "after_key": row.key}
            if len(sizes) < most and few == len(sizes):
                return
            most = min(2 * most, SPAN_ROWS_A_READ)  # few at first: the caller may stop early

    async def get_spans(self, rollout_key: int, key: int) -> SpanRow | None:
        """Return one batch."""
        rows = await self._reader.scan("get_spans", {"key": key})
        return self._parsed_spans(rollout_key, rows[0]) if rows else None

    def _parsed_spans(self, rollout_key: int, columns: Sequence[Any]) -> SpanRow:
        try:
            return records.spans(rollout_key, columns)
        except records.UNREADABLE as error:
            raise self._damaged_spans(columns[0], error) from error

    def _damaged_spans(self, key: int, cause: object) -> DataDamaged:
        self._damage.note(f"batch of spans {key}", cause)
        return DataDamaged(f"batch of spans {key}: {cause}")

    async def used_bytes(self) -> int:
        """Return the bytes of the file's pages that are in use."""
        ((bytes_,),) = self._reader.read("used_bytes")
        return int(bytes_)

    async def disk_bytes(self) -> tuple[int, int]:
        """Return the free bytes and the size of the file system of the file."""
        return datafile.disk_bytes(self._lock.descriptor) if self._lock is not None else (0, 0)

    async def file_bytes(self) -> int:
        """Return the size of the file and its log."""
        parts = (self.path, Path(f"{self.path}-wal"))
        return sum(path.stat().st_size for path in parts if path.exists())
