"""Writing rewards, as spans of the attempt that the calling code works on."""

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
    """Write down what the work so far was worth, as a span.

    `reward`: a number, or numbers by the names of their dimensions; `primary_key` then says which of them is
    the reward, and the others come along. A single dimension needs none.

    `tracer`: the one that a runner gave; unset, that of the attempt that the calling code works on, and
    outside of a runner the global provider's. The span hangs under the current span. A tracer that records
    nothing loses the reward, which is logged as a warning: in a process or thread that does not know the
    attempt, for instance, and where no provider is set up.

    Raises TypeError for anything but a number, ValueError for one that is not finite, and for several
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
