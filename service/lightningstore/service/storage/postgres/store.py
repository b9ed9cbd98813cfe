"""The PostgreSQL back end: one namespace of a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import msgspec
import zstandard
from google.protobuf.message import DecodeError
from lightningstore.service.rules.errors import (
    DataDamaged,
    OwnedElsewhere,
    OwnershipLost,
    StorageFailed,
    StorageUnusable,
    WentBack,
)
from lightningstore.service.rules.rows import (
    DeliveryRow,
    LoadedRollout,
    ResourcesQuery,
    RolloutQuery,
    SpanRow,
)
from lightningstore.service.storage import pages
from lightningstore.service.storage.base import (
    READ_BYTES,
    SWEPT_AT_ONCE,
    SWEPT_BYTES,
    Changes,
    FinishedRow,
    Snapshot,
)
from lightningstore.service.storage.postgres import filters
from lightningstore.service.storage.postgres import rows as records
from lightningstore.service.storage.postgres.answered import Missing
from lightningstore.service.storage.postgres.commits import (
    SQL,
    SpanEncoder,
    Statement,
    decoded_counters,
    encoded_counters,
    outcome,
    parts_of,
    spans_part,
    statement,
)
from lightningstore.service.storage.postgres.database import READS, Database
from lightningstore.service.storage.postgres.groups import GroupReads
from lightningstore.service.storage.postgres.known import Known
from lightningstore.service.storage.postgres.lease import SQL as LEASE_SQL
from lightningstore.service.storage.postgres.lease import (
    NoNamespace,
    Owned,
    Ownership,
    new_store_id,
)
from lightningstore.service.storage.postgres.link import Connection, described
from lightningstore.service.storage.postgres.reads import Session
from lightningstore.service.storage.postgres.series import SeriesReads
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.statistics_pb2 import DURABILITY_FULL, DURABILITY_RELAXED

#: Maximum number of rollouts that one query returns, with and without inputs.
READ_ROWS, LIVE_ROWS = 128, 1000
#: Maximum number of batches of spans, and of their stored bytes, that one query returns.
SPAN_ROWS_A_READ = 16
SPAN_BYTES_A_READ = 1 << 20


class PostgresStorage(GroupReads, SeriesReads):
    """One namespace of a database, owned by this server. `compress` stores spans with zstd."""

    name = "postgresql"

    def __init__(
        self, database: Database, namespace: str, *, compress: bool = True, existing: bool = False
    ) -> None:
        """Take the database and the name. With `existing`, a missing namespace is rejected rather than created."""
        super().__init__(database)
        self.namespace = namespace
        self._existing = existing
        self.durability = DURABILITY_FULL if database.full_sync else DURABILITY_RELAXED
        self._encoder = SpanEncoder(compress=compress)
        self._owned: Ownership | None = None
        #: Whether it is a user of the database, and whether it has owned the namespace since it was closed last.
        self._entered = self._was_owner = False
        self._known = Known(lambda ids: self._point(READS["known_ids"], ids))

    @property
    def location(self) -> str:
        """The database and the namespace."""
        return f"{self.database.location}, namespace {self.namespace}"

    @property
    def damaged_records(self) -> int:
        """Number of damaged records found so far."""
        return self._damage.count

    @property
    def owned_until(self) -> float:
        """End of the lease, as far as it is known."""
        return self._session.owned.owned_until if self._session is not None else 0.0

    # Opening and closing

    async def open(self) -> Snapshot:
        """Take the namespace and load what is live. Raises StorageUnusable, OwnershipLost."""
        self._session = None
        try:
            await self._enter()
            self._session = await self._acquire()
            snapshot = await self._snapshot(self._session)
        except Owned as error:
            await self._release()
            if self._was_owner:
                raise OwnershipLost(str(error)) from error
            raise OwnedElsewhere(str(error), error.address) from error
        except (StorageFailed, NoNamespace, asyncpg.PostgresError) as error:
            await self._release()
            raise StorageUnusable(
                f"{self.location} cannot be opened: {described(error)}"
            ) from error
        except (DecodeError, ValueError, TypeError, DataDamaged, msgspec.MsgspecError) as error:
            await self._release()
            raise StorageUnusable(f"{self.location} is damaged: {error}") from error
        except BaseException:
            await self._release()
            raise
        self._was_owner = True
        return snapshot

    async def _enter(self) -> None:
        """Become a user of the database, unless it is one. Raises StorageUnusable."""
        if not self._entered:
            if self.namespace in self.database.opened:
                raise StorageUnusable(f"namespace {self.namespace!r} is open in this process")
            self.database.opened.add(self.namespace)
            self._entered = True
            try:
                await self.database.enter()
            except BaseException:
                self._entered = False
                self.database.opened.discard(self.namespace)
                raise

    async def _acquire(self) -> Session:
        """Return the namespace, taken with a new epoch, so that nothing sent before is written any more."""
        membership = self.database.membership
        if not self._existing:
            await membership.create(self.namespace)
        self._owned = owned = await membership.take(self.namespace)
        self._lost = None
        writer = self.database.writer(owned.ns)
        known = self.database.answered.last(owned.ns)

        async def look(connection: Connection, _: int) -> tuple[asyncpg.Record | None, int | None]:
            await connection.execute(SQL["remove_probe"], owned.ns)
            found = await connection.fetchrow(SQL["find_commit"], owned.ns, known)
            last = await connection.fetchrow(SQL["last_commit"], owned.ns)
            return last, found["epoch"] if found is not None else None

        last, epoch = await writer.run(look, lambda: owned.owned_until)
        if last is None:
            raise ValueError("it has no commits")
        await self._compare(owned, last["seq"], epoch)
        return Session(owned, last["seq"], last["counters"], last["bytes"])

    async def _compare(self, owned: Ownership, last: int, epoch: int | None) -> None:
        """Compare the last commit that was answered with what the database has of it.

        If it is gone, the store gets another id: a watcher would otherwise miss what happens under the same numbers.
        """
        answered = self.database.answered
        if not answered.is_gone(owned.ns, epoch, last):
            return
        owned.store_id = new_store_id()
        await self.database.writer(owned.ns).run(
            lambda c, _: c.execute(LEASE_SQL["put_store_id"], *owned.named, owned.store_id),
            lambda: owned.owned_until,
        )
        lost = Missing(owned.ns, self.namespace, answered.last(owned.ns), last)
        lost.report(owned.store_id)
        answered.forget(owned.ns)

    async def _snapshot(self, session: Session) -> Snapshot:
        """Read what the engine loads, in parts between which other tasks run."""
        keys = [key for (key,) in await self._scan(READS["live_keys"])]
        live: list[LoadedRollout] = []
        async for rows in self._rollouts("live", keys, LIVE_ROWS):
            live += self._damage.rollouts(rows)
        settings = await self._scan(READS["settings"])
        requests = await self._scan(READS["recent_requests"])
        workers = await self._scan(READS["all_workers"])
        versions = await self._scan(READS["all_resources"])
        readable = self._damage.readable
        return Snapshot(
            store_id=session.owned.store_id,
            counters=decoded_counters(session.counters),
            live=live,
            workers=readable("worker", records.worker, workers),
            resources=readable("resources", records.resources_version, versions),
            requests=readable("the answer to a request id", records.request, requests),
            settings=settings[0][0] if settings else b"",
            groups=readable("group", records.group, await self._scan(READS["open_groups"])),
            consumers=readable(
                "consumer", records.consumer, await self._scan(READS["all_consumers"])
            ),
            deliveries=readable(
                "delivery",
                records.delivery,
                await self._scan(READS["all_deliveries"]),
                DeliveryRow.damaged,
            ),
        )

    def check(self) -> None:
        """Raise OwnershipLost once another server is known to own the namespace."""
        if self._lost is not None:
            raise self._lost
        if self._session is not None and self._session.owned.lease.lost.is_set():
            raise OwnershipLost("its lease has ended, and another server took its place")

    async def close(self) -> None:
        """Give the namespace up, and leave the database. May be called twice."""
        self._was_owner = False
        await self._release()

    async def _release(self) -> None:
        self._session = None
        owned, self._owned = self._owned, None
        entered, self._entered = self._entered, False
        try:
            if owned is not None:
                await self.database.membership.give_up(owned)
        finally:
            if entered:
                self.database.opened.discard(self.namespace)
                await self.database.leave()

    # Writing

    async def commit(self, changes: Changes) -> None:
        """Write all changes in one statement, once, if the namespace is still owned."""
        session = self._opened
        if changes.removed or changes.removed_groups:
            changes.exclude_removed()
        # What the engine changes in place is taken before the first await.
        counters = session.counters
        if changes.counters is not None:
            counters = encoded_counters(changes.counters)
        parts = parts_of(changes)
        if changes.spans:
            rows: list[tuple[Any, ...]] = []
            for few in self._encoder.slices(changes.spans):
                rows += map(self._encoder.columns, few)
                await asyncio.sleep(0)
            parts.append(spans_part(rows))
        seq = session.seq + 1
        owned = session.owned
        commit = (owned.ns, owned.epoch, seq)
        sent = statement(parts, commit, counters, owned.lease.server_id)
        bytes_ = await self._write(session, sent)
        session.seq, session.counters, session.bytes_ = seq, counters, bytes_
        self.database.answered.note(owned.ns, owned.epoch, seq)
        self.database.count_written(changes.size)

    async def _write(self, session: Session, sent: Statement) -> int:
        """Send a commit until its outcome is known; returns the bytes of the namespace after it."""
        ns, epoch, seq = sent.values[:3]

        async def send(connection: Connection, tries: int) -> int:
            if tries and (bytes_ := await outcome(connection, ns, epoch, seq)) is not None:
                return bytes_  # the answer was lost, the commit was not
            try:
                bytes_ = await connection.fetchval(sent.text, *sent.values)
            except asyncpg.UniqueViolationError:
                # An earlier try may have been under way still.
                bytes_ = await outcome(connection, ns, epoch, seq)
                if bytes_ is None:
                    raise
            if bytes_ is None:
                raise await self._refusal(connection, session, seq)
            return bytes_

        try:
            return await self.database.writer(ns).run(send, session.until)
        except asyncpg.PostgresError as error:
            raise StorageFailed(described(error)) from error

    async def _refusal(self, connection: Connection, session: Session, seq: int) -> StorageFailed:
        """Return why the fence refused a commit."""
        found = await connection.fetchrow(LEASE_SQL["find_namespace"], self.namespace)
        owned = session.owned
        others = found and found["address"] and found["owner"] != owned.lease.server_id
        if found and not others and found["epoch"] <= owned.epoch:
            return WentBack(seq - 1)
        owned.ended = True
        lost = OwnershipLost("the namespace was deleted" if found is None else _owner(found))
        if session is self._session:
            self._lost = lost
        return lost

    async def probe(self, size: int) -> None:
        """Write bytes to the database and remove them."""
        session = self._opened
        ns = session.owned.ns

        async def write(connection: Connection, _: int) -> None:
            await connection.execute(SQL["put_probe"], ns, bytes(size))
            await connection.execute(SQL["remove_probe"], ns)

        try:
            await self.database.writer(ns).run(write, session.until)
        except asyncpg.PostgresError as error:
            raise StorageFailed(described(error)) from error

    # Reading

    async def _rollouts(
        self, variant: str, wanted: Sequence[Any], rows_at_once: int = READ_ROWS
    ) -> AsyncIterator[list[asyncpg.Record]]:
        """Yield rows of `loaded` in the order of their keys or ids, those that exist, some at a time."""
        start = 0
        fetch = self._scan if variant in ("live", "latest", "listed") else self._point
        while start < len(wanted):
            part = wanted[start : start + rows_at_once]
            rows = await fetch(filters.LOADED[variant], part, READ_BYTES)
            yield rows
            # The query ended at the limit of bytes, unless it returned nothing.
            start += rows[-1]["place"] if rows else len(part)

    async def _latest(
        self, keys: Sequence[int], *, inputs: bool = True
    ) -> AsyncIterator[LoadedRollout]:
        """Yield rollouts with their latest attempts, in the order of the keys, without damaged ones."""
        variant, rows_at_once = ("latest", READ_ROWS) if inputs else ("listed", LIVE_ROWS)
        async for rows in self._rollouts(variant, keys, rows_at_once):
            for loaded in self._damage.rollouts(rows):
                yield loaded

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return what is stored of some of these rollouts."""
        ids = await self._known.among([rollout_id.encode() for rollout_id in rollout_ids])
        for start in range(0, len(ids), READ_ROWS):
            part = ids[start : start + READ_ROWS]
            if rows := await self._point(filters.LOADED["by_id"], part, READ_BYTES):
                return list(self._damage.rollouts(rows, skip=False))
        return []

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts."""

        def load(keys: list[int]) -> AsyncIterator[LoadedRollout]:
            return self._latest(keys, inputs=query.inputs)

        async for loaded in pages.filled(query, self._places, load):
            yield loaded

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""
        rows = await self._scan(READS["group_members"], group_id.encode())
        return [name.decode() for (name,) in rows]

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number."""
        limit = min(limit, READ_ROWS)
        while rows := await self._point(READS["completions"], after, limit):
            if loaded := [item async for item in self._latest([key for key, _ in rows])]:
                return loaded
            after = rows[-1][1]  # all of these are damaged, or were removed meanwhile
        return []

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        """Return finished rollouts by completion number, or those that had ended by a time."""
        if ended_by_ns is None:
            rows = await self._scan(READS["finished"], after[0], limit)
        else:
            rows = await self._scan(READS["finished_by"], ended_by_ns, *after, limit)
        return [FinishedRow((value, key), name.decode(), size) for value, key, name, size in rows]

    async def leftover_spans(self) -> list[int]:
        """Return keys of batches that a commit has yet to delete."""
        rows = await self._scan(READS["leftover"], SWEPT_AT_ONCE, SWEPT_BYTES)
        return [key for (key,) in rows]

    async def span_ids(self, rollout_key: int, attempt_key: int) -> list[tuple[int, bytes]]:
        """Return key and packed span ids of the batches of an attempt, by key."""
        rows = await self._point(READS["span_ids"], rollout_key, attempt_key)
        return [(key, ids) for key, ids in rows]

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout or an attempt, by first sequence id."""
        place, most = (-1, 0), 2
        while rows := await self._scan(
            READS["scan_spans"], rollout_key, *place, max_key, attempt_key, most, SPAN_BYTES_A_READ
        ):
            for columns in rows:
                row = self._parsed_spans(rollout_key, columns)
                place = (row.first_sequence_id, row.key)
                yield row
            most = min(2 * most, SPAN_ROWS_A_READ)  # few at first: the caller may stop early

    async def get_spans(self, rollout_key: int, key: int) -> SpanRow | None:
        """Return one batch."""
        rows = await self._point(READS["get_spans"], key)
        return self._parsed_spans(rollout_key, rows[0]) if rows else None

    def _parsed_spans(self, rollout_key: int, columns: Sequence[Any]) -> SpanRow:
        try:
            return records.span_row(rollout_key, columns)
        except zstandard.ZstdError as error:
            self._damage.note(f"batch of spans {columns[0]}", error)
            raise DataDamaged(f"batch of spans {columns[0]}: {error}") from error

    async def list_resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources."""
        after, found = query.after, list[tuple[int, Resources]]()
        while (left := query.limit - len(found)) > 0:
            which = (after, query.id_contains.encode(), left)
            rows = await self._scan(READS["scan_resources"], *which)
            found += self._damage.readable("resources", records.resources, rows)
            if len(rows) < left:
                break
            after = rows[-1][0]  # fewer than the limit would end the list
        return found

    async def get_resources(self, publish_number: int) -> Resources | None:
        """Return one version."""
        rows = await self._point(READS["get_resources"], publish_number)
        try:
            return records.resources(rows[0])[1] if rows else None
        except records.UNREADABLE as error:
            name = repr(rows[0][1].decode(errors="replace"))
            self._damage.note(f"resources {name}", error)
            raise DataDamaged(f"resources {name}: {error}") from error

    async def used_bytes(self) -> int:
        """Return the bytes of the namespace's spans and inputs: the space of what is deleted is used again."""
        return self._opened.bytes_

    async def disk_bytes(self) -> tuple[int, int]:
        """Return zeros: the disk is that of the database server."""
        return 0, 0

    async def file_bytes(self) -> int:
        """Return the size of the tables, which all namespaces share; it may be some seconds old."""
        return await self.database.table_bytes(self._opened.until())


def _owner(found: asyncpg.Record) -> str:
    """Return who owns a namespace, for people."""
    if found["address"] is None:
        return "another server had taken over"
    return f"the server at {found['address']} has taken over"
