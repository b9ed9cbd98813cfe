"""Rewards in spans: what is one, and which is the last."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from lightningstore.client._values.spans import Span
from opentelemetry.proto.trace.v1 import trace_pb2

ANNOTATION = "agentlightning.annotation"
REWARD = "agentlightning.reward"
PRIMARY = "primary"
_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def finite(value: Any, wanted: str = "a finite number") -> float:
    """Return a reward as a float.

    Raises TypeError for what is not a number, ValueError for one that is not finite, and whatever else
    `float` raises.
    """
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"the reward must be {wanted}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"the reward must be {wanted}: this one is too large for a double"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"the reward must be {wanted}, not {number}")
    return number


def find_final_reward(spans: Iterable[Span]) -> float | None:
    """Return the primary reward of the last span that holds one, None if none does.

    The last by sequence id, in whatever order they come; of several attempts' spans it is the last overall.
    """
    last: tuple[int, int, str] | None = None
    found: float | None = None
    for span in spans:
        place = (span.sequence_id, span.start_time_ns, span.span_id)
        if last is None or place > last:
            reward = span_reward(span)
            if reward is not None:
                last, found = place, reward
    return found


def span_reward(span: Span) -> float | None:
    """Return the primary reward that a span holds, None if it holds none that can be read."""
    attributes = span.attributes
    first = min((i for i in map(_index, attributes) if i is not None), default=None)
    if first is not None:
        return _number(attributes[f"{REWARD}.{first}.value"])
    if REWARD in attributes:
        return _value(attributes[REWARD])
    for key in _OUTPUTS:
        output = attributes.get(key)
        if isinstance(output, str):
            output = _json(output)
        if isinstance(output, dict) and output.get("type") == "reward":
            return _value(output.get("value"))
    if span.name in (ANNOTATION, REWARD):
        return _value(attributes.get("reward"))
    return None


def may_hold(span: trace_pb2.Span) -> bool:
    """Tell at a glance whether a span can hold a reward: whether `span_reward` is worth its time."""
    if span.name in (ANNOTATION, REWARD):
        return True
    return any(pair.key.startswith(REWARD) or pair.key in _OUTPUTS for pair in span.attributes)


def _index(key: str) -> int | None:
    if not (key.startswith(f"{REWARD}.") and key.endswith(".value")):
        return None
    digits = key[len(REWARD) + 1 : -len(".value")]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def _value(value: Any) -> float | None:
    """Read a reward given as one value: a number, a list of named ones, or the JSON text of either."""
    if isinstance(value, str):
        value = _json(value)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("value")
    return _number(value)


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
