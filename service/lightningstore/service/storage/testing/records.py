"""Records for the cases of the storage suite, and short ways to write and to read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from lightningstore.service.rules.rows import (
    AttemptRow,
    GroupRow,
    LoadedRollout,
    ResourcesRow,
    RolloutQuery,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.storage.base import Changes, Counters, Storage
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_PREPARING, Attempt
from lightningstore.v1.group_pb2 import GROUP_STATUS_COMPLETE, GROUP_STATUS_OPEN, Group
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_QUEUING,
    ROLLOUT_STATUS_SUCCEEDED,
    Rollout,
)

#: Above every key that a case uses.
ANY_KEY = 1 << 62
#: What a row counts in `Changes.size` beside its payload, as in the engine.
ROW_BYTES = 500

T = TypeVar("T")
Row = RolloutRow | AttemptRow | SpanRow


def rollout(key: int, *, position: int = 0, available_ns: int = 0, **fields: Any) -> RolloutRow:
    """Return a queued rollout r{key} that started in second {key}, with other `fields` as named."""
    values = {"rollout_id": f"r{key}", "status": ROLLOUT_STATUS_QUEUING, **fields}
    record = Rollout(**values)
    if "start_time" not in fields:
        record.start_time.seconds = key
    return RolloutRow(key, record, position, available_ns)


def finished(key: int, number: int, ended: int = 0, **fields: Any) -> RolloutRow:
    """Return a rollout that succeeded as the `number`-th, in second `ended`, else in second {key}."""
    row = rollout(
        key, **{"status": ROLLOUT_STATUS_SUCCEEDED, "completion_number": number, **fields}
    )
    row.rollout.end_time.seconds = ended or key
    return row


def attempt(key: int, rollout_key: int, *, last_sequence_id: int = 0, **fields: Any) -> AttemptRow:
    """Return attempt a{key} of a rollout, live unless `fields` say otherwise."""
    values = {
        "attempt_id": f"a{key}",
        "rollout_id": f"r{rollout_key}",
        "status": ATTEMPT_STATUS_PREPARING,
        **fields,
    }
    return AttemptRow(key, rollout_key, Attempt(**values), last_sequence_id)


def packed(ids: Iterable[int]) -> bytes:
    """Return span ids as they are stored, 8 bytes each."""
    return b"".join(span_id.to_bytes(8, "big") for span_id in ids)


def spans(
    key: int,
    first: int,
    last: int,
    *,
    rollout_key: int = 1,
    attempt_key: int = 1,
    data: bytes | None = None,
    contiguous: bool = True,
) -> SpanRow:
    """Return a batch of spans with the sequence ids, and the span ids, from `first` to `last`."""
    count = last - first + 1
    content = f"batch {key} ".encode() * 50 if data is None else data
    ids = packed(range(first, last + 1))
    return SpanRow(key, rollout_key, attempt_key, first, last, count, ids, content, contiguous)


def resources(key: int, number: int, name: str = "", version: int = 1) -> dict[int, ResourcesRow]:
    """Return a version of rs{key}, unless it is named, as `Changes.resources` holds it."""
    record = Resources(resources_id=name or f"rs{key}", version=version, publish_number=number)
    return {number: ResourcesRow(key, record)}


def group(key: int, deadline_ns: int = 0, *, number: int = 0, **fields: Any) -> GroupRow:
    """Return an open group g{key}, or one that is complete as the `number`-th, with other `fields` as named."""
    status = GROUP_STATUS_COMPLETE if number else GROUP_STATUS_OPEN
    values = {"group_id": f"g{key}", "size": 2, **fields}
    return GroupRow(key, deadline_ns, Group(status=status, completion_number=number, **values))


def input_of(key: int) -> bytes:
    """Return the input that `changes_of` writes for a rollout."""
    return f'{{"task": {key}}}'.encode()


def changes_of(*rows: Row, **fields: Any) -> Changes:
    """Return changes with these rows, their labels, an input for each rollout that `inputs` does not name, and `fields`."""
    changes = Changes(**{"counters": Counters(), **fields})
    inputs = dict(changes.inputs)
    for row in rows:
        if isinstance(row, RolloutRow):
            changes.rollouts[row.key] = row
            inputs.setdefault(row.key, input_of(row.key))
            if row.rollout.labels:
                changes.labels[row.key] = dict(row.rollout.labels)
            changes.size += row.rollout.ByteSize()
        elif isinstance(row, AttemptRow):
            changes.attempts[row.key] = row
        else:
            changes.spans.append(row)
            changes.size += len(row.data)
    changes.inputs = list(inputs.items())
    changes.size += ROW_BYTES * len(rows) + sum(map(len, inputs.values()))
    return changes


async def put(storage: Storage, *rows: Row, **fields: Any) -> None:
    """Commit the rows, with inputs as in `changes_of`."""
    await storage.commit(changes_of(*rows, **fields))


async def update(storage: Storage, *rows: Row, **fields: Any) -> None:
    """Commit the rows without inputs: those of the rollouts are stored."""
    changes = changes_of(*rows, **fields)
    changes.inputs = []
    await storage.commit(changes)


def loaded_rollout(row: RolloutRow, *attempts: AttemptRow) -> LoadedRollout:
    """Return a rollout as reads return it, with the input that `changes_of` writes."""
    return LoadedRollout(row, input_of(row.key), list(attempts))


async def loaded(storage: Storage, *ids: str) -> dict[str, LoadedRollout]:
    """Return what is stored of some rollouts, with as many loads as that takes."""
    missing, result = dict.fromkeys(ids), {}
    while missing and (part := await storage.load(list(missing))):
        for item in part:
            rollout_id = item.row.rollout.rollout_id
            del missing[rollout_id]
            result[rollout_id] = item
    return result


async def items(iterator: AsyncIterator[T]) -> list[T]:
    """Return all items of an iterator."""
    return [item async for item in iterator]


async def count(storage: Storage, **query: Any) -> int:
    """Return the number of rollouts that match a query."""
    return sum((await storage.count_rollouts(RolloutQuery(**query))).values())


async def found(storage: Storage, **query: Any) -> list[str]:
    """Return the ids of the rollouts that a query yields."""
    scanned = await items(storage.scan_rollouts(RolloutQuery(**query)))
    return [item.row.rollout.rollout_id for item in scanned]


async def completed(storage: Storage) -> list[LoadedRollout]:
    """Return all finished rollouts by completion number, page by page."""
    result: list[LoadedRollout] = []
    after = 0
    while page := await storage.completions(after, 100):
        assert page[0].row.rollout.completion_number > after
        result += page
        after = page[-1].row.rollout.completion_number
    return result


async def batches(
    storage: Storage,
    rollout_key: int = 1,
    attempt_key: int | None = None,
    max_key: int = ANY_KEY,
) -> list[int]:
    """Return the keys of a rollout's batches of spans, in the order of the scan."""
    scanned = await items(storage.scan_spans(rollout_key, attempt_key, max_key))
    return [row.key for row in scanned]


async def sweep(storage: Storage) -> list[int]:
    """Delete the spans of removed rollouts; returns how many batches each commit deleted."""
    counts: list[int] = []
    seen: set[int] = set()
    while keys := await storage.leftover_spans():
        assert not seen.intersection(keys), "batches that were swept are still there"
        seen.update(keys)
        counts.append(len(keys))
        await storage.commit(Changes(swept=keys, counters=Counters()))
    return counts
