"""The memory back end: dictionaries. No data survives the process."""

from __future__ import annotations

import bisect
from collections.abc import AsyncIterator, Awaitable, Sequence
from itertools import islice

from lightningstore.service.rules import filters
from lightningstore.service.rules.ids import new_id
from lightningstore.service.rules.rows import (
    LoadedRollout,
    ResourcesQuery,
    ResourcesRow,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.base import (
    COMMITTED,
    UNLIMITED,
    Changes,
    Counters,
    FinishedRow,
    Snapshot,
)
from lightningstore.service.storage.memory_series import MemorySeries
from lightningstore.service.storage.places import Place, Places, insert, join, leave
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

#: Deleted batches of spans that one commit frees: freeing millions at once would hold the event loop.
FREED_A_COMMIT = 256
SWEPT_AT_ONCE = 4000


class MemoryStorage(MemorySeries):
    """Keeps rows as they are: records are replaced, never changed."""

    name = "memory"
    location = "memory only"
    durability = DURABILITY_NONE
    owned_until = UNLIMITED
    damaged_records = 0

    def __init__(self, settings: bytes = b"") -> None:
        """Take the settings of the store, which commits replace."""
        self._settings = settings
        self._clear()

    def _clear(self) -> None:
        self._rollouts: dict[int, RolloutRow] = {}
        self._enqueued = Places()
        self._keys = {}
        self._inputs = {}
        self._attempts = {}
        self._by_status = {}
        self._by_group = {}
        self._by_queue = {}
        self._by_label = {}
        self._by_start_time: Places[Place] = Places()
        self._by_reward: Places[Place] = Places("")  # most have none
        self._orders = {"start_time": self._by_start_time, "reward": self._by_reward}
        self._completed = Places()
        self._ended = Places()
        self._spans: dict[int, list[tuple[int, int, SpanRow]]] = {}  # first id, key, row: ascending
        self._dropped: list[tuple[int, int, SpanRow]] = []  # deleted, not yet freed
        self._resources: dict[int, ResourcesRow] = {}  # by publish number
        #: Key, id and publish number of the current version: ascending.
        self._current: list[tuple[int, str, int]] = []
        self._clear_groups()

    async def open(self) -> Snapshot:
        """Return an empty store: no data outlives the one that was open before, except its settings."""
        self._clear()
        self._is_open = True
        store_id = f"memory-{new_id('', 16)}"
        return Snapshot(store_id, Counters(), [], [], [], [], self._settings)

    def commit(self, changes: Changes) -> Awaitable[None]:
        """Apply the changes."""
        self._check_open()
        if changes.removed or changes.removed_groups:
            changes.exclude_removed()
            self._remove(changes.removed)
            self._remove_groups(changes.removed_groups)
        if self._dropped:
            del self._dropped[-max(FREED_A_COMMIT, len(changes.swept)) :]
        self._inputs.update(changes.inputs)
        if changes.labels:
            for key, labels in changes.labels.items():
                self._put_labels(key, labels)
        for row in changes.rollouts.values():
            self._put_rollout(row)
        for attempt in changes.attempts.values():
            self._attempts.setdefault(attempt.rollout_key, {})[attempt.key] = attempt
        for group in changes.groups.values():
            self._put_group(group)
        # Consumers are always in the engine's memory.
        for span in changes.spans:
            place = (span.first_sequence_id, span.key, span)
            batches = self._spans.setdefault(span.rollout_key, [])
            insert(batches, place)
        for number, version in changes.resources.items():
            self._put_resources(number, version)
        for number in changes.outdated:
            self._resources.pop(number, None)
        for key in changes.evicted:
            self._dropped += self._spans.pop(key, ())
        if changes.settings is not None:
            self._settings = changes.settings
        return COMMITTED

    async def probe(self, size: int) -> None:  # noqa: ARG002
        """Do nothing: memory does not fail."""
        self._check_open()

    def _remove(self, keys: Sequence[int]) -> None:
        for key in keys:
            row = self._rollouts.pop(key, None)
            if row is None:
                continue
            rollout = row.rollout
            for column, places in self._orders.items():
                places.remove((filters.COLUMNS[column](row), key))
            del self._keys[rollout.rollout_id], self._inputs[key]
            self._enqueued.remove(key)
            self._forget_finish(row)
            leave(self._by_status, rollout.status, key)
            leave(self._by_group, rollout.group_id, key)
            leave(self._by_queue, rollout.queue, key)
            for label in rollout.labels.items():
                leave(self._by_label, label, key)
            self._attempts.pop(key, None)
            self._dropped += self._spans.pop(key, ())

    def _put_resources(self, publish_number: int, row: ResourcesRow) -> None:
        self._resources[publish_number] = row
        current = (row.key, row.record.resources_id, publish_number)
        at = bisect.bisect_left(self._current, row.key, key=lambda place: place[0])
        if at < len(self._current) and self._current[at][0] == row.key:
            self._current[at] = current
        else:
            self._current.insert(at, current)

    def _put_labels(self, key: int, labels: dict[str, str]) -> None:
        """Replace the labels that a rollout has in the index, before its record is replaced."""
        if (known := self._rollouts.get(key)) is not None:
            for label in known.rollout.labels.items():
                leave(self._by_label, label, key)
        for label in labels.items():
            join(self._by_label, label, key)

    def _put_rollout(self, row: RolloutRow) -> None:
        key, record, known = row.key, row.rollout, self._rollouts.get(row.key)
        self._rollouts[key] = row
        if known is None:
            self._add_rollout(row)
            return
        former = known.rollout
        if former.status != record.status:
            leave(self._by_status, former.status, key)
            join(self._by_status, record.status, key)
        if former.group_id != record.group_id:
            leave(self._by_group, former.group_id, key)
            join(self._by_group, record.group_id, key)
        if former.queue != record.queue:
            leave(self._by_queue, former.queue, key)
            join(self._by_queue, record.queue, key)
        if record.completion_number != former.completion_number:
            self._forget_finish(known)
            self._note_finish(row)
        # The time at which it was enqueued never changes.
        if known.measures.reward != row.measures.reward:
            self._by_reward.remove((known.measures.reward, key))
            self._by_reward.add((row.measures.reward, key))

    def _add_rollout(self, row: RolloutRow) -> None:
        """Add a new rollout to the indexes."""
        key, record = row.key, row.rollout
        self._keys[record.rollout_id] = key
        self._enqueued.add(key)
        join(self._by_status, record.status, key)
        join(self._by_group, record.group_id, key)
        join(self._by_queue, record.queue, key)
        self._note_finish(row)
        self._by_start_time.add((nanoseconds(record.start_time), key))
        self._by_reward.add((row.measures.reward, key))

    def _note_finish(self, row: RolloutRow) -> None:
        record = row.rollout
        if record.completion_number:
            self._completed.add((record.completion_number, row.key))
            self._ended.add((nanoseconds(record.end_time), row.key))

    def _forget_finish(self, row: RolloutRow) -> None:
        record = row.rollout
        if record.completion_number:
            self._completed.remove((record.completion_number, row.key))
            self._ended.remove((nanoseconds(record.end_time), row.key))

    async def load(self, rollout_ids: Sequence[str]) -> list[LoadedRollout]:
        """Return the stored ones among these rollouts."""
        self._check_open()
        keys = [self._keys[i] for i in rollout_ids if i in self._keys]
        return [
            LoadedRollout(
                self._rollouts[key], self._inputs[key], list(self._attempts.get(key, {}).values())
            )
            for key in keys
        ]

    async def group_members(self, group_id: str) -> list[str]:
        """Return the ids of the group's rollouts in enqueue order."""
        self._check_open()
        return [
            self._rollouts[k].rollout.rollout_id for k in sorted(self._by_group.get(group_id, ()))
        ]

    async def completions(self, after: int, limit: int) -> list[LoadedRollout]:
        """Return finished rollouts by completion number."""
        self._check_open()
        places = self._completed.each((after + 1, 0))
        return [self._shown(self._rollouts[key], inputs=True) for _, key in islice(places, limit)]

    async def finished(
        self, after: tuple[int, int], limit: int, ended_by_ns: int | None = None
    ) -> list[FinishedRow]:
        """Return finished rollouts by completion number, or by the time at which they had ended."""
        self._check_open()
        places = self._completed if ended_by_ns is None else self._ended
        rows: list[FinishedRow] = []
        for value, key in islice(places.each(after), limit):
            if ended_by_ns is not None and value > ended_by_ns:
                break
            rollout_id, size = self._rollouts[key].rollout.rollout_id, len(self._inputs[key])
            rows.append(FinishedRow((value, key), rollout_id, size))
        return rows

    async def span_ids(self, rollout_key: int, attempt_key: int) -> list[tuple[int, bytes]]:
        """Return key and packed span ids of the batches of an attempt, by key."""
        self._check_open()
        batches = self._spans.get(rollout_key, ())
        return sorted(
            (key, row.span_ids) for _, key, row in batches if row.attempt_key == attempt_key
        )

    async def scan_spans(
        self, rollout_key: int, attempt_key: int | None, max_key: int
    ) -> AsyncIterator[SpanRow]:
        """Yield the batches of a rollout or an attempt, by first sequence id."""
        self._check_open()
        for _, key, row in list(self._spans.get(rollout_key, ())):
            if key <= max_key and attempt_key in (None, row.attempt_key):
                yield row

    async def get_spans(self, rollout_key: int, key: int) -> SpanRow | None:
        """Return one batch."""
        self._check_open()
        return next((row for _, own, row in self._spans.get(rollout_key, ()) if own == key), None)

    async def leftover_spans(self) -> list[int]:
        """Return keys of batches that a commit has yet to free."""
        self._check_open()
        return [row.key for _, _, row in self._dropped[-SWEPT_AT_ONCE:]]

    async def list_resources(self, query: ResourcesQuery) -> list[tuple[int, Resources]]:
        """Return matching resources."""
        self._check_open()
        current, found = self._current, list[tuple[int, Resources]]()
        start = bisect.bisect_right(current, query.after, key=lambda place: place[0])
        for i in range(start, len(current)):
            key, resources_id, number = current[i]
            if query.id_contains in resources_id:
                found.append((key, self._resources[number].record))
                if len(found) == query.limit:
                    break
        return found

    async def get_resources(self, publish_number: int) -> Resources | None:
        """Return one version."""
        self._check_open()
        row = self._resources.get(publish_number)
        return row.record if row is not None else None

    async def file_bytes(self) -> int:
        """Return 0."""
        return 0

    async def disk_bytes(self) -> tuple[int, int]:
        """Return zeros."""
        return 0, 0

    async def used_bytes(self) -> int:
        """Return 0."""
        return 0

    def check(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Drop everything."""
        self._is_open = False
        self._clear()
