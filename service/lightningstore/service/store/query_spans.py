"""Spans out: QuerySpans, streamed as stored bytes wherever the query allows it."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from itertools import groupby, pairwise

from lightningstore.service import spans, wire
from lightningstore.service.errors import FieldInvalid, SpansEvicted
from lightningstore.service.records import check_enum
from lightningstore.service.spans import Place
from lightningstore.service.storage.base import SpanRow
from lightningstore.service.store.ingest import IngestOperations
from lightningstore.v1.rollout_pb2 import FilterLogic
from lightningstore.v1.span_pb2 import QuerySpansRequest, QuerySpansResponse, SpanBatch

CHUNK_BYTES = 1 << 20
_BATCHES = QuerySpansResponse.BATCHES_FIELD_NUMBER


class QueryOperations(IngestOperations):
    """QuerySpans."""

    async def query_spans(self, request: QuerySpansRequest) -> AsyncIterator[bytes | None]:
        """Yield None once the query stands, then serialised QuerySpansResponses of about 1 MiB."""
        limit = request.limit if request.HasField("limit") and request.limit != -1 else None
        if limit is not None and limit < 0:
            raise FieldInvalid("limit", "must not be negative; -1 or absent means all")
        if request.offset < 0:
            raise FieldInvalid("offset", "must not be negative")
        check_enum("filter_logic", FilterLogic, request.filter_logic, unspecified=True)
        spans.span_filter(request)
        key, descending = spans.span_order(request.order_by)
        entry = await self.load(request.rollout_id)
        attempt_key = None
        if request.attempt_id:
            attempt_key = self.attempt_of(entry, request.attempt_id).key
        if entry.key in self.shelf.evicted:
            raise SpansEvicted(request.rollout_id)
        through = self.state.counters.span_key
        await self.barrier()
        yield None
        rows = self.storage.scan_spans(entry.key, attempt_key, through)
        if key is None and not descending:
            batches = _in_order(rows, request)
        else:
            batches = self._sorted(rows, request, entry.key, attempt_key, through)
        window = _window(batches, request.offset, limit)
        most = self.limits.answer_bytes
        chunk: list[bytes] = []
        size = 0
        async for batch in window:
            for part in spans.split(batch, most):
                if chunk and size + len(part) > min(most, CHUNK_BYTES):
                    yield b"".join(chunk)
                    chunk, size = [], 0
                chunk.append(wire.field(_BATCHES, part))
                size += len(part)
        if chunk:
            yield b"".join(chunk)

    async def _sorted(
        self,
        rows: AsyncIterator[SpanRow],
        request: QuerySpansRequest,
        rollout_key: int,
        attempt_key: int | None,
        through: int,
    ) -> AsyncIterator[tuple[int, SpanBatch | bytes]]:
        """Yield spans in an order of their own: what they are sorted by is held, the spans are not."""
        keep = spans.span_filter(request)
        key, descending = spans.span_order(request.order_by)
        places: list[Place] = []
        async for row in rows:
            batch = spans.parse(row)
            for i, span in enumerate(batch.spans):
                if keep is None or keep(span):
                    own = (key(span),) if key is not None else ()
                    order = (*own, batch.sequence_ids[i], span.start_time_unix_nano, span.span_id)
                    places.append(Place(order, row.key, i))
        places.sort(key=lambda place: place.sort, reverse=descending)
        parsed: dict[int, SpanBatch] = {}
        for row_key, group in groupby(places, key=lambda place: place.row):
            if row_key not in parsed:
                if len(parsed) > 64:
                    parsed.clear()
                async for row in self.storage.scan_spans(
                    rollout_key, attempt_key, through, row_key
                ):
                    parsed[row_key] = spans.parse(row)
            if row_key in parsed:  # not evicted meanwhile
                indexes = [place.place for place in group]
                yield len(indexes), spans.pick(parsed[row_key], indexes)


async def _in_order(
    rows: AsyncIterator[SpanRow], request: QuerySpansRequest
) -> AsyncIterator[tuple[int, SpanBatch | bytes]]:
    """Yield spans by sequence id, then start time.

    Rows come by their first sequence id. A row that ends before the next one begins goes out as it is;
    rows that overlap are taken apart and merged, holding no more than what overlaps.
    """
    keep = spans.span_filter(request)
    merging: list[tuple[Place, SpanBatch]] = []
    held: SpanRow | None = None
    async for row in rows:
        if held is not None:
            apart = merging or held.last_sequence_id >= row.first_sequence_id or not _ascends(held)
            if apart or keep is not None:
                _take_apart(held, keep, merging)
                for item in _merged(merging, row.first_sequence_id):
                    yield item
            else:
                yield held.span_count, spans.wire_batch(held)
        held = row
    if held is not None:
        if merging or keep is not None or not _ascends(held):
            _take_apart(held, keep, merging)
            for item in _merged(merging, None):
                yield item
        else:
            yield held.span_count, spans.wire_batch(held)


def _ascends(row: SpanRow) -> bool:
    """Tell whether the sequence ids of a row rise from span to span."""
    if row.contiguous:
        return True
    numbers = list(spans.parse(row).sequence_ids)
    return all(a < b for a, b in pairwise(numbers))


def _take_apart(row: SpanRow, keep: object, merging: list[tuple[Place, SpanBatch]]) -> None:
    batch = spans.parse(row)
    for i, span in enumerate(batch.spans):
        if keep is None or keep(span):  # type: ignore[operator]
            order = (batch.sequence_ids[i], span.start_time_unix_nano, span.span_id)
            heapq.heappush(merging, (Place(order, row.key, i), batch))


def _merged(
    merging: list[tuple[Place, SpanBatch]], before: int | None
) -> list[tuple[int, SpanBatch | bytes]]:
    """Take the spans below a sequence id off the heap, in runs of one batch each."""
    taken: list[tuple[Place, SpanBatch]] = []
    while merging and (before is None or merging[0][0].sort[0] < before):
        taken.append(heapq.heappop(merging))
    runs: list[tuple[int, SpanBatch | bytes]] = []
    for _, run in groupby(taken, key=lambda item: item[0].row):
        items = list(run)
        indexes = [place.place for place, _ in items]
        runs.append((len(indexes), spans.pick(items[0][1], indexes)))
    return runs


async def _window(
    batches: AsyncIterator[tuple[int, SpanBatch | bytes]], offset: int, limit: int | None
) -> AsyncIterator[bytes]:
    """Yield the serialised batches of spans `offset` to `offset + limit`."""
    async for count, batch in batches:
        if limit is not None and limit <= 0:
            return
        if offset >= count:
            offset -= count
            continue
        taken = count - offset if limit is None else min(limit, count - offset)
        if taken < count:
            message = SpanBatch.FromString(batch) if isinstance(batch, bytes) else batch
            batch = spans.pick(message, range(offset, offset + taken))  # noqa: PLW2901
        offset = 0
        if limit is not None:
            limit -= taken
        yield batch if isinstance(batch, bytes) else batch.SerializeToString()
