"""The traces of the attempts that ListTriplets and ListSamples name: their calls, and the spans of these."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from lightningstore.service import triplets
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import LOAD_AT_ONCE
from lightningstore.service.engine.state import AttemptState, Entry
from lightningstore.service.operations.batches import OpenRow
from lightningstore.service.operations.spans import check_whole
from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import FieldInvalid, RolloutNotFound, SpansEvicted
from lightningstore.service.rules.ids import LATEST, check_id
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.triplets import Node, Options, Place, Steps, T, Trace, Warnings
from lightningstore.service.triplets.stored import StoredBatch, StoredSpan
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.sample_pb2 import ListSamplesRequest
from lightningstore.v1.triplet_pb2 import ListTripletsRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Maximum bytes of spans held per attempt; spans beyond that are loaded again when needed.
HELD_BYTES = 16 << 20
#: Size above which a span is read in a thread: reading a smaller one takes 10 ms at most. An attribute or an event
#: counts PART_BYTES more than its own bytes, because it takes 10 µs however short it is.
LARGE_BYTES = 32 << 10
PART_BYTES = 128
#: The part of an array of token ids that counts for the time that it takes to read it.
EFFORT_PART = 16
#: Number of spans above which the calls of a trace are found in a thread.
LARGE_TRACE = 5_000
R = TypeVar("R")
Request = ListTripletsRequest | ListSamplesRequest


class Target(NamedTuple):
    """An attempt whose trace is read; a rollout without attempts has no key."""

    rollout_id: str
    rollout_key: int
    attempt_id: str
    attempt_key: int | None
    about: About


class About(NamedTuple):
    """What samples tell of an attempt besides its trace."""

    group_id: str
    #: Of the rollout.
    status: int
    reward: float | None = None
    scores: tuple[tuple[str, float], ...] = ()
    publish_number: int = 0
    #: Nanoseconds from the enqueueing of the rollout to the claim, and from there to the end; None while unknown.
    queue_ns: int | None = None
    run_ns: int | None = None

    @classmethod
    def of(cls, rollout: Rollout, attempt: Attempt | None) -> About:
        """Return what records tell."""
        if attempt is None:
            return cls(rollout.group_id, rollout.status)
        started = nanoseconds(attempt.start_time)
        ended = nanoseconds(attempt.end_time) if attempt.HasField("end_time") else None
        return cls(
            rollout.group_id,
            rollout.status,
            attempt.reward if attempt.HasField("reward") else None,
            tuple(sorted(attempt.scores.items())),
            attempt.publish_number,
            max(0, started - nanoseconds(rollout.start_time)),
            None if ended is None else max(0, ended - started),
        )


class Traces:
    """Finds the attempts of a request, and reads their traces."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        #: Reads large spans. One thread, because the event loop gets the interpreter after each 5 ms of every thread.
        self._reader = ThreadPoolExecutor(1, "traces")

    async def stream(
        self,
        request: Request,
        number: int,
        answer: Callable[[Target, Batches], AsyncIterator[bytes]],
    ) -> AsyncIterator[bytes | None]:
        """Yield None once all rollouts are found, then responses of about 1 MiB.

        `answer` yields what is said of an attempt, in messages of the field with this number.
        """
        targets = await self._targets(request.rollout_ids, request.attempt_id)
        through = self._live.state.counters.span_key
        await self._engine.barrier()
        yield None
        chunk: list[bytes] = []
        size = 0
        for target in targets:
            self._check_held(target.rollout_id, target.rollout_key)
            async for data in answer(target, Batches(self._engine, target, through)):
                chunk += (wire.header(number, len(data)), data)
                size += len(data)
                if size >= CHUNK_BYTES:
                    yield b"".join(chunk)
                    chunk, size = [], 0
            await asyncio.sleep(0)
        if chunk:
            yield b"".join(chunk)

    async def _targets(self, rollout_ids: Iterable[str], attempt_id: str) -> list[Target]:
        """Return the attempts of a request, each rollout once.

        Raises:
            FieldInvalid, BatchTooLarge, RolloutNotFound, AttemptNotFound, SpansEvicted
        """
        requested = list(rollout_ids)
        ids = list(dict.fromkeys(requested))
        if not ids:
            raise FieldInvalid("rollout_ids", "at least one is required")
        self._engine.check_batch("rollout_ids", len(requested))
        for rollout_id in ids:
            check_id("rollout_ids", rollout_id)
        if attempt_id not in ("", LATEST) and len(ids) > 1:
            raise FieldInvalid(
                "attempt_id",
                'must be "latest", or empty for all attempts, if there are several rollouts',
            )
        targets: list[Target] = []
        for start in range(0, len(ids), LOAD_AT_ONCE):
            part = ids[start : start + LOAD_AT_ONCE]
            found = {e.rollout.rollout_id: e for e in await self._engine.load_many(part)}
            for rollout_id in part:
                entry = found.get(rollout_id)
                if entry is None:
                    raise RolloutNotFound(rollout_id)
                self._check_held(rollout_id, entry.key)
                targets.extend(_target(entry, a) for a in self._attempts(entry, attempt_id))
            await asyncio.sleep(0)
        return targets

    def _attempts(self, entry: Entry, attempt_id: str) -> Iterable[AttemptState | None]:
        if attempt_id == "":
            return tuple(entry.attempts.values()) or (None,)
        if attempt_id == LATEST:
            return (entry.latest,)
        return (self._live.attempt_of(entry, attempt_id),)

    def _check_held(self, rollout_id: str, rollout_key: int) -> None:
        if rollout_key in self._live.shelf.evicted:
            raise SpansEvicted(rollout_id)

    async def calls(
        self, batches: Batches, options: Options, warnings: Warnings, turn: Turn
    ) -> Trace:
        """Return the calls of an attempt."""
        nodes: list[Node] = []
        async for row, first, numbers, stored in batches.all():
            pairs = zip(stored.spans, stored.efforts, strict=True)
            for at, (span, effort) in enumerate(pairs, first):
                args = (span, numbers[at], Place(row, at), options, warnings)
                if effort <= LARGE_BYTES:
                    nodes.append(Node.of(*args))
                else:
                    nodes.append(await self.in_thread(partial(Node.of, *args)))
                if turn.over():
                    await turn.next()
        steps = triplets.find_calls(nodes, options, warnings)
        if len(nodes) > LARGE_TRACE:
            return await self.in_thread(partial(triplets.run, steps))
        return await in_slices(steps, turn)

    async def read(self, weight: int, work: Callable[[], R]) -> R:
        """Do work on spans of this weight, in a thread if it is large."""
        return work() if weight <= LARGE_BYTES else await self.in_thread(work)

    async def in_thread(self, work: Callable[[], R]) -> R:
        """Do work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)


def _target(entry: Entry, attempt: AttemptState | None) -> Target:
    rollout = entry.rollout
    if attempt is None:
        return Target(rollout.rollout_id, entry.key, "", None, About.of(rollout, None))
    record = attempt.record
    about = About.of(rollout, record)
    return Target(rollout.rollout_id, entry.key, record.attempt_id, attempt.key, about)


class Stored(NamedTuple):
    """Spans, and the weight of each: its size in bytes, and what its parts take that is not in their bytes."""

    spans: list[Span]
    weights: list[int]
    #: The weights for the time that it takes to read a span: its arrays of token ids count little.
    efforts: list[int]


class Batches:
    """The stored batches of an attempt, of which those of the last HELD_BYTES are held."""

    def __init__(self, engine: Engine, target: Target, through: int) -> None:
        self._engine = engine
        self._target = target
        self._through = through
        self._held: dict[int, Stored] = {}
        self._size = 0

    async def all(self) -> AsyncIterator[tuple[int, int, Sequence[int], Stored]]:
        """Yield all spans: the key of a row, the index of the first in it, the row's sequence ids, and some spans."""
        target = self._target
        async for row in self._engine.storage.scan_spans(
            target.rollout_key, target.attempt_key, self._through
        ):
            opened = OpenRow.of(row)
            held = Stored([], [], [])
            for stored in _parsed(opened):
                yield row.key, len(held.spans), opened.sequence_ids, stored
                held.spans.extend(stored.spans)
                held.weights.extend(stored.weights)
                held.efforts.extend(stored.efforts)
            self._hold(row.key, held)
        await check_whole(self._engine, target.rollout_id, target.rollout_key)

    async def spans(self, nodes: Iterable[Node]) -> tuple[list[Span], int]:
        """Return the spans of nodes, loaded again if necessary, and the effort of reading them. Raises SpansEvicted."""
        found: list[Span] = []
        effort = 0
        for node in nodes:
            held = self._held.get(node.row) or await self._load(node.row)
            found.append(held.spans[node.at])
            effort += held.efforts[node.at]
        return found, effort

    async def _load(self, key: int) -> Stored:
        row = await self._engine.storage.get_spans(self._target.rollout_key, key)
        if row is None:
            raise SpansEvicted(self._target.rollout_id)
        held = Stored([], [], [])
        for stored in _parsed(OpenRow.of(row)):
            held.spans.extend(stored.spans)
            held.weights.extend(stored.weights)
            held.efforts.extend(stored.efforts)
            await asyncio.sleep(0)
        self._hold(key, held)
        return held

    def _hold(self, key: int, held: Stored) -> None:
        self._held[key] = held
        self._size += sum(held.weights)
        while self._size > HELD_BYTES and len(self._held) > 1:
            oldest = self._held.pop(next(iter(self._held)))
            self._size -= sum(oldest.weights)


def _parsed(opened: OpenRow) -> Iterator[Stored]:
    """Yield the spans of a row, about 1 MiB at a time."""
    cut = opened.cut
    for piece in cut.pieces():
        spans: list[Any] = list(map(StoredSpan, StoredBatch.FromString(cut.spans(piece)).spans))
        weights = [
            cut.ends[at] - cut.begins[at] + PART_BYTES * span.part_count
            for at, span in zip(piece, spans, strict=True)
        ]
        yield Stored(spans, weights, list(map(_effort, spans, weights)))


def _effort(span: StoredSpan, weight: int) -> int:
    """Return the weight of a span with a part only of its arrays of token ids, whose bytes are read fast."""
    if weight <= LARGE_BYTES:
        return weight
    return weight - span.array_bytes() * (EFFORT_PART - 1) // EFFORT_PART


async def in_slices(steps: Steps[T], turn: Turn) -> T:
    """Run the steps, and let other tasks run in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if turn.over():
            await turn.next()
