"""Converts spans between agentlightning's model and OTLP.

agentlightning's times are float seconds, OTLP's are nanoseconds; a float is returned unchanged. The
extra fields of a span, which OTLP does not have, are stored as JSON in one attribute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from agentlightning.types import Event, Link, OtelResource, Span, SpanContext, TraceStatus
from lightningstore import client
from lightningstore.client.otlp import from_any_value
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from pydantic_core import to_json

NANOS = 1_000_000_000
#: The first second that OTLP cannot represent.
_END = (1 << 64) // NANOS
#: Holds the extra fields of a span.
EXTRA = "agentlightning.extra"
#: Extra fields that describe the SDK's own objects, or that OTLP has a field for.
_NOT_KEPT = {
    *("kind", "instrumentation_info", "instrumentation_scope", "sampler", "trace_config"),
    *("record_exception", "set_status_on_exception", "limits", "lock", "record_end_metrics"),
}
#: The regular fields of a span: an extra field with such a name is another program's attribute.
_FIELDS = frozenset(Span.model_fields)
_KINDS = trace_pb2.Span.SpanKind.DESCRIPTOR.values_by_number
_CODES = trace_pb2.Status.StatusCode.DESCRIPTOR.values_by_number
_SCOPE = re.compile(r"InstrumentationScope\(([^,]*), ([^,)]*)")
_HEX = re.compile(r"[0-9a-f]+")
#: Bits of OTLP's flags.
_REMOTE_IS_KNOWN = 0x100
_IS_REMOTE = 0x200


def _nanos(seconds: float | None) -> int:
    if not seconds:
        return 0
    if not 0 < seconds < _END:
        raise ValueError(
            f"{seconds!r} is no time of a span: seconds since 1970 are wanted, below {_END}"
        )
    return round(Fraction(seconds) * NANOS)


def _seconds(nanos: int) -> float | None:
    return nanos / NANOS if nanos else None


def _id(name: str, text: str, size: int) -> bytes:
    lowered = text.lower()
    if len(lowered) != 2 * size or not _HEX.fullmatch(lowered) or not lowered.strip("0"):
        raise ValueError(f"{name}: {2 * size} hex digits, not all zero, are wanted, not {text!r}")
    return bytes.fromhex(lowered)


def _any_value(value: Any) -> AnyValue:
    found = AnyValue()
    if isinstance(value, bool):
        found.bool_value = value
    elif isinstance(value, int):
        found.int_value = value
    elif isinstance(value, float):
        found.double_value = value
    elif isinstance(value, str):
        found.string_value = value
    else:
        found.array_value.values.extend(_any_value(item) for item in value)
    return found


def _pairs(attributes: Mapping[str, Any] | None) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any_value(value)) for key, value in (attributes or {}).items()]


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _attribute(from_any_value(pair.value)) for pair in pairs}


def _attribute(value: Any) -> Any:
    """Return a value in a form that agentlightning accepts: maps and mixed lists as JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if value is None:
        return ""
    if isinstance(value, dict) or (isinstance(value, list) and not _is_plain(value)):
        return json.dumps(value, default=bytes.hex)
    return value


def _is_plain(values: list[Any]) -> bool:
    kinds = {type(value) for value in values}
    return len(kinds) <= 1 and kinds <= {str, bool, int, float}


def _state(state: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in state.items())


def _from_state(header: str) -> dict[str, str]:
    entries = (entry.strip().partition("=") for entry in header.split(",") if entry.strip())
    return {key: value for key, _, value in entries}


def _flags(context: SpanContext | None) -> int:
    if context is None:
        return 0
    return _REMOTE_IS_KNOWN | (_IS_REMOTE if context.is_remote else 0)


def _kind(span: Span) -> int:
    word = str((span.model_extra or {}).get("kind", "")).rpartition(".")[2]
    found = trace_pb2.Span.SpanKind.DESCRIPTOR.values_by_name.get(f"SPAN_KIND_{word}")
    return 0 if found is None else int(found.number)


def to_otlp(span: Span) -> trace_pb2.Span:
    """Return a span as an OTLP message. Raises ValueError for ids that are not OpenTelemetry's."""
    extra = {k: v for k, v in (span.model_extra or {}).items() if k not in _NOT_KEPT}
    otlp = trace_pb2.Span(
        trace_id=_id("trace_id", span.trace_id, 16),
        span_id=_id("span_id", span.span_id, 8),
        parent_span_id=_id("parent_id", span.parent_id, 8) if span.parent_id else b"",
        trace_state=_state(span.context.trace_state) if span.context else "",
        flags=_flags(span.parent),
        name=span.name,
        kind=_kind(span),  # type: ignore[arg-type]
        start_time_unix_nano=_nanos(span.start_time),
        end_time_unix_nano=_nanos(span.end_time),
        attributes=_pairs(span.attributes),
        events=[
            trace_pb2.Span.Event(
                name=event.name,
                time_unix_nano=_nanos(event.timestamp),
                attributes=_pairs(event.attributes),
            )
            for event in span.events
        ],
        links=[_to_link(link) for link in span.links],
        status=trace_pb2.Status(
            code=trace_pb2.Status.StatusCode.Value(f"STATUS_CODE_{span.status.status_code}"),
            message=span.status.description or "",
        ),
    )
    if extra:
        otlp.attributes.append(KeyValue(key=EXTRA, value=_any_value(to_json(extra).decode())))
    return otlp


def _to_link(link: Link) -> trace_pb2.Span.Link:
    return trace_pb2.Span.Link(
        trace_id=_id("links.trace_id", link.context.trace_id, 16),
        span_id=_id("links.span_id", link.context.span_id, 8),
        trace_state=_state(link.context.trace_state),
        flags=_flags(link.context),
        attributes=_pairs(link.attributes),
    )


def head(span: Span) -> SpanBatch:
    """Return the batch of a span without its spans: the attempt, resource and scope."""
    scope = InstrumentationScope()
    if found := _SCOPE.match(str((span.model_extra or {}).get("instrumentation_scope", ""))):
        scope.name, scope.version = found[1], found[2].replace("None", "")
    return SpanBatch(
        rollout_id=span.rollout_id,
        attempt_id=span.attempt_id,
        resource=Resource(attributes=_pairs(span.resource.attributes)),
        resource_schema_url=span.resource.schema_url,
        scope=scope,
    )


def of_readable(rollout_id: str, attempt_id: str, span: ReadableSpan) -> SpanBatch:
    """Return a span of OpenTelemetry's SDK as a batch, with nanoseconds."""
    of_resource = encode_spans([span]).resource_spans[0]
    of_scope = of_resource.scope_spans[0]
    return SpanBatch(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        resource=of_resource.resource,
        resource_schema_url=of_resource.schema_url,
        scope=of_scope.scope,
        schema_url=of_scope.schema_url,
        spans=of_scope.spans,
    )


def from_client(span: client.Span) -> Span:
    """Return a stored span as agentlightning's."""
    otlp = span.otlp
    attributes = _attributes(otlp.attributes)
    extra = _pop_extra(attributes, otlp.attributes) if EXTRA in attributes else {}
    if (kind := _KINDS.get(otlp.kind)) is not None and kind.number:
        extra["kind"] = f"SpanKind.{kind.name[len('SPAN_KIND_') :]}"
    if span.scope.name:
        named = f"{span.scope.name}, {span.scope.version}"
        extra["instrumentation_scope"] = f"InstrumentationScope({named}, , {{}})"
    # OTLP's enums are open: an unknown number is read as unset.
    code: Any = _CODES.get(otlp.status.code, _CODES[0]).name[len("STATUS_CODE_") :]
    parent_id = span.parent_span_id or None
    return Span(
        rollout_id=span.rollout_id,
        attempt_id=span.attempt_id,
        sequence_id=span.sequence_id,
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=parent_id,
        name=otlp.name,
        status=TraceStatus(status_code=code, description=otlp.status.message or None),
        attributes=attributes,
        events=[_from_event(event) for event in otlp.events],
        links=[_from_link(link) for link in otlp.links],
        start_time=_seconds(otlp.start_time_unix_nano),
        end_time=_seconds(otlp.end_time_unix_nano),
        context=SpanContext(
            trace_id=span.trace_id,
            span_id=span.span_id,
            is_remote=False,
            trace_state=_from_state(otlp.trace_state),
        ),
        parent=None
        if parent_id is None
        else SpanContext(
            trace_id=span.trace_id,
            span_id=parent_id,
            is_remote=bool(otlp.flags & _IS_REMOTE),
            trace_state={},
        ),
        resource=OtelResource(
            attributes=_attributes(span.resource.attributes),
            schema_url=span._batch.resource_schema_url,
        ),
        **extra,
    )


def _pop_extra(attributes: dict[str, Any], pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Remove the extra fields of a span from its attributes and return them.

    Any OpenTelemetry SDK may set an attribute of that name. One that `to_otlp` cannot have written
    is kept.
    """
    text = next(pair.value.string_value for pair in pairs if pair.key == EXTRA)
    try:
        extra = json.loads(text)
        if not isinstance(extra, dict) or not _FIELDS.isdisjoint(extra):
            return {}
        # JSON can contain half of a surrogate pair, which cannot be sent.
        if "\\u" in text:
            to_json(extra)
    except (ValueError, RecursionError):
        return {}
    del attributes[EXTRA]
    return extra


def _from_event(event: trace_pb2.Span.Event) -> Event:
    return Event(
        name=event.name,
        attributes=_attributes(event.attributes),
        timestamp=_seconds(event.time_unix_nano),
    )


def _from_link(link: trace_pb2.Span.Link) -> Link:
    context = SpanContext(
        trace_id=link.trace_id.hex(),
        span_id=link.span_id.hex(),
        is_remote=bool(link.flags & _IS_REMOTE),
        trace_state=_from_state(link.trace_state),
    )
    return Link(context=context, attributes=_attributes(link.attributes) or None)
