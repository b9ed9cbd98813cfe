"""Spans in OTLP's JSON: protobuf's own, but ids in hex and enums as numbers.

Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Written out by hand, for protobuf's
own converter takes ten times as long.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

M = TypeVar("M", bound=Message)

#: Fields that OTLP writes in hex, protobuf's JSON in base64.
_HEX = ("traceId", "spanId", "parentSpanId")
#: Messages within messages that protobuf reads.
MAX_LEVELS = 100
_WORDS = {math.inf: "Infinity", -math.inf: "-Infinity"}


def batch_to_json(batch: SpanBatch) -> dict[str, Any]:
    """Return a batch without its rollout id. What this OTLP does not know stays, as `protobuf` in base64."""
    told: dict[str, Any] = {"attemptId": batch.attempt_id}
    if batch.HasField("resource"):
        told["resource"] = json_format.MessageToDict(batch.resource)
    if batch.resource_schema_url:
        told["resourceSchemaUrl"] = batch.resource_schema_url
    if batch.HasField("scope"):
        told["scope"] = json_format.MessageToDict(batch.scope)
    if batch.schema_url:
        told["schemaUrl"] = batch.schema_url
    told["sequenceIds"] = list(map(str, batch.sequence_ids))
    told["spans"] = list(map(span_to_json, batch.spans))
    known = SpanBatch.FromString(batch.SerializeToString())
    known.DiscardUnknownFields()
    if known.ByteSize() != batch.ByteSize():
        told["protobuf"] = base64.b64encode(batch.SerializeToString(deterministic=True)).decode()
    return told


def batch_from_json(told: dict[str, Any], rollout_id: str) -> SpanBatch:
    """Return the batch. Raises ValueError."""
    if "protobuf" in told:
        try:
            batch = SpanBatch.FromString(base64.b64decode(told["protobuf"]))
        except (TypeError, ValueError, DecodeError):
            raise ValueError("spans: protobuf must be a SpanBatch in base64") from None
    else:
        batch = read(SpanBatch, {key: value for key, value in told.items() if key != "spans"})
        batch.spans.extend(map(span_from_json, objects(told, "spans")))
    batch.rollout_id = rollout_id
    return batch


def read(kind: type[M], told: Any, max_levels: int = MAX_LEVELS) -> M:
    """Return the message that protobuf's JSON tells; fields that came later are left out.

    Raises ValueError.
    """
    try:
        return json_format.ParseDict(
            told, kind(), ignore_unknown_fields=True, max_recursion_depth=max_levels
        )
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # an infinite number, or half a character where a name belongs
        raise ValueError(f"{kind.DESCRIPTOR.name}: {error}") from None


def span_to_json(span: Span) -> dict[str, Any]:
    """Convert a span to OTLP's JSON: ids in hex digits, times as strings, enums as numbers.

    Args:
        span: The OTLP span.

    Returns:
        A JSON object. Empty fields are left out.
    """
    told: dict[str, Any] = {"traceId": span.trace_id.hex(), "spanId": span.span_id.hex()}
    if span.trace_state:
        told["traceState"] = span.trace_state
    if span.parent_span_id:
        told["parentSpanId"] = span.parent_span_id.hex()
    if span.flags:
        told["flags"] = span.flags
    if span.name:
        told["name"] = span.name
    if span.kind:
        told["kind"] = span.kind
    if span.start_time_unix_nano:
        told["startTimeUnixNano"] = str(span.start_time_unix_nano)
    if span.end_time_unix_nano:
        told["endTimeUnixNano"] = str(span.end_time_unix_nano)
    _add_attributes(told, span)
    if span.events:
        told["events"] = list(map(_event, span.events))
    if span.dropped_events_count:
        told["droppedEventsCount"] = span.dropped_events_count
    if span.links:
        told["links"] = list(map(_link, span.links))
    if span.dropped_links_count:
        told["droppedLinksCount"] = span.dropped_links_count
    if span.HasField("status"):
        status = told["status"] = {}
        if span.status.message:
            status["message"] = span.status.message
        if span.status.code:
            status["code"] = span.status.code
    return told


def _add_attributes(told: dict[str, Any], owner: Any) -> None:
    if owner.attributes:
        told["attributes"] = list(map(_pair, owner.attributes))
    if owner.dropped_attributes_count:
        told["droppedAttributesCount"] = owner.dropped_attributes_count


def _event(event: Span.Event) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if event.time_unix_nano:
        told["timeUnixNano"] = str(event.time_unix_nano)
    if event.name:
        told["name"] = event.name
    _add_attributes(told, event)
    return told


def _link(link: Span.Link) -> dict[str, Any]:
    told: dict[str, Any] = {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex()}
    if link.trace_state:
        told["traceState"] = link.trace_state
    _add_attributes(told, link)
    if link.flags:
        told["flags"] = link.flags
    return told


def _pair(pair: KeyValue) -> dict[str, Any]:
    if not pair.key:
        return json_format.MessageToDict(pair)  # perhaps one of a table of strings
    told: dict[str, Any] = {"key": pair.key}
    if pair.HasField("value"):
        told["value"] = value_to_json(pair.value)
    return told


def value_to_json(value: AnyValue) -> dict[str, Any]:
    """Return a value of OTLP, which says of which kind it is."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return {"stringValue": value.string_value}
    if kind == "int_value":
        return {"intValue": str(value.int_value)}
    if kind == "double_value":
        number = value.double_value
        if not math.isfinite(number):
            return {"doubleValue": _WORDS.get(number, "NaN")}
        return {"doubleValue": number}
    if kind == "array_value":
        return {"arrayValue": _values(map(value_to_json, value.array_value.values))}
    if kind == "kvlist_value":
        return {"kvlistValue": _values(map(_pair, value.kvlist_value.values))}
    return json_format.MessageToDict(value)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    found = list(items)
    return {"values": found} if found else {}


class FieldError(ValueError):
    """A field of a JSON object is invalid.

    Args:
        field: Path of the field, such as `links[0].spanId`.
        reason: What it must be.

    Attributes:
        field: Path of the field.
        reason: What it must be.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


def span_from_json(told: dict[str, Any], max_levels: int = MAX_LEVELS) -> Span:
    """Convert OTLP's JSON to a span. Unknown fields are ignored.

    Args:
        told: The JSON object of a span.
        max_levels: Maximum nesting of messages, counted from the span.

    Returns:
        The OTLP span.

    Raises:
        ValueError: A field is invalid. The error names it; for an id it is a `FieldError`.
    """
    span = Span()
    try:
        for key, value in told.items():
            if key == "attributes":
                _put_attributes(span, value, max_levels)
            elif key == "events":
                _put_events(span, value, max_levels - 1)
            else:
                _USUAL[key](span, value)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Whatever else may stand there, protobuf's own reader knows it, or knows what is wrong.
        return read(Span, _with_base64(told), max_levels)
    return span


def _hex(name: str) -> Callable[[Span, Any], None]:
    return lambda span, value: setattr(span, name, binascii.unhexlify(value))


def _nano(name: str) -> Callable[[Span, Any], None]:
    return lambda span, value: setattr(span, name, _number(value))


def _same(name: str, kind: type) -> Callable[[Span, Any], None]:
    def put(span: Span, value: Any) -> None:
        if type(value) is not kind:
            raise TypeError
        setattr(span, name, value)

    return put


def _number(value: Any) -> int:
    if type(value) is not str or not value.lstrip("-").isdecimal():
        raise TypeError
    return int(value)


def _put_attributes(owner: Span | Span.Event, told: Any, max_levels: int) -> None:
    for pair in told:
        key, value = pair["key"], pair["value"]
        ((kind, found),) = value.items()
        if len(pair) != 2 or type(key) is not str:
            raise TypeError
        if kind == "stringValue" and type(found) is str:
            owner.attributes.add(key=key).value.string_value = found
        elif kind == "intValue":
            owner.attributes.add(key=key).value.int_value = _number(found)
        elif (kind == "doubleValue" and type(found) is float) or (
            kind == "boolValue" and type(found) is bool
        ):
            setattr(owner.attributes.add(key=key).value, f"{kind[:-5]}_value", found)
        else:
            # Two levels below the owner: its pair, and the value.
            owner.attributes.add(key=key).value.CopyFrom(read(AnyValue, value, max_levels - 2))


def _put_events(span: Span, told: Any, max_levels: int) -> None:
    for fields in told:
        event = span.events.add()
        for key, value in fields.items():
            if key == "attributes":
                _put_attributes(event, value, max_levels)
            elif key == "timeUnixNano":
                event.time_unix_nano = _number(value)
            elif key == "name" and type(value) is str:
                event.name = value
            else:
                raise TypeError


def _put_status(span: Span, told: Any) -> None:
    for key, value in told.items():
        if key == "message" and type(value) is str:
            span.status.message = value
        elif key == "code" and type(value) is int:
            span.status.code = value  # type: ignore[assignment]
        else:
            raise TypeError
    span.status.SetInParent()


#: How the usual parts of a span are read, ten times as fast as by protobuf's own reader.
_USUAL: dict[str, Callable[[Span, Any], None]] = {
    "traceId": _hex("trace_id"),
    "spanId": _hex("span_id"),
    "parentSpanId": _hex("parent_span_id"),
    "name": _same("name", str),
    "kind": _same("kind", int),
    "flags": _same("flags", int),
    "startTimeUnixNano": _nano("start_time_unix_nano"),
    "endTimeUnixNano": _nano("end_time_unix_nano"),
    "status": _put_status,
}


def _with_base64(told: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return a span, or a link, with its ids as protobuf's JSON has them. Raises ValueError."""
    changed = dict(told)
    for key in _HEX:
        if changed.get(key) is not None:
            changed[key] = _base64(f"{path}{key}", changed[key])
    if changed.get("links") is not None:
        changed["links"] = [
            _with_base64(link, f"{path}links[{at}].")
            for at, link in enumerate(objects(changed, "links"))
        ]
    return changed


def _base64(path: str, digits: Any) -> str:
    try:
        return base64.b64encode(binascii.unhexlify(digits)).decode()
    except (TypeError, ValueError):
        raise FieldError(path, f"must be hex digits, not {digits!r:.200}") from None


def request_batches(
    told: dict[str, Any], take: Callable[[dict[str, Any]], Span | None] = span_from_json
) -> list[SpanBatch]:
    """Convert an ExportTraceServiceRequest in JSON to batches, one for each resource and scope.

    Args:
        told: The JSON object of the request.
        take: Converts the JSON object of a span. It may return None to leave the span out.

    Returns:
        The batches, without ids of rollout and attempt.

    Raises:
        ValueError: A field is invalid. The error names it.
    """
    found = []
    for resource_spans in objects(told, "resourceSpans"):
        for scope_spans in objects(resource_spans, "scopeSpans"):
            batch = {
                "resource": resource_spans.get("resource"),
                "resourceSchemaUrl": resource_spans.get("schemaUrl"),
                "scope": scope_spans.get("scope"),
                "schemaUrl": scope_spans.get("schemaUrl"),
            }
            found.append(read(SpanBatch, {k: v for k, v in batch.items() if v is not None}))
            spans = map(take, objects(scope_spans, "spans"))
            found[-1].spans.extend(span for span in spans if span is not None)
    return found


def objects(told: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects; none where the key is missing. Raises ValueError."""
    found = told.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{key} must be a list of objects")
    return found
