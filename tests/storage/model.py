"""A back end written from the contract alone: dictionaries, sorted when they are asked for.

Its stores outlive its objects, in a dictionary by place. It is what the defects of test_suite_finds.py are put into.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightningstore.service.rules import filters
from lightningstore.service.rules.errors import (
    DataDamaged,
    OwnershipLost,
    StorageFailed,
    StorageUnusable,
)
from lightningstore.service.rules.rows import (
    AttemptRow,
    ConsumerRow,
    DeliveryRow,
    GroupQuery,
    GroupRow,
    LoadedRollout,
    RequestRow,
    ResourcesQuery,
    ResourcesRow,
    ResourcesVersion,
    RolloutQuery,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary, measured
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.base import (
    UNLIMITED,
    Changes,
    Counters,
    FinishedRow,
    Snapshot,
)
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.statistics_pb2 import DURABILITY_RELAXED
from lightningstore.v1.worker_pb2 import Worker


@dataclass
class Data:
    """Everything that is stored. A commit makes another one."""

    counters: Counters = field(default_factory=Counters)
    settings: bytes = b""
    inputs: dict[int, bytes] = field(default_factory=dict)
    rollouts: dict[int, RolloutRow] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    spans: dict[int, SpanRow] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    #: By publish number.
    resources: dict[int, ResourcesRow] = field(default_factory=dict)
    groups: dict[int, GroupRow] = field(default_factory=dict)
    #: By name, and by key of the consumer and completion number.
    consumers: dict[str, ConsumerRow] = field(default_factory=dict)
    deliveries: dict[tuple[int, int], DeliveryRow] = field(default_factory=dict)
    requests: dict[tuple[str, str], RequestRow] = field(default_factory=dict)
    #: Keys of removed rollouts.
    removed: set[int] = field(default_factory=set)
    #: Kind and name of records that cannot be read.
    damaged: set[tuple[str, str]] = field(default_factory=set)

    def copy(self) -> Data:
        copies = {
            name: type(value)(value) for name, value in vars(self).items() if name != "counters"
        }
        return replace(self, **copies)

    @property
    def size(self) -> int:
        batches = sum(len(row.data) for row in self.spans.values())
        return batches + sum(map(len, self.inputs.values()))


class Store:
    """A store at a place, whoever has it open."""

    def __init__(self) -> None:
        self.store_id = uuid.uuid4().hex
        self.data = Data()
        self.owner: ModelStorage | None = None


class ModelStorage:
    name = "model"
    durability = DURABILITY_RELAXED
    owned_until = UNLIMITED

    stores: dict[Path, Store] = {}  # noqa: RUF012

    def __init__(self, place: Path) -> None:
        self.location = str(place)
        self.store = self.stores.setdefault(place, Store())
        self.found: set[tuple[str, str]] = set()

    # Opening and closing

    async def open(self) -> Snapshot:
        self.acquire()
        data = self.data
        requests = sorted(data.requests.values(), key=lambda row: row.time_ns)
        versions = [
            ResourcesVersion(row.record.resources_id, row.key, row.record.version, number)
            for number, row in data.resources.items()
        ]
        live = [
            LoadedRollout(row, b"", self.attempts(row.key), len(data.inputs[row.key]))
            for row in data.rollouts.values()
            if self.is_live(row) and self.is_readable("rollout", row.rollout.rollout_id)
        ]
        workers = [w for name, w in data.workers.items() if self.is_readable("worker", name)]
        return Snapshot(
            *(self.store.store_id, data.counters, live, workers, versions, requests),
            settings=data.settings,
            groups=[row for row in self.sound_groups() if self.is_open_group(row)],
            consumers=[r for n, r in data.consumers.items() if self.is_readable("consumer", n)],
            deliveries=list(data.deliveries.values()),
        )

    @property
    def damaged_records(self) -> int:
        return len(self.found)

    def is_readable(self, kind: str, name: str) -> bool:
        """Return whether a record can be read. One that cannot is counted."""
        if (kind, name) not in self.data.damaged:
            return True
        self.found.add((kind, name))
        return False

    def check_readable(self, kind: str, name: str) -> None:
        if not self.is_readable(kind, name):
            raise DataDamaged(f"{kind} {name!r}", name)

    def is_open_group(self, row: GroupRow) -> bool:
        return not row.record.completion_number

    def acquire(self) -> None:
        if self.store.owner not in (None, self):
            raise StorageUnusable("another storage has the store open")
        self.store.owner = self

    def is_live(self, row: RolloutRow) -> bool:
        return row.live or any(attempt.live for attempt in self.attempts(row.key))

    @property
    def data(self) -> Data:
        if self.store.owner is not self:
            raise StorageFailed("the storage is closed")
        return self.store.data

    def check(self) -> None:
        pass

    async def probe(self, size: int) -> None:
        assert size <= 1 << 30
        assert self.data is not None

    async def close(self) -> None:
        if self.store.owner is self:
            self.store.owner = None

    # Writing

    async def commit(self, changes: Changes) -> None:
        data = self.data.copy()
        self.apply(data, changes)
        await asyncio.sleep(0)
        self.store.data = data

    def apply(self, data: Data, changes: Changes) -> None:
        self.remove(data, changes)
        for key in changes.swept:
            data.spans.pop(key, None)
        data.inputs.update(changes.inputs)
        data.rollouts.update(changes.rollouts)
        data.attempts.update(changes.attempts)
        data.workers.update(changes.workers)
        data.damaged = data.damaged - {("worker", name) for name in changes.workers}
        data.resources.update(changes.resources)
        for number in changes.outdated:
            data.resources.pop(number, None)
        self.put_groups(data, changes)
        self.put_consumers(data, changes)
        data.requests.update({(row.method, row.request_id): row for row in changes.requests})
        self.forget(data, changes.forget_requests_before_ns)
        data.counters = changes.counters or data.counters
        if changes.settings is not None:
            data.settings = changes.settings
        self.put_spans(data, changes.spans)

    def put_groups(self, data: Data, changes: Changes) -> None:
        for key in changes.removed_groups:
            data.groups.pop(key, None)
        data.groups.update(changes.groups)

    def put_consumers(self, data: Data, changes: Changes) -> None:
        gone = set(changes.removed_consumers)
        data.consumers = {n: row for n, row in data.consumers.items() if row.key not in gone}
        data.deliveries = {at: row for at, row in data.deliveries.items() if at[0] not in gone}
        for place in changes.removed_deliveries:
            data.deliveries.pop(place, None)
        data.consumers.update(changes.consumers)
        data.deliveries.update(changes.deliveries)
        data.damaged = data.damaged - {("consumer", name) for name in changes.consumers}

    def put_spans(self, data: Data, rows: list[SpanRow]) -> None:
        for row in rows:
            if row.key in data.spans:
                raise StorageFailed(f"there is a batch of spans with key {row.key}")
            data.spans[row.key] = row

    def remove(self, data: Data, changes: Changes) -> None:
        changes.exclude_removed()
        data.removed |= set(changes.removed)
        for key in changes.removed:
            data.rollouts.pop(key, None)
            data.inputs.pop(key, None)
        gone = [k for k, row in data.attempts.items() if row.rollout_key in changes.removed]
        for key in gone:
            del data.attempts[key]

    def forget(self, data: Data, before_ns: int) -> None:
        data.requests = {k: row for k, row in data.requests.items() if row.time_ns >= before_ns}

    # Rollouts

    def attempts(self, rollout_key: int) -> list[AttemptRow]:
        rows = [row for row in self.data.attempts.values() if row.rollout_key == rollout_key]
        return sorted(rows, key=lambda row: row.key)

    def loaded(self, row: RolloutRow) -> LoadedRollout:
        self.check_readable("rollout", row.rollout.rollout_id)
        return LoadedRollout(row, self.data.inputs[row.key], self.attempts(row.key))

    def shown(self, row: RolloutRow) -> LoadedRollout:
        item = self.loaded(row)
        return item._replace(attempts=item.attempts[-1:])

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        rows = self.data.rollouts.values()
        return [self.loaded(row) for row in rows if row.rollout.rollout_id in rollout_ids]

    def latest(self, rollout_key: int) -> Attempt | None:
        rows = self.attempts(rollout_key)
        return rows[-1].attempt if rows else None

    def matching(self, query: RolloutQuery) -> list[RolloutRow]:
        match = filters.matches(query, self.latest)
        return [row for row in self.data.rollouts.values() if match(row)]

    def place(self, query: RolloutQuery, row: RolloutRow) -> tuple[object, int]:
        return filters.sort_value(query, row), row.key

    def page(self, query: RolloutQuery) -> list[RolloutRow]:
        rows = self.matching(query)
        rows.sort(key=lambda row: self.place(query, row), reverse=query.descending)
        rows = [row for row in rows if query.after is None or self.is_after(query, row)]
        return rows[query.skip :]

    def is_after(self, query: RolloutQuery, row: RolloutRow) -> bool:
        place = self.place(query, row)
        return place < query.after if query.descending else place > query.after

    async def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        left = query.limit
        for row in self.page(query):
            if not left:
                return
            if row.key in self.data.rollouts and self.is_readable(
                "rollout", row.rollout.rollout_id
            ):
                left -= 1
                shown = self.shown(self.data.rollouts[row.key])
                yield shown if query.inputs else shown._replace(input_json=b"")
            await asyncio.sleep(0)

    async def count_rollouts(self, query: RolloutQuery) -> dict[int, int]:
        return Counter(row.rollout.status for row in self.matching(query))

    async def group_members(self, group_id: str) -> list[str]:
        rows = sorted(self.data.rollouts.values(), key=lambda row: row.key)
        members = [row.rollout for row in rows if row.rollout.group_id == group_id != ""]
        return [rollout.rollout_id for rollout in members]

    def finished_rows(self) -> list[RolloutRow]:
        rows = [row for row in self.data.rollouts.values() if row.rollout.completion_number]
        return sorted(rows, key=lambda row: row.rollout.completion_number)

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        rows = [
            row
            for row in self.finished_rows()
            if row.rollout.completion_number > after
            and self.is_readable("rollout", row.rollout.rollout_id)
        ]
        return [self.shown(row) for row in rows[:limit]]

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        rows = []
        for row in self.finished_rows():
            end_ns = nanoseconds(row.rollout.end_time)
            place = (row.rollout.completion_number if ended_by_ns is None else end_ns, row.key)
            if place > after and (ended_by_ns is None or self.had_ended(end_ns, ended_by_ns)):
                size = len(self.data.inputs[row.key])
                rows.append(FinishedRow(place, row.rollout.rollout_id, size))
        return sorted(rows)[:limit]

    def had_ended(self, end_ns: int, by_ns: int) -> bool:
        return end_ns <= by_ns

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        found = [filters.COLUMNS[axis](row) for row in self.finished_rows()]
        return (min(found), max(found)) if found else None

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        found: dict[int, Bucket] = {}
        match = filters.matches(query.rollouts)
        for row in self.finished_rows():
            value, place = measured(query)(row), filters.COLUMNS[query.axis](row)
            if value is not None and query.first <= place < query.end and match(row):
                found.setdefault((place - query.first) // query.width, Bucket()).add([value])
        return {index: bucket.summary() for index, bucket in found.items()}

    # Groups

    def sound_groups(self) -> list[GroupRow]:
        rows = self.data.groups.values()
        return [row for row in rows if self.is_readable("group", row.record.group_id)]

    async def load_groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        rows = [row for row in self.data.groups.values() if row.record.group_id in group_ids]
        for row in rows:
            self.check_readable("group", row.record.group_id)
        return rows

    async def list_groups(self, query: GroupQuery) -> list[GroupRow]:
        rows = [
            row
            for row in self.sound_groups()
            if row.key > query.after
            and (not query.group_ids or row.record.group_id in query.group_ids)
            and (not query.statuses or row.record.status in query.statuses)
        ]
        return sorted(rows)[: query.limit]

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        rows = [row for row in self.sound_groups() if row.record.completion_number > after]
        return sorted(rows, key=lambda row: row.record.completion_number)[:limit]

    # Spans

    def batches(self, rollout_key: int) -> list[SpanRow]:
        rows = [row for row in self.data.spans.values() if row.rollout_key == rollout_key]
        return sorted(rows, key=lambda row: (row.first_sequence_id, row.key))

    async def span_ids(self, rollout_key: int, attempt_key: int) -> list[tuple[int, bytes]]:
        rows = [row for row in self.batches(rollout_key) if row.attempt_key == attempt_key]
        return sorted((row.key, row.span_ids) for row in rows)

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int
    ) -> AsyncIterator[SpanRow]:
        for row in self.batches(rollout_key):
            if attempt_key in (None, row.attempt_key) and row.key <= max_key:
                yield row

    async def get_spans(self, rollout_key: int, key: int) -> SpanRow | None:
        return next((row for row in self.batches(rollout_key) if row.key == key), None)

    async def leftover_spans(self) -> list[int]:
        keys, size = [], 0
        for row in self.data.spans.values():
            if row.rollout_key in self.data.removed and len(keys) < 1000 and size < 16 << 20:
                keys.append(row.key)
                size += len(row.data)
        return keys

    # Resources and sizes

    async def list_resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        rows = [
            (row.key, row.record)
            for row in self.current()
            if query.id_contains in row.record.resources_id
            and row.key > query.after
            and self.is_readable("resources", row.record.resources_id)
        ]
        return sorted(rows, key=lambda row: row[0])[: query.limit]

    def current(self) -> list[ResourcesRow]:
        rows = sorted(self.data.resources.values(), key=lambda row: row.record.publish_number)
        return list({row.key: row for row in rows}.values())

    async def get_resources(self, publish_number: int) -> Resources | None:
        row = self.data.resources.get(publish_number)
        if row is not None:
            self.check_readable("resources", row.record.resources_id)
        return row.record if row is not None else None

    async def file_bytes(self) -> int:
        return self.data.size

    async def disk_bytes(self) -> tuple[int, int]:
        return 0, 0

    async def used_bytes(self) -> int:
        return self.data.size


class LeasedStorage(ModelStorage):
    """The same with a lease, as a back end over a network has; the test says when it is over."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.is_open = False
        self.lease_ended = 0.0

    @property
    def owned_until(self) -> float:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now + 60 if self.store.owner is self else self.lease_ended

    def end_lease(self) -> None:
        self.store.owner = None
        self.lease_ended = time.clock_gettime(time.CLOCK_BOOTTIME)

    def acquire(self) -> None:
        super().acquire()
        self.is_open = True

    def check(self) -> None:
        if self.is_open and self.store.owner is not self:
            raise OwnershipLost("another storage has taken over")

    @property
    def data(self) -> Data:
        self.check()
        return super().data

    async def commit(self, changes: Changes) -> None:
        data = self.data.copy()
        self.apply(data, changes)
        await asyncio.sleep(0)
        self.check()
        self.store.data = data

    async def close(self) -> None:
        await super().close()
        self.is_open = False
