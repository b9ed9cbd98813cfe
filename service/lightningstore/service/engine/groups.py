"""Groups in memory: how they follow their members, and when they complete.

Open groups are always in memory. An unfinished member belongs to an open group, so claims and reports never read
the back end. Complete groups are cached. A call that reopens, adds or removes members loads their groups first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, Self

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.committer import Committer
from lightningstore.service.engine.deadlines import Deadlines
from lightningstore.service.engine.state import Entry, GroupState
from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.groups import has_begun
from lightningstore.service.rules.lifecycle import is_finished
from lightningstore.service.rules.rows import GroupRow
from lightningstore.service.rules.times import NANOS, nanoseconds, stamp
from lightningstore.service.storage.base import Changes, Counters, Storage
from lightningstore.v1.group_pb2 import GROUP_STATUS_COMPLETE, GROUP_STATUS_OPEN, Group
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_PREPARING, Rollout

#: Complete groups that stay in memory.
CACHED_GROUPS = 1000
#: Labels that are known to have no group.
CACHED_LABELS = 10_000
#: Approximate bytes that a group adds to a commit.
GROUP_BYTES = 300


async def sound_groups(
    storage: Storage, group_ids: Sequence[str]
) -> tuple[list[GroupRow], list[str]]:
    """Return the stored ones among these groups, in any order, and the ids of those that are damaged."""
    try:
        return await storage.load_groups(group_ids), []
    except DataDamaged:
        if len(group_ids) == 1:
            return [], list(group_ids)
    rows, damaged = list[GroupRow](), list[str]()
    for group_id in group_ids:
        found, unreadable = await sound_groups(storage, [group_id])
        rows += found
        damaged += unreadable
    return rows, damaged


class Reading:
    """A context in which the rollouts of some labels are read, which are to become members of groups.

    `outdated` are the labels that rollouts have got or lost since the read began.
    """

    __slots__ = ("_readings", "labels", "outdated")

    def __init__(self, readings: dict[Reading, None]) -> None:
        self._readings = readings
        self.labels: set[str] = set()
        self.outdated: set[str] = set()

    def __enter__(self) -> Self:
        """Start."""
        self._readings[self] = None
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        del self._readings[self]


class Followers(Protocol):
    """Who follows groups: consumers, and the queue, which tells members of begun groups from others."""

    def create_group(self, group_id: str, members: Iterable[Entry]) -> None:
        """Follow a group that is created with these members."""

    def complete_group(self, group: GroupState) -> None:
        """Follow a group that completes."""

    def reopen_group(self, group: GroupState, number: int) -> None:
        """Follow a group that is open again, and had this completion number."""

    def remove_group(self, group: GroupState) -> None:
        """Follow a group that is removed."""


class Groups:
    """The groups of one store that are in memory."""

    def __init__(
        self, clock: Clock, committer: Committer, deadlines: Deadlines, counters: Counters
    ) -> None:
        self._clock = clock
        self._committer = committer
        self._deadlines = deadlines
        self._counters = counters
        self.loaded: dict[str, GroupState] = {}
        #: Those that changed since the last seal.
        self.touched: dict[GroupState, None] = {}
        #: Ids of the complete ones, the least recently used first.
        self._complete: dict[str, None] = {}
        #: Labels that have no group, the oldest first.
        self._labels: dict[str, None] = {}
        #: Ids of groups that cannot be read. They count as labels, but no group of such an id can be created.
        self._damaged: set[str] = set()
        #: Removed groups that may still be in the back end, with the commit that removes them.
        self._going: dict[str, int] = {}
        self._readings: dict[Reading, None] = {}
        #: Follow the groups while there are consumers.
        self.followers: Followers | None = None
        #: Groups whose members may now be claimed although a consumer is full.
        self.begun: list[GroupState] = []
        #: Completion numbers, each with the number of the commit after which it may be seen.
        self._completions: deque[tuple[int, int]] = deque()

    def adopt(self, rows: Iterable[GroupRow]) -> None:
        """Install the open groups of a store that is opened."""
        for row in rows:
            self.loaded[row.record.group_id] = group = GroupState(row)
            self.arm(group)

    def attach(self, entry: Entry) -> None:
        """Add an unfinished rollout of a store that is opened to its group."""
        group = self.loaded.get(entry.rollout.group_id)
        if group is not None and not is_finished(entry.rollout):
            group.unfinished[entry] = None

    def settle(self) -> None:
        """Complete the groups whose last unfinished members have been lost, as a repair of a data file does."""
        for group in list(self.loaded.values()):
            number = group.record.completion_number
            self._settle(group)
            if group.record.completion_number != number:
                self._touch(group)

    # Loading

    @property
    def exist(self) -> bool:
        """Whether a group was ever created."""
        return self._counters.group_key > 0

    @property
    def is_used(self) -> bool:
        """Whether there may be a group, or one is being created; if not, members need not be followed."""
        return self._counters.group_key > 0 or bool(self._readings)

    def knows(self, group_id: str) -> bool:
        """Return whether the group is in memory, or known not to exist."""
        return (
            not group_id
            or not self._counters.group_key
            or group_id in self.loaded
            or group_id in self._labels
            or group_id in self._damaged
            or group_id in self._going
        )

    def holds(self, group: GroupState) -> bool:
        """Return whether this group is in memory, rather than a later one of the same id."""
        return self.loaded.get(group.record.group_id) is group

    def install(
        self, group_ids: Collection[str], rows: Iterable[GroupRow], damaged: Iterable[str]
    ) -> None:
        """Install what was read of some groups, unless they have come into memory meanwhile.

        None may have left memory since the read began. `damaged` are those that could not be read.
        """
        self._damaged.update(damaged)
        for row in rows:
            group_id = row.record.group_id
            if group_id not in self.loaded and group_id not in self._going:
                self.loaded[group_id] = group = GroupState(row)
                if group.is_complete:
                    self._complete[group_id] = None
        for group_id in group_ids:
            if group_id not in self.loaded and group_id not in self._damaged:
                self._labels[group_id] = None

    def trim(self, durable_through: int) -> None:
        """Evict complete groups and labels if there are many."""
        for gone in [i for i, number in self._going.items() if number <= durable_through]:
            del self._going[gone]
        while len(self._labels) > CACHED_LABELS:
            del self._labels[next(iter(self._labels))]
        while len(self._complete) > CACHED_GROUPS:
            oldest = next(iter(self._complete))
            if self.loaded[oldest].changed > durable_through:
                return  # the back end does not have its last change yet
            del self._complete[oldest], self.loaded[oldest]

    def reading(self) -> Reading:
        """Return a context for reading rollouts that are to become members."""
        return Reading(self._readings)

    # Creating

    def create(self, group: GroupState, stored: Group, members: Sequence[Entry]) -> None:
        """Create a prepared group, whose record is stored as `stored`; `members` are older rollouts that have its id."""
        self._counters.group_key += 1
        group.key, group.changed = self._counters.group_key, self._committer.sealed + 1
        group_id = stored.group_id
        self.loaded[group_id] = group
        if self._labels:
            self._labels.pop(group_id, None)
        changes = self._committer.changes
        changes.groups[group.key] = GroupRow(group.key, 0, stored)
        changes.size += GROUP_BYTES
        if self.followers is not None:
            self.followers.create_group(group_id, members)
            self.begun.append(group)  # its members were kept apart by what they are themselves
        if members:
            self._touch(group)
            for entry in members:
                self._add(group, entry, entry.rollout)
            self._settle(group)

    def check_sound(self, group_ids: Iterable[str]) -> None:
        """Raise DataDamaged if one of these groups is stored and cannot be read."""
        for group_id in group_ids:
            if group_id in self._damaged:
                raise DataDamaged("its row cannot be read", group_id=group_id)

    def check_room(self, added: Mapping[str, int]) -> None:
        """Raise GroupFull if a group does not take that many more members."""
        for group_id, count in added.items():
            group = self.loaded.get(group_id)
            if group is not None:
                group.check_room(count)

    # Following the members

    def join(self, entry: Entry) -> None:
        """Follow a new rollout."""
        if entry.rollout.group_id:
            self._join(entry, entry.rollout)

    def join_new(self, group_id: str, entries: Sequence[Entry]) -> None:
        """Follow new rollouts of a group, none of which is claimed or has finished."""
        group = self.loaded.get(group_id)
        if group is None:
            self._note_label(group_id)
            return
        group.record.member_count += len(entries)
        group.unfinished.update(dict.fromkeys(entries))
        self._touch(group)
        self._settle(group)

    def leave(self, entry: Entry) -> None:
        """Follow the removal of a finished rollout."""
        if entry.rollout.group_id:
            self._leave(entry, entry.rollout)

    def follow(self, entry: Entry, record: Rollout) -> None:
        """Follow a rollout that is about to get another record."""
        old = entry.rollout
        group_id = record.group_id
        if old.group_id != group_id:
            if old.group_id:
                self._leave(entry, old)
            if group_id:
                self._join(entry, record)
            return
        group = self.loaded.get(group_id) if group_id else None
        if group is None:
            return
        if is_finished(record):
            if not is_finished(old):
                self._finish(group, [entry])
        elif is_finished(old):
            group.record.finished_count -= 1
            group.unfinished[entry] = None
            self._touch(group)
            self._settle(group)
        if record.status == ROLLOUT_STATUS_PREPARING:
            self._note_claim(group)

    def finish_all(self, group_id: str, entries: Sequence[Entry]) -> None:
        """Follow rollouts of a group or label that have finished."""
        group = self.loaded.get(group_id)
        if group is not None:
            self._finish(group, entries)

    def _finish(self, group: GroupState, entries: Sequence[Entry]) -> None:
        self._count_finish(group, len(entries))
        for entry in entries:
            group.unfinished.pop(entry, None)
        self._touch(group)
        self._settle(group)

    def _join(self, entry: Entry, record: Rollout) -> None:
        group = self.loaded.get(record.group_id)
        if group is None:
            self._note_label(record.group_id)
            return
        self._add(group, entry, record)
        self._touch(group)
        self._settle(group)

    def _add(self, group: GroupState, entry: Entry, record: Rollout) -> None:
        group.record.member_count += 1
        if is_finished(record):
            self._count_finish(group, 1)
        else:
            group.unfinished[entry] = None
        if record.attempt_count or record.status == ROLLOUT_STATUS_PREPARING:
            self._note_claim(group)

    def _leave(self, entry: Entry, old: Rollout) -> None:
        group = self.loaded.get(old.group_id)
        if group is None:
            self._note_label(old.group_id)
            return
        group.record.member_count -= 1
        group.record.finished_count -= is_finished(old)
        group.unfinished.pop(entry, None)
        if group.record.member_count > 0:
            self._touch(group)
            self._settle(group)
        else:
            self._remove(group)

    def _note_label(self, group_id: str) -> None:
        for reading in self._readings:
            if group_id in reading.labels:
                reading.outdated.add(group_id)

    def _count_finish(self, group: GroupState, count: int) -> None:
        if self.followers is not None and not has_begun(group.record):
            self.begun.append(group)
        group.record.finished_count += count

    def _note_claim(self, group: GroupState) -> None:
        record = group.record
        if record.HasField("first_claim_time"):
            return
        record.first_claim_time.CopyFrom(stamp(self._clock.wall_ns()))
        if record.HasField("deadline") and not record.closed:
            group.deadline_ns = self._deadlines.time.now_ns() + _nanoseconds(group)
            self.arm(group)
        if self.followers is not None:
            self.begun.append(group)
        self._touch(group)

    def arm(self, group: GroupState) -> None:
        """Set the timer of a group, if its deadline has begun to count."""
        if group.deadline_ns:
            left = (group.deadline_ns - self._deadlines.time.now_ns()) / NANOS
            self._deadlines.arm_group(group, left)

    def pass_deadline(self, group: GroupState) -> None:
        """Close a group at its deadline."""
        group.record.deadline_passed = True
        self._close(group)
        self._touch(group)
        self._settle(group)

    def _close(self, group: GroupState) -> None:
        group.record.closed = True
        group.deadline_ns = 0
        self._deadlines.groups.discard(group)

    def _settle(self, group: GroupState) -> None:
        """Complete a group, or reopen it."""
        record = group.record
        done = record.finished_count >= record.size or (record.closed and not group.unfinished)
        if done == group.is_complete:
            return
        if done:
            self._counters.group_completion_number += 1
            record.status = GROUP_STATUS_COMPLETE
            record.completion_number = self._counters.group_completion_number
            record.end_time.CopyFrom(self._end_time(group))
            self._close(group)
            self._complete[record.group_id] = None
            self._completions.append((self._committer.sealed + 1, record.completion_number))
            if self.followers is not None:
                self.followers.complete_group(group)
        else:
            number = record.completion_number
            record.status = GROUP_STATUS_OPEN
            record.completion_number = 0
            record.ClearField("end_time")
            del self._complete[record.group_id]
            if self.followers is not None:
                self.followers.reopen_group(group, number)

    def _end_time(self, group: GroupState) -> Timestamp:
        """Return the current time, or that of the group's creation if the clock was set back."""
        return stamp(max(self._clock.wall_ns(), nanoseconds(group.record.start_time)))

    def _remove(self, group: GroupState) -> None:
        """Remove a group that has lost its last member."""
        group_id = group.record.group_id
        if self.followers is not None:
            self.followers.remove_group(group)
        del self.loaded[group_id]
        self._complete.pop(group_id, None)
        self.touched.pop(group, None)
        self._deadlines.groups.discard(group)
        self._going[group_id] = self._committer.sealed + 1
        self._committer.changes.removed_groups.append(group.key)
        self._committer.changes.size += GROUP_BYTES

    # Committing

    def _touch(self, group: GroupState) -> None:
        if group not in self.touched:
            self.touched[group] = None
            self._committer.changes.size += GROUP_BYTES
            group.changed = self._committer.sealed + 1

    def save(self, changes: Changes) -> None:
        """Include the groups that changed in the next commit."""
        for group in self.touched:
            changes.groups[group.key] = group.row()
        self.touched.clear()

    def take_completed(self, through: int) -> int:
        """Return the last completion number of the commits up to the given one; 0 if there is a later one only."""
        number = 0
        while self._completions and self._completions[0][0] <= through:
            number = self._completions.popleft()[1]
        return number


def _nanoseconds(group: GroupState) -> int:
    deadline = group.record.deadline
    return deadline.seconds * NANOS + deadline.nanos
