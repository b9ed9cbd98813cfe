"""Live records, queue, caches and counters. Data structures without rules.

Records of unfinished rollouts, and of finished ones with a live attempt, are always in memory;
other finished ones are cached. Everything else is read from the back end.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator

from lightningstore.service.engine.queue import RolloutQueue
from lightningstore.service.engine.shares import Caches, Part, Share
from lightningstore.service.engine.versions import Versions
from lightningstore.service.rules import measures
from lightningstore.service.rules.copies import copied
from lightningstore.service.rules.groups import GroupFull
from lightningstore.service.rules.lifecycle import is_finished, is_live
from lightningstore.service.rules.rows import (
    AttemptRow,
    Completion,
    GroupRow,
    LoadedRollout,
    RolloutRow,
    Shown,
)
from lightningstore.service.storage.base import Counters
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.group_pb2 import GROUP_STATUS_COMPLETE
from lightningstore.v1.rollout_pb2 import Rollout

CACHED_ROLLOUTS = 4096
#: Maximum number of entries that one operation removes from memory: more than it adds, except for
#: large batches.
TRIMMED_AT_ONCE = 512
#: Maximum bytes of a queued rollout's input that may stay in memory, to save the claim a read.
SMALL_INPUT_BYTES = 4096


class AttemptState:
    """An attempt and its state in the engine. The record is replaced, never changed."""

    __slots__ = (
        "entry",
        "heard_at",
        "key",
        "last_sequence_id",
        "record",
        "span_ids",
        "started_at",
        "timeout_at",
    )

    def __init__(self, entry: Entry, key: int, record: Attempt, last_sequence_id: int = 0) -> None:
        self.entry = entry
        self.key = key
        self.record = record
        self.last_sequence_id = last_sequence_id
        #: Monotonic seconds of its start; None until it is needed after the record was loaded.
        self.started_at: float | None = None
        #: Monotonic seconds of its last heartbeat or span.
        self.heard_at = 0.0
        #: Monotonic seconds of its timeout; None without one.
        self.timeout_at: float | None = None
        #: The ids of its spans; None while they are not loaded.
        self.span_ids: set[bytes] | None = None

    def row(self) -> AttemptRow:
        """Return it in its stored form."""
        return AttemptRow(self.key, self.entry.key, self.record, self.last_sequence_id)


class Entry:
    """A rollout with its attempts. The record contains neither the input nor the latest attempt."""

    __slots__ = (
        "attempts",
        "available_ns",
        "cached",
        "changed",
        "input_bytes",
        "input_json",
        "kept_bytes",
        "key",
        "latest",
        "position",
        "queued_in",
        "rollout",
    )

    def __init__(self, key: int, rollout: Rollout, input_json: bytes) -> None:
        self.key = key
        self.rollout = rollout
        #: Empty while the input is only on disk, where it has `input_bytes` bytes.
        self.input_json = input_json
        self.input_bytes = len(input_json)
        #: Bytes of the input that count as kept for the queue; see `Inputs`.
        self.kept_bytes = 0
        self.attempts: dict[str, AttemptState] = {}
        self.latest: AttemptState | None = None
        #: Queue position, 0 if it is not in the queue, and the wall-clock time from which it can be
        #: claimed.
        self.position = 0
        self.available_ns = 0
        #: The task queue that counts it, None if it is in none.
        self.queued_in: Depth | None = None
        #: Whether it is one of the finished rollouts that may be evicted.
        self.cached = False
        #: Number of the last commit that writes it.
        self.changed = 0

    def row(self) -> RolloutRow:
        """Return it in its stored form."""
        measured = self.measured(self.rollout)
        return RolloutRow(self.key, self.rollout, self.position, self.available_ns, measured)

    def measured(self, record: Rollout) -> measures.Measures:
        """Return what its attempts measure, if this is its record."""
        if self.latest is None:
            return measures.NONE
        first = next(iter(self.attempts.values()))
        return measures.of(record, first.record, self.latest.record)

    def shown(self, attempt: AttemptState | None = None) -> Shown:
        """Return it in the form of an answer, with the latest or the given attempt."""
        chosen = attempt or self.latest
        record = chosen.record if chosen is not None else None
        return Shown(self.rollout, self.input_json, record, self.key, self.input_bytes)

    def completion(self) -> Completion:
        """Return its finish, for waiters."""
        return Completion(self.shown())

    def detach(self) -> None:
        """Let go of its attempts, as it leaves memory: a reference cycle would stay until a full garbage collection.

        Who still holds one of them finds its rollout, which is not in memory.
        """
        gone = Entry(self.key, self.rollout, b"")
        for attempt in self.attempts.values():
            attempt.entry = gone

    @property
    def lacks_input(self) -> bool:
        """Whether its input is only on disk."""
        return not self.input_json and self.input_bytes > 0

    def is_live(self) -> bool:
        """Return whether it must stay in memory."""
        if not is_finished(self.rollout):
            return True
        return any(is_live(attempt.record) for attempt in self.attempts.values())


class Depth:
    """A task queue and the number of its rollouts, including those that wait for their back-off."""

    __slots__ = ("count", "queue")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.count = 0


class GroupState:
    """A group and its state in the engine."""

    __slots__ = ("changed", "deadline_ns", "key", "record", "unfinished")

    def __init__(self, row: GroupRow) -> None:
        self.key = row.key
        #: Its own copy, which changes in place: rows get copies of it.
        self.record = copied(row.record)
        self.deadline_ns = row.deadline_ns
        #: Members that have not finished.
        self.unfinished: dict[Entry, None] = {}
        #: Number of the last commit that writes it.
        self.changed = 0

    def row(self) -> GroupRow:
        """Return it in its stored form."""
        return GroupRow(self.key, self.deadline_ns, copied(self.record))

    @property
    def is_complete(self) -> bool:
        """Whether it has a completion number."""
        return self.record.status == GROUP_STATUS_COMPLETE

    def check_room(self, added: int) -> None:
        """Raise GroupFull if it does not take that many more members."""
        record = self.record
        if record.closed or record.member_count + added > record.size:
            raise GroupFull(record.group_id, record.size, closed=record.closed)


class Hold:
    """A context that counts its users."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        """Enter."""
        self.count += 1

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.count -= 1


class Load:
    """A context in which some rollouts are read from the back end.

    A read may take long, and return the state of its start. Changes since then are in memory and
    newer. `outdated` holds the rollouts that changed, or may have, and are no longer in memory.
    """

    __slots__ = ("_loads", "_rollout_ids", "outdated")

    def __init__(self, loads: dict[str, dict[Load, None]], rollout_ids: Collection[str]) -> None:
        self._loads = loads
        self._rollout_ids = rollout_ids
        self.outdated: set[str] = set()

    def __enter__(self) -> set[str]:
        """Start; return `outdated`, which is complete when the read ends."""
        for rollout_id in self._rollout_ids:
            self._loads.setdefault(rollout_id, {})[self] = None
        return self.outdated

    def __exit__(self, *_: object) -> None:
        """End."""
        for rollout_id in self._rollout_ids:
            loads = self._loads[rollout_id]
            del loads[self]
            if not loads:
                del self._loads[rollout_id]


class Inputs:
    """Inputs of queued rollouts: small ones stay in memory, others are read when claimed.

    The small ones are limited. A long queue of large inputs thus needs little memory, and a queue
    of small ones no reads. An input leaves memory once the commit that writes it is durable, unless
    its rollout has left the queue by then.
    """

    def __init__(self, share: Share) -> None:
        """Take the bytes of small inputs that are kept in all stores."""
        self.kept = Part(share)
        #: Those that are to leave memory, each with the commit that writes it.
        self.leaving: deque[tuple[int, Entry]] = deque()

    def add(self, entry: Entry, with_commit: int) -> None:
        """Record a queued rollout, whose input in memory is durable with that commit."""
        size = len(entry.input_json)
        if size <= SMALL_INPUT_BYTES and self.kept.has_room(size):
            entry.kept_bytes = size
            self.kept.add(size)
        elif size:
            self.leaving.append((with_commit, entry))

    def discard(self, entry: Entry) -> None:
        """Record that a rollout has left the queue."""
        if entry.kept_bytes:
            self.kept.add(-entry.kept_bytes)
            entry.kept_bytes = 0

    def drop(self, durable_through: int) -> Iterator[Entry]:
        """Drop the inputs that may leave memory, and yield their rollouts."""
        leaving = self.leaving
        while leaving and leaving[0][0] <= durable_through:
            entry = leaving.popleft()[1]
            if not entry.position or entry.kept_bytes:
                continue
            if entry.changed > durable_through:
                leaving.append((entry.changed, entry))  # maybe its input has
            elif entry.input_json:
                entry.input_json = b""
                yield entry


class State:
    """Everything that the engine holds in memory."""

    def __init__(self, counters: Counters, caches: Caches) -> None:
        self.counters = counters
        self.entries: dict[str, Entry] = {}
        self.cache: OrderedDict[str, int] = OrderedDict()  # finished entries → bytes, oldest first
        self._cached = Part(caches.rollouts)
        #: Removed rollouts that may still be in the back end, with the commit that removes them.
        self.going: dict[str, int] = {}
        self.queue = RolloutQueue()
        #: Task queues that hold rollouts, by their names.
        self.depths: dict[str, Depth] = {}
        self.inputs = Inputs(caches.inputs)
        self.resources = Versions()
        #: Prevents eviction while an operation reads many rollouts in several slices.
        self.held = Hold()
        #: Loads in progress, by the rollouts that they read.
        self._loads: dict[str, dict[Load, None]] = {}
        self._span_ids: OrderedDict[int, AttemptState] = OrderedDict()
        self._span_id_count = Part(caches.span_ids)

    def release(self) -> None:
        """Leave what it keeps in memory to other stores: this state is not used any more."""
        for part in (self.inputs.kept, self._cached, self._span_id_count):
            part.release()

    # Rollouts

    def loading(self, rollout_ids: Collection[str]) -> Load:
        """Return a context for reading these rollouts, which are to be installed right after it."""
        return Load(self._loads, rollout_ids)

    def holds(self, entry: Entry) -> bool:
        """Return whether this entry is in memory, rather than a later one of the same id."""
        return self.entries.get(entry.rollout.rollout_id) is entry

    def _forget(self, rollout_id: str) -> None:
        """Record that a rollout may have changed without being in memory.

        Running loads of it must be repeated.
        """
        for load in self._loads.get(rollout_id, ()):
            load.outdated.add(rollout_id)

    def install(self, loaded: LoadedRollout) -> Entry:
        """Install a loaded rollout, or only its input if the rollout is already in memory."""
        rollout_id = loaded.row.rollout.rollout_id
        entry = self.entries.get(rollout_id)
        if entry is not None:
            if entry.lacks_input and entry.key == loaded.row.key:
                # The size is that of what is stored: a damaged file may hold an empty input.
                entry.input_json, entry.input_bytes = loaded.input_json, len(loaded.input_json)
                if entry.position:
                    self.inputs.add(entry, 0)
            return entry
        entry = Entry(loaded.row.key, loaded.row.rollout, loaded.input_json)
        entry.input_bytes = loaded.input_bytes or entry.input_bytes
        entry.position, entry.available_ns = loaded.row.position, loaded.row.available_ns
        for row in loaded.attempts:
            attempt = AttemptState(entry, row.key, row.attempt, row.last_sequence_id)
            entry.attempts[row.attempt.attempt_id] = attempt
        entry.latest = entry.attempts.get(entry.rollout.latest_attempt_id)
        self.entries[rollout_id] = entry
        return entry

    def touch(self, entry: Entry) -> None:
        """Record the use of an entry: a finished one moves to the recent end of the cache."""
        if not is_finished(entry.rollout) and not entry.cached:
            return  # the usual case
        rollout_id = entry.rollout.rollout_id
        if entry.cached:
            self._cached.add(-self.cache.pop(rollout_id))
        entry.cached = not entry.is_live()
        if entry.cached:
            size = len(entry.input_json) + 1024 * (1 + len(entry.attempts))
            self.cache[rollout_id] = size
            self._cached.add(size)

    def remove(self, entry: Entry, with_commit: int) -> None:
        """Remove a finished rollout; the back end removes it with the commit of this number."""
        rollout_id = entry.rollout.rollout_id
        del self.entries[rollout_id]
        if entry.cached:
            self._cached.add(-self.cache.pop(rollout_id))
        self._let_go(entry)
        self.going[rollout_id] = with_commit

    def trim(self, durable_through: int) -> None:
        """Evict the least recently used finished entries if there are many, a few at a time.

        Also drops the inputs of queued rollouts that are stored and not kept.
        """
        if self.going:
            for gone in [i for i, number in self.going.items() if number <= durable_through]:
                del self.going[gone]
                self._forget(gone)
        if self.held.count:
            return
        if self.inputs.leaving:
            for entry in self.inputs.drop(durable_through):
                self._forget(entry.rollout.rollout_id)
        for _ in range(TRIMMED_AT_ONCE):
            few = len(self.cache) <= CACHED_ROLLOUTS and not self._cached.exceeds
            if few or not self.cache:
                return
            oldest = next(iter(self.cache))
            if self.entries[oldest].changed > durable_through:
                return  # the back end does not have its last change yet
            self._cached.add(-self.cache.pop(oldest))
            self._let_go(self.entries.pop(oldest))
            self._forget(oldest)

    def _let_go(self, entry: Entry) -> None:
        for attempt in entry.attempts.values():
            self.drop_span_ids(attempt)
        entry.detach()

    # Span ids of attempts, for detecting duplicates

    def keep_span_ids(self, attempt: AttemptState, added: int, durable_through: int) -> None:
        """Count ids added to a set, and drop the least recently used sets if there are many.

        Sets of the same rollout are kept, because an import needs several of its attempts at once.
        """
        self._span_ids[attempt.key] = attempt
        self._span_ids.move_to_end(attempt.key)
        self._span_id_count.add(added)
        while self._span_id_count.exceeds and len(self._span_ids) > 1:
            oldest = next(iter(self._span_ids.values()))
            if oldest.entry is attempt.entry or oldest.entry.changed > durable_through:
                break
            self.drop_span_ids(oldest)

    def drop_span_ids(self, attempt: AttemptState) -> None:
        """Drop the loaded span ids of an attempt."""
        if attempt.span_ids is not None:
            self._span_id_count.add(-len(attempt.span_ids))
            attempt.span_ids = None
            self._span_ids.pop(attempt.key, None)

    # Counters

    def depth_of(self, queue: str) -> Depth:
        """Return the count of a task queue, to which the caller adds a rollout."""
        depth = self.depths.get(queue)
        if depth is None:
            depth = self.depths[queue] = Depth(queue)
        return depth

    def count_queued(self, entry: Entry) -> None:
        """Count a rollout in the task queue that it is in now, and no longer in the one that it was in."""
        old = entry.queued_in
        if entry.position:
            queue = entry.rollout.queue
            if old is not None and old.queue == queue:
                return
            new = entry.queued_in = self.depth_of(queue)
            new.count += 1
        else:
            entry.queued_in = None
        if old is not None:
            old.count -= 1
            if not old.count:
                del self.depths[old.queue]

    def count_rollout(self, old: int, new: int) -> None:
        """Move one rollout from a status to another; 0 stands for none."""
        _move(self.counters.rollouts, old, new)

    def count_attempt(self, old: int, new: int) -> None:
        """Move one attempt from a status to another; 0 stands for none."""
        _move(self.counters.attempts, old, new)


def _move(counts: dict[int, int], old: int, new: int) -> None:
    if old == new:
        return
    if old:
        counts[old] -= 1
    if new:
        counts[new] = counts.get(new, 0) + 1
