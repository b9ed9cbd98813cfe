"""Spans in: IngestSpans, AddSpans, OTLP's Export and AllocateSequenceIds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from lightningstore.service import lifecycle, spans, wire
from lightningstore.service.errors import FieldInvalid, StoreError
from lightningstore.service.records import check_request_id, evolve, nanoseconds
from lightningstore.service.state import AttemptState, Entry
from lightningstore.service.storage.base import SpanRow
from lightningstore.service.store.attempts import AttemptOperations
from lightningstore.v1.attempt_pb2 import AttemptRef, Stop
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    AddSpansResponse,
    AllocateSequenceIdsRequest,
    AllocateSequenceIdsResponse,
    BatchRejection,
    IngestResult,
    IngestSpansRequest,
    IngestSpansResponse,
    SequenceIdRange,
    SpanBatch,
)

SHOWN_REJECTIONS = 10
_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER
MAX_SEQUENCE_IDS = 1_000_000


class BadBatch(NamedTuple):
    """A batch that could not even be read."""

    span_count: int
    error: StoreError


class Tally:
    """Counts what becomes of the spans of one call."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.result = IngestResult()
        self.messages = 0
        self._stops: dict[tuple[str, str], Stop] = {}

    def store(self, accepted: int, duplicates: int, stop: Stop | None) -> None:
        """Count a batch that was taken."""
        self.result.accepted_count += accepted
        self.result.duplicate_count += duplicates
        if stop is not None:
            self._stops[stop.attempt.rollout_id, stop.attempt.attempt_id] = stop

    def reject(self, count: int, error: StoreError) -> None:
        """Count a batch that was refused."""
        self.result.rejected_count += count
        if len(self.result.rejections) < SHOWN_REJECTIONS:
            self.result.rejections.append(
                BatchRejection(
                    message_index=self.messages,
                    reason=error.reason,  # type: ignore[arg-type]
                    message=error.message,
                    span_count=count,
                )
            )

    def finish(self) -> IngestResult:
        """Return the result, with the attempts to stop."""
        self.result.stops.extend(self._stops.values())
        return self.result


class IngestOperations(AttemptOperations):
    """The calls of span.proto that write."""

    async def ingest_spans(
        self, requests: AsyncIterator[IngestSpansRequest]
    ) -> IngestSpansResponse:
        """Store the batches of a stream; refused ones are counted."""
        return await self.ingest_batches((request.batch, None) async for request in requests)

    async def ingest_batches(
        self, batches: AsyncIterator[tuple[SpanBatch, bytes | None] | BadBatch]
    ) -> IngestSpansResponse:
        """Store batches, each with its serialised IngestSpansRequest where that is at hand.

        The next one is taken when there is room among what waits for the disk: so a slow disk slows the
        stream down.
        """
        tally = Tally()
        failures = self.committer.failures
        async for item in batches:
            if isinstance(item, BadBatch):
                tally.reject(item.span_count, item.error)
            else:
                try:
                    await self.add_batch(*item, tally)
                except StoreError as error:
                    if self.committer.failure is not None:
                        raise
                    tally.reject(len(item[0].spans), error)
            tally.messages += 1
            del (
                item
            )  # parsed spans weigh more than their bytes: not while the next ones are awaited
            await self.committer.room()
        await self.barrier_since(failures)
        return IngestSpansResponse(result=tally.finish())

    async def add_spans(self, request: AddSpansRequest) -> AddSpansResponse:
        """Store one batch; a bad one fails the call."""
        self.committer.admit()
        check_request_id(request.request_id)
        if (answer := self.requests.find("AddSpans", request)) is not None:
            await self.barrier()
            return AddSpansResponse.FromString(answer)
        tally = Tally()
        await self.add_batch(request.batch, None, tally)
        reply = AddSpansResponse(result=tally.finish())
        if request.request_id:
            self.remember("AddSpans", request, reply)
            self.seal()
        await self.barrier()
        return reply

    async def add_batch(self, batch: SpanBatch, data: bytes | None, tally: Tally) -> None:
        """Store a batch without waiting for the disk.

        `data` is the serialised IngestSpansRequest where the caller has it. Raises FieldInvalid, PayloadTooLarge,
        RolloutNotFound, AttemptNotFound: then nothing of it is stored.
        """
        size = len(data) if data is not None else batch.ByteSize()
        span_ids = spans.check_batch(batch, size, self.limits.span_bytes)
        entry = await self.load(batch.rollout_id, "batch.rollout_id")
        attempt = self.attempt_of(entry, batch.attempt_id, "batch.attempt_id")
        while attempt.span_ids is None:
            await self.load_span_ids(attempt)
            entry = await self.load(batch.rollout_id)
            attempt = self.attempt_of(entry, batch.attempt_id)
        self._store_batch(batch, data, span_ids, attempt, tally)

    async def load_span_ids(self, attempt: AttemptState) -> None:
        """Bring the ids of an attempt's spans into memory, from where they may be dropped at any await.

        One reads for all: who read beside another could bring back what was true before spans were added.
        """
        if attempt in self.reading:
            await self.reading[attempt].wait()
            return  # callers look again
        self.reading[attempt] = asyncio.Event()
        try:
            stored = await self.storage.span_ids(attempt.key, attempt.entry.key)
            attempt.span_ids = {
                packed[i : i + 8] for packed in stored for i in range(0, len(packed), 8)
            }
            self.state.keep_span_ids(attempt, len(attempt.span_ids), self.committer.durable_through)
        finally:
            self.reading.pop(attempt).set()

    def _store_batch(
        self,
        batch: SpanBatch,
        data: bytes | None,
        span_ids: list[bytes],
        attempt: AttemptState,
        tally: Tally,
    ) -> None:
        count = len(span_ids)
        accepted = self.append_new(attempt, batch, data, span_ids)
        if count:
            self.heard_from(attempt, self.now(), by_span=True, added=accepted)
        reason = lifecycle.stop_reason(attempt.entry.rollout, attempt.record)
        stop = None
        if reason:
            reference = AttemptRef(
                rollout_id=attempt.record.rollout_id, attempt_id=attempt.record.attempt_id
            )
            stop = Stop(attempt=reference, reason=reason)  # type: ignore[arg-type]
        tally.store(accepted, count - accepted, stop)
        if count:
            self.seal()

    def append_new(
        self, attempt: AttemptState, batch: SpanBatch, data: bytes | None, span_ids: list[bytes]
    ) -> int:
        """Have those spans of a batch stored that the attempt does not have yet; returns how many."""
        known = attempt.span_ids
        assert known is not None  # noqa: S101  (loaded by the caller)
        fresh = set(span_ids)
        if len(fresh) != len(span_ids) or not known.isdisjoint(fresh):
            batch, span_ids = _without_duplicates(batch, span_ids, known)
            fresh, data = set(span_ids), None
        if span_ids:
            self._append(batch, data, span_ids, attempt)
            known |= fresh
            self.state.keep_span_ids(attempt, len(fresh), self.committer.durable_through)
        return len(span_ids)

    def _append(
        self, batch: SpanBatch, data: bytes | None, span_ids: list[bytes], attempt: AttemptState
    ) -> None:
        """Number the spans of a batch and have it stored as one row."""
        given = batch.sequence_ids
        numbers = spans.number(given, len(span_ids), attempt.last_sequence_id)
        contiguous = not given
        if (given and 0 in given) or batch.attempt_id != attempt.record.attempt_id:
            batch, data = evolve(batch, attempt_id=attempt.record.attempt_id), None
            del batch.sequence_ids[:]
            batch.sequence_ids.extend(numbers)
            contiguous = False
        if data is None:
            data = wire.field(_BATCH, batch.SerializeToString())
        state, changes = self.state, self.committer.changes
        state.counters.span_key += 1
        row = SpanRow(
            state.counters.span_key,
            attempt.entry.key,
            attempt.key,
            min(numbers) if given else numbers[0],
            max(numbers) if given else numbers[-1],
            len(span_ids),
            b"".join(span_ids),
            data,
            contiguous,
        )
        changes.spans.append(row)
        changes.size += len(data)
        attempt.last_sequence_id = max(attempt.last_sequence_id, row.last_sequence_id)
        state.counters.spans += row.span_count
        state.counters.span_bytes += len(data)
        self._evict(attempt.entry, len(data), row.span_count)

    def _evict(self, entry: Entry, size: int, count: int) -> None:
        """Make room in memory, where spans are kept there."""
        if self.storage.durable:
            return
        start_ns = nanoseconds(entry.rollout.start_time)
        finished = lifecycle.is_finished(entry.rollout)
        self.shelf.add(entry.key, start_ns, size, count, finished=finished)
        counters = self.state.counters
        for item in self.shelf.evict():
            self.committer.changes.evicted.append(item.key)
            counters.spans -= item.count
            counters.span_bytes -= item.bytes

    async def allocate_sequence_ids(
        self, request: AllocateSequenceIdsRequest
    ) -> AllocateSequenceIdsResponse:
        """Hand out the next sequence ids of some attempts."""
        self.committer.admit()
        self.check_batch("demands", len(request.demands))
        for i, demand in enumerate(request.demands):
            if not 1 <= demand.count <= MAX_SEQUENCE_IDS:
                raise FieldInvalid(f"demands[{i}].count", f"from 1 to {MAX_SEQUENCE_IDS}")
        await self.load_many(d.rollout_id for d in request.demands)
        if (answer := self.requests.find("AllocateSequenceIds", request)) is not None:
            await self.barrier()
            return AllocateSequenceIdsResponse.FromString(answer)
        attempts = [
            self.loaded_attempt(d.rollout_id, d.attempt_id, f"demands[{i}].")
            for i, d in enumerate(request.demands)
        ]
        reply = AllocateSequenceIdsResponse()
        for demand, attempt in zip(request.demands, attempts, strict=True):
            reference = AttemptRef(
                rollout_id=demand.rollout_id, attempt_id=attempt.record.attempt_id
            )
            first = attempt.last_sequence_id + 1
            attempt.last_sequence_id += demand.count
            reply.ranges.append(
                SequenceIdRange(attempt=reference, first_sequence_id=first, count=demand.count)
            )
            self.save_attempt(attempt)
        if request.request_id:
            self.remember("AllocateSequenceIds", request, reply)
        await self.commit()
        return reply


def _without_duplicates(
    batch: SpanBatch, span_ids: list[bytes], known: set[bytes]
) -> tuple[SpanBatch, list[bytes]]:
    """Return the batch with only the spans that are new, and their ids."""
    seen = set(known)
    fresh = []
    for i, span_id in enumerate(span_ids):
        if span_id not in seen:
            seen.add(span_id)
            fresh.append(i)
    part = evolve(batch)
    del part.spans[:]
    part.spans.extend(batch.spans[i] for i in fresh)
    if batch.sequence_ids:
        del part.sequence_ids[:]
        part.sequence_ids.extend(batch.sequence_ids[i] for i in fresh)
    return part, [span_ids[i] for i in fresh]
