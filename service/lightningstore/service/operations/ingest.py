"""IngestSpans, AddSpans and OTLP's Export."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from google.protobuf.message import DecodeError
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.notices import Notices
from lightningstore.service.engine.state import AttemptState, Entry
from lightningstore.service.operations.parts import (
    FromPiece,
    Parsed,
    Part,
    Verdicts,
    compare_parts,
    is_same,
    stored_spans,
)
from lightningstore.service.operations.span_rewards import last_reward, rewards_in
from lightningstore.service.rules import lifecycle, pieces, rewards, spans
from lightningstore.service.rules import text_repair as repair
from lightningstore.service.rules.errors import (
    MalformedMessage,
    SpanExists,
    StoreError,
)
from lightningstore.service.rules.ids import check_request_id
from lightningstore.service.rules.pieces import Cut
from lightningstore.service.rules.rows import SpanRow
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.attempt_pb2 import AttemptRef, SpanReward, Stop
from lightningstore.v1.error_reason_pb2 import ErrorReason
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    AddSpansResponse,
    BatchRejection,
    IngestResult,
    IngestSpansRequest,
    IngestSpansResponse,
    SpanBatch,
)

logger = logging.getLogger(__name__)

SHOWN_REJECTIONS = 10


class Found(NamedTuple):
    """The attempt of a batch; for its stored spans, whether their content is the same."""

    attempt: AttemptState
    verdicts: Verdicts | None


class Appended(NamedTuple):
    """What became of the spans of a batch."""

    accepted: int = 0
    #: Spans whose id is stored with other content, and one such id.
    conflicts: int = 0
    example: bytes = b""
    #: The last reward in the spans that were accepted.
    reward: SpanReward | None = None


class BadBatch(NamedTuple):
    """A batch that could not be decoded."""

    span_count: int
    error: StoreError


class Tally:
    """Counts the results for the spans of one call."""

    def __init__(self) -> None:
        self.result = IngestResult()
        self.messages = 0
        self._stops: dict[tuple[str, str], Stop] = {}

    def store(self, accepted: int, duplicates: int, stop: Stop | None) -> None:
        """Count a stored batch."""
        self.result.accepted_count += accepted
        self.result.duplicate_count += duplicates
        if stop is not None:
            self._stops[stop.attempt.rollout_id, stop.attempt.attempt_id] = stop

    def reject(self, count: int, error: StoreError) -> None:
        """Count rejected spans."""
        self.result.rejected_count += count
        if isinstance(error, SpanExists):
            self.result.conflict_count += count
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


class SpanIngest:
    """The calls of span.proto that write."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        self.intake = engine.shared.intake
        self.bodies = engine.shared.bodies
        #: Held while a large message is split, so that the memory for it is needed only once.
        self.taking_apart = asyncio.Lock()
        self.refused_spans = Notices(logger, "span(s) rejected")
        #: Attempts whose span ids are being loaded, each with the event set when loading ends.
        self._loading: dict[AttemptState, asyncio.Event] = {}
        engine.shared.spans.join(self._live.shelf, self._evict_some)

    def close(self) -> None:
        """Log the rejections since the last notice. May be called twice."""
        self.refused_spans.close()
        self._engine.shared.spans.leave(self._live.shelf)

    async def ingest_spans(
        self, requests: AsyncIterator[IngestSpansRequest]
    ) -> IngestSpansResponse:
        """Store the batches of a stream; rejected ones are counted."""
        return await self.ingest_batches(
            self._large(request.batch, request.batch.ByteSize()) or (request.batch, None)
            async for request in requests
        )

    async def ingest_batches(
        self, batches: AsyncIterator[tuple[SpanBatch, bytes | None] | Cut | BadBatch]
    ) -> IngestSpansResponse:
        """Store batches, each with its serialised IngestSpansRequest if available.

        The next batch is read when there is space in the write queue, so a slow disk slows the
        stream down.
        """
        tally = Tally()
        failures = self._engine.committer.failures
        async for item in batches:
            if isinstance(item, BadBatch):
                self.reject(tally, item.span_count, item.error)
            else:
                try:
                    if isinstance(item, Cut):
                        await self.add_large(item, tally)
                    else:
                        await self.add_batch(*item, tally)
                except StoreError as error:
                    # The error is not caused by the batch: a retry may store it.
                    if self._engine.committer.failure is not None or error.retry_delay is not None:
                        raise
                    self.reject(tally, _span_count(item), error)
            tally.messages += 1
            del item  # parsed spans need more memory than their bytes: free it before the wait
            await self._engine.committer.room()
        await self._engine.barrier_since(failures)
        return IngestSpansResponse(result=tally.finish())

    async def add_spans(
        self, request: AddSpansRequest, large: Cut | None = None
    ) -> AddSpansResponse:
        """Store one batch; an invalid one fails the call.

        A `large` one replaces the batch of the request.
        """
        self._engine.committer.admit()
        check_request_id(request.request_id)
        if (answer := self._engine.requests.find("AddSpans", request)) is not None:
            await self._engine.barrier()
            return AddSpansResponse.FromString(answer)
        if large is None:
            size = request.batch.ByteSize()
            large = self._large(request.batch, size)
        if large is None:
            ids = spans.check_batch(request.batch, size, self._engine.limits.span_bytes)
            return await self._add_parts(request, [Parsed(request.batch, None, ids)])
        async with self._apart(large) as parts:
            return await self._add_parts(request, parts)

    async def _add_parts(self, request: AddSpansRequest, parts: list[Part]) -> AddSpansResponse:
        found = await self._find(parts)
        # Without an await from here on, concurrent calls with one request id get one answer.
        if (answer := self._engine.requests.find("AddSpans", request)) is not None:
            await self._engine.barrier()
            return AddSpansResponse.FromString(answer)
        tally = Tally()
        self._store(parts, found, tally)
        reply = AddSpansResponse(result=tally.finish())
        if request.request_id:
            self._engine.remember("AddSpans", request, reply)
            self._engine.seal()
        await self._engine.barrier()
        return reply

    async def add_batch(self, batch: SpanBatch, data: bytes | None, tally: Tally) -> None:
        """Store a batch without waiting for the disk.

        `data` is the serialised IngestSpansRequest, if available. On an error nothing is stored.
        Raises FieldInvalid, PayloadTooLarge, RolloutNotFound, AttemptNotFound.
        """
        parts = [self._parsed(batch, data)]
        self._store(parts, await self._find(parts), tally)

    async def add_large(self, large: Cut, tally: Tally) -> None:
        """Store a large batch in the same way. Only one is split at a time."""
        async with self._apart(large) as parts:
            self._store(parts, await self._find(parts), tally)

    def reject(self, tally: Tally, count: int, error: StoreError) -> None:
        """Count rejected spans in the answer, the metrics and the log."""
        tally.reject(count, error)
        self.note_refused(count, error)

    def note_refused(self, count: int, error: StoreError) -> None:
        """Count rejected spans in the metrics and the log."""
        self.refused_spans.note(reason_name(error.reason), count, error.message)

    def cut(self, data: bytes) -> Cut:
        """Find the spans of a batch. Raises MalformedMessage, BatchTooLarge, PayloadTooLarge."""
        return pieces.cut(data, self._engine.limits.message_spans, self._engine.limits.span_bytes)

    def _large(self, batch: SpanBatch, size: int) -> Cut | None:
        """Return a batch of `size` bytes as a Cut if it is too large to be stored as one row."""
        if len(batch.spans) <= pieces.PIECE_SPANS and size <= pieces.PIECE_BYTES:
            return None
        return self.cut(batch.SerializeToString())

    def _parsed(self, batch: SpanBatch, data: bytes | None) -> Part:
        size = len(data) if data is not None else batch.ByteSize()
        return Parsed(batch, data, spans.check_batch(batch, size, self._engine.limits.span_bytes))

    @asynccontextmanager
    async def _apart(self, large: Cut) -> AsyncIterator[list[Part]]:
        """Check a large batch and return its parts, each of which becomes a row."""
        async with self.taking_apart:
            await self._engine.committer.room()  # others may have filled it since this one was read
            yield await self._take_apart(large)

    async def _take_apart(self, whole: Cut) -> list[Part]:
        """Check a large batch piece by piece, keeping only the span ids of each piece."""
        head = decode_batch(whole.head)
        given = list(head.sequence_ids)
        spans.check_sequence_ids("batch", given, len(whole.begins))
        del head.sequence_ids[:]
        most, turn = self._engine.limits.span_bytes, Turn()
        parts: list[Part] = []
        for indexes in whole.pieces():
            cut, own = whole, indexes
            data = whole.spans(indexes)
            try:
                batch = SpanBatch.FromString(data)
            except DecodeError:
                batch = decode_batch(data)
                data = batch.SerializeToString()
                cut, own = self.cut(data), range(len(indexes))
            largest = max(whole.ends[i] - whole.begins[i] for i in indexes)
            ids = spans.check_batch(batch, largest, most, first=indexes.start)
            found = rewards_in(data, spans=batch.spans)
            parts.append(FromPiece(cut, head, own, ids, given[indexes.start : indexes.stop], found))
            del batch
            if turn.over():
                await turn.next()
        return parts

    async def load_span_ids(self, attempt: AttemptState) -> None:
        """Load the ids of an attempt's spans into memory; callers check again after every await.

        One load per attempt at a time: a second, slower load would overwrite ids added since. If
        the rollout left memory during the load, it may have been loaded again with more spans; then
        the ids are not kept.
        """
        if attempt in self._loading:
            await self._loading[attempt].wait()
            return
        self._loading[attempt] = asyncio.Event()
        try:
            stored = await self._engine.storage.span_ids(attempt.entry.key, attempt.key)
            if not self._live.state.holds(attempt.entry):
                return
            attempt.span_ids = {
                packed[i : i + 8] for _, packed in stored for i in range(0, len(packed), 8)
            }
            self._live.state.keep_span_ids(
                attempt, len(attempt.span_ids), self._engine.committer.durable_through
            )
        finally:
            self._loading.pop(attempt).set()

    async def _find(self, parts: list[Part]) -> Found:
        """Return the attempt of a batch and its stored spans; valid until the next await.

        Raises FieldInvalid, RolloutNotFound, AttemptNotFound.
        """
        rollout_id, attempt_id = parts[0].rollout_id, parts[0].attempt_id
        verdicts: Verdicts = {}
        key = 0
        while True:
            entry = await self._engine.load(rollout_id, "batch.rollout_id")
            attempt = self._live.attempt_of(entry, attempt_id, "batch.attempt_id")
            if attempt.key != key:
                # The first round, or "latest" is another attempt by now, of which they do not hold.
                key, verdicts = attempt.key, {}
            known = attempt.span_ids
            if known is None:
                await self.load_span_ids(attempt)
                continue
            fresh = set(parts[0].span_ids).union(*[part.span_ids for part in parts[1:]])
            count = sum([len(part.span_ids) for part in parts])
            if len(fresh) == count and known.isdisjoint(fresh):
                return Found(attempt, None)  # the usual case
            unknown = await self.compare(attempt, parts, verdicts)
            if not unknown and attempt.span_ids is known:
                return Found(attempt, verdicts)

    async def compare(self, attempt: AttemptState, parts: list[Part], verdicts: Verdicts) -> bool:
        """Compare the content of each span whose id is stored or occurs earlier.

        Returns whether there was an await, after which more spans may be stored.
        """
        known = attempt.span_ids
        assert known is not None  # noqa: S101  (loaded by the caller)
        asked = compare_parts(known, parts, verdicts)
        if not asked:
            return False
        committer = self._engine.committer
        await committer.durable(committer.sealed)  # then the back end has all of them
        turn = Turn()
        wanted = set(asked)
        storage, rollout_key = self._engine.storage, attempt.entry.key
        for key, packed in reversed(await storage.span_ids(rollout_key, attempt.key)):
            row = None
            if spans.holds_any(packed, wanted):
                row = await storage.get_spans(rollout_key, key)
            if row is not None:
                for span_id, stored in stored_spans(row.data, packed, wanted).items():
                    for p, i in asked.pop(span_id, ()):
                        verdicts[p, i] = is_same(parts[p].span(i), stored)
            if turn.over():
                await turn.next()
        for places in asked.values():  # evicted since: there is nothing to compare with
            verdicts.update(dict.fromkeys(places, True))
        return True

    def _store(self, parts: list[Part], found: Found, tally: Tally) -> None:
        """Store the new spans of a batch, one row per part."""
        attempt, verdicts = found
        count = sum([len(part.span_ids) for part in parts])
        accepted, conflicts, example, reward = self.append_new(attempt, parts, verdicts)
        if conflicts:
            self.reject(tally, conflicts, SpanExists(example, conflicts))
        if count:
            now = self._live.now()
            self._live.heard_from(attempt, now, by_span=True, added=accepted, reward=reward)
        reason = lifecycle.stop_reason(attempt.entry.rollout, attempt.record)
        stop = None
        if reason:
            reference = AttemptRef(
                rollout_id=attempt.record.rollout_id, attempt_id=attempt.record.attempt_id
            )
            stop = Stop(attempt=reference, reason=reason)  # type: ignore[arg-type]
        tally.store(accepted, count - accepted - conflicts, stop)
        if count:
            self._engine.seal()

    def append_new(
        self, attempt: AttemptState, parts: list[Part], verdicts: Verdicts | None
    ) -> Appended:
        """Store the spans without a verdict, one row per part."""
        accepted = conflicts = 0
        example = b""
        reward: SpanReward | None = None
        for p, part in enumerate(parts):
            fresh: list[int] | None = None
            if verdicts:
                fresh = []
                for i in range(len(part.span_ids)):
                    same = verdicts.get((p, i))
                    if same is None:
                        fresh.append(i)
                    elif not same:
                        conflicts += 1
                        example = example or part.span_ids[i]
            stored, found = self._append(attempt, part, fresh)
            accepted += stored
            reward = rewards.later(reward, found)
        return Appended(accepted, conflicts, example, reward)

    def _append(
        self, attempt: AttemptState, part: Part, indexes: list[int] | None
    ) -> tuple[int, SpanReward | None]:
        """Number some spans of a part (None: all) and store them as one row.

        Returns their number, and the last reward that they hold.
        """
        span_ids, given = part.span_ids, part.given
        if indexes is not None:
            span_ids = [span_ids[i] for i in indexes]
            if given:
                given = [given[i] for i in indexes]
        if not span_ids:
            return 0, None
        count, last = len(span_ids), attempt.last_sequence_id
        numbers: Sequence[int] = range(last + 1, last + 1 + count)
        if given:
            numbers = spans.number(given, count, last)
        data = part.row(attempt.record.attempt_id, indexes, numbers)
        counters = self._live.state.counters
        counters.span_key += 1
        row = SpanRow(
            counters.span_key,
            attempt.entry.key,
            attempt.key,
            min(numbers) if given else last + 1,
            max(numbers) if given else last + count,
            count,
            b"".join(span_ids),
            data,
            not given,
        )
        attempt.last_sequence_id = max(last, row.last_sequence_id)
        self._put(attempt, row, span_ids)
        return count, last_reward(part.rewards(data, indexes), numbers)

    def _put(self, attempt: AttemptState, row: SpanRow, span_ids: list[bytes]) -> None:
        """Write a row with the next commit, and count its spans."""
        state, changes = self._live.state, self._engine.committer.changes
        size, count = len(row.data), row.span_count
        changes.spans.append(row)
        changes.size += size
        state.counters.spans += count
        state.counters.span_bytes += size
        self._evict(attempt.entry, size, count)
        known = attempt.span_ids
        assert known is not None  # noqa: S101  (loaded by the caller)
        known.update(span_ids)
        state.keep_span_ids(attempt, count, self._engine.committer.durable_through)

    def _evict(self, entry: Entry, size: int, count: int) -> None:
        """Evict spans if the back end keeps them in memory."""
        if self._engine.is_durable:
            return
        start_ns = nanoseconds(entry.rollout.start_time)
        self._live.shelf.add(entry.key, start_ns, size, count, entry.rollout)
        self._engine.shared.spans.evict(self._live.shelf)

    def _evict_some(self, for_another: bool) -> None:  # noqa: FBT001
        """Evict spans of this store, for its own operation or for one of another store, which commits nothing here."""
        counters = self._live.state.counters
        evicted = self._live.shelf.evict(self._live.consumers.wants)
        for item in evicted:
            self._engine.committer.changes.evicted.append(item.key)
            counters.spans -= item.count
            counters.span_bytes -= item.bytes
        if evicted and for_another:
            self._engine.seal()


def reason_name(reason: int) -> str:
    """Return a reason in the form used by metrics."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_").lower()  # type: ignore[arg-type]


def _span_count(item: tuple[SpanBatch, bytes | None] | Cut) -> int:
    return len(item.begins) if isinstance(item, Cut) else len(item[0].spans)


def decode_batch(data: bytes) -> SpanBatch:
    """Return a batch, with its text repaired if necessary. Raises MalformedMessage."""
    try:
        return SpanBatch.FromString(data)
    except DecodeError:
        pass
    try:
        return SpanBatch.FromString(repair.message(data, SpanBatch.DESCRIPTOR).data)
    except DecodeError:
        raise MalformedMessage(SpanBatch.DESCRIPTOR.full_name) from None
