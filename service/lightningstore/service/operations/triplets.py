"""ListTriplets, attempt by attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from lightningstore.service import triplets
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import LOAD_AT_ONCE
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.spans import check_whole
from lightningstore.service.rules import spans, wire
from lightningstore.service.rules.errors import FieldInvalid, RolloutNotFound, SpansEvicted
from lightningstore.service.rules.ids import LATEST, check_id
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.rows import SpanRow
from lightningstore.service.triplets import Call, Node, Options, Place, Steps, T, Warnings
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
#: Bytes of spans processed before other tasks run.
SLICE_BYTES = 128 << 10
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
        batches = _Batches(self._engine, target, through)
        nodes = await self._nodes(batches, options, warnings)
        trace = await _in_slices(triplets.find_calls(nodes, options, warnings))
        del nodes
        # Triplets are kept serialised, because adding them to a message would copy each one.
        made: list[bytes] = []
        size = looked_at = 0
        for at, call in enumerate(trace.calls):
            triplet = await _triplet(call, batches, options, warnings)
            if final is not None and at == len(trace.calls) - 1:
                triplet.reward.CopyFrom(triplets.final_reward(final))
            data = triplet.SerializeToString()
            made.append(wire.field(_TRIPLETS, data))
            size += len(data)
            looked_at += len(data) + 512
            if size >= CHUNK_BYTES:
                yield _joined(part, made)
                made, size = [], 0
            if looked_at >= SLICE_BYTES:
                await asyncio.sleep(0)
                looked_at = 0
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
        part.warnings.extend(warnings.messages())
        part.warning_count = warnings.count
        part.complete = True
        yield _joined(part, made)

    async def _nodes(self, batches: _Batches, options: Options, warnings: Warnings) -> list[Node]:
        found: list[Node] = []
        looked_at = 0
        async for row, batch in batches.all():
            looked_at += len(row.data)
            for at, span in enumerate(batch.spans):
                node = Node.of(span, batch.sequence_ids[at], Place(row.key, at), options, warnings)
                found.append(node)
                if at % 64 == 63 and looked_at >= SLICE_BYTES:
                    await asyncio.sleep(0)
            if looked_at >= SLICE_BYTES:
                await asyncio.sleep(0)
                looked_at = 0
        return found


class _Batches:
    """The stored batches of an attempt, of which at most HELD_BYTES are held."""

    def __init__(self, engine: Engine, target: _Target, through: int) -> None:
        self._engine = engine
        self._target = target
        self._through = through
        self._held: dict[int, SpanBatch] = {}
        self._sizes: dict[int, int] = {}
        self._size = 0

    async def all(self) -> AsyncIterator[tuple[SpanRow, SpanBatch]]:
        """Yield each batch with its row."""
        target = self._target
        async for row in self._engine.storage.scan_spans(
            target.rollout_key, target.attempt_key, self._through
        ):
            yield row, self._hold(row)
        await check_whole(self._engine, target.rollout_id, target.rollout_key)

    async def span(self, place: Place) -> Span:
        """Return a span, loaded again if necessary. Raises SpansEvicted."""
        target = self._target
        batch = self._held.get(place.row)
        if batch is None:
            row = await self._engine.storage.get_spans(target.rollout_key, place.row)
            if row is None:
                raise SpansEvicted(target.rollout_id)
            batch = self._hold(row)
        return batch.spans[place.at]

    def _hold(self, row: SpanRow) -> SpanBatch:
        batch = spans.parse(row)
        self._held[row.key] = batch
        self._sizes[row.key] = len(row.data)
        self._size += len(row.data)
        while self._size > HELD_BYTES and len(self._held) > 1:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._size -= self._sizes.pop(oldest)
        return batch


async def _triplet(call: Call, batches: _Batches, options: Options, warnings: Warnings) -> Triplet:
    spans = [await batches.span(_place(node)) for node in call.records]
    tools = [await batches.span(_place(node)) for node in call.tools]
    triplet = triplets.triplet_of(call, spans, tools, options, warnings)
    if call.following is not None and triplets.lacks_answer(call, triplet):
        triplets.add_answer(triplet, await batches.span(_place(call.following)))
    return triplet


def _part(target: _Target) -> AttemptTriplets:
    ids = AttemptRef(rollout_id=target.rollout_id, attempt_id=target.attempt_id)
    return AttemptTriplets(attempt=ids)


def _joined(part: AttemptTriplets, made: list[bytes]) -> bytes:
    """Return a part with its serialised triplets."""
    return b"".join((part.SerializeToString(), *made))


def _place(node: Node) -> Place:
    assert node.place is not None  # noqa: S101  (a call is a stored span)
    return node.place


async def _in_slices(steps: Steps[T]) -> T:
    """Run the steps, and let other tasks run in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
