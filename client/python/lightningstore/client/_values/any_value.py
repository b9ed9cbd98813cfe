"""Values of OpenTelemetry as Python values."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.common.v1 import common_pb2


def from_any_value(value: common_pb2.AnyValue) -> Any:
    """Return an OTLP value as a Python value.

    Args:
        value: The value of an attribute.

    Returns:
        A str, bool, int, float or bytes, a list for an array, a dict for a map, None for an empty value.
    """
    if text := value.string_value:
        return text
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [from_any_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: from_any_value(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)
