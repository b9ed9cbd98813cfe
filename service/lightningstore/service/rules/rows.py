"""Records as they are stored, and the queries on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from lightningstore.service.rules.completion import Completion
from lightningstore.service.rules.limits import DEFAULT_PAGE_SIZE
from lightningstore.service.rules.shown import Shown
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout


class RolloutRow(NamedTuple):
    """A rollout as stored. The record contains neither the input nor the latest attempt."""

    #: Number of the rollout within the store, in the order of enqueueing.
    key: int
    rollout: Rollout
    #: Queue position, 0 if it is not in the queue.
    position: int
    #: Wall-clock time in nanoseconds from which it can be claimed, 0 for at once.
    available_ns: int

    @property
    def live(self) -> bool:
        """Whether the engine needs it in memory, because it is unfinished."""
        return self.rollout.status not in FINISHED


class AttemptRow(NamedTuple):
    """An attempt as stored."""

    key: int
    rollout_key: int
    attempt: Attempt
    #: The last sequence id that was stored or assigned for its spans.
    last_sequence_id: int

    @property
    def live(self) -> bool:
        """Whether the engine needs it and its rollout in memory: it is PREPARING or RUNNING."""
        return self.attempt.status in LIVE_ATTEMPT


class SpanRow(NamedTuple):
    """A batch of spans of one attempt, as stored. Rows never change."""

    #: Number of the batch within the store.
    key: int
    rollout_key: int
    attempt_key: int
    first_sequence_id: int
    last_sequence_id: int
    span_count: int
    #: Packed span ids, 8 bytes each.
    span_ids: bytes
    #: A serialised IngestSpansRequest. The sequence_ids of its batch are empty if they are
    #: `contiguous`.
    data: bytes
    #: Whether the sequence ids are first, first + 1, … last, and are omitted from the data.
    contiguous: bool


class LoadedRollout(NamedTuple):
    """Everything stored of one rollout except its spans."""

    row: RolloutRow
    #: Empty in a snapshot: an input may be large, and it is loaded when it is needed.
    input_json: bytes
    #: All attempts; if only the latest was requested, that one if there is one.
    attempts: list[AttemptRow]
    #: Bytes of the input in a snapshot; 0 where the input itself is here.
    input_bytes: int = 0

    def completion(self) -> Completion:
        """Return its finish, for waiters."""
        return Completion(self.shown())

    def shown(self) -> Shown:
        """Return it in the form of an answer: record, input and latest attempt."""
        latest = self.attempts[-1].attempt if self.attempts else None
        size = self.input_bytes or len(self.input_json)
        return Shown(self.row.rollout, self.input_json, latest, self.row.key, size)


class ResourcesVersion(NamedTuple):
    """The part of a record of resources that the engine keeps in memory."""

    #: Number of the record within the store, in the order in which they were first added.
    key: int
    version: int
    #: Number of the update within the store; the latest record has the highest one.
    updated: int


class ResourcesRow(NamedTuple):
    """A record of resources as stored."""

    key: int
    updated: int
    record: Resources


class RequestRow(NamedTuple):
    """The answer to a request id."""

    method: str
    request_id: str
    digest: int
    answer: bytes
    #: Time in nanoseconds of server run time, which is independent of the wall clock.
    time_ns: int


@dataclass(frozen=True)
class RolloutQuery:
    """Filters, order and position of a rollout query. Created by `filters.rollout_query`."""

    statuses: frozenset[int] = frozenset()
    rollout_ids: frozenset[str] = frozenset()
    rollout_id_contains: str = ""
    modes: frozenset[int] = frozenset()
    group_ids: frozenset[str] = frozenset()
    any_of: bool = False
    #: A column of `filters.COLUMNS`. Ties are ordered by key, in the same direction.
    order_by: str = "key"
    descending: bool = False
    #: Sort value and key of the last row of the previous page.
    after: tuple[Any, int] | None = None
    skip: int = 0
    limit: int = DEFAULT_PAGE_SIZE


@dataclass(frozen=True)
class ResourcesQuery:
    """Filter and position of a resources query, in the order of the keys."""

    id_contains: str = ""
    #: Key of the last record of the previous page.
    after: int = 0
    limit: int = DEFAULT_PAGE_SIZE
