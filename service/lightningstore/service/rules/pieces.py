"""Splits large messages of spans without parsing them. Pure.

Parsing a message of empty spans takes 90 times its size in memory and holds the event loop. A large
message is therefore counted on the wire first, and then parsed in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import BatchTooLarge, MalformedMessage, PayloadTooLarge
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

#: Messages up to this size are parsed before their spans are counted. Parsing takes at most 25 ms.
UNCOUNTED_BYTES = 256 << 10
#: Size of a piece: a little more than the batches of clients. Parsing this number of bytes of the
#: smallest attributes takes 20 ms.
PIECE_BYTES = 17 << 16
PIECE_SPANS = 2_000
#: Maximum number of attributes, events and links in all spans of a message that are larger than a
#: piece.
MAX_PARTS = 50_000
#: Maximum number of fields of a message that are not spans. Sequence ids may be sent as one field
#: each.
OTHER_FIELDS = 1_000

_SPANS = SpanBatch.SPANS_FIELD_NUMBER
_SEQUENCE_IDS = SpanBatch.SEQUENCE_IDS_FIELD_NUMBER
_GROUPS = ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER
_SCOPES = ResourceSpans.SCOPE_SPANS_FIELD_NUMBER
_MAX_VARINT_BYTES = 10


class Cut(NamedTuple):
    """A serialised SpanBatch or ScopeSpans, and the positions of its spans."""

    data: bytes
    #: Everything except the spans, serialised.
    head: bytes
    #: Begin of the field of each span, and the end of the last one.
    begins: list[int]
    ends: list[int]

    @property
    def is_small(self) -> bool:
        """Whether it can be parsed in one piece."""
        return len(self.data) <= PIECE_BYTES and len(self.begins) <= PIECE_SPANS

    def pieces(self) -> Iterator[range]:
        """Yield the indexes of the spans in pieces. A larger span is a piece of its own."""
        begins, ends, first = self.begins, self.ends, 0
        while first < len(begins):
            end, size = first, 0
            while end < len(begins) and end - first < PIECE_SPANS:
                size += ends[end] - begins[end]
                if size > PIECE_BYTES and end > first:
                    break
                end += 1
            yield range(first, end)
            first = end

    def spans(self, indexes: Sequence[int]) -> bytes:
        """Return some of the spans, serialised as fields of a SpanBatch."""
        return b"".join(self.views(indexes))

    def views(self, indexes: Sequence[int]) -> list[memoryview]:
        """Return the fields of some of the spans, without copying."""
        begins, ends, data = self.begins, self.ends, memoryview(self.data)
        return [data[begins[i] : ends[i]] for i in indexes]


def _check_counts(spans: int, others: int, max_spans: int) -> None:
    """Raise BatchTooLarge for a message with too many spans or other fields."""
    if spans > max_spans:
        raise BatchTooLarge("spans", f"more than {max_spans}", max_spans)
    if others > OTHER_FIELDS + max_spans:
        limit = OTHER_FIELDS + max_spans
        raise BatchTooLarge("fields besides spans", f"more than {limit}", limit)


def cut(data: bytes, max_spans: int, max_span_bytes: int) -> Cut:
    """Find the spans of a serialised SpanBatch or ScopeSpans.

    `max_span_bytes` also limits everything except the spans.

    Raises:
        MalformedMessage, BatchTooLarge, PayloadTooLarge
    """
    begins: list[int] = []
    ends: list[int] = []
    others: list[bytes] = []
    others_bytes = parts = 0
    try:
        for number, begin, start, end in wire.fields(data, 0, len(data)):
            if number == _SPANS:
                _check_counts(len(begins) + 1, 0, max_spans)
                if end - start > PIECE_BYTES:
                    parts = _count_parts(data, start, end, parts)
                begins.append(begin)
                ends.append(end)
                continue
            if number != _SEQUENCE_IDS:
                others_bytes += end - begin
            elif end - begin > _MAX_VARINT_BYTES * (max_spans + 1):
                raise BatchTooLarge("sequence_ids", f"more than {max_spans}", max_spans)
            _check_counts(0, len(others) + 1, max_spans)
            others.append(data[begin:end])
    except ValueError:
        raise MalformedMessage(SpanBatch.DESCRIPTOR.full_name) from None
    if others_bytes > max_span_bytes:
        raise PayloadTooLarge("resource and scope", others_bytes, max_span_bytes)
    return Cut(data, b"".join(others), begins, ends)


def _count_parts(data: bytes, start: int, end: int, count: int) -> int:
    """Return `count` plus the number of parts of a large span.

    Raises:
        BatchTooLarge: The count exceeds MAX_PARTS.
    """
    for _ in wire.fields(data, start, end):
        count += 1
        if count > MAX_PARTS:
            field = f"attributes, events and links of spans above {PIECE_BYTES} bytes"
            raise BatchTooLarge(field, f"more than {MAX_PARTS}", MAX_PARTS)
    return count


def split_request(data: bytes, number: int) -> tuple[bytes, bytes]:
    """Split a request into a serialised SpanBatch and the other fields.

    The batch is in field `number`, which may occur repeatedly.

    Raises:
        MalformedMessage, BatchTooLarge
    """
    start = wire.frame(data, number)
    if start is not None:
        return data[start:], b""
    batch: list[bytes] = []
    others: list[bytes] = []
    try:
        for count, (field, begin, start, end) in enumerate(wire.fields(data, 0, len(data))):
            _check_counts(0, count, 0)
            if field == number:
                batch.append(data[start:end])
            else:
                others.append(data[begin:end])
    except ValueError:
        raise MalformedMessage(SpanBatch.DESCRIPTOR.full_name) from None
    return b"".join(batch), b"".join(others)


def scopes(data: bytes, max_spans: int, max_span_bytes: int) -> list[tuple[bytes, bytes, int]]:
    """Return the scopes of a serialised ExportTraceServiceRequest.

    Each is a serialised ScopeSpans with the number of its spans, after all other fields of its
    ResourceSpans. `max_span_bytes` also limits those.

    Raises:
        MalformedMessage, BatchTooLarge, PayloadTooLarge
    """
    found: list[tuple[bytes, bytes, int]] = []
    count = others = 0
    try:
        for group, _, start, end in wire.fields(data, 0, len(data)):
            head: list[bytes] = []
            inner: list[tuple[bytes, int]] = []
            others += 1
            for number, begin, at, stop in (
                wire.fields(data, start, end) if group == _GROUPS else ()
            ):
                others += 1
                if number == _SCOPES:
                    before = count
                    for field, *_ in wire.fields(data, at, stop):
                        count += field == _SPANS
                        others += field != _SPANS
                        _check_counts(count, others, max_spans)
                    inner.append((data[at:stop], count - before))
                else:
                    head.append(data[begin:stop])
                _check_counts(count, others, max_spans)
            _check_counts(count, others, max_spans)
            whole = b"".join(head)
            if len(whole) > max_span_bytes:
                raise PayloadTooLarge("resource", len(whole), max_span_bytes)
            found += [(whole, *scope) for scope in inner]
    except ValueError:
        raise MalformedMessage(ExportTraceServiceRequest.DESCRIPTOR.full_name) from None
    return found
