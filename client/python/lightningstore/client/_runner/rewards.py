"""Rewards, recorded as spans of the attempt that the calling code works on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lightningstore.client._runner.context import current
from lightningstore.client._values.rewards import ANNOTATION, PRIMARY, REWARD, finite
from opentelemetry import trace

logger = logging.getLogger(__name__)


def emit_reward(
    reward: float | Mapping[str, float],
    *,
    primary_key: str | None = None,
    tracer: trace.Tracer | None = None,
) -> None:
    """Record a reward, as a span named `agentlightning.annotation` below the current span.

    If the tracer does not record, the reward is lost, and a warning is logged: in a process or thread that does not
    belong to an attempt, for instance, without a global tracer provider.

    Args:
        reward: A number, or numbers by the names of their dimensions.
        primary_key: Name of the dimension that is the reward. Required for several dimensions.
        tracer: Tracer of the span. None: the tracer of the attempt that the calling code works on; outside of a
            runner, a tracer of the global provider.

    Raises:
        TypeError: A reward is not a number.
        ValueError: A reward is not finite, or the primary dimension is missing or unknown.

    Example:
        def agent(task, resources, tracer, context):
            emit_reward(0.5)
            emit_reward({"correct": 1.0, "short": 0.0}, primary_key="correct")
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
            "the reward %s is lost: this code does not belong to an attempt (it may run in a process or "
            "thread of its own), and the global tracer provider does not record; pass the tracer of the "
            "attempt to emit_reward, or set up a provider with a SpanExporter",
            reward,
        )
    span.end()


def _dimensions(
    reward: float | Mapping[str, float], primary_key: str | None
) -> list[tuple[str, float]]:
    if not isinstance(reward, Mapping):
        if primary_key is not None:
            raise ValueError("primary_key requires a mapping of rewards")
        return [(PRIMARY, finite(reward))]
    if not reward:
        raise ValueError("a reward needs at least one dimension")
    if primary_key is None and len(reward) > 1:
        raise ValueError("primary_key is required: it names the dimension that is the reward")
    first = next(iter(reward)) if primary_key is None else primary_key
    if first not in reward:
        raise ValueError(f"primary_key must be one of {', '.join(map(str, reward))}, not {first!r}")
    names = [first, *(name for name in reward if name != first)]
    return [(str(name), finite(reward[name])) for name in names]
