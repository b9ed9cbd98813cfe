"""ListTriplets, attempt by attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from lightningstore.service import triplets
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import LOAD_AT_ONCE
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.batches import OpenRow
from lightningstore.service.operations.spans import check_whole
from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import FieldInvalid, RolloutNotFound, SpansEvicted
from lightningstore.service.rules.ids import LATEST, check_id
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.triplets import (
    Call,
    Node,
    Options,
    Place,
    Steps,
    T,
    Trace,
    Warnings,
)
from lightningstore.v1.attempt_pb2 import AttemptRef
from lightningstore.v1.span_pb2 import SpanBatch
from lightningstore.v1.triplet_pb2 import (
    AttemptTriplets,
    ListTripletsRequest,
    ListTripletsResponse,
    Triplet,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Maximum bytes of spans held per attempt; spans beyond that are loaded again when needed.
HELD_BYTES = 16 << 20
#: Size above which a span is read in a thread: reading a smaller one takes 10 ms at most. An attribute or an event
#: counts PART_BYTES more than its own bytes, because it takes 10 µs however short it is.
LARGE_BYTES = 32 << 10
PART_BYTES = 128
#: Number of spans above which the calls of a trace are found in a thread.
LARGE_TRACE = 5_000
R = TypeVar("R")
_ATTEMPTS = ListTripletsResponse.ATTEMPTS_FIELD_NUMBER
_TRIPLETS = AttemptTriplets.TRIPLETS_FIELD_NUMBER


class _Target(NamedTuple):
    """An attempt to derive triplets from; a rollout without attempts has no key."""

    rollout_id: str
    rollout_key: int
    attempt_id: str
    attempt_key: int | None


class Triplets:
    """The call of triplet.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        #: Reads large spans. One thread, because the event loop gets the interpreter after each 5 ms of every thread.
        self._reader = ThreadPoolExecutor(1, "triplets")

    async def list_triplets(self, request: ListTripletsRequest) -> AsyncIterator[bytes | None]:
        """Yield None once all rollouts are found, then ListTripletsResponses of about 1 MiB."""
        ids = list(dict.fromkeys(request.rollout_ids))
        self._check_list(request, ids)
        options = Options.of(request)
        targets = await self._targets(ids, request.attempt_id)
        through = self._live.state.counters.span_key
        await self._engine.barrier()
        yield None
        chunk: list[bytes] = []
        size = 0
        for target in targets:
            if target.rollout_key in self._live.shelf.evicted:
                raise SpansEvicted(target.rollout_id)
            final = None
            if target.rollout_id in request.final_rewards:
                final = request.final_rewards[target.rollout_id]
            async for data in self._attempt(target, options, final, through):
                chunk.append(wire.field(_ATTEMPTS, data))
                size += len(data)
                if size >= CHUNK_BYTES:
                    yield b"".join(chunk)
                    chunk, size = [], 0
            await asyncio.sleep(0)
        if chunk:
            yield b"".join(chunk)

    def _check_list(self, request: ListTripletsRequest, ids: list[str]) -> None:
        if not ids:
            raise FieldInvalid("rollout_ids", "at least one is required")
        self._engine.check_batch("rollout_ids", len(request.rollout_ids))
        for rollout_id in ids:
            check_id("rollout_ids", rollout_id)
        if request.attempt_id not in ("", LATEST) and len(ids) > 1:
            raise FieldInvalid(
                "attempt_id",
                'must be "latest", or empty for all attempts, if there are several rollouts',
            )

    async def _targets(self, ids: list[str], attempt_id: str) -> list[_Target]:
        """Return the requested attempts.

        Raises:
            RolloutNotFound, AttemptNotFound, SpansEvicted
        """
        targets: list[_Target] = []
        for start in range(0, len(ids), LOAD_AT_ONCE):
            part = ids[start : start + LOAD_AT_ONCE]
            found = {e.rollout.rollout_id: e for e in await self._engine.load_many(part)}
            for rollout_id in part:
                entry = found.get(rollout_id)
                if entry is None:
                    raise RolloutNotFound(rollout_id)
                if entry.key in self._live.shelf.evicted:
                    raise SpansEvicted(rollout_id)
                targets.extend(self._attempts(entry, attempt_id))
            await asyncio.sleep(0)
        return targets

    def _attempts(self, entry: Entry, attempt_id: str) -> Iterable[_Target]:
        rollout_id, key = entry.rollout.rollout_id, entry.key
        if attempt_id in ("", LATEST):
            latest = () if entry.latest is None else (entry.latest,)
            chosen = tuple(entry.attempts.values()) if attempt_id == "" else latest
            if not chosen:
                return [_Target(rollout_id, key, "", None)]
        else:
            chosen = (self._live.attempt_of(entry, attempt_id),)
        return [_Target(rollout_id, key, a.record.attempt_id, a.key) for a in chosen]

    async def _attempt(
        self, target: _Target, options: Options, final: float | None, through: int
    ) -> AsyncIterator[bytes]:
        """Yield the parts of an attempt's answer, of about 1 MiB each, serialised."""
        warnings = Warnings()
        part = _part(target)
        if target.attempt_key is None:
            part.complete = True
            yield part.SerializeToString()
            return
        turn = Turn()
        batches = _Batches(self._engine, target, through)
        trace = await self._trace(batches, options, warnings, turn)
        # Triplets are kept serialised, because adding them to a message would copy each one.
        made: list[bytes] = []
        size = 0
        for at, call in enumerate(trace.calls):
            triplet = await self._triplet(call, batches, options, warnings)
            if final is not None and at == len(trace.calls) - 1:
                triplet.reward.CopyFrom(triplets.final_reward(final))
            data = triplet.SerializeToString()
            made.append(wire.field(_TRIPLETS, data))
            size += len(data)
            if size >= CHUNK_BYTES:
                yield _joined(part, made)
                made, size = [], 0
            if turn.over():
                await turn.next()
        if final is not None and not trace.calls:
            warnings.add((0, b""), "", "the final reward has no call")
        for node in trace.unmatched:
            if node.reward is not None:
                part.unmatched_rewards.append(
                    triplets.reward_message(node.reward, node.span_id, node.sequence_id)
                )
            size += 64
            if size >= CHUNK_BYTES:
                yield _joined(part, made)
                part, made, size = _part(target), [], 0
            if turn.over():
                await turn.next()
        part.warnings.extend(warnings.messages())
        part.warning_count = warnings.count
        part.complete = True
        yield _joined(part, made)

    async def _trace(
        self, batches: _Batches, options: Options, warnings: Warnings, turn: Turn
    ) -> Trace:
        """Return the calls of an attempt."""
        nodes: list[Node] = []
        async for row, first, numbers, stored in batches.all():
            for at, (span, weight) in enumerate(zip(*stored, strict=True), first):
                args = (span, numbers[at], Place(row, at), options, warnings)
                if weight <= LARGE_BYTES:
                    nodes.append(Node.of(*args))
                else:
                    nodes.append(await self._in_thread(partial(Node.of, *args)))
                if turn.over():
                    await turn.next()
        steps = triplets.find_calls(nodes, options, warnings)
        if len(nodes) > LARGE_TRACE:
            return await self._in_thread(partial(triplets.run, steps))
        return await _in_slices(steps, turn)

    async def _triplet(
        self, call: Call, batches: _Batches, options: Options, warnings: Warnings
    ) -> Triplet:
        spans, weight = await batches.spans(call.records)
        tools, more = await batches.spans(call.tools)
        args = (call, spans, tools, options, warnings)
        if weight + more <= LARGE_BYTES:
            triplet = triplets.triplet_of(*args)
        else:
            triplet = await self._in_thread(partial(triplets.triplet_of, *args))
        if call.following is not None and triplets.lacks_answer(call, triplet):
            (following,), weight = await batches.spans([call.following])
            if weight + len(triplet.prompt.content_json) <= LARGE_BYTES:
                triplets.add_answer(triplet, following)
            else:
                await self._in_thread(partial(triplets.add_answer, triplet, following))
        return triplet

    async def _in_thread(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)


class _Stored(NamedTuple):
    """Spans, and the weight of each: its size in bytes, and what its parts take that is not in their bytes."""

    spans: list[Span]
    weights: list[int]


class _Batches:
    """The stored batches of an attempt, of which those of the last HELD_BYTES are held."""

    def __init__(self, engine: Engine, target: _Target, through: int) -> None:
        self._engine = engine
        self._target = target
        self._through = through
        self._held: dict[int, _Stored] = {}
        self._size = 0

    async def all(self) -> AsyncIterator[tuple[int, int, Sequence[int], _Stored]]:
        """Yield all spans: the key of a row, the index of the first in it, the row's sequence ids, and some spans."""
        target = self._target
        async for row in self._engine.storage.scan_spans(
            target.rollout_key, target.attempt_key, self._through
        ):
            opened = OpenRow.of(row)
            held = _Stored([], [])
            for stored in _parsed(opened):
                yield row.key, len(held.spans), opened.sequence_ids, stored
                held.spans.extend(stored.spans)
                held.weights.extend(stored.weights)
            self._hold(row.key, held)
        await check_whole(self._engine, target.rollout_id, target.rollout_key)

    async def spans(self, nodes: Iterable[Node]) -> tuple[list[Span], int]:
        """Return the spans of nodes, loaded again if necessary, and their weight. Raises SpansEvicted."""
        found: list[Span] = []
        weight = 0
        for node in nodes:
            row, at = node.place
            held = self._held.get(row) or await self._load(row)
            found.append(held.spans[at])
            weight += held.weights[at]
        return found, weight

    async def _load(self, key: int) -> _Stored:
        row = await self._engine.storage.get_spans(self._target.rollout_key, key)
        if row is None:
            raise SpansEvicted(self._target.rollout_id)
        held = _Stored([], [])
        for stored in _parsed(OpenRow.of(row)):
            held.spans.extend(stored.spans)
            held.weights.extend(stored.weights)
            await asyncio.sleep(0)
        self._hold(key, held)
        return held

    def _hold(self, key: int, held: _Stored) -> None:
        self._held[key] = held
        self._size += sum(held.weights)
        while self._size > HELD_BYTES and len(self._held) > 1:
            oldest = self._held.pop(next(iter(self._held)))
            self._size -= sum(oldest.weights)


def _parsed(opened: OpenRow) -> Iterator[_Stored]:
    """Yield the spans of a row, about 1 MiB at a time."""
    cut = opened.cut
    for piece in cut.pieces():
        spans = list(SpanBatch.FromString(cut.spans(piece)).spans)
        weights = [
            cut.ends[at] - cut.begins[at] + PART_BYTES * (len(span.attributes) + len(span.events))
            for at, span in zip(piece, spans, strict=True)
        ]
        yield _Stored(spans, weights)


def _part(target: _Target) -> AttemptTriplets:
    ids = AttemptRef(rollout_id=target.rollout_id, attempt_id=target.attempt_id)
    return AttemptTriplets(attempt=ids)


def _joined(part: AttemptTriplets, made: list[bytes]) -> bytes:
    """Return a part with its serialised triplets."""
    return b"".join((part.SerializeToString(), *made))


async def _in_slices(steps: Steps[T], turn: Turn) -> T:
    """Run the steps, and let other tasks run in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if turn.over():
            await turn.next()
