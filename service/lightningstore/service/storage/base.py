"""What a back end does: append, upsert and answer history queries. It never decides a status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from lightningstore.service.rules.rows import (
    AttemptRow,
    LoadedRollout,
    RequestRow,
    ResourcesQuery,
    RolloutQuery,
    RolloutRow,
    SpanRow,
)
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.statistics_pb2 import Durability
from lightningstore.v1.worker_pb2 import Worker


def holds_any(packed: bytes, span_ids: set[bytes]) -> bool:
    """Tell whether any of the span ids is among packed ones."""
    return any(packed[i : i + 8] in span_ids for i in range(0, len(packed), 8))


@dataclass
class Counters:
    """Running totals, saved with each commit so that nobody ever has to count."""

    rollout_key: int = 0
    attempt_key: int = 0
    span_key: int = 0
    position: int = 0
    completion_number: int = 0
    resources_updates: int = 0
    spans: int = 0
    span_bytes: int = 0
    rollouts: dict[int, int] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    #: How the clocks stood at the last commit: see store_time.py. A list, since servers of earlier versions take
    #: every object in here for counts by status.
    clock: list[Any] = field(default_factory=list)


@dataclass
class Changes:
    """What one commit writes, all or nothing. Later values for a key replace earlier ones."""

    #: Rises with every owner of the data: a stale owner's commit is refused where a back end can tell.
    epoch: int = 0
    inputs: list[tuple[int, bytes]] = field(default_factory=list)
    rollouts: dict[int, RolloutRow] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    spans: list[SpanRow] = field(default_factory=list)
    #: By id: the number of the update (a running one), and the record.
    resources: dict[str, tuple[int, Resources]] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    requests: list[RequestRow] = field(default_factory=list)
    #: Forget the request ids whose `time_ns` is below; 0: none.
    forget_requests_before_ns: int = 0
    #: Rollout keys whose spans are dropped.
    evicted: list[int] = field(default_factory=list)
    #: Rollout keys of which everything is deleted, what this commit itself holds of them included. Deleted
    #: before anything is written: a new rollout may have the id of one that goes. Their batches of spans
    #: may be many: they stay, unseen, until commits name them in `swept`.
    removed: list[int] = field(default_factory=list)
    #: Keys of batches of spans, from `Storage.leftover`, that are deleted.
    swept: list[int] = field(default_factory=list)
    counters: Counters | None = None
    #: Bytes that it holds, roughly.
    size: int = 0

    def clear(self) -> None:
        """Forget everything, to be filled again."""
        for items in (self.inputs, self.rollouts, self.attempts, self.spans, self.workers):
            if items:
                items.clear()
        for rare in (self.resources, self.requests, self.evicted, self.removed, self.swept):
            if rare:
                rare.clear()
        self.forget_requests_before_ns = self.size = 0

    def exclude_removed(self) -> None:
        """Drop what the commit holds of rollouts that it removes.

        A change recorded beside the removal, before or after it, would bring back a row without the rest.
        """
        gone = set(self.removed)
        self.inputs = [item for item in self.inputs if item[0] not in gone]
        self.rollouts = {key: row for key, row in self.rollouts.items() if key not in gone}
        self.attempts = {k: row for k, row in self.attempts.items() if row.rollout_key not in gone}
        self.spans = [row for row in self.spans if row.rollout_key not in gone]


class FinishedRow(NamedTuple):
    """A finished rollout that may be removed."""

    #: Place in the order of the query, for the next page.
    place: tuple[int, int]
    rollout_id: str
    input_bytes: int


@dataclass
class Snapshot:
    """What the engine needs of a store that is opened."""

    store_id: str
    counters: Counters
    #: Rollouts that are unfinished, or have a live attempt.
    live: list[LoadedRollout]
    workers: list[Worker]
    #: Id, version, number of its last update.
    resources: list[tuple[str, int, int]]
    requests: list[RequestRow]


class Storage(Protocol):
    """A back end. Its methods raise StorageFailed where the medium does not answer."""

    #: Name of the back end, as GetServerInfo returns it.
    name: str
    #: What an answered write survives, as GetServerInfo returns it.
    durability: Durability.ValueType
    #: Whether commits outlive the process. If not, `commit_now` takes the place of `commit`.
    durable: bool

    @property
    def damaged_records(self) -> int:
        """Damaged records found so far, each counted once."""

    async def open(self) -> Snapshot:
        """Open or create the store. Raises StorageUnusable with one line for people."""

    async def commit(self, changes: Changes) -> None:
        """Write all of it or nothing; it is durable when this returns."""

    def commit_now(self, changes: Changes) -> None:
        """The same at once, for back ends that are not durable."""

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return what is stored of some of these few rollouts; none only where none is stored.

        Large ones come in parts, so that reading them does not hold the event loop: ask again for the rest.
        What it returns must be current when it returns: nothing may be committed after it has read.
        Raises DataDamaged where one of them cannot be read.
        """

    def scan_rollouts(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts with their latest attempts alone, up to the query's limit.

        Rollouts that are removed meanwhile, and damaged ones, are left out; the latter are counted.
        """

    async def count_rollouts(self, query: RolloutQuery) -> int:
        """Return how many rollouts match, whatever the query's place and limit."""

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number, with their latest attempts alone.

        Fewer than there are where they are large; none only where none is left. Damaged ones are left out.
        """

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        """Return finished rollouts in the order in which they are removed, from a place on.

        Those that had ended by a time, however many others finished before them; without a time all, by
        completion number.
        """

    async def leftover(self) -> list[int]:
        """Return keys of some batches of spans of removed rollouts, to be named in `Changes.swept`.

        Few enough that deleting them takes milliseconds. None: nothing is left.
        """

    async def span_ids(self, attempt_key: int, rollout_key: int) -> list[bytes]:
        """Return the stored span ids of an attempt, packed 8 bytes each, batch by batch."""

    def rows_with(
        self, attempt_key: int, rollout_key: int, span_ids: set[bytes]
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of an attempt that hold any of these spans, the last one first."""

    def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int, only: int | None = None
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout, or of one attempt, by first sequence id and key.

        Batches with a key above `max_key` are left out: they came after the query. `only` asks for one
        batch by its key.
        """

    async def resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources, each with its place in the order of adding."""

    async def get_resources(self, resources_id: str) -> Resources | None:
        """Return one record, or None."""

    async def file_bytes(self) -> int:
        """Return the size of the data on disk, the log included; 0 without a disk."""

    async def used_bytes(self) -> int:
        """Return the bytes on disk that hold data; 0 without a disk."""

    def check_place(self, *, log: bool = True) -> None:
        """Raise DataFileLost where the data, or its `log`, is no longer where it was opened."""

    async def secure(self) -> None:
        """Bring all data into one file, before it is closed and wherever it is."""

    async def close(self) -> None:
        """Close everything. May be called twice."""
