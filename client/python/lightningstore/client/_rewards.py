"""Rewards in spans: writing them, and finding the last one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightningstore.client._context import current
from lightningstore.client._spans import Span
from opentelemetry import trace
from opentelemetry.proto.trace.v1 import trace_pb2

logger = logging.getLogger(__name__)

ANNOTATION = "agentlightning.annotation"
REWARD = "agentlightning.reward"
PRIMARY = "primary"
_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def emit_reward(
    reward: float | Mapping[str, float],
    *,
    primary_key: str | None = None,
    tracer: trace.Tracer | None = None,
) -> None:
    """Write down what the work so far was worth, as a span.

    `reward`: a number, or numbers by the names of their dimensions; `primary_key` then says which of them is
    the reward, and the others come along. A single dimension needs none.

    `tracer`: the one that a runner gave; unset, that of the attempt that the calling code works on, and
    outside of a runner the global provider's. The span hangs under the current span. A tracer that records
    nothing loses the reward, which is logged as a warning: in a process or thread that does not know the
    attempt, for instance, and where no provider is set up.

    Raises TypeError for what is no number, ValueError for one that is not finite, and for several
    dimensions without a primary one.
    """
    dimensions = _dimensions(reward, primary_key)
    attributes: dict[str, str | float] = {}
    for index, (name, value) in enumerate(dimensions):
        attributes[f"{REWARD}.{index}.name"] = name
        attributes[f"{REWARD}.{index}.value"] = value
    if tracer is None:
        context = current.get()
        tracer = context.tracer if context is not None else None
    if tracer is None:
        tracer = trace.get_tracer("lightningstore.client")
    span = tracer.start_span(ANNOTATION, attributes=attributes)
    if not span.is_recording():
        logger.warning(
            "the reward %s is lost: this code runs outside of an attempt (in a process or thread of its own, "
            "perhaps), and OpenTelemetry's global tracer provider records nothing; give emit_reward the "
            "tracer of the attempt, or set up a provider with a SpanExporter",
            reward,
        )
    span.end()


def _dimensions(
    reward: float | Mapping[str, float], primary_key: str | None
) -> list[tuple[str, float]]:
    if not isinstance(reward, Mapping):
        if primary_key is not None:
            raise ValueError("primary_key is for a mapping of rewards")
        return [(PRIMARY, finite(reward))]
    if not reward:
        raise ValueError("a reward needs at least one dimension")
    if primary_key is None and len(reward) > 1:
        raise ValueError("primary_key must say which dimension is the reward")
    first = next(iter(reward)) if primary_key is None else primary_key
    if first not in reward:
        raise ValueError(f"primary_key {first!r} is none of {', '.join(map(str, reward))}")
    names = [first, *(name for name in reward if name != first)]
    return [(str(name), finite(reward[name])) for name in names]


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
