"""Records as they are stored, and queries for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from lightningstore.service.rules.completion import Completion
from lightningstore.service.rules.shown import Shown
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout


class RolloutRow(NamedTuple):
    """A rollout as it is stored: the record holds neither input nor latest attempt."""

    #: Counts the rollouts of the store: the order of enqueueing.
    key: int
    rollout: Rollout
    #: Place in the queue, 0 if it is in none.
    position: int
    #: Wall-clock nanoseconds from which it may be claimed, 0 for at once.
    available_ns: int

    @property
    def live(self) -> bool:
        """Whether the engine needs it in memory: it is unfinished."""
        return self.rollout.status not in FINISHED


class AttemptRow(NamedTuple):
    """An attempt as it is stored."""

    key: int
    rollout_key: int
    attempt: Attempt
    #: The last sequence id stored or handed out for its spans.
    last_sequence_id: int

    @property
    def live(self) -> bool:
        """Whether the engine needs it, and its rollout, in memory: it is preparing or running."""
        return self.attempt.status in LIVE_ATTEMPT


class SpanRow(NamedTuple):
    """A batch of spans of one attempt, as it is stored. Rows are stored once and never change."""

    #: Counts the batches of the store.
    key: int
    rollout_key: int
    attempt_key: int
    first_sequence_id: int
    last_sequence_id: int
    span_count: int
    #: The span ids, 8 bytes each.
    span_ids: bytes
    #: A serialised IngestSpansRequest; the sequence_ids of its batch are empty if they are `contiguous`.
    data: bytes
    #: Whether the sequence ids are first, first + 1, … last, and left out of the data.
    contiguous: bool


class LoadedRollout(NamedTuple):
    """All that is stored of one rollout but its spans."""

    row: RolloutRow
    input_json: bytes
    #: All, or where only the latest is asked for, that one if there is one.
    attempts: list[AttemptRow]

    def completion(self) -> Completion:
        """Return its finish, as waiters are told."""
        return Completion(self.shown())

    def shown(self) -> Shown:
        """Return it as an answer shows it: record, input and latest attempt."""
        latest = self.attempts[-1].attempt if self.attempts else None
        return Shown(self.row.rollout, self.input_json, latest)


class ResourcesVersion(NamedTuple):
    """What the engine keeps in memory of one record of resources."""

    #: Counts the records of the store: the order of first adding.
    key: int
    version: int
    #: Counts all updates of the store: the highest is that of the latest record.
    updated: int


class ResourcesRow(NamedTuple):
    """A record of resources as it is stored."""

    key: int
    updated: int
    record: Resources


class RequestRow(NamedTuple):
    """What a request id was answered."""

    method: str
    request_id: str
    digest: int
    answer: bytes
    #: When, in the running time of servers; never of the wall clock.
    time_ns: int


@dataclass(frozen=True)
class RolloutQuery:
    """Which rollouts, in which order, from where on. Made by `filters.rollout_query`."""

    statuses: frozenset[int] = frozenset()
    rollout_ids: frozenset[str] = frozenset()
    rollout_id_contains: str = ""
    modes: frozenset[int] = frozenset()
    group_ids: frozenset[str] = frozenset()
    any_of: bool = False
    #: A column of `filters.COLUMNS`; ties go by key, in the same direction.
    order_by: str = "key"
    descending: bool = False
    #: The sort value and the key of the last row of the page before.
    after: tuple[Any, int] | None = None
    skip: int = 0
    limit: int = 100


@dataclass(frozen=True)
class ResourcesQuery:
    """Which resources, in the order of their keys."""

    id_contains: str = ""
    #: The key of the last record of the page before.
    after: int = 0
    limit: int = 100
