"""OTLP's JSON encoding: ProtoJSON, but with ids in hex, enums as numbers, and unknown fields ignored.

A request is split without parsing its spans, which are then parsed one by one: a span that nests too deep or is invalid
is rejected alone. Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from lightningstore.client.otlp import FieldError, span_from_json
from lightningstore.service.rpc.lenient import TOO_DEEP, UNREADABLE, Refusal, Scope
from lightningstore.service.rules import text_repair as repair
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    FieldInvalid,
    MalformedMessage,
    PayloadTooLarge,
)
from lightningstore.service.rules.json_values import MAX_VALUES, has_more_values
from lightningstore.service.rules.limits import Limits
from lightningstore.service.rules.texts import SHOWN_LENGTH
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

#: Maximum nesting of messages in a span. protobuf counts from the request, and stops a little later.
MAX_LEVELS = repair.MAX_LEVELS - 10
_NONE = msgspec.Raw(b"null")

M = TypeVar("M", bound=Message)


class _Scope(msgspec.Struct, rename="camel"):
    scope: msgspec.Raw = _NONE
    spans: list[msgspec.Raw] | None = None
    schema_url: str | None = None


class _Group(msgspec.Struct, rename="camel"):
    resource: msgspec.Raw = _NONE
    scope_spans: list[_Scope] | None = None
    schema_url: str | None = None


class _Export(msgspec.Struct, rename="camel"):
    resource_spans: list[_Group] | None = None


_DECODER = msgspec.json.Decoder(_Export)


class _TooDeep(Exception):
    """The nesting of messages exceeds MAX_LEVELS."""


def scopes(data: bytes, limits: Limits) -> tuple[list[Scope], Counter[Refusal]]:
    """Return the scopes of an ExportTraceServiceRequest in JSON, and the number of rejected spans by reason.

    The size limit of a span also applies to its JSON: building a larger one would hold the event loop.

    Raises MalformedMessage, FieldInvalid, PayloadTooLarge, BatchTooLarge.
    """
    if has_more_values(data, MAX_VALUES):
        raise BatchTooLarge("values in the body", f"more than {MAX_VALUES}", MAX_VALUES)
    request = _decode(data)
    count = sum(
        len(scope.spans or ())
        for group in request.resource_spans or ()
        for scope in group.scope_spans or ()
    )
    if count > limits.message_spans:
        raise BatchTooLarge("spans", count, limits.message_spans)
    max_span_bytes = limits.span_bytes
    found: list[Scope] = []
    refused: Counter[Refusal] = Counter()
    for i, group in enumerate(request.resource_spans or ()):
        place = f"resourceSpans[{i}]"
        resource = _whole(group.resource, Resource, f"{place}.resource", max_span_bytes)
        for j, scope in enumerate(group.scope_spans or ()):
            spans = _scope_spans(scope, f"{place}.scopeSpans[{j}]", refused, max_span_bytes)
            found.append(
                Scope(resource, group.schema_url or "", spans.SerializeToString(), len(spans.spans))
            )
    return found, refused


def _decode(data: bytes) -> _Export:
    """Return a request, its text repaired if necessary. Raises MalformedMessage, FieldInvalid."""
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        raise FieldInvalid("body", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        repaired = repair.json(data) if not isinstance(error, RecursionError) else data
        if repaired != data:
            return _decode(repaired)
        raise MalformedMessage(
            f"{ExportTraceServiceRequest.DESCRIPTOR.full_name} in JSON"
        ) from None


def _scope_spans(scope: _Scope, place: str, refused: Counter[Refusal], limit: int) -> ScopeSpans:
    answer = ScopeSpans(schema_url=scope.schema_url or "")
    named = _whole(scope.scope, InstrumentationScope, f"{place}.scope", limit)
    if named is not None:
        answer.scope.CopyFrom(named)
    for raw in scope.spans or ():
        try:
            span = _message(raw, Span, "span", limit)
        except _TooDeep:
            refused[Refusal(UNREADABLE, TOO_DEEP)] += 1
            continue
        except (FieldInvalid, PayloadTooLarge) as error:
            refused[Refusal.of(error)] += 1
            continue
        answer.spans.append(span or Span())
    return answer


def _whole(raw: msgspec.Raw, kind: type[M], place: str, limit: int) -> M | None:
    """Return a resource or scope: it belongs to many spans, so an error in it rejects the request."""
    try:
        return _message(raw, kind, place, limit)
    except _TooDeep:
        raise FieldInvalid(place, TOO_DEEP) from None


def _message(raw: msgspec.Raw, kind: type[M], place: str, limit: int) -> M | None:
    """Return a value as a message, None for null. Raises FieldInvalid, PayloadTooLarge, _TooDeep."""
    if (size := memoryview(raw).nbytes) > limit:
        raise PayloadTooLarge(place, size, limit)
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise _TooDeep from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldInvalid(place, str(error)) from None
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FieldInvalid(place, "must be an object")
    try:
        if kind is Span:
            return span_from_json(value, MAX_LEVELS)  # type: ignore[return-value]
        message = kind()
        ParseDict(value, message, ignore_unknown_fields=True, max_recursion_depth=MAX_LEVELS)
    except FieldError as error:
        raise FieldInvalid(f"{place}.{error.field}", error.reason) from None
    except (ParseError, TypeError, ValueError, AttributeError) as error:
        if "too deep" in str(error):
            raise _TooDeep from None
        raise FieldInvalid(place, str(error)[:SHOWN_LENGTH]) from None
    return message
