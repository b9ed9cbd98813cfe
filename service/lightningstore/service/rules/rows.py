"""Records as they are stored, as answers contain them and as waiters receive them, and queries for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightningstore.service.rules import measures
from lightningstore.service.rules.limits import DEFAULT_PAGE_SIZE
from lightningstore.service.rules.measures import Measures
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.consumer_pb2 import Consumer, Delivery
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout

#: Tags and lengths of the parts of a rollout, and the fields that a change adds to its record.
FRAME_BYTES = 64
#: Between type and message of a failure, in the text that is searched.
FAILURE_SEPARATOR = ": "


class RolloutRow(NamedTuple):
    """A rollout as stored. The record contains neither the input nor the latest attempt."""

    #: Number of the rollout within the store, in the order of enqueueing.
    key: int
    rollout: Rollout
    #: Queue position, 0 if it is not in the queue.
    position: int
    #: Wall-clock time in nanoseconds from which it can be claimed, 0 for at once.
    available_ns: int
    #: For queries. Back ends return rows without them.
    measures: Measures = measures.NONE

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


class Shown(NamedTuple):
    """A rollout with its input and attempt.

    Its records never change, so the message can be composed later.
    """

    rollout: Rollout
    #: Empty where the input is stored and not in memory: see `lacks_input`.
    input_json: bytes
    attempt: Attempt | None
    #: Key of the rollout, and bytes of its input.
    key: int = 0
    input_bytes: int = 0

    @property
    def lacks_input(self) -> bool:
        """Whether the input has to be loaded: without it the rollout is composed without payloads."""
        return not self.input_json and self.input_bytes > 0

    def size(self) -> int:
        """Return its size in an answer in bytes, rounded up."""
        size = self.input_bytes + self.rollout.ByteSize() + FRAME_BYTES
        return size + self.attempt.ByteSize() if self.attempt is not None else size

    def listed_size(self) -> int:
        """Return its size without payloads but the failure."""
        failure = self.attempt.failure.ByteSize() if self.attempt is not None else 0
        return self.bare_size() + failure

    def bare_size(self) -> int:
        """Return its size without payloads."""
        size = self.size() - self.input_bytes - len(self.rollout.metadata_json)
        if self.attempt is not None:
            size -= len(self.attempt.metadata_json) + self.attempt.failure.ByteSize()
        return size

    def compose(self, into: Rollout) -> None:
        """Fill a message of an answer."""
        if self.lacks_input:
            self.compose_bare(into)
            return
        into.CopyFrom(self.rollout)
        into.input_json = self.input_json
        if self.attempt is not None:
            into.latest_attempt.CopyFrom(self.attempt)

    def compose_bare(self, into: Rollout) -> None:
        """Fill a message of an answer without payloads."""
        into.CopyFrom(self.rollout)
        into.ClearField("metadata_json")
        into.payloads_omitted = True
        if self.attempt is not None:
            into.latest_attempt.CopyFrom(self.attempt)
            into.latest_attempt.ClearField("metadata_json")
            into.latest_attempt.ClearField("failure")

    def compose_listed(self, into: Rollout) -> None:
        """Fill a message of a list whose caller wants no payloads: failures are small enough for it."""
        self.compose_bare(into)
        if self.attempt is not None and self.attempt.HasField("failure"):
            into.latest_attempt.failure.CopyFrom(self.attempt.failure)

    def compose_within(self, into: Rollout, limit: int) -> None:
        """Fill a message of an answer, without payloads if they exceed `limit` bytes."""
        if self.lacks_input or self.size() > limit:
            self.compose_bare(into)
        else:
            self.compose(into)


class Completion:
    """A rollout that finished, for waiters. It is serialised once, if there are waiters."""

    __slots__ = ("_wire", "number", "rollout_id", "shown", "size")

    def __init__(self, shown: Shown) -> None:
        self.number = shown.rollout.completion_number
        self.rollout_id = shown.rollout.rollout_id
        self.shown = shown
        #: Size in a message in bytes, rounded up.
        self.size = shown.size()
        self._wire: bytes | None = None

    def wire(self, limit: int) -> bytes:
        """Return the serialised rollout, without payloads if they exceed `limit` bytes."""
        if self._wire is None:
            rollout, input_json, attempt, *_ = self.shown
            if self.shown.lacks_input or self.size > limit:
                bare = Rollout()
                self.shown.compose_bare(bare)
                self._wire = bare.SerializeToString()
            else:
                whole = Rollout(input_json=input_json, latest_attempt=attempt)
                self._wire = rollout.SerializeToString() + whole.SerializeToString()
        return self._wire


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

    def measured(self) -> RolloutRow:
        """Return its row with the measures of its latest attempt."""
        latest = self.attempts[-1].attempt if self.attempts else None
        found = measures.of(self.row.rollout, latest, latest)
        return self.row._replace(measures=found)

    def shown(self) -> Shown:
        """Return it in the form of an answer: record, input and latest attempt."""
        latest = self.attempts[-1].attempt if self.attempts else None
        size = self.input_bytes or len(self.input_json)
        return Shown(self.row.rollout, self.input_json, latest, self.row.key, size)


class ResourcesVersion(NamedTuple):
    """The part of a version of resources that the engine keeps in memory."""

    resources_id: str
    #: Number of the id within the store, in the order in which ids were first added.
    key: int
    version: int
    #: Number of the version among all of the store; the latest has the highest one.
    publish_number: int


class ResourcesRow(NamedTuple):
    """A version of resources as stored. The record names its version and its publish number."""

    key: int
    record: Resources


class GroupRow(NamedTuple):
    """A group as stored. The record contains nothing that is read from its members but their numbers."""

    #: Number of the group within the store, in the order in which they were created.
    key: int
    #: Store time (`engine/deadlines.py`) of its deadline in nanoseconds, 0 while there is none.
    deadline_ns: int
    record: Group


class ConsumerRow(NamedTuple):
    """A consumer as stored. The record contains its counters, but none that are counted when a store is opened."""

    #: Number of the consumer within the store, in the order in which they were created.
    key: int
    #: Distinguishes what consumers of the same name are created with.
    created: int
    record: Consumer


class DeliveryRow(NamedTuple):
    """An item of a consumer that was delivered and is not acknowledged."""

    consumer_key: int
    #: Completion number of the item.
    number: int
    #: Store time (`engine/deadlines.py`) of its deadline in nanoseconds, 0 if it was released.
    deadline_ns: int
    #: Whether the rollout or the group was reopened or removed, so that it is not delivered again.
    gone: bool
    #: When the rollout or the group finished, in wall-clock nanoseconds.
    end_ns: int
    #: Contains neither the state nor the deadline. Empty if it cannot be read.
    record: Delivery

    @classmethod
    def damaged(cls, columns: Sequence[Any]) -> DeliveryRow | None:
        """Return a row whose record, or another value, cannot be read; None if it does not say which item it is of."""
        key, number, deadline_ns, _, end_ns, _ = columns
        if type(key) is not int or type(number) is not int:
            return None
        deadline_ns, end_ns = (
            value if type(value) is int else 0 for value in (deadline_ns, end_ns)
        )
        return cls(key, number, deadline_ns, False, end_ns, Delivery())


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
    queues: frozenset[str] = frozenset()
    #: Pairs of key and value. A rollout matches if it has all of them.
    labels: frozenset[tuple[str, str]] = frozenset()
    #: The lowest and the highest reward, in their sortable form.
    reward_range: tuple[str, str] | None = None
    #: Text of the failure of the latest attempt. A back end tests `attempt_bytes` instead, which more rollouts
    #: match; `filters.matches_failure` tells which of them have the text in the failure.
    failure_contains: str = ""
    any_of: bool = False
    #: A column of `filters.COLUMNS`. Ties are ordered by key, in the same direction.
    order_by: str = "key"
    descending: bool = False
    #: Sort value and key of the last row of the previous page.
    after: tuple[Any, int] | None = None
    skip: int = 0
    limit: int = DEFAULT_PAGE_SIZE
    #: Whether the rollouts are returned with their inputs. Without them, `input_bytes` may be 0.
    inputs: bool = True
    #: Completion numbers of finished rollouts: above the first, up to the second.
    completed: tuple[int, int] | None = None

    @property
    def attempt_bytes(self) -> bytes:
        """Bytes that the record of the latest attempt contains if its failure contains the text.

        Letters A-Z match in either case; here they are in lower case.
        """
        # Type and message are separate in the record: a text that spans both has the separator.
        part = max(self.failure_contains.split(FAILURE_SEPARATOR), key=len)
        return part.encode().lower()

    @property
    def led_by_label(self) -> bool:
        """Whether an index leads from a label to the rollouts, rather than from ids or groups.

        Every match must have the label, and ids and groups select fewer rollouts than a label usually does.
        """
        others = (self.statuses, self.rollout_ids, self.modes, self.group_ids, self.queues)
        texts = (self.rollout_id_contains, self.failure_contains)
        is_alone = not (any(others) or any(texts) or self.reward_range)
        if self.any_of and not is_alone:
            return False
        ids = self.rollout_ids or self.group_ids or self.completed is not None
        return bool(self.labels) and not ids


@dataclass(frozen=True)
class GroupQuery:
    """Filters and position of a query of groups, in the order of the keys."""

    group_ids: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    #: Key of the last group of the previous page.
    after: int = 0
    limit: int = DEFAULT_PAGE_SIZE


@dataclass(frozen=True)
class ResourcesQuery:
    """Filter and position of a query for current versions of resources, in the order of the keys."""

    id_contains: str = ""
    #: Key of the last record of the previous page.
    after: int = 0
    limit: int = DEFAULT_PAGE_SIZE
