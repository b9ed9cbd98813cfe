"""Decodes requests without parsing their spans, with message types whose spans are bytes.

The wire format of these twins is the same. So a request whose scopes are stored as they are need not be built, and a
request that protobuf rejects because one span nests too deep can be decoded without that span.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from lightningstore.service.operations.ingest import reason_name
from lightningstore.service.rules import pieces
from lightningstore.service.rules import text_repair as repair
from lightningstore.service.rules.errors import MalformedMessage, StoreError
from lightningstore.service.rules.limits import Limits
from lightningstore.service.rules.twins import twin
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

UNREADABLE = "unreadable"
TOO_DEEP = "nests too deep"

M = TypeVar("M", bound=Message)

_IngestTwin = twin("ingest", (IngestSpansRequest, "batch"), (SpanBatch, "spans"))
_BatchTwin = twin("batch", (SpanBatch, "spans"))
_ExportTwin = twin(
    "export", (ExportTraceServiceRequest, "resource_spans"), (ResourceSpans, "scope_spans")
)


class Refusal(NamedTuple):
    """Why spans were rejected."""

    #: One of a small set of words, for metrics.
    reason: str
    #: For people.
    message: str

    @classmethod
    def of(cls, error: StoreError) -> Refusal:
        """Return the refusal that an error stands for."""
        return cls(reason_name(error.reason), error.message)


class Scope(NamedTuple):
    """The spans of one scope of an export, and their resource."""

    resource: Resource | None
    resource_schema_url: str
    #: A serialised ScopeSpans, whose fields are also those of a SpanBatch.
    data: bytes
    #: Number of spans; 0 if the message is small and they have not been counted.
    span_count: int = 0


def count_spans(data: bytes) -> int | None:
    """Return the number of spans of an IngestSpansRequest, None if the request is malformed."""
    try:
        return len(_IngestTwin.FromString(data).batch.spans)
    except DecodeError:
        return None


def count_scope_spans(data: bytes) -> int:
    """Return the number of spans of a ScopeSpans, 0 if it is malformed."""
    try:
        return len(_BatchTwin.FromString(data).spans)
    except DecodeError:
        return 0


def scopes(data: bytes) -> list[Scope] | None:
    """Return the scopes of an ExportTraceServiceRequest, None if it is malformed."""
    try:
        export = _ExportTwin.FromString(data)
    except DecodeError:
        try:
            export = _ExportTwin.FromString(
                repair.message(data, ExportTraceServiceRequest.DESCRIPTOR).data
            )
        except DecodeError:
            return None
    return [
        Scope(
            group.resource if group.HasField("resource") else None, group.schema_url, bytes(scope)
        )
        for group in export.resource_spans
        for scope in group.scope_spans
    ]


def large_scopes(data: bytes, limits: Limits) -> list[Scope]:
    """Return the scopes of a large ExportTraceServiceRequest, whose spans are counted before anything is built.

    Raises MalformedMessage, BatchTooLarge, PayloadTooLarge.
    """
    found = []
    previous: tuple[bytes, ResourceSpans] | None = None
    for head, scope, count in pieces.scopes(data, limits.message_spans, limits.span_bytes):
        if previous is None or previous[0] is not head:
            previous = (head, _group(head))
        group = previous[1]
        resource = group.resource if group.HasField("resource") else None
        found.append(Scope(resource, group.schema_url, scope, count))
    return found


def _group(head: bytes) -> ResourceSpans:
    """Return a ResourceSpans, its text repaired if necessary. Raises MalformedMessage."""
    try:
        return ResourceSpans.FromString(head)
    except DecodeError:
        pass
    try:
        return ResourceSpans.FromString(repair.message(head, ResourceSpans.DESCRIPTOR).data)
    except DecodeError:
        raise MalformedMessage(ExportTraceServiceRequest.DESCRIPTOR.full_name) from None


def readable_part(data: bytes, refused: Counter[Refusal]) -> SpanBatch | None:
    """Return a ScopeSpans as a batch, its text repaired, without the spans that remain unreadable.

    None if the rest is unreadable, too.
    """
    try:
        twin = _BatchTwin.FromString(data)
    except DecodeError:
        try:
            twin = _BatchTwin.FromString(repair.message(data, ScopeSpans.DESCRIPTOR).data)
        except DecodeError:
            return None
    good = []
    for span in twin.spans:
        field = ""
        if not _is_readable(span):
            span, field = repair.message(span, Span.DESCRIPTOR)  # noqa: PLW2901
            if not _is_readable(span):
                refused[Refusal(UNREADABLE, f"{field}: not UTF-8" if field else TOO_DEEP)] += 1
                continue
        good.append(span)
    del twin.spans[:]
    twin.spans.extend(good)
    try:
        return SpanBatch.FromString(twin.SerializeToString())
    except DecodeError:
        return None


def repaired(message: type[M], data: bytes) -> M | None:
    """Return a message that protobuf has rejected with its text repaired, None if text was not the reason."""
    try:
        return message.FromString(repair.message(data, message.DESCRIPTOR).data)  # type: ignore[arg-type]
    except DecodeError:
        return None


def _is_readable(span: bytes) -> bool:
    """Return whether a span can be decoded at the depth at which requests and answers contain it."""
    batch = _BatchTwin(spans=[span]).SerializeToString()
    request = _IngestTwin()
    request.batch.ParseFromString(batch)
    try:
        IngestSpansRequest.FromString(request.SerializeToString())
    except DecodeError:
        return False
    return True
