"""Batches of spans as bytes: check, number, filter and sort. Pure.

Spans are parsed as little as possible: batches are stored as the bytes that arrived, and returned
unchanged unless a filter or an order needs single spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import FieldInvalid, PayloadTooLarge, StoreError
from lightningstore.service.rules.filters import parse_order
from lightningstore.service.rules.rows import SpanRow
from lightningstore.v1.rollout_pb2 import FILTER_LOGIC_OR
from lightningstore.v1.span_pb2 import IngestSpansRequest, QuerySpansRequest, SpanBatch, TextMatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
MAX_SEQUENCE_ID = 1 << 62
_ids = attrgetter("trace_id", "span_id")
_trace_id = attrgetter("trace_id")
_span_id = attrgetter("span_id")
_NO_TRACE = bytes(TRACE_ID_BYTES)
_NO_SPAN = bytes(SPAN_ID_BYTES)

#: Orders of spans other than by sequence id.
ORDERS: dict[str, Callable[[Span], Any]] = {
    "start_time": lambda s: s.start_time_unix_nano,
    "end_time": lambda s: s.end_time_unix_nano,
    "name": lambda s: s.name,
    "trace_id": lambda s: s.trace_id,
    "span_id": lambda s: s.span_id,
    "parent_span_id": lambda s: s.parent_span_id,
}
_TEXTS: dict[str, Callable[[Span], str]] = {
    "trace_id": lambda s: s.trace_id.hex(),
    "span_id": lambda s: s.span_id.hex(),
    "parent_span_id": lambda s: s.parent_span_id.hex(),
    "name": lambda s: s.name,
}


def check_batch(
    batch: SpanBatch, size: int, max_span_bytes: int, field: str = "batch", first: int = 0
) -> list[bytes]:
    """Return the span ids of a batch.

    `size` is the maximum size of a span in bytes. `field` is the path of the batch in its request,
    and `first` the index of its first span there, for errors.

    Raises:
        FieldInvalid, PayloadTooLarge
    """
    spans = batch.spans
    pairs = list(map(_ids, spans))
    trace_ids = {trace_id for trace_id, _ in pairs}
    span_ids = [span_id for _, span_id in pairs]
    if _NO_TRACE in trace_ids or any(len(i) != TRACE_ID_BYTES for i in trace_ids):
        _blame(field, first, batch, "trace_id", _trace_id, TRACE_ID_BYTES)
    if set(map(len, span_ids)) - {SPAN_ID_BYTES} or _NO_SPAN in span_ids:
        _blame(field, first, batch, "span_id", _span_id, SPAN_ID_BYTES)
    if batch.sequence_ids:
        check_sequence_ids(field, batch.sequence_ids, len(spans))
    if size > max_span_bytes:
        for i, span in enumerate(spans, first):
            if (found := span.ByteSize()) > max_span_bytes:
                raise PayloadTooLarge(f"{field}.spans[{i}]", found, max_span_bytes)
    return span_ids


def check_sequence_ids(field: str, given: Sequence[int], count: int) -> None:
    """Raise FieldInvalid unless a batch has one sequence id per span, or none."""
    if not given:
        return
    if len(given) != count:
        raise FieldInvalid(
            f"{field}.sequence_ids",
            f"{len(given)} numbers for {count} spans; must be one per span, or none",
        )
    if min(given) < 0 or max(given) > MAX_SEQUENCE_ID:
        raise FieldInvalid(f"{field}.sequence_ids", f"must be from 0 to {MAX_SEQUENCE_ID}")


def span_error(span: Span, max_span_bytes: int) -> StoreError | None:
    """Return the error of a single span, or None."""
    trace_id, span_id = _ids(span)
    if len(trace_id) != TRACE_ID_BYTES or trace_id == _NO_TRACE:
        return _bad_id("trace_id", trace_id, TRACE_ID_BYTES)
    if len(span_id) != SPAN_ID_BYTES or span_id == _NO_SPAN:
        return _bad_id("span_id", span_id, SPAN_ID_BYTES)
    if span.ByteSize() > max_span_bytes:
        return PayloadTooLarge("span", span.ByteSize(), max_span_bytes)
    return None


def _blame(
    field: str,
    first: int,
    batch: SpanBatch,
    name: str,
    get: Callable[[Span], bytes],
    length: int,
) -> None:
    for i, span in enumerate(batch.spans, first):
        value = get(span)
        if len(value) != length or not any(value):
            raise _bad_id(f"{field}.spans[{i}].{name}", value, length)


def _bad_id(field: str, value: bytes, length: int) -> FieldInvalid:
    if len(value) == length:
        return FieldInvalid(field, "all zero")
    return FieldInvalid(field, f"{len(value)} bytes, must be {length}")


def number(given: Sequence[int], count: int, last: int) -> list[int]:
    """Return a sequence id for each of `count` spans.

    That is the given one, or the next number if it is 0 or missing. `last` is the highest number
    that was stored or assigned before.
    """
    if not given:
        return list(range(last + 1, last + 1 + count))
    numbers = []
    for asked in given:
        last = max(last, asked) if asked else last + 1
        numbers.append(asked or last)
    return numbers


def batch_bytes(row: SpanRow) -> bytes:
    """Return a stored batch as stored, without sequence ids if they are contiguous."""
    return row.data[wire.frame(row.data, IngestSpansRequest.BATCH_FIELD_NUMBER) :]


def wire_batch(row: SpanRow) -> bytes:
    """Return a stored batch as the bytes of a complete SpanBatch."""
    data = batch_bytes(row)
    if not row.contiguous:
        return data
    numbers = SpanBatch(sequence_ids=range(row.first_sequence_id, row.last_sequence_id + 1))
    return data + numbers.SerializeToString()


def parse(row: SpanRow) -> SpanBatch:
    """Return a stored batch as a message with its sequence ids."""
    return SpanBatch.FromString(wire_batch(row))


def pick(batch: SpanBatch, indexes: Sequence[int]) -> SpanBatch:
    """Return a batch of some of the spans, in the order of the indexes."""
    if list(indexes) == list(range(len(batch.spans))):
        return batch
    part = SpanBatch(
        rollout_id=batch.rollout_id,
        attempt_id=batch.attempt_id,
        resource_schema_url=batch.resource_schema_url,
        schema_url=batch.schema_url,
        spans=[batch.spans[i] for i in indexes],
        sequence_ids=[batch.sequence_ids[i] for i in indexes],
    )
    if batch.HasField("resource"):
        part.resource.CopyFrom(batch.resource)
    if batch.HasField("scope"):
        part.scope.CopyFrom(batch.scope)
    return part


def split(data: bytes, most: int) -> Iterator[bytes]:
    """Yield a serialised batch in parts of at most `most` bytes.

    Each part repeats everything except the spans. If that alone is more than half of the limit, or
    a single span is larger, parts are larger too.
    """
    if len(data) > most:
        batch = SpanBatch.FromString(data)
        count = len(batch.spans)
        if count > 1 and pick(batch, ()).ByteSize() * 2 < most:
            for half in (range(count // 2), range(count // 2, count)):
                yield from split(pick(batch, half).SerializeToString(), most)
            return
    yield data


def span_filter(request: QuerySpansRequest) -> Callable[[Span], bool] | None:
    """Return a predicate for the filters of a query, or None if it has none.

    Raises:
        FieldInvalid: A filter has neither equals nor contains.
    """
    tests: list[Callable[[Span], bool]] = []
    for name, text in _TEXTS.items():
        if request.HasField(name):  # type: ignore[arg-type]
            tests.append(_text_test(name, text, getattr(request, name)))
    if not tests:
        return None
    combine = any if request.filter_logic == FILTER_LOGIC_OR else all
    return lambda span: combine(test(span) for test in tests)


def _text_test(name: str, text: Callable[[Span], str], match: TextMatch) -> Callable[[Span], bool]:
    kind = match.WhichOneof("match")
    if kind is None:
        raise FieldInvalid(name, "must have equals or contains")
    wanted = match.equals if kind == "equals" else match.contains
    if kind == "equals":
        return lambda span: text(span) == wanted
    return lambda span: wanted in text(span)


def span_order(order_by: str) -> tuple[Callable[[Span], Any] | None, bool]:
    """Return the sort key of spans and whether it is descending.

    A key of None means: by sequence id, then start time.
    """
    name, descending = parse_order(order_by, ["sequence_id", *ORDERS])
    return ORDERS.get(name), descending


def holds_any(packed: bytes, span_ids: set[bytes]) -> bool:
    """Tell whether any of the span ids is among packed ones."""
    starts = range(0, len(packed), SPAN_ID_BYTES)
    return any(packed[i : i + SPAN_ID_BYTES] in span_ids for i in starts)
