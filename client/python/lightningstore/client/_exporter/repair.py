"""Spans repaired for OTLP, which cannot carry all texts and numbers of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightningstore.client._values.text import valid
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Status

_LEAST, _GREATEST = -(1 << 63), (1 << 63) - 1

_last_sound: Resource | None = None


def repaired(span: ReadableSpan) -> ReadableSpan:
    """Return a span that OTLP can carry: the same object, unless a part must change.

    OpenTelemetry's encoder drops an attribute with half a surrogate pair or with an integer beyond 64 bits, and fails
    on a name with half a pair. Texts are made valid UTF-8 (see `valid`). Such integers become text.
    """
    if _is_sound(span):
        return span
    return ReadableSpan(
        name=valid(span.name),
        context=span.context,
        parent=span.parent,
        resource=_resource(span.resource),
        attributes=_attributes(span.attributes, span.dropped_attributes),
        events=[
            Event(
                valid(event.name),
                _attributes(event.attributes, event.dropped_attributes),
                event.timestamp,
            )
            for event in span.events
        ],
        links=[
            Link(link.context, _attributes(link.attributes, link.dropped_attributes))
            for link in span.links
        ],
        kind=span.kind,
        instrumentation_scope=_scope(span.instrumentation_scope),
        status=_status(span.status),
        start_time=span.start_time,
        end_time=span.end_time,
    )


def _is_sound(span: ReadableSpan) -> bool:
    scope = span.instrumentation_scope
    return (
        _is_text(span.name)
        and _are_sound(span.attributes)
        and _is_sound_resource(span.resource)
        and (scope is None or (_is_text(scope.name) and _is_text(scope.version or "")))
        and _is_text(span.status.description or "")
        and all(_is_text(event.name) and _are_sound(event.attributes) for event in span.events)
        and all(_are_sound(link.attributes) for link in span.links)
    )


def _is_sound_resource(resource: Resource) -> bool:
    """Check a resource, which consecutive spans share, once."""
    global _last_sound  # noqa: PLW0603
    if resource is not _last_sound:
        if not _are_sound(resource.attributes):
            return False
        _last_sound = resource
    return True


def _are_sound(attributes: Mapping[str, Any] | None) -> bool:
    if not attributes:
        return True
    try:
        items: Mapping[str, Any] = attributes.copy()  # type: ignore[attr-defined]
    except AttributeError:
        items = attributes
    # The copy is a dict. The SDK's mapping looks each item up in Python, which takes longer than everything else.
    return all(_is_text(key) and _is_value(value) for key, value in items.items())


def _is_value(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return _is_text(value)
    if kind is float or kind is bool or value is None or kind is bytes:
        return True
    if kind is int:
        return bool(_LEAST <= value <= _GREATEST)
    if isinstance(value, int):  # of a subclass, as the texts below
        return _LEAST <= value <= _GREATEST
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, Mapping):
        return _are_sound(value)
    if isinstance(value, Sequence):
        return all(map(_is_value, value))
    return True


def _is_text(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _attributes(attributes: Mapping[str, Any] | None, dropped: int) -> BoundedAttributes:
    repaired_attributes = BoundedAttributes(
        attributes={valid(key): _value(value) for key, value in (attributes or {}).items()}
    )
    repaired_attributes.dropped += dropped
    return repaired_attributes


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, int) and not _LEAST <= value <= _GREATEST:
        try:
            return str(value)
        except ValueError:  # more digits than Python prints
            return hex(value)
    if isinstance(value, Mapping):
        return {valid(str(key)): _value(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(map(_value, value))
    return value


def _resource(resource: Resource) -> Resource:
    attributes = {valid(key): _value(value) for key, value in resource.attributes.items()}
    return Resource(attributes, resource.schema_url)


def _scope(scope: InstrumentationScope | None) -> InstrumentationScope | None:
    if scope is None:
        return None
    return InstrumentationScope(
        valid(scope.name),
        None if scope.version is None else valid(scope.version),
        scope.schema_url,
        scope.attributes,
    )


def _status(status: Status) -> Status:
    if status.description is None:
        return status
    return Status(status.status_code, valid(status.description))
