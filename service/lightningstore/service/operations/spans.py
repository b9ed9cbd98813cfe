"""QuerySpans; returns stored bytes unchanged where the query allows it."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing
from itertools import pairwise
from operator import attrgetter

from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.batches import OpenRow, Place, Rows, Run, Sorted
from lightningstore.service.rules import spans, wire
from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.errors import FieldInvalid, RolloutNotFound, SpansEvicted
from lightningstore.service.rules.limits import CHUNK_BYTES, HOLD_SECONDS
from lightningstore.service.rules.pieces import PIECE_BYTES
from lightningstore.service.rules.rows import SpanRow
from lightningstore.v1.rollout_pb2 import FilterLogic
from lightningstore.v1.span_pb2 import QuerySpansRequest, QuerySpansResponse

#: Estimated memory of a query while its answer is being sent.
HELD_BYTES = 4 << 20
#: Number of places beyond the requested ones that are kept before they are sorted.
FEW_PLACES = 10_000
_BATCHES = QuerySpansResponse.BATCHES_FIELD_NUMBER
_by_sort = attrgetter("sort")


class SpanQueries:
    """QuerySpans."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live
        #: Memory of the answers that are being sent.
        self.unread = engine.shared.unread

    async def query_spans(self, request: QuerySpansRequest) -> AsyncIterator[bytes | None]:
        """Yield None once the query is checked, then serialised QuerySpansResponses of about 1 MiB."""
        limit = _checked_limit(request)
        key, descending = spans.span_order(request.order_by)
        entry = await self._engine.load(request.rollout_id)
        attempt_key = None
        if request.attempt_id:
            attempt_key = self._live.attempt_of(entry, request.attempt_id).key
        if entry.key in self._live.shelf.evicted:
            raise SpansEvicted(request.rollout_id)
        through = self._live.state.counters.span_key
        await self._engine.barrier()
        yield None
        rows = Rows(self._engine.storage, self.unread, entry.key, attempt_key, through)
        if key is None and not descending:
            runs = _in_order(rows, request)
        else:
            wanted = None if limit is None else request.offset + limit
            runs = _sorted(rows, request, wanted)
        # Held while the answer is sent, because a reader may stop reading at any time.
        async with self.unread.hold(HELD_BYTES, HOLD_SECONDS):
            most = min(self._engine.limits.answer_bytes, CHUNK_BYTES)
            parts = _parts(_window(runs, request.offset, limit), self._engine.limits.answer_bytes)
            with closing(rows):
                async with aclosing(_chunks(parts, most)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        await check_whole(self._engine, request.rollout_id, entry.key)


def _checked_limit(request: QuerySpansRequest) -> int | None:
    """Return the limit of a query, None without one. Raises FieldInvalid for any field that is not valid."""
    limit = request.limit if request.HasField("limit") and request.limit != -1 else None
    if limit is not None and limit < 0:
        raise FieldInvalid("limit", "must not be negative; -1 or absent means all")
    if request.offset < 0:
        raise FieldInvalid("offset", "must not be negative")
    check_enum("filter_logic", FilterLogic, request.filter_logic, unspecified=True)
    spans.span_filter(request)
    return limit


async def check_whole(engine: Engine, rollout_id: str, key: int) -> None:
    """Raise RolloutNotFound or SpansEvicted if the spans just read may be incomplete."""
    entry = engine.live.state.entries.get(rollout_id)
    if entry is None:  # removed, or only dropped from memory
        entry = await engine.load(rollout_id)
    if entry.key != key:
        raise RolloutNotFound(rollout_id)
    if key in engine.live.shelf.evicted:
        raise SpansEvicted(rollout_id)


async def _chunks(parts: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    """Yield QuerySpansResponses of at most `most` bytes; a larger batch is sent alone."""
    chunk: list[bytes] = []
    size = 0
    async for part in parts:
        if chunk and size + len(part) > most:
            yield b"".join(chunk)
            chunk, size = [], 0
        chunk.append(wire.field(_BATCHES, part))
        size += len(part)
    if chunk:
        yield b"".join(chunk)


async def _parts(runs: AsyncIterator[Run | SpanRow], most: int) -> AsyncIterator[bytes]:
    """Yield runs as serialised batches of at most about `most` bytes."""
    async for run in runs:
        if isinstance(run, SpanRow):
            for part in spans.split(spans.wire_batch(run), most):
                yield part
            continue
        start = size = 0
        for i, span in enumerate(run.spans):
            if i > start and size + len(span) + len(run.head) > most:
                yield run.slice(start, i).serialize()
                start, size = i, 0
            size += len(span)
        yield run.slice(start, len(run.spans)).serialize()


async def _sorted(
    rows: Rows, request: QuerySpansRequest, wanted: int | None
) -> AsyncIterator[Run | SpanRow]:
    """Yield spans in a requested order, at least the first `wanted`.

    Only the sort keys are held in memory, not the spans.
    """
    keep = spans.span_filter(request)
    key, descending = spans.span_order(request.order_by)
    places: list[Place] = []
    async for row in rows.scan():
        places += await rows.places(row, keep, key)
        if wanted is not None and len(places) > 2 * wanted + FEW_PLACES:
            places.sort(key=_by_sort, reverse=descending)
            del places[wanted:]
    places.sort(key=_by_sort, reverse=descending)
    async for run in rows.runs(places):
        yield run


async def _in_order(rows: Rows, request: QuerySpansRequest) -> AsyncIterator[Run | SpanRow]:
    """Yield spans by sequence id, then start time.

    Rows come by their first sequence id. A row that ends before the next one begins is returned
    unchanged; overlapping rows are parsed and merged.
    """
    keep = spans.span_filter(request)
    merging: list[tuple[Place, Iterator[Place]]] = []
    held: SpanRow | None = None
    async for row in _and_end(rows.scan()):
        if held is not None:
            before = None if row is None else row.first_sequence_id
            overlaps = before is not None and held.last_sequence_id >= before
            if keep is None and not merging and not overlaps and _ascends(rows, held):
                yield held
            else:
                places = iter(Sorted(held.key, await rows.places(held, keep)))
                _push(merging, places)
                async for run in rows.runs(_merged(merging, before)):
                    yield run
        held = row


async def _and_end(rows: AsyncIterator[SpanRow]) -> AsyncIterator[SpanRow | None]:
    """Yield rows, and None after the last one."""
    async for row in rows:
        yield row
    yield None


def _ascends(rows: Rows, row: SpanRow) -> bool:
    """Return whether the sequence ids of a row ascend from span to span."""
    if row.contiguous:
        return True
    small = len(row.data) <= PIECE_BYTES
    numbers = list((spans.parse(row) if small else rows.open(row)).sequence_ids)
    return all(a < b for a, b in pairwise(numbers))


def _push(merging: list[tuple[Place, Iterator[Place]]], places: Iterator[Place]) -> None:
    first = next(places, None)
    if first is not None:
        heapq.heappush(merging, (first, places))


def _merged(merging: list[tuple[Place, Iterator[Place]]], before: int | None) -> Iterator[Place]:
    """Pop the places below a sequence id from the heap."""
    while merging and (before is None or merging[0][0].sort[0] < before):
        place, rest = heapq.heappop(merging)
        _push(merging, rest)
        yield place


async def _window(
    runs: AsyncIterator[Run | SpanRow], offset: int, limit: int | None
) -> AsyncIterator[Run | SpanRow]:
    """Yield spans `offset` to `offset + limit`."""
    if limit == 0:
        return
    async for run in runs:
        count = run.span_count if isinstance(run, SpanRow) else len(run.spans)
        if offset >= count:
            offset -= count
            continue
        taken = count - offset if limit is None else min(limit, count - offset)
        if taken == count:
            yield run
        else:
            part = OpenRow.of(run).run() if isinstance(run, SpanRow) else run
            yield part.slice(offset, offset + taken)
        offset = 0
        if limit is not None:
            limit -= taken
            if not limit:
                return
