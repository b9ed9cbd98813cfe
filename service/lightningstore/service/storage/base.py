"""The contract of a back end: it stores rows and answers queries about them. It never decides a status.

The engine owns all rules and all numbers: keys, positions, sequence ids and completion numbers are in the rows
that a back end is handed. A back end keeps them and returns them in the order that each method names.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Generator, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from lightningstore.service.rules.copies import copied
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
from lightningstore.service.rules.series import SeriesQuery, Summary
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.statistics_pb2 import Durability
from lightningstore.v1.worker_pb2 import Worker

#: `Storage.owned_until` of a back end that keeps others out for as long as it is open.
UNLIMITED = math.inf
#: Maximum number of bytes of rollouts that a back end holds at a time while it reads many; a single one may be larger.
READ_BYTES = 8 << 20
#: Maximum number of batches of spans of removed rollouts, and of their bytes, that one commit deletes from a disk.
SWEPT_AT_ONCE, SWEPT_BYTES = 1000, 16 << 20


@dataclass
class Counters:
    """Running totals and the last numbers given out. Every commit saves them, so that nothing has to be counted."""

    rollout_key: int = 0
    attempt_key: int = 0
    span_key: int = 0
    position: int = 0
    completion_number: int = 0
    resources_updates: int = 0
    group_key: int = 0
    group_completion_number: int = 0
    consumer_key: int = 0
    spans: int = 0
    span_bytes: int = 0
    rollouts: dict[int, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    #: The state of the clocks at the last commit, see StoreTime. A list, because servers of earlier versions
    #: take every object in here for counts by status.
    clock: list[Any] = field(default_factory=list)
    #: The pause of claims: its time in wall-clock nanoseconds, and its reason. Empty: claims are not paused. Replaced,
    #: never changed; a list for the same reason.
    pause: list[Any] = field(default_factory=list)

    def copy(self) -> Counters:
        """Return a copy that later operations do not change."""
        return replace(self, rollouts=self.rollouts.copy(), attempts=self.attempts.copy())

    @property
    def is_initial(self) -> bool:
        """Whether no number was ever given out, as in a store that was just created."""
        numbers = (self.rollout_key, self.attempt_key, self.span_key, self.position)
        others = (self.completion_number, self.resources_updates, self.group_key, self.consumer_key)
        return not any((*numbers, *others))


@dataclass
class Changes:
    """The content of one commit. A later value for a key replaces an earlier one.

    A back end applies `removed`, `removed_groups` and `removed_consumers` first, because a new record may have the id
    of a removed one; the order of the other fields does not matter. Keys of new rows rise from commit to commit. Batches of spans are never replaced: a
    key that is stored already fails the commit, on every back end with durability.
    """

    #: By key of the rollout, never empty: a back end may take a stored empty input for damage.
    inputs: list[tuple[int, bytes]] = field(default_factory=list)
    rollouts: dict[int, RolloutRow] = field(default_factory=dict)
    #: Labels by key of the rollout, which replace the stored ones. The rollout's record contains them too: a back
    #: end keeps them for filters only.
    labels: dict[int, dict[str, str]] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    spans: list[SpanRow] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=dict)
    #: Versions of resources by publish number, and the publish numbers of those that are deleted. A number is in
    #: one of both.
    resources: dict[int, ResourcesRow] = field(default_factory=dict)
    outdated: list[int] = field(default_factory=list)
    #: By key of the group.
    groups: dict[int, GroupRow] = field(default_factory=dict)
    #: By name of the consumer: a name whose row is damaged can be used again.
    consumers: dict[str, ConsumerRow] = field(default_factory=dict)
    #: By key of the consumer and completion number, and those that are deleted. A pair is in one of both.
    deliveries: dict[tuple[int, int], DeliveryRow] = field(default_factory=dict)
    removed_deliveries: list[tuple[int, int]] = field(default_factory=list)
    requests: list[RequestRow] = field(default_factory=list)
    #: Answers to request ids with a lower `time_ns` are deleted; 0: none.
    forget_requests_before_ns: int = 0
    #: Keys of rollouts whose spans are deleted. Used with DURABILITY_NONE only; other back ends ignore it.
    evicted: list[int] = field(default_factory=list)
    #: Keys of rollouts that are deleted with their inputs and attempts, including what this commit holds of
    #: them. Their batches of spans may be many: no query shows them any more, and later commits delete those
    #: that they name in `swept`.
    removed: list[int] = field(default_factory=list)
    #: Keys of groups that are deleted, including what this commit holds of them.
    removed_groups: list[int] = field(default_factory=list)
    #: Keys of consumers that are deleted with their deliveries. This commit holds nothing else of them.
    removed_consumers: list[int] = field(default_factory=list)
    #: Keys of batches of spans, from `Storage.leftover_spans`, that are deleted.
    swept: list[int] = field(default_factory=list)
    counters: Counters | None = None
    #: The settings of the store (rules/settings.py), which replace the stored ones; None: unchanged.
    settings: bytes | None = None
    #: Approximate size in bytes.
    size: int = 0

    def clear(self) -> None:
        """Drop the content, so that the object can be filled again."""
        for items in filter(None, _COLLECTIONS(self)):  # nearly all are empty
            items.clear()
        self.__dict__.update(_VALUES)

    def freeze(self) -> None:
        """Copy what the engine changes in place, workers and counters, so that nothing in here changes any more."""
        if self.workers:
            self.workers = {worker_id: copied(worker) for worker_id, worker in self.workers.items()}
        if self.counters is not None:
            self.counters = self.counters.copy()

    @property
    def row_count(self) -> int:
        """Number of rollouts, attempts and groups that are written or removed, which are what operations write many of."""
        written = len(self.rollouts) + len(self.attempts) + len(self.groups)
        return written + len(self.removed) + len(self.removed_groups)

    def parts(self, rows: int) -> Iterator[Changes]:
        """Yield the same changes as several, each with at most `rows` rows.

        After each part, what refers to another row refers to one that is there.
        """
        self.exclude_removed()
        for name in _IN_PARTS:
            items: Any = getattr(self, name)
            every = list(items.items() if isinstance(items, dict) else items)
            for start in range(0, len(every), rows):
                part = Changes()
                setattr(part, name, type(items)(every[start : start + rows]))
                if self.labels:
                    part.labels = {k: self.labels[k] for k in part.rollouts if k in self.labels}
                yield part
        rest = replace(self, labels={})
        for name in _IN_PARTS:
            setattr(rest, name, type(getattr(self, name))())
        yield rest

    def exclude_removed(self) -> None:
        """Drop the rows of rollouts and groups that this commit removes.

        A change recorded in the same commit, before or after the removal, would store one row of a rollout
        without the others.
        """
        gone_groups = set(self.removed_groups)
        self.groups = {key: row for key, row in self.groups.items() if key not in gone_groups}
        gone = set(self.removed)
        self.inputs = [item for item in self.inputs if item[0] not in gone]
        self.rollouts = {key: row for key, row in self.rollouts.items() if key not in gone}
        self.labels = {key: labels for key, labels in self.labels.items() if key not in gone}
        self.attempts = {k: row for k, row in self.attempts.items() if row.rollout_key not in gone}
        self.spans = [row for row in self.spans if row.rollout_key not in gone]


#: What `Changes.parts` divides, in the order in which it is written.
_IN_PARTS = ("removed", "removed_groups", "inputs", "attempts", "rollouts", "groups")
_COLLECTIONS = attrgetter(*[f.name for f in fields(Changes) if f.default_factory is not MISSING])
_VALUES = {f.name: f.default for f in fields(Changes) if f.default is not MISSING}


class _Committed:
    """An awaitable that is complete."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


#: What `Storage.commit` returns when the commit is complete already.
COMMITTED: Awaitable[None] = _Committed()


class FinishedRow(NamedTuple):
    """A finished rollout that may be removed."""

    #: Sort key of the query, from which the next page goes on.
    place: tuple[int, int]
    rollout_id: str
    input_bytes: int


@dataclass
class Snapshot:
    """What the engine loads when it opens a store."""

    store_id: str
    counters: Counters
    #: Rollouts whose row is `live`, and those with an attempt whose row is. Without inputs, which may be large.
    live: list[LoadedRollout]
    workers: list[Worker]
    #: All stored versions, in any order.
    resources: list[ResourcesVersion]
    #: Oldest first.
    requests: list[RequestRow]
    #: As the last commit with settings stored them; empty if there was none.
    settings: bytes = b""
    #: Groups that are open, in any order.
    groups: list[GroupRow] = field(default_factory=list)
    #: All consumers and deliveries, in any order. Deliveries of consumers that are not here are ignored. A delivery
    #: that cannot be read has an empty record: the engine restores it.
    consumers: list[ConsumerRow] = field(default_factory=list)
    deliveries: list[DeliveryRow] = field(default_factory=list)


class Storage(Protocol):
    """A back end: the data of one store.

    Methods raise StorageFailed when the medium does not answer, DataDamaged for a record that cannot be read, and
    OwnershipLost once another process owns the data. The engine reopens the storage after a StorageFailed; it
    stops serving for good after an OwnershipLost.

    One engine calls at a time: the next commit starts after the last one returned. Reads may run beside a commit,
    and see it whole or not at all. Reads, scans and commits may be cancelled; after a cancelled commit, the storage is
    opened again before the next one, as after a failed one. A closed storage raises StorageFailed.

    `storage/testing` holds these rules as tests for any back end.
    """

    @property
    def name(self) -> str:
        """Name of the back end, as GetServerInfo returns it."""

    @property
    def location(self) -> str:
        """Where the data is, for people."""

    @property
    def durability(self) -> Durability.ValueType:
        """What an answered write survives. With DURABILITY_NONE, `commit` must return COMMITTED."""

    @property
    def owned_until(self) -> float:
        """Time until which no other process can own the data, in seconds of CLOCK_BOOTTIME.

        UNLIMITED where a lock keeps others out for as long as the storage is open. A back end with a lease counts it
        from before the renewal was sent. The engine answers no read of its memory at or after this time.
        """

    @property
    def damaged_records(self) -> int:
        """Number of distinct damaged records found so far."""

    async def open(self) -> Snapshot:
        """Acquire ownership, create the store if there is none, and load what is live.

        A storage that is open is closed first: that is how the engine recovers from a failure.

        Raises StorageUnusable, with one line for people, if the data cannot be used or another process owns it.
        """

    def commit(self, changes: Changes) -> Awaitable[None]:
        """Write all of the changes or nothing, if the data is still owned; they are durable once it returns.

        Returns COMMITTED, or an awaitable. Nothing in `changes` is modified by the engine before that completes.
        Ownership is checked in the transaction that writes.
        """

    async def probe(self, size: int) -> None:
        """Write about `size` bytes, as durably as a commit, and remove them. Raises StorageFailed.

        The engine calls it after a failure: on a full disk, opening and small writes may succeed.
        """

    def check(self) -> None:
        """Raise DataFileLost or OwnershipLost if the data is gone although no call has failed. Takes microseconds."""

    async def close(self) -> None:
        """Release everything, ownership included. May be called twice."""

    # Rollouts

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return at least one of the stored ones among these rollouts, in any order; none if none is stored.

        Large rollouts are returned in parts, so that reading them does not hold the event loop: the engine calls
        again for the rest. A load may be slow, and commits may complete meanwhile: it returns the state after one
        commit, which is the last one that completed before the call, or a later one.
        """

    def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts, each with its latest attempt only, up to the query's limit.

        Their inputs are empty if the query has no `inputs`. Rollouts removed during the scan are left out, and damaged ones, which are counted.
        A query with `failure_contains` matches the rollouts whose latest attempt has the query's `attempt_bytes` in its
        serialised record, with the letters A-Z in either case.
        """

    async def count_rollouts(self, query: RolloutQuery) -> dict[int, int]:
        """Return the number of matching rollouts by status, without zeros.

        Order and page of the query do not apply.
        """

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number, each with its latest attempt only.

        May return fewer than there are if they are large, and none only if none is left. Damaged ones are left out.
        """

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        """Return finished rollouts that may be removed, from the `place` of the last one on.

        With `ended_by_ns`, those whose end time is not later; without, all, by completion number.
        """

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        """Return the lowest and the highest value of end_time or completion_number among finished rollouts.

        None if no rollout has finished. Times are nanoseconds.
        """

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        """Return what is known of the values of finished rollouts in each bucket of a series, by its index.

        Buckets without a value are left out. Commits may complete meanwhile, and the answer may contain a part of them.
        Does not hold the event loop, however many rollouts there are.
        """

    # Groups

    async def load_groups(self, group_ids: Sequence[str]) -> list[GroupRow]:
        """Return the stored ones among these groups, in any order. Raises DataDamaged if one of them is damaged."""

    async def list_groups(self, query: GroupQuery) -> list[GroupRow]:
        """Return matching groups by key. Damaged ones are left out, without ending the list."""

    async def group_completions(self, after: int, limit: int) -> list[GroupRow]:
        """Return complete groups by completion number. Damaged ones are left out, without ending the list."""

    # Spans

    async def span_ids(self, rollout_key: int, attempt_key: int) -> list[tuple[int, bytes]]:
        """Return key and packed span ids, 8 bytes each, of every batch of an attempt, by key."""

    def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout, or of one attempt, by first sequence id and key.

        Batches with a key above `max_key` are left out: they arrived after the query. `span_ids` of the rows may be
        empty.
        """

    async def get_spans(self, rollout_key: int, key: int) -> SpanRow | None:
        """Return one batch of a rollout, None if it has been deleted. `span_ids` of the row may be empty."""

    async def leftover_spans(self) -> list[int]:
        """Return keys of some batches of spans of removed rollouts, for `Changes.swept`; none if none is left.

        Few enough that a commit deletes them within milliseconds.
        """

    # Resources

    # Versions that earlier releases stored do not contain their publish number: a back end returns all with it.

    async def list_resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return the highest stored version of each matching id by key, each with its key."""

    async def get_resources(self, publish_number: int) -> Resources | None:
        """Return one version, None if it is not stored."""

    # Sizes

    async def file_bytes(self) -> int:
        """Return the size of the data on disk in bytes, its log included; 0 without a disk."""

    async def disk_bytes(self) -> tuple[int, int]:
        """Return the free bytes and the size of the file system that holds the data; zeros if it is not known."""

    async def used_bytes(self) -> int:
        """Return the bytes on disk that hold data; 0 without a disk.

        Up to date: retention removes rollouts until this is below its limit.
        """
